"""A run's batches, and its training step on one of them as a program to be timed."""

import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.config import run_config
from train.engine import optim
from train.engine.state import State
from train.inputs import run_inputs
from train.objectives import objective
from train.rows.batches import Batches
from train.run.run_dir import RunDir
from train.step.training_step import make_step
from zoo import models
from zoo.batch import Batch
from zoo.runtime import caches


def first_batches(run: run_config.Run, limit: int | None = None) -> list[Batch]:
    """Return the batches of the first epoch on the host, at most `limit`; the last one is filled up from the next epoch."""
    with tempfile.TemporaryDirectory() as scratch:
        data = run_inputs.read_inputs(run, RunDir(Path(scratch)), caches.cache_dir() / "text", quiet=True)
        batches = Batches(data.rows, run_inputs.builder(run, data), run.seed, run.data.batch, np.arange(run.data.batch))
        with batches.read(0) as stream:
            return list(islice(stream, limit or -(-len(data.rows) // run.data.batch)))


def recipe_step_program(run: run_config.Run, batch: Batch) -> Callable[[], object]:
    """Return the run's step in float32, from fresh parameters, repeated on one batch."""
    return repeated_step(*compile_step(run, batch))


def compile_step(run: run_config.Run, batch: Batch) -> tuple[Any, State, Batch]:
    """Return the run's step in float32, compiled, and its arguments: fresh parameters, and the batch on the device."""
    model, tx = models.model(run.model), optim.make_optimizer(run.optim)
    params = jax.jit(model.init)(jax.random.key(0))
    carry, key = model.init_carry(run.data.batch), jnp.zeros(2, jnp.uint32)
    # A state may begin with the parameters themselves, and no array can be donated twice.
    opt_state = jax.tree.map(jnp.copy, tx.init(params))
    state = State(step=jnp.int32(0), params=params, opt_state=opt_state, carry=carry, key=key)
    step = jax.jit(make_step(run, model, objective(run.objective)(), tx, jnp.float32), donate_argnums=0)
    batch = jax.tree.map(jnp.asarray, batch)
    return step.lower(state, batch).compile(), state, batch


def repeated_step(step: Any, first: State, batch: Batch) -> Callable[[], object]:
    """Return a program that takes a step on the batch from the state that the one before it returned."""
    state = [first]

    def once() -> Any:
        state[0], metrics = step(state[0], batch)
        return jax.block_until_ready(metrics)

    return once
