"""Recipes of the ModernBERT family."""

import dataclasses

from train.config.data_options import EncoderData
from train.config.objectives import MaskedOptions
from train.config.option_groups import Masking
from train.config.run_config import Checkpoint, Log, Optim, Run, Tokenizer
from zoo import configs
from zoo.configs import Compute

THIRD = Masking(rate=0.3)
"""ModernBERT and Ettin predict 30 % of the tokens (Warner et al. 2024, section 2.2.1)."""


def modernbert_nano() -> Run:
    """Train a ModernBERT of 2.3 million parameters on masked words of Moby-Dick, on a laptop.

    Command: zoo train modernbert-nano
    Hardware: 2 CPU cores, float32.
    Time: not measured.
    Expect: not measured.
    """
    model = configs.find_size("modernbert-nano")[1].config
    return Run(
        recipe="modernbert-nano",
        model=dataclasses.replace(model, compute=Compute(unroll=1)),
        options=MaskedOptions(masking=THIRD),
        steps=640,
        data=EncoderData(length=model.context, batch=16, rows="full_sentences"),
        tokenizer=Tokenizer(kind="modernbert", vocab=model.vocab),
        optim=Optim(lr=2e-3, warmup=64, schedule="linear", final=0.0, b2=0.98, eps=1e-6, weight_decay=0.01),
        checkpoint=Checkpoint(every=100),
        log=Log(every=10, validate_every=160, samples=0),
    )
