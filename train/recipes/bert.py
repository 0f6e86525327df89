"""Recipes of the BERT family."""

import dataclasses

from train.config.data_options import EncoderData
from train.config.objectives import MaskedOptions
from train.config.option_groups import Masking
from train.config.run_config import Checkpoint, Log, Optim, Run, Tokenizer
from zoo import configs
from zoo.configs import Compute


def bert_nano() -> Run:
    """Train a BERT of 2.7 million parameters on masked words and next sentences of Moby-Dick, on a laptop.

    Command: zoo train bert-nano
    Hardware: 2 CPU cores, float32.
    Time: 2 minutes 13 seconds.
    Expect: 6.08 nats per held-out masked word (unigram baseline: 6.45), 12 % of them correct; next sentences stay at 50 %.
    """
    model = configs.find_size("bert-nano")[1].config
    return Run(
        recipe="bert-nano",
        model=dataclasses.replace(model, compute=Compute(unroll=4)),
        steps=640,
        data=EncoderData(length=model.context, batch=16, rows="segment_pairs"),
        tokenizer=Tokenizer(kind="wordpiece", vocab=model.vocab),
        options=MaskedOptions(masking=Masking(most=20)),
        # From 2e-3 on it never becomes better than the unigram baseline.
        optim=Optim(lr=1e-3, warmup=64, schedule="linear", final=0.0, b2=0.999, eps=1e-6, weight_decay=0.01),
        checkpoint=Checkpoint(every=100),
        log=Log(every=10, validate_every=160, samples=0),
    )


def bert() -> Run:
    """Train BERT base from scratch on your own text, as published (Devlin et al. 2019, appendix A.2), with rows of 128 tokens.

    Command: zoo train bert --data.paths corpus.jsonl
    Hardware: meant for 8 accelerators.
    Time: not measured (no such hardware available).
    Expect: not measured. The paper trains the last tenth of the steps with 512 tokens: --data.length 512 --init RUN.
    """
    model = dataclasses.replace(configs.find_size("bert-base-uncased")[1].config, task="pretraining")
    return Run(
        recipe="bert",
        model=model,
        steps=1_000_000,
        data=EncoderData(length=128, batch=256, rows="segment_pairs"),
        tokenizer=Tokenizer(kind="wordpiece", vocab=model.vocab),
        # Google's code prepares ten masks of each row.
        options=MaskedOptions(masking=Masking(most=20, static=10)),
        optim=Optim(lr=1e-4, warmup=10_000, schedule="linear", final=0.0, b2=0.999, eps=1e-6, weight_decay=0.01),
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=10, validate_every=5_000, validate_rows=1_024, samples=0),
    )
