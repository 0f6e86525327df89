"""Muon: what it does to each matrix, which leaves it leaves to Adam, and that no kernel of a family is forgotten."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.config.run_config import Optim
from train.engine import matrix_axes, optim
from zoo import configs
from zoo.models import model
from zoo.sharding import path_of


def first_update(cfg: Optim, grads: Any) -> Any:
    """Return what the first update subtracts at a learning rate of 1."""
    tx = optim.make_optimizer(cfg)
    return jax.tree.map(jnp.negative, tx.update(grads, tx.init(grads), grads)[0])


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Five steps of Jordan et al. 2024 in float64, on a matrix scaled to norm 1."""
    x = np.float64(matrix) / np.linalg.norm(matrix)
    x = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


@pytest.mark.parametrize(
    ("path", "shape", "matrix"),
    [
        ("attention/qkv", (3, 8, 3, 2, 6), lambda leaf, part: leaf[:, part].reshape(8, 12)),
        ("cross/q", (3, 8, 2, 6), lambda leaf, _: leaf.reshape(8, 12)),
        ("attention/out", (3, 2, 6, 8), lambda leaf, _: leaf.reshape(12, 8)),
        ("mlp/up", (3, 8, 16), lambda leaf, _: leaf),
        ("mlp/gated", (3, 8, 2, 16), lambda leaf, part: leaf[:, part % 2]),
    ],
)
def test_muon_orthogonalizes_each_matrix_of_each_layer(path: str, shape: tuple[int, ...], matrix: Any) -> None:
    """Layers, and queries, keys and values, are separate matrices; heads are one. The scale is Adam's (Liu et al. 2025)."""
    module, name = path.split("/")
    grads = {"layers": {module: {name: {"kernel": np.random.default_rng(0).standard_normal(shape).astype("f4")}}}}
    updates = jax.jit(functools.partial(first_update, Optim(name="muon", clip=0.0, weight_decay=0.0)))(grads)
    update, grad = (np.asarray(tree["layers"][module][name]["kernel"]) for tree in (updates, grads))
    for layer, part in itertools.product(range(3), range(3)):
        expected = newton_schulz(matrix(grad[layer], part))
        expected *= 0.2 * np.sqrt(max(expected.shape))
        np.testing.assert_allclose(matrix(update[layer], part), expected, atol=2e-5)


def test_muon_uses_adam_outside_the_matrices_of_the_layers() -> None:
    leaves = {
        "embed": {"tokens": {"embedding": jnp.ones((5, 2))}},
        "layers": {"mlp": {"up": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}}},
        "classifier": {"kernel": jnp.ones((2, 2))},
    }
    grads = jax.tree.map(lambda leaf: jnp.linspace(-1, 1, leaf.size).reshape(leaf.shape), leaves)
    equal = jax.tree.map(jnp.array_equal, *(first_update(Optim(name=name), grads) for name in ("muon", "adamw")))
    unequal = [path_of(keys) for keys, same in jax.tree_util.tree_leaves_with_path(equal) if not same]
    assert unequal == ["layers/mlp/up/kernel"]


SIZES = ("gpt-nano", "gpt-oss-nano", "xlnet-nano", "t5-nano", "transformer-nano", "bert-nano")


@pytest.mark.parametrize(("size", "changes"), [*((size, {}) for size in SIZES), ("transformer-nano", {"head_dim": 16})])
def test_muon_has_a_row_for_each_kernel_of_the_layers(size: str, changes: dict[str, Any]) -> None:
    """A kernel without a row would silently be trained by Adam."""
    net = model(dataclasses.replace(configs.find_size(size)[1].config, **changes))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    paths = [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
    kernels = {path for path in paths if "layers/" in path and path.endswith("kernel")}
    assert kernels == {path for path in paths if matrix_axes.is_matrix(path)}
