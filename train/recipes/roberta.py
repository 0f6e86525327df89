"""Recipes of the RoBERTa family."""

import dataclasses

from train.config.data_options import EncoderData
from train.config.objectives import MaskedOptions
from train.config.provenance import provenance
from train.config.run_config import Checkpoint, Log, Optim, Run, Tokenizer
from zoo import configs
from zoo.configs import Compute


def roberta_nano() -> Run:
    """Train a RoBERTa of 2.6 million parameters on masked words of Moby-Dick, with dynamic masking, on a laptop.

    Command: zoo train roberta-nano
    Hardware: 2 CPU cores, float32.
    Time: 2 minutes 17 seconds.
    Expect: 6.20 nats per held-out masked token (unigram baseline: 6.56), 12 % of them correct.
    """
    model = configs.find_size("roberta-nano")[1].config
    return Run(
        recipe="roberta-nano",
        model=dataclasses.replace(model, compute=Compute(unroll=4)),
        options=MaskedOptions(),
        steps=640,
        data=EncoderData(length=model.context, batch=16, rows="full_sentences"),
        tokenizer=Tokenizer(kind="roberta", vocab=model.vocab),
        optim=Optim(lr=1e-3, warmup=64, schedule="linear", final=0.0, b2=0.98, eps=1e-6, weight_decay=0.01),
        checkpoint=Checkpoint(every=100),
        log=Log(every=10, validate_every=160, samples=0),
    )


@provenance(
    "roberta-base",
    "Liu et al. 2019",
    published={
        "table 9": "steps optim.name optim.lr optim.warmup optim.schedule optim.b1 optim.b2 optim.eps "
        "optim.weight_decay optim.clip",
        "section 4.1": "masking.static masking.rate masking.masked masking.random",
        "sections 4.2 and 5": "data.rows data.length",
        "section 4.4": "tokenizer.kind tokenizer.vocab",
    },
    assumed={
        "8K in the table": "data.batch",
        "fairseq's polynomial decay ends at 0": "optim.final",
        "as in BERT": "optim.decayed",
    },
)
def roberta() -> Run:
    """Train RoBERTa base from scratch on your own text, as published (Liu et al. 2019, table 9).

    Command: zoo train roberta --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_ROBERTA_TOKENIZER_JSON
    Hardware: meant for many accelerators: a step is four million tokens; with --accumulate it fits on fewer.
    Time: not measured (no such hardware available).
    Expect: not measured. The paper's base model of 1M steps of 256 rows has perplexity 3.99 (its table 3).
    """
    model = dataclasses.replace(configs.find_size("roberta-base")[1].config, task="masked")
    return Run(
        recipe="roberta",
        model=model,
        options=MaskedOptions(),
        steps=500_000,
        data=EncoderData(length=model.context, batch=8_192, rows="full_sentences"),
        tokenizer=Tokenizer(kind="roberta", vocab=model.vocab),
        optim=Optim(lr=6e-4, warmup=24_000, schedule="linear", final=0.0, b2=0.98, eps=1e-6, weight_decay=0.01, clip=0.0),
        accumulate=16,
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=10, validate_every=5_000, validate_rows=1_024, samples=0),
    )
