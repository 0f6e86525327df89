"""XLNet: a bidirectional body that learns to predict its text in any order (Yang et al. 2019).

Two streams share all parameters. The content stream reads the text. The query stream is where a word is predicted: it knows its
place, not its word, and reads the content stream of what comes earlier in the order. Places enter as distances alone
(Transformer-XL, Dai et al. 2019, section 3.3), so that a row may continue what is remembered of the row before.

Unlike in both papers' code, encodings of distances are not dropped: each row would need its own, projected in every layer.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.attention.attention import HEADS as HEADS_AXIS
from zoo.attention.masks import Mask
from zoo.batch import Batch, Output
from zoo.configs._encoder import Task
from zoo.configs.xlnet import Config
from zoo.hf.param_names import Row
from zoo.nn import encoder, heads
from zoo.nn.encoder import DENSE, initializer, linear
from zoo.nn.heads import Head
from zoo.nn.kv_cache import advance, empty_cache
from zoo.nn.layer_stack import init_stack, run_stack
from zoo.nn.layers import Embed, Past, Seeds, dropout, lookup
from zoo.nn.xlnet_layer import Block, Keys, Stream, Vectors
from zoo.ops import counter_rng, positions
from zoo.sharding import BATCH, Rules, constrain

OBJECTIVES = ("permutation", "classification", "tagging", "span", "choice")
SHARDING: Rules = (
    (r"embed/mask/embedding", (None,)),
    (r"attention/(q|r)/kernel", ("fsdp", "tensor", None)),
    (r"attention/kv/kernel", ("fsdp", None, "tensor", None)),
    (r"attention/(content|distance|type)/embedding", ("tensor", None)),
    (r"attention/types/embedding", (None, "tensor", None)),
    (r"unembed/bias", ("tensor",)),
)
PADDED = {"embed/tokens/embedding": "vocab", "unembed/bias": "vocab"}
"""Leaf -> field with its true number of rows; the rows beyond it are padding, cut at export and not counted."""

CONTENT, QUERY = range(2)
"""Streams, by which their seeds differ. A head's follow those of the layers and so are other ones."""
EMBEDDING_SITE = 0


def init(cfg: Config, key: Array) -> dict[str, Any]:
    """Fresh parameters: all but norms and biases of linear layers are drawn, of deviation 0.02."""
    outside, layers, top = jax.random.split(key, 3)
    params = nnx.to_pure_dict(nnx.state(Outside(cfg, nnx.Rngs(outside))))
    above = nnx.to_pure_dict(nnx.state(heads.Top(cfg, heads.find(HEADS, cfg), initializer(cfg), nnx.Rngs(top))))
    return {**params, **above, "layers": init_stack(lambda rngs: Block(cfg, rngs), layers, cfg.layers)}


def apply(cfg: Config, params: dict[str, Any], batch: Batch, *, seeds: Seeds = None, carry: Any = None) -> Output:
    """Hidden states of the content stream, and of the query stream where something is predicted.

    A token sees those of its segment and, by `batch.order`, of ranks up to its own; rank -1 is seen by all. The
    positions `batch.query_at` also have a query stream, `Output.predicted`, which sees the ranks below its own.

    What is remembered counts as segment 1 and type 0, and is seen whatever the order. Without `carry` nothing is. Rows that are
    remembered hold no padding.

    Without `batch.types` there is no term of types, not even of equal ones, as in `transformers`.

    Args:
        seeds: u32[B, 2], turns dropout on.
        carry: what `init_carry` or the step before gave: inputs of every layer at earlier positions. They get no gradient.

    Raises:
        ValueError: a query stream without an order.
    """
    carry = carry or None
    length = batch.tokens.shape[1]
    slots = length if carry is None else carry["hidden"].shape[2] + length
    content, query, key_types = _streams(batch, carry)
    sign = None if batch.backward is None else jnp.where(batch.backward, -1.0, 1.0)
    encodings = positions.relative_sinusoids(slots - 1, slots + length, cfg.width)
    kept = min(cfg.reuse or length, length)
    of_content, of_query = _fold(seeds, CONTENT), _fold(seeds, QUERY)

    def body(block: Block, streams: Any, before: Any, index: Array, _: None) -> tuple[Any, Any]:
        x, g = streams
        whole = x if before is None else jnp.concatenate([before.astype(x.dtype), x], axis=1)
        keys = Keys.of(block.attention, whole, encodings, sign, key_types)
        after = constrain(block(x, keys, content, _fold(of_content, index + 1)), BATCH)
        if query is not None:
            g = constrain(block(g, keys, query, _fold(of_query, index + 1)), BATCH)
        return (after, g), None if before is None else _remember(before, x[:, :kept])

    x = lookup(params["embed"]["tokens"]["embedding"], batch.tokens, rows="tensor")
    x = dropout(x, cfg.dropout, of_content, EMBEDDING_SITE)
    g = None
    if query is not None:
        assert batch.query_at is not None
        g = dropout(_unknown(params, batch.query_at), cfg.dropout, of_query, EMBEDDING_SITE)
    before = None if carry is None else jnp.moveaxis(carry["hidden"], 1, 0)
    (x, g), remembered = _run(cfg, params, body, (x, g), before)
    # Its number follows those of the layers.
    last = cfg.layers + 1
    return Output(
        hidden=dropout(x, cfg.dropout, of_content, last),
        predicted=None if g is None else dropout(g, cfg.dropout, of_query, last),
        carry={} if carry is None else _carried(carry, remembered, kept),
    )


