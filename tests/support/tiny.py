"""A run small enough to compile in seconds, for the tests that train."""

import dataclasses

import numpy as np

from train.config.find_objective import find_options
from train.config.run_config import Checkpoint, Log, Optim, Run, Tokenizer
from zoo import configs
from zoo.batch import Batch

MODEL = dict(vocab=257 + 43, context=32, layers=2, width=32, heads=4, head=8, ffn=64)
FLAGS = [
    *(part for name, value in MODEL.items() for part in (f"--model.{name}", str(value))),
    *("--tokenizer.vocab", "300", "--data.length", "32", "--data.batch", "8", "--optim.warmup", "5"),
    *("--log.every", "2", "--log.validate-every", "10", "--log.validate-rows", "8", "--log.samples", "0"),
]
"""The same run from the command line: `zoo train gpt-nano *FLAGS`."""


def run(objective: str = "causal", **changes) -> Run:
    """Return a run of an objective; the options of the objective are arguments beside the fields of the run."""
    kind = find_options(objective)
    names = {field.name for field in dataclasses.fields(kind)} & changes.keys()
    options = kind(**{name: changes.pop(name) for name in names})
    nano = configs.find_size("gpt-nano")[1].config
    model = dataclasses.replace(nano, **MODEL, dropout=0.1, embedding_dropout=0.1, attention_dropout=0.1)
    defaults = dict(
        recipe="tiny",
        model=model,
        steps=20,
        options=options,
        data=kind.data(length=32, batch=16),
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=Optim(lr=1e-2, warmup=5),
        checkpoint=Checkpoint(every=5),
        log=Log(every=2, validate_every=10, validate_rows=8, samples=0),
    )
    return Run(**{**defaults, **changes})


def with_options(run: Run, **changes) -> Run:
    """Return a run with other options of its objective."""
    return dataclasses.replace(run, options=dataclasses.replace(run.options, **changes))


def batch(step: int, rows: int = 16, length: int = 32, vocab: int = 300) -> Batch:
    """Text-like ids (Zipf's law), some predictions uncounted, numbered as a stream."""
    rng = np.random.default_rng(step)
    weights = 1 / np.arange(1, vocab + 1)
    ids = rng.choice(vocab, size=(rows, length + 1), p=weights / weights.sum()).astype(np.int32)
    counted = (rng.random((rows, length)) > 0.1).astype(np.float32)
    index = np.arange(step * rows, (step + 1) * rows, dtype=np.uint32)
    return Batch(tokens=ids[:, :-1], targets=ids[:, 1:], weights=counted, index=index)
