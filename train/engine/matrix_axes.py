"""Kernels of the layers as matrices, for optimizers that treat a matrix as a whole."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
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


def kernel_axes(path: str, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the axes of inputs and those of outputs of a kernel or an untied output table; None for any other leaf."""
    if is_matrix(path):
        return _axes_of(path)
    if path == "unembed/embedding":
        return (1,), (0,)
    return (tuple(range(ndim - 1)), (ndim - 1,)) if path.endswith("kernel") else None


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
    matrices = to_matrices(path, leaf)
    changed = function(_divide(path, matrices))
    return from_matrices(path, _undivide(path, changed)[: len(matrices)], leaf.shape)


def map_local_matrices(
    function: Callable[..., Any], path: str, leaves: Sequence[Float[Array, "*S"]], factors: Sequence[Float[Array, "B _K _K"]]
) -> tuple[list[Float[Array, "*S"]], list[Float[Array, "B _K _K"]]]:
    """Return (changed leaves, changed factors) of a function that takes and returns both, as matrices [b, M, N] and [b, K, K].

    The matrices are divided as in `map_matrices`, and each device calls the function on its own: decompositions of matrices are
    calls of a library, which XLA does not divide.
    """
    count = len(factors[0])
    matrices = [_divide(path, to_matrices(path, leaf)) for leaf in leaves]
    pad, by_rows = ((0, -count % size_of(_devices(path))), (0, 0), (0, 0)), (None, _devices(path), None)

    def spread(factor: jax.Array) -> jax.Array:
        padded = jnp.pad(factor, pad)
        # As they are stored.
        padded = constrain(padded, *by_rows) if pad[0][1] else padded
        return constrain(padded, _devices(path), None, None)

    def collect(factor: jax.Array) -> jax.Array:
        return constrain(factor, *by_rows)[:count] if pad[0][1] else factor

    divided = list(map(spread, factors))
    call = function
    if size_of(_devices(path)) > 1:
        part, names = PartitionSpec(_devices(path)), {*_devices(path)}
        call = jax.shard_map(function, in_specs=part, out_specs=part, axis_names=names, check_vma=False)
    new_matrices, new_factors = call(matrices, divided)
    changed = [
        from_matrices(path, _undivide(path, matrix)[:count], leaf.shape)
        for matrix, leaf in zip(new_matrices, leaves, strict=True)
    ]
    return changed, list(map(collect, new_factors))


def to_matrices(path: str, leaf: Float[Array, "*S"]) -> Float[Array, "B M N"]:
    """Return all matrices of a leaf."""
    return leaf.transpose(_order(path, leaf.ndim)).reshape(-1, *matrix_sizes(path, leaf.shape))


def from_matrices(path: str, matrices: Float[Array, "B M N"], shape: tuple[int, ...]) -> Float[Array, "*S"]:
    """Return the leaf with these matrices; the inverse of `to_matrices`."""
    order = _order(path, len(shape))
    moved = matrices.reshape([shape[axis] for axis in order])
    return moved.transpose([order.index(axis) for axis in range(len(shape))])


def factor_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Return how factors [B, K, K] of the matrices of a leaf are stored: as in an update, else by rows, else on every device."""
    devices = math.prod(mesh.shape[axis] for axis in _devices(path))
    if len(shape) != 3 or shape[1] != shape[2] or not is_matrix(path):
        return PartitionSpec()
    divided = [size % devices == 0 for size in shape[:2]]
    return PartitionSpec(_devices(path)) if divided[0] else PartitionSpec(None, _devices(path)) if divided[1] else PartitionSpec()


def _order(path: str, ndim: int) -> list[int]:
    """Return the axes of a leaf with those that count matrices first, then the inputs and the outputs."""
    inputs, outputs = _axes_of(path)
    others = [axis for axis in range(ndim) if axis not in (*inputs, *outputs)]
    # Experts come first: their axis is sharded, and remains so in the product of the axes only as the first of them.
    return [*(reversed(others) if EXPERTS.search(path) else others), *inputs, *outputs]


def _devices(path: str) -> tuple[str, ...]:
    """Return the mesh axes over which the matrices of a leaf are divided."""
    return ("expert", "fsdp", "tensor") if EXPERTS.search(path) else ("fsdp", "tensor")


def _halfway(path: str) -> tuple[Any, ...]:
    """Return a sharding between that of a leaf and that of whole matrices.

    Each of the two steps moves one mesh axis: for both at once XLA gathers all matrices on each device.
    """
    first = _devices(path)[:-1]
    return (first, "tensor", None) if INPUTS_OVER_TENSOR.search(path) else (first, None, "tensor")


def _divide(path: str, matrices: Float[Array, "B M N"]) -> Float[Array, "C M N"]:
    """Return matrices divided over devices, with as many zeros as make their number a multiple of the devices'."""
    padded = jnp.pad(matrices, ((0, -len(matrices) % size_of(_devices(path))), (0, 0), (0, 0)))
    return constrain(constrain(padded, *_halfway(path)), _devices(path), None, None)


def _undivide(path: str, matrices: Float[Array, "C M N"]) -> Float[Array, "C M N"]:
    """Return matrices sharded as a leaf is, whose axes are the last ones of `_halfway`."""
    return constrain(constrain(matrices, _devices(path), None, None), *_halfway(path))


def _axes_of(path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return next((inputs, outputs) for pattern, inputs, outputs in MATRICES if pattern.search(path))
