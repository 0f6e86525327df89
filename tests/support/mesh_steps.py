"""Training steps of a small model with dropout on a mesh: their losses and the first gradient."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.support import tiny
from train.config import run_config
from train.engine import device_mesh, optim, state_init
from train.objectives.causal import Causal
from train.step.assembly import ENGINES
from train.step.training_step import make_step
from zoo.configs import Compute
from zoo.mesh_axes import AXES
from zoo.models import model

ONE = run_config.Mesh(data=1)
STEPS = 20


def train(
    steps: int = STEPS,
    *,
    mesh: run_config.Mesh = ONE,
    compute: dict[str, Any] | None = None,
    **changes: Any,
) -> tuple[np.ndarray, Any]:
    """Return the losses of `steps` steps, float64[steps], and the first step's gradient.

    Args:
        mesh: sizes of all axes, on as many of the devices.
        compute: fields of `Compute`.
        changes: fields of the run.
    """
    run = tiny.run(mesh=mesh, **changes)
    assert min(run.model.dropout, run.model.attention_dropout, run.model.embedding_dropout) > 0
    if compute:
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, compute=Compute(**compute)))
    devices = device_mesh.make_mesh(run.mesh, jax.devices()[: math.prod(getattr(mesh, axis) for axis in AXES)])
    device_mesh.check_mesh(run, devices)
    # The trace of decay 0 is the gradient itself, passed on.
    net, tx = model(run.model), optax.chain(optax.trace(0.0), optim.make_optimizer(run.optim))
    places = jax.tree.map(lambda leaf: leaf.sharding, state_init.abstract_state(run, net, tx, devices))
    engine = ENGINES[run.engine](make_step(run, net, Causal(), tx, jnp.float32), devices, places, run.data.batch)
    state, losses, gradient = engine.shard(state_init.init_state(run, net, tx, devices)), [], None
    with jax.transfer_guard("disallow"):
        for step in range(steps):
            local = jax.tree.map(lambda leaf: leaf[device_mesh.local_rows(devices, run.data.batch)], tiny.batch(step))
            state, metrics = engine.step(state, engine.shard_batch(local))
            losses.append(float(jax.device_get(metrics["loss"].addressable_data(0)).reshape(-1)[0]))
            if step == 0:
                gradient = jax.device_get(engine.get(state).opt_state[0].trace)
    return np.array(losses), gradient
