"""Recipes of the GPT family."""

import dataclasses

from train.config import Checkpoint, Data, Log, Optim, Run, Tokenizer
from zoo import configs
from zoo.configs import Compute


def gpt_nano() -> Run:
    """A GPT of 2.6 million parameters that learns Moby-Dick in minutes on a laptop.

    Command: `zoo train gpt-nano`
    """
    model = configs.find("gpt-nano")[1].config
    return Run(
        recipe="gpt-nano",
        # Four unrolled layers need no stacking of what the backward pass keeps.
        model=dataclasses.replace(model, compute=Compute(unroll=4)),
        steps=600,
        data=Data(length=model.context, batch=16),
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=Optim(lr=3e-3, warmup=60, final=0.05, b2=0.99),
        checkpoint=Checkpoint(every=100),
        log=Log(every=10, validate_every=100),
    )
