"""Each optimizer on a mesh: the updates of one device, and no gathers of the matrices of all layers."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import tiny
from tests.train.engine.test_optimizers import options_of
from train.config.optim_options import Optim
from train.config.run_config import Mesh
from train.engine import device_mesh, matrix_axes, optim
from train.engine.optimizers import DIRECTIONS
from zoo import sharding
from zoo.models import model

MESH = Mesh(data=1, fsdp=4, tensor=2)


def compiled_update(cfg: Optim, shapes: Any) -> tuple[Any, Any, Any]:
    """Return the second of two updates, compiled for eight devices, the shardings of the parameters, and its function."""
    mesh = device_mesh.make_mesh(MESH, jax.devices()[:8])
    own = sharding.shardings(mesh, shapes, ())
    tx = optim.make_optimizer(cfg)

    def update(grads: Any, params: Any) -> Any:
        # The first update of SOAP is zero, and the second one uses the bases of the first gradient.
        _, state = tx.update(grads, tx.init(params), params, lr=1e-2)
        return tx.update(jax.tree.map(jnp.sin, grads), state, params, lr=1e-2)[0]

    with jax.set_mesh(mesh):
        return jax.jit(update, in_shardings=(own, own), out_shardings=own).lower(shapes, shapes).compile(), own, update


@functools.cache
def layers_of_a_model() -> tuple[Any, Any]:
    """Parameters and gradients of two layers of a small GPT."""
    shapes = jax.eval_shape(lambda: model(tiny.run().model).init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    first, second = (jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype("f4"), shapes) for _ in range(2))
    return first, second


@pytest.mark.full
@pytest.mark.parametrize("name", DIRECTIONS)
def test_updates_on_a_mesh_are_those_on_one_device(name: str) -> None:
    """In float64, because the eigenvectors of SOAP have errors in float32 that depend on the processor."""
    with jax.enable_x64(True):
        params, grads = jax.tree.map(np.float64, layers_of_a_model())
        compiled, shardings, update = compiled_update(options_of(name), jax.eval_shape(lambda: params))
        expected = jax.jit(update)(grads, params)
        updates = compiled(*(jax.tree.map(jax.device_put, tree, shardings) for tree in (grads, params)))
        for own, other in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
            assert other.dtype == jnp.float64
            np.testing.assert_allclose(np.asarray(own), other, rtol=1e-9, atol=1e-9 * np.abs(other).max())


def gathers(text: str) -> int:
    return len(re.findall(r" all-gather(?:-start)?\(", text))


@pytest.mark.planted
@pytest.mark.parametrize("name", ["muon", "soap"])
def test_optimizers_of_matrices_gather_no_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device has its part of the matrices: they are exchanged, and never gathered."""
    shapes = jax.eval_shape(lambda: layers_of_a_model()[0])
    assert gathers(compiled_update(options_of(name), shapes)[0].as_text()) == 0
    monkeypatch.setattr(matrix_axes, "constrain", lambda x, *axes: x)
    assert gathers(compiled_update(options_of(name), shapes)[0].as_text()) > 0