def init_carry(cfg: Config, rows: int) -> dict[str, Any]:
    """Nothing remembered yet; `{}` for a model that does not remember, or whose rows do not continue each other.

    "hidden", float32 [B, L, M, D], inputs of each layer at the M last positions that are kept; "filled", int32 [B], how many of
    them there are: the last ones.
    """
    if (slots := _remembers(cfg)) == 0:
        return {}
    hidden = jnp.zeros((rows, cfg.layers, slots, cfg.width), jnp.float32)
    return {"hidden": hidden, "filled": jnp.zeros(rows, jnp.int32)}


def init_cache(cfg: Config, rows: int, length: int, dtype: Any) -> dict[str, Any]:
    """An empty cache of `length` slots for `rows` rows; see `zoo.models.Model.init_cache`."""
    return empty_cache(cfg.layers, rows, length, cfg.heads, cfg.head, dtype)


def decode(
    cfg: Config, params: dict[str, Any], batch: Batch, cache: dict[str, Any]
) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
    """Hidden states that predict what follows each of T more tokens; see `zoo.models.Model.decode`.

    The text is read from left to right: each token's hidden state is the query stream's at the position after it. Types are not
    told apart, and nothing but the cache is remembered.

    The first call puts the projected encodings of all distances into the cache, "r" [L, N, H, 2 S]: made anew for each token,
    they would cost more than all the rest.

    Raises:
        ValueError: more tokens than the cache has slots.
    """
    new, known = advance(batch, cache)
    at, length, slots = cache["at"], batch.tokens.shape[1], cache["k"].shape[2]
    mask = Mask(
        query_segments=new["segments"],
        key_segments=known["segments"],
        query_ranks=new["positions"],
        key_ranks=known["positions"],
    )
    # What lies strictly before the next position lies up to this one: both streams see the same, at a distance greater by one.
    content, query = Stream(mask=mask, first=length), Stream(mask=mask, first=length - 1)
    r = cache["r"] if "r" in cache else _every_distance(cfg, params, slots)
    # From that of the last query to the first key on.
    needed = jax.lax.dynamic_slice_in_dim(r, slots - at - length, slots + length, axis=3)

    def body(block: Block, carry: Any, r: Array, index: Array, _: None) -> tuple[Any, None]:
        x, g, k, v = carry
        past = Past(k=k, v=v, layer=index, at=at).write(*block.attention.read(x))
        k, v = past.read()
        keys = Keys(k=k, v=v, r=r)
        x, g = (constrain(block(each, keys, stream, None), BATCH) for each, stream in ((x, content), (g, query)))
        return (x, g, past.k, past.v), None

    x = lookup(params["embed"]["tokens"]["embedding"], batch.tokens, rows="tensor")
    (_, g, k, v), _ = _run(cfg, params, body, (x, _unknown(params, batch.tokens), cache["k"], cache["v"]), needed)
    return g, {**known, "k": k, "v": v, "r": r, "at": at + length}


