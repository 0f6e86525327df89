"""XLNet: a bidirectional body that learns to predict its text in any order (Yang et al. 2019).

Two streams share all parameters. The content stream reads the text. The query stream predicts tokens: it has the position of
a token but not the token, and attends to the content stream of tokens that come earlier in the order. Positions enter as
distances alone (Transformer-XL, Dai et al. 2019, section 3.3), so a row may continue the memory of the row before.

Unlike in both papers' code, dropout is not applied to encodings of distances: each row would need its own, projected in every
layer.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.attention.masks import Mask
from zoo.batch import Batch, Output
from zoo.configs._encoder import Task
from zoo.configs.xlnet import Config
from zoo.hf.param_name_types import ParamName, head_names, linear_names, norm_names
from zoo.mesh_axes import HEADS as HEADS_AXIS
from zoo.mesh_axes import POSITIONS
from zoo.nn import encoder, task_heads
from zoo.nn.encoder import initializer
from zoo.nn.family import Family
from zoo.nn.kv_cache import Cache, add_slots, append_tokens, cache_after, self_mask, view_of
from zoo.nn.layer_stack import Layer, run_stack
from zoo.nn.layers import Embed, Seeds, dropout, fold_seeds, lookup
from zoo.nn.task_heads import Head
from zoo.nn.xlnet_layer import Block, Keys, Stream, Vectors
from zoo.ops import positions
from zoo.sharding import BATCH, constrain, constrain_tokens

CONTENT, QUERY = range(2)
"""Indices of the two streams, which fold into their seeds. A head's index follows those of the layers, so its seeds differ."""
EMBEDDING_SITE = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DistanceCache(Cache):
    """A cache that also has the encodings of distances, which all rows share."""

    distances: Any = None
    """[L, N, H, 2 S], the result of `_every_distance` for all slots; None in an empty cache."""


def apply(
    cfg: Config,
    params: dict[str, Any],
    batch: Batch,
    *,
    cache: DistanceCache | None = None,
    seeds: Seeds = None,
    carry: Any = None,
) -> Output:
    """Return the hidden states of the content stream, and those of the query stream if there is one: see `_streams`.

    Without `batch.types` there is no term of types, not even for equal ones, as in `transformers`.

    The first call with a cache adds the projected encodings of all distances to it: computing them for each token would cost more
    than everything else.

    Args:
        seeds: u32[B, 2], enables dropout.
        carry: result of `init_carry` or of the step before: inputs of every layer at earlier positions. They get no gradient. A
            call with a cache has no other memory.

    Raises:
        ValueError: a query stream without an order, or more tokens than the cache has slots.
    """
    batch, cache = append_tokens(batch, cache)
    carry, length = carry if carry and cache is None else None, batch.tokens.shape[1]
    content, query, key_types = _streams(batch, cache, carry)
    sign = None if batch.backward is None else jnp.where(batch.backward, -1.0, 1.0)
    encodings: Any = None
    if cache is None:
        slots = length if carry is None else carry["hidden"].shape[2] + length
        encodings = positions.relative_sinusoids(slots - 1, slots + length, cfg.width)
    reused = 0 if carry is None else min(cfg.reuse or length, length)
    content_seeds, query_seeds = fold_seeds(seeds, CONTENT), fold_seeds(seeds, QUERY)

    def body(block: Block, state: Any, layer: Layer) -> tuple[Any, Any]:
        x, g, past = state
        memory = None if past is not None else layer.inputs
        if past is not None:
            k, v, past = past.append(layer.index, *block.attention.read(x))
            keys = Keys(k=k, v=v, r=layer.inputs)
        else:
            key_inputs = x if memory is None else jnp.concatenate([memory.astype(x.dtype), x], axis=1)  # [B, M + T, D]
            keys = Keys.of(block.attention, key_inputs, encodings, sign, key_types)
        y = constrain_tokens(block(x, keys, content, fold_seeds(content_seeds, layer.index + 1)))
        if query is not None:
            g = constrain_tokens(block(g, keys, query, fold_seeds(query_seeds, layer.index + 1)))
        return (y, g, past), None if memory is None else _append_to_memory(memory, x[:, :reused])

    x = lookup(params["embed"]["tokens"]["embedding"], batch.tokens, rows="tensor")
    x, g = dropout(x, cfg.dropout, content_seeds, EMBEDDING_SITE), None
    if query is not None:
        unknown = _unknown(params, batch.tokens if batch.query_at is None else batch.query_at)
        g = dropout(unknown, cfg.dropout, query_seeds, EMBEDDING_SITE)
    if cache is None:
        distances, per_layer = None, None if carry is None else jnp.moveaxis(carry["hidden"], 1, 0)  # [L, B, M, D]
    else:
        distances = _every_distance(cfg, params, cache.slots) if cache.distances is None else cache.distances
        # Slice the distances from (last query - first key) downward.
        first = cache.slots - cache.at - length
        per_layer = jax.lax.dynamic_slice_in_dim(distances, first, cache.slots + length, axis=3)
    (x, g, past), new_memory = _run(cfg, params, body, (x, g, view_of(cache)), per_layer)
    # The index of the last dropout's seeds follows those of the layers.
    last = cfg.layers + 1
    return Output(
        hidden=dropout(x, cfg.dropout, content_seeds, last),
        predicted=None if g is None else dropout(g, cfg.dropout, query_seeds, last),
        carry={} if carry is None else _new_carry(carry, new_memory, reused),
        cache=cache_after(cache, past, batch, distances=distances),
    )


