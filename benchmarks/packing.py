"""What packing rows is worth: useful tokens a second, packed against unpacked: `python -m benchmarks.packing`.

A recipe's own training step on its own text, once with a sequence a row and once with sequences packed into rows of the same
length, timed in the same rounds on the same shapes. Useful tokens are those that are not padding; were both steps equally fast,
the gain would be the ratio of the rows' fill. Prints Markdown.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from train import config, inputs, optim, recipes
from train.batches import Batches
from train.folder import Folder
from train.objectives import objective
from train.state import State
from train.step import make_step
from zoo import models, runtime
from zoo.batch import Batch

CASES = (
    ("bert-nano", "sentence_pairs"),
    ("bert-nano", "segment_pairs"),
    ("roberta-nano", "sentence_pairs"),
    ("roberta-nano", "doc_sentences"),
    ("distilbert-nano", "doc_sentences"),
)
"""A recipe, and what a sequence of its rows is. The student learns masked words alone: its teacher's time is not packing's."""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    timing.begin()
    print("| recipe | rows | fill, unpacked and packed | ratio | step, packed over unpacked | useful tokens/s, ratio | off by |")
    print("|---|---|---|---|---|---|---|")
    for recipe, rows in CASES:
        fills, programs = zip(*(_program(_run(recipe, rows, pack=pack)) for pack in (False, True)), strict=True)
        seconds = timing.interleaved(dict(zip(("unpacked", "packed"), programs, strict=True)), asked.rounds)
        slower = float(np.median(seconds["packed"]) / np.median(seconds["unpacked"]))
        fuller = fills[1] / fills[0]
        told = f"{fills[0]:.3f} {fills[1]:.3f} | {fuller:.3f} | {slower:.3f} | {fuller / slower:.3f} | {1 / slower - 1:+.1%}"
        print(f"| {recipe} | {rows} | {told} |", flush=True)
    return 0


def _run(recipe: str, rows: Any, *, pack: bool) -> config.Run:
    run = recipes.find(recipe)()
    data = dataclasses.replace(run.data, rows=rows, pack=pack)
    return dataclasses.replace(run, objective="masked", distillation=config.Distillation(), data=data, precision="float32")


def _program(run: config.Run) -> tuple[float, Callable[[], object]]:
    """The share of all tokens of the run's rows that is not padding, and its step on one batch of them."""
    with tempfile.TemporaryDirectory() as scratch:
        data = inputs.read(run, Folder(Path(scratch)), runtime.cache_dir() / "text", quiet=True)
        batches = Batches(data.rows, inputs.builder(run, data), run.seed, run.data.batch, np.arange(run.data.batch))
        with batches.read(0) as stream:
            several = [next(stream) for _ in range(-(-len(data.rows) // run.data.batch))]
    fill = float(np.mean([(batch.segments > 0).mean() for batch in several if batch.segments is not None]))
    net, tx = models.model(run.model), optim.optimizer(run.optim)
    params = jax.jit(net.init)(jax.random.key(0))
    held = [State(step=jnp.int32(0), params=params, opt_state=tx.init(params), carry={}, key=jnp.zeros(2, jnp.uint32))]
    step = jax.jit(make_step(run, net, objective(run.objective), tx, jnp.float32), donate_argnums=0)
    batch: Batch = jax.tree.map(jnp.asarray, several[0])

    def once() -> Any:
        held[0], metrics = step(held[0], batch)
        return jax.block_until_ready(metrics)

    return fill, once


if __name__ == "__main__":
    sys.exit(main())
