"""Loss of a small GPT with moments in three roundings: `python -m benchmarks.micro.moment_rounding`.

AdamW trains the same models on the same batches with moments in float32, in bfloat16 with stochastic rounding, and in bfloat16
with rounding to the nearest, which `--optim.moments` does not offer. Prints Markdown.
"""

import dataclasses
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.micro import script_setup
from train import recipes
from train.config import optim_options, run_config
from train.engine import device_mesh, moments, state_init
from train.inputs import run_inputs
from train.objectives import objective
from train.rows.batches import Batches
from train.run.run_dir import RunDir
from train.step.assembly import assemble
from zoo import models
from zoo.runtime import caches

ROUNDINGS = {"float32": ("float32", False), "bfloat16, stochastic": ("bfloat16", False), "bfloat16, nearest": ("bfloat16", True)}
"""Title -> the value of `--optim.moments`, and whether it rounds to the nearest in place of at random."""
LAST = 100
"""Number of steps, the last ones, whose mean loss is printed."""
SHAPE = dict(layers=2, width=64, heads=4, head=16, ffn=256, context=64, dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0)


def print_losses() -> int:
    """Train with every rounding and seed, print a table, and return the exit code."""
    assert {value for value, _ in ROUNDINGS.values()} == set(get_args(optim_options.Moments))
    options = script_setup.start_measurement("moment_rounding", __doc__, seeds=3, steps=1000)
    print(
        f"Mean of the last {LAST} of {options.steps:,} steps, in bits of a token; differences from float32 with the same seed.\n"
    )
    print("| seed | b2 | " + " | ".join(ROUNDINGS) + " | stochastic | nearest |\n|" + "---|" * (len(ROUNDINGS) + 4))
    for b2, seed in itertools.product((0.95, 0.999), range(options.seeds)):
        losses = [_loss(_run(seed, options.steps, b2, value), nearest=nearest) for value, nearest in ROUNDINGS.values()]
        columns = [f"{loss:.4f}" for loss in losses] + [f"{loss - losses[0]:+.4f}" for loss in losses[1:]]
        print(f"| {seed} | {b2} | " + " | ".join(columns) + " |", flush=True)
    return 0


def _run(seed: int, steps: int, b2: float, value: Any) -> run_config.Run:
    run = recipes.find_recipe("gpt-nano")()
    model: Any = run.model
    compute = dataclasses.replace(model.compute, unroll=1)
    return dataclasses.replace(
        run,
        model=dataclasses.replace(model, **SHAPE, compute=compute),
        data=dataclasses.replace(run.data, length=SHAPE["context"]),
        optim=dataclasses.replace(run.optim, name="adamw", b2=b2, moments=value),
        steps=steps,
        seed=seed,
        precision="float32",
    )


def _loss(run: run_config.Run, *, nearest: bool) -> float:
    """Return the mean loss of the last `LAST` steps, in bits of a token."""
    mesh = device_mesh.make_mesh(run.mesh, jax.devices()[:1])
    assembled = assemble(run, objective(run.objective)(), mesh)
    state = state_init.init_state(run, models.model(run.model), assembled.tx, mesh)
    stochastic, losses = moments.round_stochastically, []
    with tempfile.TemporaryDirectory() as scratch:
        data = run_inputs.read_inputs(run, RunDir(Path(scratch)), caches.cache_dir() / "text", quiet=True)
        batches = Batches(data.rows, run_inputs.builder(run, data), run.seed, run.data.batch, np.arange(run.data.batch))
        try:
            if nearest:
                moments.round_stochastically = lambda x, bits: x.astype(jnp.bfloat16)
            with batches.read(0) as stream:
                for batch in itertools.islice(stream, run.steps):
                    state, metrics = assembled.engine.step(state, assembled.engine.shard_batch(batch))
                    losses.append(metrics["loss"])
        finally:
            moments.round_stochastically = stochastic
    return float(np.mean(jax.device_get(losses[-LAST:])) / np.log(2))


if __name__ == "__main__":
    sys.exit(script_setup.run_measurement(print_losses))
