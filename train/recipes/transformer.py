"""Recipes of the original Transformer (Vaswani et al. 2017)."""

import dataclasses

from train.config.data_options import PairData
from train.config.objectives import TextToTextOptions
from train.config.provenance import provenance
from train.config.run_config import Checkpoint, Log, Optim, Run, Tokenizer
from zoo import configs
from zoo.configs import Compute


def transformer_nano() -> Run:
    """Train a small Transformer to translate short sentences (Multi30k), on a laptop.

    Command: zoo train transformer-nano --pairs.source train.en --pairs.target train.de
    Hardware: 2 CPU cores, float32.
    Time: 26 minutes for the 29,000 pairs of Multi30k, English to German, including scoring.
    Expect: held-out perplexity 6.48 per token; BLEU 37.2 on test_2016_flickr (--beams 4 --length-penalty 0.6), greedy 35.5.
    """
    model = configs.find_size("transformer-nano")[1].config
    return Run(
        recipe="transformer-nano",
        model=dataclasses.replace(model, compute=Compute(unroll=3)),
        options=TextToTextOptions(),
        steps=1_600,
        label_smoothing=0.1,
        # About 6 pairs per row.
        data=PairData(length=96, batch=24, pack=True),
        tokenizer=Tokenizer(kind="sentencepiece", vocab=model.vocab),
        # With so few steps, a rate that decays to 0 gives better results than the paper's schedule.
        optim=Optim(lr=1.5e-3, warmup=200, schedule="linear", final=0.0, b2=0.98, eps=1e-9, weight_decay=0.0, clip=1.0),
        checkpoint=Checkpoint(every=200, keep=5),
        log=Log(every=10, validate_every=200, validate_rows=256, samples=4),
    )


@provenance(
    "transformer-base",
    "Vaswani et al. 2017",
    published={
        "section 5.3": "optim.name optim.lr optim.schedule optim.warmup optim.b1 optim.b2 optim.eps",
        "section 5.4": "label_smoothing",
        "section 5.2": "steps",
        "section 5.1": "tokenizer.vocab",
    },
    assumed={
        "about 25,000 tokens per side and step, as section 5.1 says, in packed rows": "data.length data.batch data.pack",
        "the paper names neither": "optim.weight_decay optim.clip",
        "a unigram model in place of the paper's byte pairs": "tokenizer.kind",
    },
)
def transformer_base() -> Run:
    """Train the Transformer base on your own pairs, as published (section 5) but with a unigram vocabulary.

    Command: zoo train transformer-base --pairs.source train.en --pairs.target train.de
    Hardware: meant for 8 accelerators.
    Time: not measured (no such hardware available); the paper took 12 hours on 8 P100.
    Expect: not measured. The paper has 27.3 BLEU from English to German on newstest2014, after averaging 5 checkpoints.
    """
    model = configs.find_size("transformer-base")[1].config
    return Run(
        recipe="transformer-base",
        model=model,
        options=TextToTextOptions(),
        steps=100_000,
        label_smoothing=0.1,
        data=PairData(length=256, batch=96, pack=True),
        tokenizer=Tokenizer(kind="sentencepiece", vocab=model.vocab),
        optim=_noam(model.width, 4_000),
        checkpoint=Checkpoint(every=1_000, keep=5),
        log=Log(every=10, validate_every=1_000, validate_rows=1_024, samples=0),
    )


def _noam(width: int, warmup: int) -> Optim:
    """Return Adam with the learning rate of section 5.3: width^-1/2 min(n^-1/2, n warmup^-3/2) at step n."""
    peak = (width * warmup) ** -0.5
    return Optim(lr=peak, warmup=warmup, schedule="inverse_sqrt", b2=0.98, eps=1e-9, weight_decay=0.0, clip=0.0)
