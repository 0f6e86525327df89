"""Attention under a mesh: an implementation computes on the examples and heads that each device has."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

from zoo.attention.masks import Mask
from zoo.mesh_axes import HEADS
from zoo.sharding import BATCH


def on_local_arrays(
    run: Callable[..., Array], q: Array, k: Array, v: Array, mask: Mask, bias: Any, seed: Any, heads: Array, sinks: Any
) -> Array:
    """Run an implementation on each device's own examples and heads; without a mesh (or inside pmap), call it directly."""
    mesh = jax.sharding.get_abstract_mesh()
    # An implementation without the feature does not have the parameter.
    rest = () if sinks is None else (sinks,)
    auto_axes = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    if not auto_axes:
        return run(q, k, v, mask, bias, seed, heads, *rest)
    # The batch is sharded over all other axes too: shard_map would sum a gradient over an axis that no spec mentions, even if
    # its size is 1.
    others = (axis for axis in mesh.axis_names if axis in auto_axes - {*BATCH, HEADS})
    batch = (*(axis for axis in BATCH if axis in auto_axes), *others)
    head = HEADS if HEADS in auto_axes else None
    by_letter = {"B": batch, "N": head}

    def spec(letters: str, array: Array) -> PartitionSpec:
        return PartitionSpec(*(by_letter.get(x) if size > 1 else None for x, size in zip(letters, array.shape, strict=True)))

    def specs(value: Any) -> Any:
        leaves, tree = jax.tree.flatten(value)
        letters = [axes for _, axes, _ in value.arrays()] if value is not None else []
        return jax.tree.unflatten(tree, [spec(axes, leaf) for axes, leaf in zip(letters, leaves, strict=True)])

    heads_spec = PartitionSpec(batch, None, head, None)
    seed_spec = None if seed is None else PartitionSpec(batch)
    in_specs = (
        heads_spec,
        heads_spec,
        heads_spec,
        specs(mask),
        specs(bias),
        seed_spec,
        *(PartitionSpec(head) for _ in (heads, *rest)),
    )
    # check_vma=False because library functions do not declare how their outputs vary over the mesh, or declare it wrongly. JAX's
    # rule for cuDNN declares the gradient of a bias that all examples share equal on all devices, which omits the sum over them.
    run = jax.shard_map(run, in_specs=in_specs, out_specs=heads_spec, check_vma=False)
    return run(q, k, v, mask, bias, seed, heads, *rest)
