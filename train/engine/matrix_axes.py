"""Kernels of the layers as matrices, for optimizers that treat a matrix as a whole."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.sharding import constrain, path_of, size_of

MATRICES: tuple[tuple[re.Pattern[str], tuple[int, ...], tuple[int, ...]], ...] = (
    (re.compile(r"layers/(.*/)?(attention|cross)/(qkv|kv)/kernel$"), (1,), (3, 4)),  # [L, D, 3 or 2, N, H]
    (re.compile(r"layers/(.*/)?(attention|cross)/[qkvr]/kernel$"), (1,), (2, 3)),  # [L, D, N, H]
    (re.compile(r"layers/(.*/)?(attention|cross)/out/kernel$"), (1, 2), (3,)),  # [L, N, H, D]
    (re.compile(r"layers/(.*/)?mlp/(up|down)/kernel$"), (1,), (2,)),  # [L, D, F] and [L, F, D]
    (re.compile(r"layers/(.*/)?mlp/gated/kernel$"), (1,), (3,)),  # [L, D, 2, F]
    (re.compile(r"layers/(.*/)?router/kernel$"), (1,), (2,)),  # [L, D, E]
    (re.compile(r"layers/(.*/)?experts/gated/kernel$"), (2,), (4,)),  # [L, E, D, 2, F]
    (re.compile(r"layers/(.*/)?experts/down/kernel$"), (2,), (3,)),  # [L, E, F, D]
)
"""Path of a leaf of the layers -> its input axes and its output axes. Any other axis counts separate matrices."""
EXPERTS = re.compile(r"experts/")
INPUTS_OVER_TENSOR = re.compile(r"(out|down)/kernel$")
"""Leaves whose inputs are sharded over `tensor`, and outputs over `fsdp`; the other way around in all others."""


def is_matrix(path: str) -> bool:
    """Return whether a leaf consists of matrices of layers."""
    return any(pattern.search(path) for pattern, *_ in MATRICES)


def matrix_kinds(params: Any) -> Any:
    """Return a tree with "matrix" for the matrices of layers, and "other" for all other leaves."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: "matrix" if is_matrix(path_of(keys)) else "other", params)


def matrix_sizes(path: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of each matrix of a leaf."""
    inputs, outputs = _axes_of(path)
    return math.prod(shape[axis] for axis in inputs), math.prod(shape[axis] for axis in outputs)


def map_matrices(
    function: Callable[[Float[Array, "B M N"]], Float[Array, "B M N"]], path: str, leaf: Float[Array, "*S"]
) -> Float[Array, "*S"]:
    """Return a leaf whose matrices, M inputs by N outputs, a function has changed, each independently of the others.

    On a mesh the matrices are divided over the devices that each had a part of all of them, so that no device has a leaf of all
    layers, and none computes what another one does. The number of matrices is rounded up to a multiple of these devices.
    """
    inputs, outputs = _axes_of(path)
    # Experts come first: their axis is sharded, and remains so in the product of the axes only as the first of them.
    others = [axis for axis in range(leaf.ndim) if axis not in (*inputs, *outputs)]
    order = [*(reversed(others) if EXPERTS.search(path) else others), *inputs, *outputs]
    moved = leaf.transpose(order)
    matrices = moved.reshape(-1, *matrix_sizes(path, leaf.shape))
    changed = _map_divided(function, path, matrices).reshape(moved.shape)
    return changed.transpose([order.index(axis) for axis in range(leaf.ndim)])


def _map_divided(function: Callable[[jax.Array], jax.Array], path: str, matrices: jax.Array) -> jax.Array:
    lead = ("expert",) if EXPERTS.search(path) else ()
    first, both = (*lead, "fsdp"), (*lead, "fsdp", "tensor")
    # In two steps, each of which moves one mesh axis: for both at once XLA gathers all matrices on each device.
    half = (first, "tensor", None) if INPUTS_OVER_TENSOR.search(path) else (first, None, "tensor")
    padded = jnp.pad(matrices, ((0, -len(matrices) % size_of(both)), (0, 0), (0, 0)))
    changed = function(constrain(constrain(padded, *half), both, None, None))
    return constrain(constrain(changed, both, None, None), *half)[: len(matrices)]


def _axes_of(path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return next((inputs, outputs) for pattern, inputs, outputs in MATRICES if pattern.search(path))