def unembed(cfg: Config, params: dict[str, Any], hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
    """float32 logits from the tied embedding and a bias; rows >= cfg.vocab are padding and get no probability."""
    return heads.word_logits(cfg, params, hidden)


def sequence_logits(
    cfg: Config, params: dict[str, Any], hidden: Float[Array, "B Q D"], *, seeds: Seeds = None
) -> Float[Array, "B Q O"]:
    """float32 logits of sequences; see `zoo.nn.heads`. What stands for one, its <cls>, is its last token: `batch.summary_at`."""
    return heads.sequence_logits(cfg, heads.find(HEADS, cfg), params, hidden, seeds)


def token_logits(
    cfg: Config, params: dict[str, Any], hidden: Float[Array, "B T D"], *, seeds: Seeds = None
) -> Float[Array, "B T O"]:
    """float32 logits of tokens: of their labels, or of the ends of a span."""
    return heads.token_logits(cfg, heads.find(HEADS, cfg), params, hidden, seeds)


def flops(cfg: Config, batch: Batch) -> float:
    """Matrix-product FLOPs of a forward pass with its head; attention counted in full, over all distances.

    A batch with an order is of pretraining: its memory is counted, full.
    """
    *several, length = batch.tokens.shape
    rows, slots = math.prod(several), length + (0 if batch.order is None else _remembers(cfg))
    queries = length + (0 if batch.query_at is None else batch.query_at.shape[1])
    distances, parts = slots + length, 1 if batch.backward is None else 2
    square = cfg.width * cfg.width
    products = rows * (queries * (2 * square + 2 * cfg.width * cfg.ffn) + slots * 2 * square) + distances * square
    scores = rows * queries * cfg.width * (2 * slots + parts * distances + (0 if batch.types is None else 2))
    return 2.0 * cfg.layers * (products + scores) + heads.flops(cfg, heads.find(HEADS, cfg), batch)


# --- the streams ----------------------------------------------------------------------------------------------------------------


def _streams(batch: Batch, carry: Any) -> tuple[Stream, Stream | None, Array | None]:
    """The content stream, the query stream if there is one, and the types of all keys, those remembered included."""
    length, memory = batch.tokens.shape[1], 0 if carry is None else carry["hidden"].shape[2]
    segments, at = batch.segments, batch.query_at
    if carry is not None and segments is None:
        segments = jnp.ones_like(batch.tokens)

    def with_memory(values: Any, before: Any) -> Any:
        if values is None or carry is None:
            return values
        return jnp.concatenate([jnp.broadcast_to(before, (len(values), memory)), values], axis=1)

    def picked(values: Any) -> Any:
        return None if values is None or at is None else jnp.take_along_axis(values, at, axis=1)

    # Slots that were never filled are the first ones, and are of segment 0, which nobody sees.
    filled = None if carry is None else jnp.int32(jnp.arange(memory) >= memory - carry["filled"][:, None])
    keys: dict[str, Any] = {"key_segments": with_memory(segments, filled), "key_ranks": with_memory(batch.order, -1)}
    mask = Mask(query_segments=segments, query_ranks=batch.order, **keys)
    content, query = Stream(mask=mask, first=length - 1, types=batch.types), None
    if at is not None:
        if batch.order is None:
            raise ValueError("positions of a query stream without an order: they would see what they are to predict")
        mask = Mask(query_segments=picked(segments), query_ranks=picked(batch.order), strict=True, **keys)
        query = Stream(mask=mask, first=memory + length - 1, at=memory + at, types=picked(batch.types))
    return content, query, with_memory(batch.types, 0)


def _every_distance(cfg: Config, params: dict[str, Any], slots: int) -> Float[Array, "L N H X"]:
    """Projected encodings of the distances S, S - 1, ..., 1 - S, X of them: a query may lie behind all S slots."""
    encodings = positions.relative_sinusoids(slots, 2 * slots, cfg.width)

    def body(block: Block, carry: None, _: None, index: Array, __: None) -> tuple[None, Array]:
        return carry, block.attention.distances(encodings, parts=1)

    _, r = _run(cfg, params, body, None)
    return constrain(r, None, HEADS_AXIS)


def _unknown(params: dict[str, Any], places: Int[Array, "B P"]) -> Float[Array, "B P D"]:
    """What a query stream begins with everywhere."""
    mask = params["embed"]["mask"]["embedding"]
    return constrain(jnp.broadcast_to(mask, (*places.shape, len(mask))), BATCH)


def _remembers(cfg: Config) -> int:
    """Positions that a training step remembers: rows of other tasks do not continue each other."""
    return cfg.memory if cfg.generates else 0


def _remember(before: Float[Array, "B M D"], x: Float[Array, "B T D"]) -> Float[Array, "B M D"]:
    """A layer's memory with the inputs of more positions behind it, cut to its size."""
    whole = jnp.concatenate([before, x.astype(before.dtype)], axis=1)
    return jax.lax.stop_gradient(whole[:, -before.shape[1] :])


def _carried(carry: Any, remembered: Float[Array, "L B M D"], kept: int) -> dict[str, Any]:
    hidden = constrain(jnp.moveaxis(remembered, 0, 1), BATCH)
    return {"hidden": hidden, "filled": jnp.minimum(carry["filled"] + kept, hidden.shape[2])}


def _run(cfg: Config, params: dict[str, Any], body: Any, carry: Any, per_layer: Any = None) -> tuple[Any, Any]:
    layer, compute = functools.partial(Block, cfg), cfg.compute
    return run_stack(layer, params["layers"], body, carry, per_layer, remat=compute.remat, unroll=compute.unroll)


def _fold(seeds: Seeds, number: Any) -> Seeds:
    return None if seeds is None else counter_rng.fold(seeds, number)


class Outside(nnx.Module):
    """What exists once below the layers."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        self.embed = Embeddings(cfg, rngs)


class Embeddings(nnx.Module):
    """The table of tokens, and the vector that stands for an unknown one."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        self.tokens = Embed(cfg.vocab, cfg.width, initializer(cfg), rngs, pad=True)
        self.mask = Vectors((cfg.width,), initializer(cfg), rngs)


# --- published names ------------------------------------------------------------------------------------------------------------

ATTENTION, FEED_FORWARD = "layer.{layer}.rel_attn", "layer.{layer}.ff"
BODY = (
    Row("embed/tokens/embedding", "word_embedding.weight"),
    Row("embed/mask/embedding", "mask_emb", "() () d -> d"),
    Row("layers/attention/q/kernel", f"{ATTENTION}.q"),
    Row("layers/attention/kv/kernel", (f"{ATTENTION}.k", f"{ATTENTION}.v"), "d n h -> d c n h"),
    Row("layers/attention/r/kernel", f"{ATTENTION}.r"),
    Row("layers/attention/out/kernel", f"{ATTENTION}.o", "d n h -> n h d"),
    Row("layers/attention/content/embedding", f"{ATTENTION}.r_w_bias"),
    Row("layers/attention/distance/embedding", f"{ATTENTION}.r_r_bias"),
    Row("layers/attention/type/embedding", f"{ATTENTION}.r_s_bias"),
    Row("layers/attention/types/embedding", f"{ATTENTION}.seg_embed"),
    Row("layers/norm1/scale", f"{ATTENTION}.layer_norm.weight"),
    Row("layers/norm1/bias", f"{ATTENTION}.layer_norm.bias"),
    Row("layers/mlp/up/kernel", f"{FEED_FORWARD}.layer_1.weight", DENSE),
    Row("layers/mlp/up/bias", f"{FEED_FORWARD}.layer_1.bias"),
    Row("layers/mlp/down/kernel", f"{FEED_FORWARD}.layer_2.weight", DENSE),
    Row("layers/mlp/down/bias", f"{FEED_FORWARD}.layer_2.bias"),
    Row("layers/norm2/scale", f"{FEED_FORWARD}.layer_norm.weight"),
    Row("layers/norm2/bias", f"{FEED_FORWARD}.layer_norm.bias"),
)
"""What are called biases there are vectors that all queries share, learned as the other tables are: their weights decay."""

WORDS = (Row("unembed/bias", "lm_loss.bias", bare=True),)
SUMMARY = (*linear("dense", "sequence_summary.summary"), *linear("classifier", "logits_proj"))

HEADS: dict[Task, Head] = {
    "body": Head(architecture="XLNetModel"),
    "permutation": Head(architecture="XLNetLMHeadModel", rows=WORDS),
    # Its names are ours: no model of the paper's ablation "+ next-sent pred" was published.
    "pretraining": Head(architecture="", rows=(*WORDS, *linear("pooler", "sequence_summary.summary"), *linear("next", "next"))),
    "sequence": Head(architecture="XLNetForSequenceClassification", rows=SUMMARY),
    "choice": Head(architecture="XLNetForMultipleChoice", rows=SUMMARY),
    "tokens": Head(architecture="XLNetForTokenClassification", rows=linear("classifier", "classifier"), drops=False),
    "span": Head(architecture="XLNetForQuestionAnsweringSimple", rows=linear("classifier", "qa_outputs"), drops=False),
}
HF = encoder.published(HEADS, "transformer.", BODY, tied={"lm_loss.weight": "embed/tokens/embedding"})
