"""Batches of pairs of answers, steps on them, and the comparison of losses and gradients with those of torch."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from tests.golden import make
from train.config import run_config
from train.engine import device_mesh, optim, state_init
from train.objectives.base import Objective
from train.step.assembly import ENGINES
from train.step.training_step import make_step
from zoo import published_weights
from zoo.batch import Batch
from zoo.hf import safetensors_dir
from zoo.models import model

MESHES: dict[str, dict[str, Any]] = {
    "2 micro-batches": {"mesh": run_config.Mesh(data=1), "accumulate": 2},
    "data=4": {"mesh": run_config.Mesh(data=4)},
    "pmap": {"mesh": run_config.Mesh(data=8), "engine": "pmap"},
    "fsdp=2, tensor=2": {"mesh": run_config.Mesh(data=2, fsdp=2, tensor=2)},
}
_TIERS: dict[str, Any] = {"2 micro-batches": (), "data=4": pytest.mark.slow}
MESH_CASES = [pytest.param(name, marks=_TIERS.get(name, pytest.mark.full)) for name in MESHES]


def batch_of(ids: np.ndarray, real: np.ndarray, answer: np.ndarray) -> Batch:
    """Return a decoder's batch of (ids, which are real, which belong to an answer), [pairs, 2, T]."""
    following = np.pad(ids[..., 1:], ((0, 0), (0, 0), (0, 1)))
    weights = np.pad(answer[..., 1:], ((0, 0), (0, 0), (0, 1))).astype(np.float32)
    tokens, targets, segments = (jnp.asarray(array, jnp.int32) for array in (ids, following, real))
    return Batch(tokens=tokens, segments=segments, targets=targets, weights=jnp.asarray(weights))


def assert_equal_to_torch(cfg: Any, value: Any, gradients: Any, expected: dict[str, Any], folder: Path) -> None:
    """Compare a loss within 1e-5, and its gradients by the project's bound against torch."""
    assert float(value) == pytest.approx(expected["loss"], abs=1e-5)
    published_weights.save_published(folder, cfg, gradients)
    stored = load_file(folder / safetensors_dir.SINGLE)
    total = math.hypot(*(norm for norm, _ in expected["gradients"].values()))
    assert stored.keys() == expected["gradients"].keys()
    for tensor, probe in expected["gradients"].items():
        bound = math.sqrt(stored[tensor].size) * (1e-3 * probe[0] + 1e-5 * total)
        assert make.probe(tensor, stored[tensor]) == pytest.approx(probe, abs=bound), tensor


def pairs_of(net: Any, pad: int = 0, rows: int = 2) -> Batch:
    """Return pairs of a family's fields, as `train.rows.feedback.preference_rows` makes them, with `pad` more places."""
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 300, (rows, 2, 10 + pad)).astype(np.int32)
    ids[..., :10] = np.random.default_rng(7).integers(2, 300, (rows, 2, 10))
    at, sizes = np.arange(10 + pad), np.array([[8, 6], [5, 9]] * (rows // 2))[..., None]
    segments = (at < sizes).astype(np.int32)
    fields = dict(tokens=jnp.asarray(ids), segments=jnp.asarray(segments), positions=jnp.asarray(at * segments, jnp.int32))
    weights = ((at >= 2) & (at < sizes)).astype(np.float32)
    source = Batch(**fields) if net.is_encoder_decoder else None
    reference = jnp.asarray(rng.standard_normal((rows, 2)), jnp.float32)
    targets = jnp.roll(fields["tokens"], -1, -1)
    index = jnp.arange(rows, dtype=jnp.uint32)
    return Batch(
        **fields, targets=targets, weights=jnp.asarray(weights), source=source, index=index, extra={"reference": reference}
    )


def first_steps(run: run_config.Run, objective: Objective, batch: Batch) -> tuple[list[float], Any]:
    """Return the losses of three steps on a batch, and the first gradient."""
    net, devices = model(run.model), jax.devices()[: run.mesh.data * run.mesh.fsdp * run.mesh.tensor]
    mesh, tx = device_mesh.make_mesh(run.mesh, devices), optax.chain(optax.trace(0.0), optim.make_optimizer(run.optim))
    trained = state_init.all_params(net).beside(objective.added_params(net))
    places = jax.tree.map(lambda leaf: leaf.sharding, state_init.abstract_state(run, net, tx, mesh, trained))
    engine = ENGINES[run.engine](make_step(run, net, objective, tx, jnp.float32), mesh, places, run.data.batch)
    state, losses, gradient = engine.shard(state_init.init_state(run, net, tx, mesh, None, trained)), [], None
    frozen = engine.replicate(objective.frozen_inputs())
    batch = jax.tree.map(np.asarray, batch)
    for number in range(3):
        state, metrics = engine.step(state, engine.shard_batch(batch), frozen)
        losses.append(float(jax.device_get(metrics["loss"].addressable_data(0)).reshape(-1)[0]))
        gradient = jax.device_get(engine.get(state).opt_state[0].trace) if number == 0 else gradient
    return losses, gradient
