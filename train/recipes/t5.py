"""Recipes of the T5 family."""

import dataclasses

from train.config.data_options import PairData, TextData
from train.config.objectives import DenoisingOptions, TextToTextOptions
from train.config.provenance import provenance
from train.config.run_config import Checkpoint, Log, Optim, Run, Tokenizer
from train.weights import pretrained_config
from zoo import configs
from zoo.configs import Compute


def t5_nano() -> Run:
    """Train a T5 of 4.9 million parameters to predict removed spans of Moby-Dick, on a laptop.

    Command: zoo train t5-nano
    Hardware: 2 CPU cores, float32.
    Time: 2 minutes.
    Expect: perplexity 152 per token of the removed spans of the held-out chapters.
    """
    model = configs.find_size("t5-nano")[1].config
    return Run(
        recipe="t5-nano",
        model=dataclasses.replace(model, compute=Compute(unroll=4)),
        options=DenoisingOptions(),
        steps=300,
        data=TextData(length=128, batch=16),
        tokenizer=Tokenizer(kind="sentencepiece", vocab=model.vocab),
        optim=Optim(lr=3e-3, warmup=30, schedule="linear", final=0.05, b2=0.99, weight_decay=0.01),
        checkpoint=Checkpoint(every=100),
        log=Log(every=10, validate_every=100, samples=0),
    )


@provenance(
    "t5-base",
    "Raffel et al. 2020",
    published={
        "section 3.1.2": "steps data.length data.batch optim.name optim.lr optim.schedule optim.warmup",
        "section 3.1.3": "tokenizer.kind tokenizer.vocab",
        "section 3.3.4": "denoising.kind denoising.density denoising.mean_span",
    },
    assumed={"Adafactor clips each update, and the paper names no decay": "optim.clip optim.weight_decay"},
)
def t5() -> Run:
    """Train T5 base from scratch on your own text: the baseline of Raffel et al. 2020, section 3.1, with the final spans.

    Command: zoo train t5 --data.paths corpus.jsonl
    Hardware: meant for 8 accelerators.
    Time: not measured (no such hardware available).
    Expect: not measured. The paper's baseline sees 34 billion tokens of C4. Its final models: --steps 1000000 --data.batch 2048.
    """
    model = configs.find_size("t5-base")[1].config
    return Run(
        recipe="t5",
        model=model,
        options=DenoisingOptions(),
        steps=1 << 19,
        data=TextData(length=512, batch=128),
        # The last 28 rows of the embedding table belong to no token.
        tokenizer=Tokenizer(kind="sentencepiece", vocab=32_100),
        optim=Optim(name="adafactor", lr=1e-2, warmup=10_000, schedule="inverse_sqrt_flat", weight_decay=0.0, clip=0.0),
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=10, validate_every=5_000, validate_rows=1_024, samples=0),
    )


@provenance(
    "t5-v1.1-base",
    "google-research/t5x cc342d41, t5x/examples/t5/t5_1_1",
    published={
        "examples/base_c4_pretrain.gin, configs/runs/pretrain.gin": "steps data.length data.batch optim.lr optim.schedule "
        "optim.warmup denoising.kind denoising.density denoising.mean_span model.dropout",
        "base.gin": "optim.name z_loss",
    },
    assumed={
        "Adafactor clips each update, and the files name no decay": "optim.clip optim.weight_decay",
        "the vocabulary of T5": "tokenizer.kind tokenizer.vocab",
    },
    is_typical=False,
)
def t5_v1_1() -> Run:
    """Train T5 1.1 base from scratch on your own text as T5X does (t5_1_1).

    Command: zoo train t5-v1-1 --data.paths corpus.jsonl
    Hardware: meant for 8 accelerators.
    Time: not measured (no such hardware available).
    Expect: not measured. The released T5 1.1 had 1,000,000 steps of 2,048 rows.
    """
    model = dataclasses.replace(configs.find_size("t5-v1.1-base")[1].config, dropout=0.0)
    return Run(
        recipe="t5-v1-1",
        model=model,
        options=DenoisingOptions(),
        steps=100_000,
        z_loss=1e-4,
        data=TextData(length=512, batch=256),
        tokenizer=Tokenizer(kind="sentencepiece", vocab=32_100),
        optim=Optim(name="adafactor", lr=1e-2, warmup=10_000, schedule="inverse_sqrt_flat", weight_decay=0.0, clip=0.0),
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=10, validate_every=5_000, validate_rows=1_024, samples=0),
    )


def finetune_text_to_text(init: str = "") -> Run:
    """Fine-tune a T5 to map a text to a text: a translation, a summary, an answer (Raffel et al. 2020, section 3.1.2).

    Command: zoo train finetune-text-to-text --init DIR --pairs.source train.en --pairs.target train.de
    Hardware: 2 CPU cores, float32.
    Time: not measured.
    Expect: not measured. The paper takes 262,144 steps of 128 rows.
    """
    model = pretrained_config.read_model_config(init) if init else configs.find_size("t5-small")[1].config
    return Run(
        recipe="finetune-text-to-text",
        model=model,
        options=TextToTextOptions(),
        init=init,
        steps=1_000,
        data=PairData(length=128, batch=16, pack=model.is_encoder_decoder),
        tokenizer=Tokenizer(kind="sentencepiece", vocab=model.vocab),
        optim=Optim(name="adafactor", lr=1e-3, warmup=0, schedule="constant", weight_decay=0.0, clip=0.0),
        checkpoint=Checkpoint(every=200),
        log=Log(every=10, validate_every=100, validate_rows=256, samples=0),
    )
