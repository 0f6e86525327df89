"""Sharding of arrays: a table from leaf path to mesh axes. The mesh shape selects the strategy; models have no code for it.

The axes `data`, `fsdp`, `tensor`, `sequence`, `expert` always exist and may have size 1.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Shaped

from zoo.errors import BadInput
from zoo.mesh_axes import AXES as AXES
from zoo.mesh_axes import BATCH as BATCH
from zoo.mesh_axes import FSDP, POSITIONS
from zoo.runtime import hardware

Rules = Sequence[tuple[str, tuple[str | None, ...]]]

RULES: Rules = (
    # The vocabulary is sharded over tensor: logits stay sharded along their largest axis, a lookup is a masked gather and a sum.
    (r"embed/tokens/embedding", ("tensor", "fsdp")),
    (r"embed/(positions|types)/embedding", (None, "fsdp")),
    (r"attention/qkv/kernel", ("fsdp", None, "tensor", None)),
    (r"attention/qkv/bias", (None, "tensor", None)),
    (r"attention/[qkv]/kernel", ("fsdp", "tensor", None)),
    (r"attention/[qkv]/bias", ("tensor", None)),
    (r"attention/[qk]_norm/scale", (None,)),
    (r"attention/sinks", ("tensor",)),
    (r"cross/q/kernel", ("fsdp", "tensor", None)),
    (r"cross/q/bias", ("tensor", None)),
    (r"cross/kv/kernel", ("fsdp", None, "tensor", None)),
    (r"cross/kv/bias", (None, "tensor", None)),
    (r"(attention|cross)/out/kernel", ("tensor", None, "fsdp")),
    (r"(attention|cross)/out/bias", (None,)),
    (r"mlp/up/kernel", ("fsdp", "tensor")),
    (r"mlp/up/bias", ("tensor",)),
    (r"mlp/gated/kernel", ("fsdp", None, "tensor")),
    (r"mlp/down/kernel", ("tensor", "fsdp")),
    (r"mlp/down/bias", (None,)),
    (r"router/kernel", ("fsdp", None)),
    (r"router/bias", (None,)),
    (r"experts/gated/kernel", ("expert", "fsdp", None, "tensor")),
    (r"experts/gated/bias", ("expert", None, "tensor")),
    (r"experts/down/kernel", ("expert", "tensor", "fsdp")),
    (r"experts/down/bias", ("expert", None)),
    (r"norm\d?/(scale|bias)", (None,)),
    # Heads for sequences and tokens. The number of labels is small and seldom divisible, so it is not sharded.
    (r"(pooler|dense|next|classifier|score)/kernel", ("fsdp", None)),
    (r"(pooler|dense|next|classifier)/bias", (None,)),
    (r"masked/bias", ("tensor",)),
)
"""End of a leaf's path -> mesh axes of its dimensions, without the layer axis, which is never sharded."""


def path_of(keys: Sequence[Any]) -> str:
    """Return a JAX key path as a string such as `layers/mlp/up/kernel`."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def leaf_spec(path: str, rules: Rules) -> PartitionSpec:
    """Return the PartitionSpec of a leaf: that of the one row of the sharding table `rules` whose pattern matches its path.

    Raises:
        ValueError: no row matches, or more than one. A new kind of leaf needs a row in `Family.sharding`.
    """
    rows = [axes for pattern, axes in rules if re.search(rf"(^|/){pattern}$", path)]
    if len(rows) != 1:
        raise ValueError(f"{path} matches {len(rows)} rows of the sharding table, not exactly one; fix `sharding` of its family")
    return PartitionSpec(*((None,) if "layers" in path.split("/") else ()), *rows[0])


def shardings(mesh: Mesh, params: Any, rules: Rules = ()) -> Any:
    """Return the NamedSharding of every leaf of a parameter tree (arrays or shapes); `rules` are the model's own rows.

    Devices that have other positions of the same rows are for parameters like those that have other rows: what is divided over
    `fsdp` is divided over `POSITIONS` too.

    Raises:
        BadInput: mesh axes that do not divide their dimension of a leaf; the message names both.
    """
    together = {FSDP: tuple(axis for axis in (FSDP, POSITIONS) if axis == FSDP or mesh.shape.get(axis, 1) > 1)}

    def leaf_sharding(keys: Sequence[Any], leaf: Any) -> NamedSharding:
        path = path_of(keys)
        axes = [None if axis is None else together.get(axis, (axis,)) for axis in leaf_spec(path, (*RULES, *rules))]
        for size, names in zip(leaf.shape, axes, strict=True):
            if names is not None and size % math.prod(mesh.shape[axis] for axis in names):
                options = " ".join(f"--mesh.{axis} {mesh.shape[axis]}" for axis in names)
                verb, fix = ("do", f"whose product divides {size}") if len(names) > 1 else ("does", f"a divisor of {size}")
                it = "they" if len(names) > 1 else "it"
                raise BadInput(f"{options}: {it} {verb} not divide {path} of shape {tuple(leaf.shape)}; choose {fix}")
        return NamedSharding(mesh, PartitionSpec(*(names[0] if names and len(names) == 1 else names for names in axes)))

    return jax.tree_util.tree_map_with_path(leaf_sharding, params)


def host_sharding(sharding: NamedSharding) -> NamedSharding:
    """Return the sharding of arrays that are divided in the same way, in the pinned memory of the hosts of the devices."""
    pinned = sharding.with_memory_kind("pinned_host")
    # JAX drops the kind of memory for a GPU that is not here, because its description lists none; an abstract mesh keeps it.
    return pinned if pinned.memory_kind else NamedSharding(sharding.mesh.abstract_mesh, sharding.spec, memory_kind="pinned_host")


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """Constrain an activation's sharding on the context mesh: per dimension `BATCH`, an axis name or None; the rest unsharded.

    Axes over which the caller already runs on local arrays, as in `on_local_positions`, are left out. Without a mesh, and inside
    `pmap`, this is the identity.
    """
    free = _auto_axes()
    if not free:
        return x
    names = [(entry,) if isinstance(entry, str) else entry or () for entry in axes]
    free_names = [tuple(name for name in entry if name in free) or None for entry in names]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*free_names))


def size_of(axes: Sequence[str]) -> int:
    """Return the number of devices along axes of the context mesh over which XLA shards; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in axes if axis in _auto_axes())


