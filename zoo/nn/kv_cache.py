"""The key-value cache of families that generate: the keys and values of earlier tokens and of a source.

A forward pass begins with `append_tokens`, its layers call `KVCacheView.append`, and it ends with `cache_after`. Without a cache
these functions change nothing, so that a family has one forward pass for both.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.attention.masks import Mask
from zoo.batch import Batch
from zoo.nn.layer_arrays import LayerArrays, LayerIndex, add_free_slots, write_slots
from zoo.sharding import BATCH, constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The keys and values of a source in every layer's cross-attention of an encoder-decoder."""

    k: Any
    """[L, B, N, S, H]; `v` likewise."""
    v: Any
    segments: Any
    """int32 [B, S]."""


AnyCache = TypeVar("AnyCache", bound="Cache")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """The keys and values of earlier tokens, S slots for each row, and what masks and positions need of these tokens.

    A family that caches more declares a subclass, registered as this one is. Every array with an entry per row has an axis B, the
    second of five axes, else the first, along which rows may be selected. Arrays over layers are `LayerArrays`.
    """

    k: Any
    """[L, B, K, S, H], of the dtype of the arithmetic; `v` likewise."""
    v: Any
    segments: Any
    """int32 [B, S], of the tokens in the slots; 0 for free slots."""
    positions: Any
    """int32 [B, S]."""
    at: Any
    """int32 [], the first free slot. The caller may move it back by fewer than the tokens of the next call: those slots are then
    read again."""
    order: Any = None
    """int32 [B, S], ranks of the tokens; None in a family that does not use them."""
    source: Any = None
    """A `Source`, of an encoder-decoder from its first call on, which has `batch.source`."""

    @classmethod
    def empty(
        cls: type[AnyCache], layers: int, rows: int, length: int, heads: int, head: int, dtype: Any, *, ordered: bool = False
    ) -> AnyCache:
        """Return a cache without tokens, with `length` slots for each row; with `order` if it is `ordered`."""
        shape, slots = (layers, rows, heads, length, head), (rows, length)
        return cls(
            k=jnp.zeros(shape, dtype),
            v=jnp.zeros(shape, dtype),
            segments=jnp.zeros(slots, jnp.int32),
            positions=jnp.zeros(slots, jnp.int32),
            at=jnp.int32(0),
            order=jnp.zeros(slots, jnp.int32) if ordered else None,
        )

    @property
    def slots(self) -> int:
        """Number of slots of each row."""
        return self.segments.shape[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCacheView:
    """The keys and values of all layers, to which the layers append those of new tokens one after the other.

    The arrays are the carry of the scan over layers and are updated in place. As scanned inputs and outputs, every layer's cache
    would be copied for every token.
    """

    k: LayerArrays
    """[L, B, K, S, H]; `v` likewise."""
    v: LayerArrays
    at: Int[Array, ""]
    """Slot of the first new token."""

    def append(
        self, layer: LayerIndex, k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
    ) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"], "KVCacheView"]:
        """Return the keys and values of a layer in all slots, and the view, with those of the new tokens from slot `at` on."""
        k_cache, every_k = write_slots(self.k, layer, jnp.swapaxes(k, 1, 2), self.at)
        v_cache, every_v = write_slots(self.v, layer, jnp.swapaxes(v, 1, 2), self.at)
        return jnp.swapaxes(every_k, 1, 2), jnp.swapaxes(every_v, 1, 2), dataclasses.replace(self, k=k_cache, v=v_cache)


def check_length(batch: Batch, context: int) -> None:
    """Refuse rows of more tokens than a model has positions.

    Raises:
        ValueError: they have more than `context` tokens.
    """
    if (length := batch.tokens.shape[1]) > context:
        raise ValueError(f"rows of {length} tokens in a model of {context} positions; use rows of at most {context}")


def append_tokens(batch: Batch, cache: AnyCache | None, context: int | None = None) -> tuple[Batch, AnyCache | None]:
    """Return a batch with the segments, positions and order that its tokens have in a cache, and the cache with them.

    Without a cache nothing is added.

    Raises:
        ValueError: more tokens than the cache has slots; without a cache, than `context`.
    """
    rows, length = batch.tokens.shape
    if cache is None:
        if context is not None:
            check_length(batch, context)
        return batch, None
    if length > cache.slots:
        raise ValueError(f"{length} tokens into a cache of {cache.slots} slots")
    at, places = cache.at, cache.at + jnp.arange(length)
    # A prefix has rank 0 and later tokens have ranks from 1 on, so slot + 1 is above the ranks of all earlier tokens.
    absent = {"segments": jnp.int32(1), "positions": places, "order": places + 1}
    values = {name: absent[name] if getattr(batch, name) is None else getattr(batch, name) for name in absent}
    if cache.order is None:
        del values["order"]
    new = {name: jnp.broadcast_to(value, (rows, length)) for name, value in values.items()}
    slots = {name: jax.lax.dynamic_update_slice(getattr(cache, name), value, (0, at)) for name, value in new.items()}
    cached = {name: constrain(value, BATCH) for name, value in slots.items()}
    return dataclasses.replace(batch, **new), dataclasses.replace(cache, **cached)


def self_mask(
    batch: Batch, cache: Cache | None = None, *, causal: bool = True, window: int | None = None, ranked: bool = False
) -> Mask:
    """Return the mask of self-attention in a batch or, with a cache, to all of its slots; both are those of `append_tokens`.

    Without a cache a token's place in the row is its position for `causal` and `window`. If `ranked`, the ranks of a batch that
    has an order take the place of `causal`: a token sees those up to its own.
    """
    keys = batch if cache is None else cache
    seen = keys.segments if cache is not None or batch.key_segments is None else batch.key_segments
    sides: dict[str, Any] = {"query_segments": batch.segments, "key_segments": seen}
    if ranked and batch.order is not None:
        return Mask(**sides, query_ranks=batch.order, key_ranks=keys.order)
    if cache is not None:
        sides |= {"query_positions": batch.positions, "key_positions": cache.positions}
    return Mask(causal=causal, window=window, **sides)


def view_of(cache: Cache | None) -> KVCacheView | None:
    """Return the view with which the layers append to a cache; None without one."""
    return None if cache is None else KVCacheView(k=cache.k, v=cache.v, at=cache.at)


def cache_after(cache: AnyCache | None, past: KVCacheView | None, batch: Batch, **changes: Any) -> AnyCache | None:
    """Return a cache after the layers have appended a batch to it, with further changes; None without one."""
    if cache is None or past is None:
        return None
    return dataclasses.replace(cache, k=past.k, v=past.v, at=past.at + batch.tokens.shape[1], **changes)


def add_slots(cache: AnyCache, length: int) -> AnyCache:
    """Return a cache with free slots after its own, `length` in total for each row; the source remains as it is."""
    more = length - cache.slots
    names = ("segments", "positions", *(() if cache.order is None else ("order",)))
    rows = {name: constrain(jnp.pad(getattr(cache, name), ((0, 0), (0, more))), BATCH) for name in names}
    return dataclasses.replace(cache, k=add_free_slots(cache.k, more), v=add_free_slots(cache.v, more), **rows)
