"""Common parts of the fused kernels for TPU and GPU: the static part of a call, the numbers of a mask, operations on a tile.

The sinks are those of `blocked` too.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from zoo.attention.masks import Mask, Side
from zoo.attention.totals import MASKED


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlashPlan:
    """The static part of a call of a fused kernel."""

    block_q: int
    block_k: int
    num_q: int
    """Number of blocks of queries."""
    num_k: int
    shared: int
    """Query heads per key/value head."""
    diagonal: int
    """Number of the tile of a bias by distance on the diagonal."""
    num_tiles: int
    """Number of different tiles of a bias by distance; 0 = there is none."""
    mask: Mask
    """The fields of the mask that have no arrays."""
    has_lengths: bool
    numbers: tuple[str, ...]
    """Names of the mask's numbers of queries and keys (fields of `Side`) that are arrays."""
    rate: float
    is_chunk: bool
    """The seeds of dropout are followed by the indices of the first query and of the first key: see `ChunkKernel`."""
    interpret: bool
    """Run the kernels by Pallas's interpreter."""

    @property
    def has_mask(self) -> bool:
        """Return whether any tile may have pairs that do not attend."""
        return self.mask.causal or self.mask.window is not None or self.has_lengths or bool(self.numbers)


def pad_mask(mask: Mask, b: int, t: int, s: int, padded_t: int, padded_s: int) -> Mask:
    """Return the mask of whole blocks, in which no query sees the keys that were added."""
    if padded_s > s:
        mask = mask.hide_keys_from(s, b)
    return mask.padded(padded_t, padded_s)


def without_arrays(mask: Mask) -> Mask:
    """Return the fields of a mask that have no arrays, which a plan keeps."""
    return Mask(causal=mask.causal, window=mask.window, strict=mask.strict)


def number_names(mask: Mask) -> tuple[str, ...]:
    """Return the names of the numbers that are arrays; positions that are indices are computed in the kernel."""
    names = {
        "position": (mask.causal or mask.window is not None) and (mask.query_positions, mask.key_positions) != (None, None),
        "segment": mask.query_segments is not None,
        "rank": mask.query_ranks is not None,
    }
    return tuple(name for name, is_array in names.items() if is_array)


def number_arrays(names: tuple[str, ...], side: Side, b: int, length: int) -> list[Array]:
    """Return the arrays [B, length] of these numbers of the queries or of the keys."""
    return [jnp.broadcast_to(getattr(side, name), (b, length)) for name in names]


def key_lengths(mask: Mask, b: int) -> Array:
    """Return the number of real keys of each example, int32 [B]; zeros if the mask has none."""
    return jnp.zeros(b, jnp.int32) if mask.key_lengths is None else mask.key_lengths.astype(jnp.int32)


def pad_axis(x: Array, axis: int, length: int) -> Array:
    """Return the array with zeros at the end of an axis, up to this length."""
    return jnp.pad(x, [(0, length - size if place == axis else 0) for place, size in enumerate(x.shape)])


def sink_logits(sinks: Any) -> Any:
    """Return sinks in at least float32, none below the maximum with which a row begins without one: above MASKED, as that is."""
    return None if sinks is None else jnp.maximum(sinks.astype(jnp.promote_types(sinks.dtype, jnp.float32)), 0.1 * MASKED)


def sink_gradient(sinks: Any, lse: Float[Array, "B *N T"], delta: Float[Array, "B *N T"]) -> Any:
    """Return the gradient of sinks, or None without them: by line 14 for a key without a value, p (0 - D) over all rows."""
    if sinks is None:
        return None
    by_head = sinks.astype(lse.dtype).reshape(1, *lse.shape[1:-1], 1)
    return -(jnp.exp(by_head - lse) * delta).sum((0, -1)).reshape(sinks.shape).astype(sinks.dtype)


# --- in the kernels -------------------------------------------------------------------------------------------------------------


def allowed_pairs(
    plan: FlashPlan, query: dict[str, Any], key: dict[str, Any], queries: Array, keys: Array, length: Any
) -> Bool[Array, "..."]:
    """Return which pairs of a tile attend, given its numbers and the indices of its queries and keys."""
    if plan.mask.causal or plan.mask.window is not None:
        query, key = {"position": queries, **query}, {"position": keys, **key}
    allowed = plan.mask.rule(Side(**query), Side(**key, index=keys), length if plan.has_lengths else None)
    assert allowed is not None
    return allowed


def iota(shape: tuple[int, ...], axis: int, start: Any) -> Array:
    return start + lax.broadcasted_iota(jnp.int32, shape, axis)
