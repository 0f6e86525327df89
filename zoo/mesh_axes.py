"""The axes of a device mesh, which always exist and may have size 1. Nothing here imports JAX."""

AXES = ("data", "fsdp", "tensor", "sequence", "expert")
BATCH = ("data", "fsdp", "expert")
"""Axes over which the rows of a batch are divided. Devices along `expert` differ in the experts that they have; for all other
parameters the axis is one more axis of data."""
HEADS = "tensor"
"""The axis over which heads are sharded."""
POSITIONS = "sequence"
"""The axis over which the positions of a row are divided, outside of attention; parameters as over `FSDP`."""
EXPERT = "expert"
"""The axis over which experts are divided."""
FSDP = "fsdp"
"""The axis over which parameters are divided along their width, and gathered where they are used."""


def divides_heads(devices: int, heads: int, groups: int) -> bool:
    """Return whether the all-to-all of attention can give each device a part of the heads.

    Args:
        devices: number of devices along `POSITIONS`.
        heads: query heads that they share.
        groups: key/value heads; those that several devices need are repeated.
    """
    return heads % devices == 0 and (groups % devices == 0 or devices % groups == 0)