def init_carry(cfg: Config, rows: int) -> dict[str, Any]:
    """Return an empty memory; `{}` for a model without memory, or whose rows do not continue each other.

    "hidden", float32 [B, L, M, D], has the inputs of each layer at the last M positions; "filled", int32 [B], is the number of
    slots that are in use: the last ones.
    """
    if (slots := _memory_slots(cfg)) == 0:
        return {}
    hidden = jnp.zeros((rows, cfg.layers, slots, cfg.width), jnp.float32)
    return {"hidden": hidden, "filled": jnp.zeros(rows, jnp.int32)}


def init_cache(cfg: Config, rows: int, length: int, dtype: Any) -> DistanceCache:
    """Return an empty cache of `length` slots for `rows` rows, with an order."""
    return DistanceCache.empty(cfg.layers, rows, length, cfg.heads, cfg.head, dtype, ordered=True)


def grow_cache(cfg: Config, params: dict[str, Any], cache: DistanceCache, length: int) -> DistanceCache:
    """Return a cache with `length` slots and the encodings of their distances."""
    return dataclasses.replace(add_slots(cache, length), distances=_every_distance(cfg, params, length))


def flops(cfg: Config, batch: Batch) -> float:
    """Return the matrix-product FLOPs of a forward pass with its head; attention counts in full, over all distances.

    A batch with an order is one of pretraining, whose memory counts as full.
    """
    *leading, length = batch.tokens.shape
    rows, slots = math.prod(leading), length + (0 if batch.order is None else _memory_slots(cfg))
    queries = length + (0 if batch.query_at is None else batch.query_at.shape[1])
    distances, parts = slots + length, 1 if batch.backward is None else 2
    square = cfg.width * cfg.width
    products = rows * (queries * (2 * square + 2 * cfg.width * cfg.ffn) + slots * 2 * square) + distances * square
    scores = rows * queries * cfg.width * (2 * slots + parts * distances + (0 if batch.types is None else 2))
    return 2.0 * cfg.layers * (products + scores) + task_heads.flops(HEADS, cfg, batch)


# --- the streams ----------------------------------------------------------------------------------------------------------------