def constrain_tokens(x: Shaped[jax.Array, "B T ..."]) -> Shaped[jax.Array, "B T ..."]:
    """Constrain the sharding of an activation of tokens: rows over the axes of `BATCH`, positions over `POSITIONS`.

    Positions that their axis does not divide, as the only one in decoding, are on all of its devices: of an uneven division XLA
    computes wrong gradients (jaxlib 0.10.2 on CPU; see `tests/train/engine/test_sequence_axis.py`).
    """
    return constrain(x, BATCH, POSITIONS if local_positions(x.shape[1]) < x.shape[1] else None)


def local_positions(length: int) -> int:
    """Return the number of positions that each device has of `length`: all of them where `POSITIONS` does not divide them."""
    devices = jax.sharding.get_abstract_mesh().shape.get(POSITIONS, 1) if POSITIONS in _auto_axes() else 1
    return length if length % devices else length // devices


def on_local_positions(
    function: Callable[..., jax.Array], params: Any, *arrays: Shaped[jax.Array, "B T ..."]
) -> Shaped[jax.Array, "B T ..."]:
    """Return function(params, *arrays), computed by each device on its own rows and positions, each independently of the others.

    A gradient that a loop in `function` accumulates stays on the device until the loop ends, and then has one all-reduce, in
    float32 at least. Where XLA shards such a loop itself, every step has an all-reduce. Axes other than those of `BATCH` and
    `POSITIONS` are sharded by XLA as elsewhere.

    An axis of the mesh is left out if it has one device or is inside `pmap`, and likewise all that share an axis of the arrays
    which they do not divide. Without any, this is a plain call.

    Args:
        params: a tree of floating-point arrays.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parallel = [[axis for axis in axes if axis in _auto_axes() and mesh.shape[axis] > 1] for axes in (BATCH, (POSITIONS,))]
    divided = [
        size % math.prod(mesh.shape[axis] for axis in axes) == 0 for axes, size in zip(parallel, arrays[0].shape, strict=False)
    ]
    parallel = [axes if divides else [] for axes, divides in zip(parallel, divided, strict=True)]
    if not any(parallel):
        return function(params, *arrays)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, params)

    def local(params: Any, *arrays: jax.Array) -> jax.Array:
        return function(jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), params, dtypes), *arrays)

    # The sum of the gradients has the dtype of the arguments.
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), params)
    local_part = PartitionSpec(*map(tuple, parallel))
    specs, names = (PartitionSpec(), *(local_part for _ in arrays)), {*parallel[0], *parallel[1]}
    # check_vma=False because a scan would have to declare how its sums vary over the mesh.
    return jax.shard_map(local, in_specs=specs, out_specs=local_part, axis_names=names, check_vma=False)(params, *arrays)


def _auto_axes() -> set[str]:
    """Return the axes of the context mesh that XLA shards over; those over which the caller runs on local arrays are not."""
    mesh = jax.sharding.get_abstract_mesh()
    return {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}


ANY_PLATFORM = "any"
"""The platform of a program that is traced for CPU, GPU and TPU at once: see `any_platform`."""


def any_platform() -> Any:
    """Return a context in which a program is traced for one device of any platform.

    It has the plain definitions of functions with a form for the CPU (`zoo.ops.cpu_forms`): those forms depend on sizes, which
    may be symbols here.
    """
    device = AbstractDevice(device_kind=ANY_PLATFORM, num_cores=None, platform=ANY_PLATFORM)
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def target_platform() -> str:
    """Return the platform for which a program is compiled: the context mesh's, whose devices may be absent, or the default's.

    In the context `any_platform` it is `ANY_PLATFORM`.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)


def target_memory() -> int | float | None:
    """Return the memory in bytes of a device for which a program is compiled, of a CPU its share of the host's; None: unknown.

    What one process measures is unknown to the others, which must compile an equal program: of several, only the published memory
    of a kind of device is known.
    """
    data, device = hardware.device_data(target_device_kind()), jax.sharding.get_abstract_mesh().abstract_device
    if data is not None and data.memory is not None:
        return data.memory
    if jax.process_count() > 1:
        return None
    if target_platform() == "cpu":
        return hardware.host_memory() / jax.local_device_count("cpu")
    return None if device is not None else (jax.devices()[0].memory_stats() or {}).get("bytes_limit")


def num_shards() -> int:
    """Return the number of devices over which XLA divides the arrays of a program that is being traced; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in _auto_axes())


def target_device_kind() -> str:
    """Return the `device_kind` of the device for which a program is compiled, of the context mesh or the default one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.devices()[0] if device is None else device).device_kind
