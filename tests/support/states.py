"""States as a run has them, for the tests of checkpoints."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.checkpoints.checkpoints import Checkpoints
from train.engine.state import State

Spec = jax.sharding.PartitionSpec
META = {"model": {"layers": 2, "rate": 0.1}, "tokenizer": "ab12", "names": ["a", "b"]}


def mesh_of(*shape: int) -> jax.sharding.Mesh:
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, ("a", "b")[: len(shape)], axis_types=(jax.sharding.AxisType.Auto,) * len(shape), devices=devices)


def make(step: int, mesh: jax.sharding.Mesh | None = None, width: int = 64) -> State:
    """A state as a run has it: sharded and replicated leaves, of several dtypes, different at every step."""
    mesh = mesh or mesh_of(8)
    rng = np.random.default_rng(step)

    def place(value: np.ndarray, spec: Spec = Spec()) -> jax.Array:  # noqa: B008
        return jax.make_array_from_callback(value.shape, jax.NamedSharding(mesh, spec), lambda index: value[index])

    params = {
        "embed": {"table": place(rng.standard_normal((16, width), np.float32), Spec("a"))},
        "blocks": {
            "scale": place(rng.standard_normal((3, 16)).astype(jnp.bfloat16)),
            "bias": place(rng.standard_normal(16, np.float32)),
        },
    }
    moments = optax.ScaleByAdamState(
        count=place(np.array(step, np.int32)), mu=jax.tree.map(lambda p: p * 2, params), nu=jax.tree.map(lambda p: p * p, params)
    )
    carry = {"memory": place(rng.integers(0, 255, (8, 4), np.uint8), Spec("a"))}
    key = place(rng.integers(0, 1 << 32, 2, np.uint32))
    return State(
        step=place(np.array(step, np.int32)), params=params, opt_state=(moments, optax.EmptyState()), carry=carry, key=key
    )


def abstract(state: State, change: Callable[[jax.Array], jax.sharding.Sharding | None] = lambda leaf: leaf.sharding) -> State:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=change(leaf)), state)


def bits(state: State) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


class Log(list[str]):
    def __call__(self, message: str) -> None:
        assert "\n" not in message
        self.append(message)


def save_all(folder: Path, *steps: int, keep: int = 9) -> None:
    with Checkpoints(folder, keep, notify=pytest.fail) as checkpoints:
        for step in steps:
            checkpoints.save(make(step), META | {"step": step})
            assert checkpoints.wait()


def restored(checkpoints: Checkpoints, **options: Any) -> State:
    result = checkpoints.restore(abstract(make(0)), **options)
    assert result is not None
    state, meta = result
    assert meta == META | {"step": int(state.step)}
    assert bits(state) == bits(make(int(state.step)))
    return state