def _streams(batch: Batch, cache: Cache | None, carry: Any) -> tuple[Stream, Stream | None, Array | None]:
    """Return the content stream, the query stream if there is one, and the types of all keys, including the memory's.

    A token sees those of its segment and, with `batch.order`, of ranks up to its own; all tokens see rank -1. The positions
    `batch.query_at` also have a query stream, which sees the ranks below their own.

    The memory, `carry`, has segment 1 and type 0, and is visible whatever the order. Rows that go into the memory have no
    padding.

    With a cache the text is read from left to right, types are ignored, and the query stream is at the position after each token,
    which it predicts. Tokens of equal ranks all see each other, and then only the last one is a prediction: the others have seen
    what follows.

    Raises:
        ValueError: a query stream without an order.
    """
    length, memory = batch.tokens.shape[1], 0 if carry is None else carry["hidden"].shape[2]
    if cache is not None:
        # The keys before the next position are those up to this one: both streams see the same keys, the query stream at
        # distances greater by one.
        mask = self_mask(batch, cache, ranked=True)
        return Stream(mask=mask, first=length), Stream(mask=mask, first=length - 1), None
    segments, at = batch.segments, batch.query_at
    if carry is not None and segments is None:
        segments = jnp.ones_like(batch.tokens)

    def with_memory(values: Any, memory_values: Any) -> Any:
        if values is None or carry is None:
            return values
        return jnp.concatenate([jnp.broadcast_to(memory_values, (len(values), memory)), values], axis=1)  # [B, M + T]

    def at_queries(values: Any) -> Any:
        return None if values is None or at is None else jnp.take_along_axis(values, at, axis=1)  # [B, P]

    # Slots that are not in use yet are the first ones. They have segment 0, which no query sees.
    filled = None if carry is None else jnp.int32(jnp.arange(memory) >= memory - carry["filled"][:, None])
    seen = segments if batch.key_segments is None else batch.key_segments
    key_segments, key_ranks = with_memory(seen, filled), with_memory(batch.order, -1)
    mask = Mask(query_segments=segments, query_ranks=batch.order, key_segments=key_segments, key_ranks=key_ranks)
    content, query = Stream(mask=mask, first=length - 1, types=batch.types), None
    if at is not None:
        if batch.order is None:
            raise ValueError("positions of a query stream without an order: they would see what they are to predict")
        mask = Mask(
            query_segments=at_queries(segments),
            query_ranks=at_queries(batch.order),
            key_segments=key_segments,
            key_ranks=key_ranks,
            strict=True,
        )
        query = Stream(mask=mask, first=memory + length - 1, at=memory + at, types=at_queries(batch.types))
    return content, query, with_memory(batch.types, 0)


def _every_distance(cfg: Config, params: dict[str, Any], slots: int) -> Float[Array, "L N H X"]:
    """Return projected encodings of the X distances S, S - 1, ..., 1 - S; a query may be after all S slots."""
    encodings = positions.relative_sinusoids(slots, 2 * slots, cfg.width)

    def body(block: Block, carry: None, layer: Layer) -> tuple[None, Array]:
        return carry, block.attention.distances(encodings, parts=1)

    _, r = _run(cfg, params, body, None)
    return constrain(r, None, HEADS_AXIS)


def _unknown(params: dict[str, Any], at: Int[Array, "B P"]) -> Float[Array, "B P D"]:
    """Return the input of the query stream, which is the same vector at every position."""
    mask = params["embed"]["mask"]["embedding"]
    return constrain_tokens(jnp.broadcast_to(mask, (*at.shape, len(mask))))


def _memory_slots(cfg: Config) -> int:
    """Return the number of positions in memory: 0 for other tasks than pretraining, whose rows do not continue each other."""
    return cfg.memory if cfg.generates else 0


def _append_to_memory(memory: Float[Array, "B M D"], x: Float[Array, "B T D"]) -> Float[Array, "B M D"]:
    """Append the inputs of more positions to a layer's memory and drop the oldest ones."""
    extended = jnp.concatenate([memory, x.astype(memory.dtype)], axis=1)  # [B, M + T, D]
    return jax.lax.stop_gradient(extended[:, -memory.shape[1] :])


def _new_carry(carry: Any, memory: Float[Array, "L B M D"], added: int) -> dict[str, Any]:
    hidden = constrain(jnp.moveaxis(memory, 0, 1), BATCH, None, POSITIONS)  # [B, L, M, D]
    return {"hidden": hidden, "filled": jnp.minimum(carry["filled"] + added, hidden.shape[2])}


def _run(cfg: Config, params: dict[str, Any], body: Any, carry: Any, per_layer: Any = None) -> tuple[Any, Any]:
    return run_stack(functools.partial(Block, cfg), params["layers"], body, carry, per_layer, compute=cfg.compute)


