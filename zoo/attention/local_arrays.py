"""Attention under a mesh: an implementation computes on the examples and heads that each device has.

Outside of attention, positions are divided over the sequence axis. For attention each of its devices has all positions of a part
of the heads instead (Jacobs et al. 2023, "DeepSpeed Ulysses", section 3.1): an all-to-all exchanges one division for the other,
before and after. So every implementation, mask and bias works as without the axis.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from zoo.attention.masks import Mask
from zoo.mesh_axes import HEADS, POSITIONS, divides_heads
from zoo.sharding import BATCH


def on_local_arrays(
    run: Callable[..., Array],
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    bias: Any,
    seed: Any,
    heads: Array,
    sinks: Any,
    *,
    exchange: bool = True,
) -> Array:
    """Run an implementation on each device's own examples and heads; without a mesh (or inside pmap), call it directly.

    Without `exchange`, each device along `POSITIONS` computes all positions of all heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    # An implementation without the feature does not have the parameter.
    rest = () if sinks is None else (sinks,)
    auto_axes = _auto_axes()
    if not auto_axes:
        return run(q, k, v, mask, bias, seed, heads, *rest)
    batch, devices = batch_axes(), sequence_devices() if exchange else 1
    head_axes = tuple(axis for axis in (HEADS, *((POSITIONS,) if exchange else ())) if axis in auto_axes)
    k, v = (repeated_heads(array, math.prod(mesh.shape[axis] for axis in head_axes)) for array in (k, v))
    operands, tree = jax.tree.flatten((q, k, v, mask, bias, seed, heads, *rest))
    letters = operand_letters(mask, bias, seed, heads, *rest)
    # One position of each example, as in decoding, is not divided, and neither are others that the axis does not divide.
    exchanged = [
        devices > 1 and axes[1:3] in ("TN", "SN") and array.shape[1] % devices == 0
        for axes, array in zip(letters, operands, strict=True)
    ]

    def spec(axes: str, array: Array, is_exchanged: bool) -> PartitionSpec:
        by_letter = {"B": batch, "T": POSITIONS, "S": POSITIONS, "N": HEADS} if is_exchanged else {"B": batch, "N": head_axes}
        return spec_by_letter(axes, array, by_letter)

    def local(*operands: Array) -> Array:
        parts = [
            jax.lax.all_to_all(array, POSITIONS, split_axis=2, concat_axis=1, tiled=True) if is_exchanged else array
            for array, is_exchanged in zip(operands, exchanged, strict=True)
        ]
        y = run(*jax.tree.unflatten(tree, parts))
        return jax.lax.all_to_all(y, POSITIONS, split_axis=1, concat_axis=2, tiled=True) if exchanged[0] else y

    in_specs = tuple(map(spec, letters, operands, exchanged))
    # check_vma=False because library functions do not declare how their outputs vary over the mesh, or declare it wrongly. JAX's
    # rule for cuDNN declares the gradient of a bias that all examples share equal on all devices, which omits the sum over them.
    return jax.shard_map(local, in_specs=in_specs, out_specs=in_specs[0], check_vma=False)(*operands)


def _auto_axes() -> set[str]:
    """Return the axes of the context mesh that are not inside `pmap` or `jax.shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}


def batch_axes() -> tuple[str, ...]:
    """Return the axes of the context mesh over which examples are divided: all but those of heads and positions.

    `jax.shard_map` would sum a gradient over an axis that no spec mentions, even if its size is 1.
    """
    auto_axes = _auto_axes()
    others = (axis for axis in jax.sharding.get_abstract_mesh().axis_names if axis in auto_axes - {*BATCH, HEADS, POSITIONS})
    return (*(axis for axis in BATCH if axis in auto_axes), *others)


def sequence_devices() -> int:
    """Return the number of devices over which the context mesh divides positions; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape[POSITIONS] if POSITIONS in _auto_axes() else 1


def heads_are_divided(heads: int, groups: int) -> bool:
    """Return whether an all-to-all can divide query heads and key/value heads, those that a device has by `HEADS`."""
    tensor = jax.sharding.get_abstract_mesh().shape.get(HEADS, 1)
    return divides_heads(sequence_devices(), heads // tensor, max(1, groups // tensor))


def operand_letters(mask: Mask, bias: Any, seed: Any, *of_heads: Array) -> list[str]:
    """Return the letters of the axes of q, k, v, the arrays of a mask and a bias, seeds, and arrays with a number for a head."""
    specs = [axes for part in (mask, bias) if part is not None for _, axes, _ in part.arrays()]
    return ["BTN-", "BSN-", "BSN-", *specs, *([] if seed is None else ["B-"]), *("N" for _ in of_heads)]


def spec_by_letter(axes: str, array: Array, by_letter: dict[str, Any]) -> PartitionSpec:
    """Return the PartitionSpec of an array with these letters; an axis of size 1 is broadcast, and not divided."""
    return PartitionSpec(*(by_letter.get(x) if size > 1 else None for x, size in zip(axes, array.shape, strict=True)))


def repeated_heads(x: Float[Array, "B S K H"], devices: int) -> Float[Array, "B S KR H"]:
    """Return keys or values with each head repeated R times, for as many devices as share it; R is 1 if it is on one device."""
    heads = x.shape[2]
    return jnp.repeat(x, devices // heads, axis=2) if heads < devices and devices % heads == 0 else x
