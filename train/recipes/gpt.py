"""Recipes of the GPT family."""

from train.config import Checkpoint, Data, Log, Optim, Run, Tokenizer
from zoo import configs


def gpt_nano() -> Run:
    """A GPT that trains on the embedded corpus in minutes on a laptop."""
    model = configs.find("gpt-nano")[1].config
    return Run(
        recipe="gpt-nano",
        model=model,
        steps=1500,
        data=Data(length=model.context, batch=16),
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=Optim(lr=2e-3, warmup=100, final=0.05, b2=0.99),
        checkpoint=Checkpoint(every=100),
        log=Log(every=10, validate_every=100),
    )