class Embeddings(nnx.Module):
    """The table of tokens, and the input vector of the query stream."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        self.tokens = Embed(cfg.vocab, cfg.width, initializer(cfg), rngs, pad=True)
        self.mask = Vectors((cfg.width,), initializer(cfg), rngs)


# --- published names ------------------------------------------------------------------------------------------------------------

ATTENTION, FEED_FORWARD = "layer.{layer}.rel_attn", "layer.{layer}.ff"
BODY = (
    ParamName("embed/tokens/embedding", "word_embedding.weight"),
    ParamName("embed/mask/embedding", "mask_emb", "() () d -> d"),
    ParamName("layers/attention/q/kernel", f"{ATTENTION}.q"),
    ParamName("layers/attention/kv/kernel", (f"{ATTENTION}.k", f"{ATTENTION}.v"), "d n h -> d c n h"),
    ParamName("layers/attention/r/kernel", f"{ATTENTION}.r"),
    ParamName("layers/attention/out/kernel", f"{ATTENTION}.o", "d n h -> n h d"),
    ParamName("layers/attention/content/embedding", f"{ATTENTION}.r_w_bias"),
    ParamName("layers/attention/distance/embedding", f"{ATTENTION}.r_r_bias"),
    ParamName("layers/attention/type/embedding", f"{ATTENTION}.r_s_bias"),
    ParamName("layers/attention/types/embedding", f"{ATTENTION}.seg_embed"),
    *norm_names("layers/norm1", f"{ATTENTION}.layer_norm"),
    *linear_names("layers/mlp/up", f"{FEED_FORWARD}.layer_1"),
    *linear_names("layers/mlp/down", f"{FEED_FORWARD}.layer_2"),
    *norm_names("layers/norm2", f"{FEED_FORWARD}.layer_norm"),
)
"""The published "biases" are vectors that all queries share. They are tables like the others, so their weights decay."""

LM_HEAD = (ParamName("unembed/bias", "lm_loss.bias", bare=True),)
SUMMARY = (*head_names("dense", "sequence_summary.summary"), *head_names("classifier", "logits_proj"))

HEADS: dict[Task, Head] = {
    "body": Head(architecture="XLNetModel"),
    "permutation": Head(architecture="XLNetLMHeadModel", rows=LM_HEAD),
    # The names are this project's: no model of the paper's ablation "+ next-sent pred" was published.
    "pretraining": Head(
        architecture="",
        rows=(*LM_HEAD, *head_names("pooler", "sequence_summary.summary"), *head_names("next", "next")),
    ),
    "sequence": Head(architecture="XLNetForSequenceClassification", rows=SUMMARY),
    "choice": Head(architecture="XLNetForMultipleChoice", rows=SUMMARY),
    "tokens": Head(architecture="XLNetForTokenClassification", rows=head_names("classifier", "classifier"), drops=False),
    "span": Head(architecture="XLNetForQuestionAnsweringSimple", rows=head_names("classifier", "qa_outputs"), drops=False),
}

FAMILY = Family(
    init=functools.partial(encoder.init, HEADS, Embeddings, Block),
    apply=apply,
    unembed=task_heads.lm_logits,
    flops=flops,
    init_cache=init_cache,
    grow_cache=grow_cache,
    sequence_logits=functools.partial(task_heads.sequence_logits, HEADS),
    token_logits=functools.partial(task_heads.token_logits, HEADS),
    init_carry=init_carry,
    objectives=("permutation", *task_heads.FINE_TUNED),
    names=encoder.published_names(HEADS, "transformer.", BODY, tied={"lm_loss.weight": "embed/tokens/embedding"}),
    sharding=(
        (r"embed/mask/embedding", (None,)),
        (r"attention/r/kernel", ("fsdp", "tensor", None)),
        (r"attention/kv/kernel", ("fsdp", None, "tensor", None)),
        (r"attention/(content|distance|type)/embedding", ("tensor", None)),
        (r"attention/types/embedding", (None, "tensor", None)),
        (r"unembed/bias", ("tensor",)),
    ),
    padded={"embed/tokens/embedding": "vocab", "unembed/bias": "vocab"},
    lora=("layer_1", "layer_2"),
)
