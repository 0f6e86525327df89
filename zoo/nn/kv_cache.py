"""The key-value cache of families that generate: entries of earlier tokens and of a source; see `zoo.models.Model.init_cache`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.attention.masks import Mask
from zoo.batch import Batch
from zoo.mesh_axes import HEADS
from zoo.nn.layers import LayerIndex
from zoo.ops.split_layers import SplitLayers
from zoo.sharding import BATCH, constrain


def empty_cache(layers: int, rows: int, length: int, heads: int, head: int, dtype: Any) -> dict[str, Any]:
    """Return a cache without tokens, with `length` slots for each row."""
    shape = (layers, rows, heads, length, head)
    return {
        "k": jnp.zeros(shape, dtype),
        "v": jnp.zeros(shape, dtype),
        "segments": jnp.zeros((rows, length), jnp.int32),
        "positions": jnp.zeros((rows, length), jnp.int32),
        "at": jnp.int32(0),
    }


def add_slots(cache: dict[str, Any], length: int) -> dict[str, Any]:
    """Return a cache with free slots after its own, `length` in total for each row; entries of a source remain as they are."""
    more = length - cache["k"].shape[3]
    axes = {"k": 3, "v": 3, "segments": 1, "positions": 1, "order": 1}

    def add(array: Array | SplitLayers, axis: int) -> Array | SplitLayers:
        if isinstance(array, SplitLayers):
            return array.map(lambda layer: jnp.pad(layer, ((0, 0), (0, 0), (0, more), (0, 0))))  # [B, K, S, H]
        widths = [(0, more if at == axis else 0) for at in range(array.ndim)]
        return constrain(jnp.pad(array, widths), *((None, BATCH, HEADS) if array.ndim == 5 else (BATCH,)))

    return cache | {name: add(cache[name], axis) for name, axis in axes.items() if name in cache}


def append_tokens(batch: Batch, cache: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the segments, positions and, if the cache has it, order: of the new tokens [B, T], and of all slots [B, S].

    Raises:
        ValueError: more tokens than the cache has slots.
    """
    rows, length = batch.tokens.shape
    at, slots = cache["at"], cache["k"].shape[3]
    if length > slots:
        raise ValueError(f"{length} tokens into a cache of {slots} slots")
    places = at + jnp.arange(length)
    # A prefix has rank 0 and later tokens have ranks from 1 on, so slot + 1 is above the ranks of all earlier tokens.
    absent = {"segments": jnp.int32(1), "positions": places, "order": places + 1}
    values = {name: absent[name] if getattr(batch, name) is None else getattr(batch, name) for name in absent if name in cache}
    new = {name: jnp.broadcast_to(value, (rows, length)) for name, value in values.items()}
    cached = {name: constrain(jax.lax.dynamic_update_slice(cache[name], new[name], (0, at)), BATCH) for name in new}
    return new, cached


def source_entries(run: Callable[..., Any], hidden: Float[Array, "B S D"], source: Batch) -> dict[str, Any]:
    """Return the cache's entries for a source, the keys and values [L, B, N, S, H] of every layer's cross-attention among them.

    Args:
        run: `run(body, carry)` is `run_stack` over the decoder's layers, whose modules have `cross`.
        hidden: the encoder's hidden states.
    """

    def body(block: Any, carry: None, _: None, index: LayerIndex, __: None) -> tuple[None, Any]:
        k, v = block.cross.read(hidden)
        return carry, (jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))

    _, arrays = run(body, None)
    k, v = (constrain(array, None, BATCH, HEADS) for array in arrays)
    segments = jnp.ones(source.tokens.shape, jnp.int32) if source.segments is None else source.segments
    return {"source_k": k, "source_v": v, "source_segments": constrain(segments, BATCH)}


def cached_source(cache: dict[str, Any]) -> dict[str, Any]:
    """Return the entries for a source that an earlier call added to the cache.

    Raises:
        ValueError: no call had one.
    """
    if "source_k" not in cache:
        raise ValueError("the first call of an encoder-decoder needs batch.source")
    return {name: cache[name] for name in ("source_k", "source_v", "source_segments")}


def cross_mask(segments: Int[Array, "B T"] | None, tokens: Int[Array, "B T"], source: Batch) -> Mask:
    """Return the mask of cross-attention: a target token sees the source tokens of its own segment.

    A side without segments is a single segment; if neither side has any, nothing is masked.
    """
    if segments is None and source.segments is None:
        return Mask()
    return Mask(
        query_segments=jnp.ones_like(tokens) if segments is None else segments,
        key_segments=jnp.ones_like(source.tokens) if source.segments is None else source.segments,
    )
