"""Cross-attention of a decoder to a source, whose keys and values are computed in each forward pass or, with a cache, once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.attention.masks import Mask
from zoo.batch import Batch
from zoo.mesh_axes import HEADS
from zoo.nn.kv_cache import Cache, Source
from zoo.nn.layer_stack import Layer
from zoo.nn.layers import CrossAttention
from zoo.sharding import BATCH, constrain

ENCODER, DECODER = range(2)
"""Indices of the two sides of an encoder-decoder, which fold into their seeds."""
SIDES = ("encoder", "decoder")


def cache_source(
    cache: Cache | None, batch: Batch, hidden: Float[Array, "B S D"] | None, run: Callable[..., Any]
) -> Cache | None:
    """Return a cache with the source of a batch or, if the batch has none, with that of an earlier call.

    Args:
        hidden: the encoder's hidden states of the source.
        run: `run(body, carry)` is `run_stack` over the decoder's layers, whose modules have `cross`.

    Raises:
        ValueError: no call had a source.
    """
    if batch.source is None:
        if cache is None:
            raise ValueError("an encoder-decoder takes a batch with a source")
        if cache.source is None:
            raise ValueError("the first call of an encoder-decoder needs batch.source")
        return cache
    if cache is None:
        return None

    def body(block: Any, carry: None, layer: Layer) -> tuple[None, Any]:
        k, v = source_keys(block.cross, hidden, layer)
        return carry, (jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))

    _, arrays = run(body, None)
    k, v = (constrain(array, None, BATCH, HEADS) for array in arrays)
    segments = batch.source.segments
    segments = jnp.ones(batch.source.tokens.shape, jnp.int32) if segments is None else segments
    return dataclasses.replace(cache, source=Source(k=k, v=v, segments=constrain(segments, BATCH)))


def cached_keys(cache: Cache | None) -> Any:
    """Return the keys and values of a cache's source, as inputs of the layers; None without."""
    return None if cache is None or cache.source is None else (cache.source.k, cache.source.v)


def source_keys(
    cross: CrossAttention | None, hidden: Float[Array, "B S D"] | None, layer: Layer
) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N H"]]:
    """Return the keys and values of a source in a layer: its inputs, if there is a cache, else those of hidden states."""
    if layer.inputs is not None:
        k, v = (jnp.swapaxes(array, 1, 2) for array in layer.inputs)
        return k, v
    assert cross is not None and hidden is not None
    return cross.read(hidden)


def cross_mask(batch: Batch, cache: Cache | None) -> Mask:
    """Return the mask of cross-attention: a target token sees the source tokens of its own segment.

    A side without segments is a single segment; if neither side has any, nothing is masked.
    """
    source = batch.source if cache is None else cache.source
    assert source is not None
    if batch.segments is None and source.segments is None:
        return Mask()
    own, other = batch.segments, source.segments
    if isinstance(source, Batch) and other is None:
        other = jnp.ones_like(source.tokens)
    return Mask(query_segments=jnp.ones_like(batch.tokens) if own is None else own, key_segments=other)
