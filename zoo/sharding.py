"""Where arrays live: a table from leaf path to mesh axes. A strategy is a mesh shape, never a line in a model.

The axes `data`, `fsdp`, `tensor`, `sequence` always exist and may have size 1.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zoo.errors import BadInput

AXES = ("data", "fsdp", "tensor", "sequence")
BATCH = ("data", "fsdp")

Rules = Sequence[tuple[str, tuple[str | None, ...]]]

RULES: Rules = (
    # Vocabulary over tensor: logits stay sharded where they are widest, and the lookup is one masked gather and a sum.
    (r"embed/tokens/embedding", ("tensor", "fsdp")),
    (r"embed/(positions|types)/embedding", (None, "fsdp")),
    (r"attention/qkv/kernel", ("fsdp", None, "tensor", None)),
    (r"attention/qkv/bias", (None, "tensor", None)),
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
    (r"norm\d?/(scale|bias)", (None,)),
    # The heads of encoders. Labels are few and seldom divide.
    (r"(pooler|dense|next|classifier)/kernel", ("fsdp", None)),
    (r"(pooler|dense|next|classifier)/bias", (None,)),
    (r"masked/bias", ("tensor",)),
)
"""Leaf path (its end) -> mesh axes of its dimensions, without the layer axis, which is never sharded."""


def path_of(keys: Sequence[Any]) -> str:
    """`layers/mlp/up/kernel` from a jax key path."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def spec(path: str, rules: Rules) -> PartitionSpec:
    """The row a leaf matches.

    Raises:
        ValueError: no row, or more than one, matches: a model's `SHARDING` needs a row for its new kind of leaf.
    """
    rows = [axes for pattern, axes in rules if re.search(rf"(^|/){pattern}$", path)]
    if len(rows) != 1:
        raise ValueError(f"{path} matches {len(rows)} rows of the sharding table; it must match exactly one")
    return PartitionSpec(*((None,) if "layers" in path.split("/") else ()), *rows[0])


def shardings(mesh: Mesh, params: Any, rules: Rules = ()) -> Any:
    """NamedSharding of every leaf of a parameter tree (arrays or shapes); `rules` are the model's own rows.

    Raises:
        BadInput: a dimension that its mesh axis does not divide, named.
    """

    def of(keys: Sequence[Any], leaf: Any) -> NamedSharding:
        path = path_of(keys)
        axes = spec(path, (*RULES, *rules))
        for size, axis in zip(leaf.shape, axes, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                raise BadInput(f"--mesh.{axis} {mesh.shape[axis]}: it does not divide {path} of shape {tuple(leaf.shape)}")
        return NamedSharding(mesh, axes)

    return jax.tree_util.tree_map_with_path(of, params)


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """Pin an activation's sharding on the context mesh (`BATCH`, an axis name or None per dimension; the rest unsharded).

    Without a mesh, and inside `pmap`, it is the identity.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def target() -> str:
    """The platform a program is for: that of the context mesh's devices, which need not be here, or else the default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)


def single_cpu() -> bool:
    """Whether a program is for one CPU device: its arrays can be cut and joined anywhere, for nothing is sent."""
    mesh = jax.sharding.get_abstract_mesh()
    return target() == "cpu" and (mesh.empty or mesh.size == 1)
