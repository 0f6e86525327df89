"""T5: an encoder-decoder with pre-RMS-norm blocks and relative position biases, no biases otherwise (Raffel et al. 2020).

It has T5 1.0, T5 1.1 with mT5, ByT5 and UL2, umT5 with position biases in every layer, and two more architectures of the paper's
Table 2: an encoder that shares its parameters with the decoder, and a decoder-only model.

Attention is not scaled. Norms, scores and position biases are float32 in any precision. In float16 the feed-forward states of
published weights overflow. bfloat16 has the range of float32, so nothing is clamped here.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.attention.biases import Buckets, ByDistance
from zoo.attention.masks import Mask
from zoo.batch import Batch, Output
from zoo.configs.t5 import Config
from zoo.hf.param_name_types import ParamName, ParamNames, head_names
from zoo.nn import score_head
from zoo.nn.family import Family
from zoo.nn.kv_cache import Cache, KVCacheView, LayerIndex, append_tokens, cache_after, self_mask, view_of
from zoo.nn.layer_stack import Layer, init_stack, run_stack
from zoo.nn.layers import (
    CrossAttention,
    Embed,
    GatedMlp,
    Init,
    Mlp,
    RMSNorm,
    Seeds,
    SelfAttention,
    dropout,
    fold_seeds,
    lookup,
    params_of,
    rms_norm,
    tied_logits,
)
from zoo.nn.source_cache import DECODER, ENCODER, cache_source, cached_keys, cross_mask, source_keys
from zoo.nn.t5_architectures import ARCHITECTURES
from zoo.sharding import constrain_tokens

EMBEDDING_SITE = 0
ATTENTION_SITE, RESIDUAL_SITE, INNER_SITE, MLP_SITE, CROSS_SITE, CROSS_RESIDUAL_SITE, SCORE_SITE = range(7)
SCALE = 1.0


def init(cfg: Config, key: Array) -> dict[str, Any]:
    """Return new parameters: normal, with standard deviation 1 for tables, 1/sqrt(inputs) for kernels (the paper's code).

    The kernels of queries have a further factor of 1/sqrt(H).

    A reward model has the leaves `dense` and `classifier` in place of an untied output table; see `zoo.nn.score_head`.
    """
    embed_key, encoder, decoder = jax.random.split(key, 3)
    rngs, architecture = nnx.Rngs(embed_key), ARCHITECTURES[cfg.architecture]
    cross, two_stacks = architecture.has_encoder, architecture.two_stacks
    # The tables are sampled one after the other, in this order.
    params: dict[str, Any] = {"embed": params_of(Embeddings(cfg, rngs))}
    if cross:
        params["encoder"] = params_of(Side(cfg, rngs, norm=two_stacks))
    params["decoder"] = params_of(Side(cfg, rngs, norm=True))
    if cfg.labels:
        params |= score_head.init_dense_score(
            cfg.width, jax.nn.initializers.normal(cfg.width**-0.5), jax.random.fold_in(key, SCORE_SITE)
        )
    elif not cfg.tied:
        params["unembed"] = params_of(Embed(cfg.vocab, cfg.width, jax.nn.initializers.normal(1.0), rngs, pad=True))
    params["decoder"]["layers"] = init_stack(lambda rngs: Block(cfg, rngs, cross=cross), decoder, cfg.decoder_layers)
    if two_stacks:
        params["encoder"]["layers"] = init_stack(lambda rngs: Block(cfg, rngs, cross=False), encoder, cfg.layers)
    return params


def apply(
    cfg: Config, params: dict[str, Any], batch: Batch, *, cache: Cache | None = None, seeds: Seeds = None, carry: Any = None
) -> Output:
    """Return the hidden states of `batch.tokens` after the decoder's last norm, and of `batch.source`.

    `seeds`, u32[B, 2], enables dropout. A decoder-only model has no source. Its attention is causal or follows `batch.order`:
    every position sees those of its segment whose rank is not higher than its own. A prefix has rank 0; with a cache, later
    tokens without an order have ranks above all earlier ones.

    Raises:
        ValueError: no source, or a source for a decoder-only model; or more tokens than the cache has slots.
    """
    batch, cache = append_tokens(batch, cache)
    source, run = None, functools.partial(_run, cfg, params, DECODER)
    has_encoder = ARCHITECTURES[cfg.architecture].has_encoder
    if not has_encoder:
        if batch.source is not None:
            raise ValueError("a T5 of architecture decoder takes a batch without source")
        source_mask = Mask()
    else:
        source = None if batch.source is None else _encode(cfg, params, batch.source, fold_seeds(seeds, ENCODER))
        cache = cache_source(cache, batch, source, run)
        source_mask = cross_mask(batch, cache)
    mask = self_mask(batch, cache, ranked=not has_encoder)
    length = batch.tokens.shape[1]
    sizes = (length, length) if cache is None else (length, cache.slots, cache.at)
    shared_bias = _shared_position_bias(cfg, params, DECODER, *sizes)
    decoder_seeds = fold_seeds(seeds, DECODER)

    def body(block: Block, carry: Any, layer: Layer) -> tuple[Any, None]:
        x, past = carry
        layer_seeds = fold_seeds(decoder_seeds, layer.index + 1)
        x, past = block.attend(x, mask, block.position_bias(shared_bias, DECODER, *sizes), layer_seeds, past, layer.index)
        if block.cross is not None:
            x = block.attend_source(x, *source_keys(block.cross, source, layer), source_mask, layer_seeds)
        return (constrain_tokens(block.feed_forward(x, layer_seeds)), past), None

    x = dropout(_embed(params, DECODER, batch.tokens), cfg.dropout, decoder_seeds, EMBEDDING_SITE)
    (x, past), _ = run(body, (x, view_of(cache)), cached_keys(cache))
    hidden = _last_norm(cfg, params, DECODER, x, decoder_seeds)
    return Output(hidden=hidden, source_hidden=source, cache=cache_after(cache, past, batch))


def init_cache(cfg: Config, rows: int, length: int, dtype: Any) -> Cache:
    """Return an empty cache of `length` slots for `rows` rows; that of a decoder-only model has an order."""
    ordered = not ARCHITECTURES[cfg.architecture].has_encoder
    return Cache.empty(cfg.decoder_layers, rows, length, cfg.heads, cfg.head, dtype, ordered=ordered)


def unembed(cfg: Config, params: dict[str, Any], hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
    """Return float32 logits; rows >= cfg.vocab are padding and get no probability."""
    if not cfg.tied:
        return tied_logits(hidden, params["unembed"]["embedding"], cfg.vocab)
    scaled = hidden * jnp.asarray(cfg.width**-0.5, hidden.dtype)
    return tied_logits(scaled, params["embed"]["tokens"]["embedding"], cfg.vocab)


def flops(cfg: Config, batch: Batch) -> float:
    """Return the matrix-product FLOPs of a forward pass with its head; attention counts in full, T x T and T x S."""
    rows, length = batch.tokens.shape
    inner = cfg.heads * cfg.head
    attention, mlp = 4 * cfg.width * inner, (3 if cfg.gated else 2) * cfg.width * cfg.ffn
    target = 2.0 * rows * length
    lm_head, score = (0, 2.0 * rows * cfg.width * (cfg.width + 1)) if cfg.labels else (cfg.width * cfg.vocab, 0.0)
    total = target * (cfg.decoder_layers * (attention + mlp + 2 * length * inner) + lm_head) + score
    if batch.source is None:
        return total
    source = 2.0 * rows * batch.source.tokens.shape[1]
    total += source * cfg.layers * (attention + mlp + 2 * batch.source.tokens.shape[1] * inner)
    # Cross-attention projects queries and outputs for the target's tokens, and keys and values for the source's; scores and
    # weighted values are counted with the source.
    return total + cfg.decoder_layers * (target * attention / 2 + source * (attention / 2 + 2 * length * inner))


# --- the stacks -----------------------------------------------------------------------------------------------------------------


def _encode(cfg: Config, params: dict[str, Any], source: Batch, seeds: Seeds) -> Float[Array, "B S D"]:
    """Return the encoder's hidden states after its last norm."""
    length = source.tokens.shape[1]
    mask = self_mask(source, causal=False)
    shared_bias = _shared_position_bias(cfg, params, ENCODER, length, length)

    def body(block: Block, x: Array, layer: Layer) -> tuple[Array, None]:
        layer_seeds = fold_seeds(seeds, layer.index + 1)
        bias = block.position_bias(shared_bias, ENCODER, length, length)
        x, _ = block.attend(x, mask, bias, layer_seeds)
        return constrain_tokens(block.feed_forward(x, layer_seeds)), None

    x = dropout(_embed(params, ENCODER, source.tokens), cfg.dropout, seeds, EMBEDDING_SITE)
    x, _ = _run(cfg, params, ENCODER, body, x)
    return _last_norm(cfg, params, ENCODER, x, seeds)


def _run(cfg: Config, params: dict[str, Any], side: int, body: Any, carry: Any, per_layer: Any = None) -> tuple[Any, Any]:
    """Run `run_stack` over the layers of a side."""
    architecture = ARCHITECTURES[cfg.architecture]
    block = functools.partial(Block, cfg, cross=side == DECODER and architecture.has_encoder)
    return run_stack(block, architecture.layers(params, side), body, carry, per_layer, compute=cfg.compute)


def _shared_position_bias(cfg: Config, params: dict[str, Any], side: int, *sizes: Any) -> ByDistance | None:
    """Return the position biases that all layers of a side share, None if each has its own; `sizes` as in `_position_bias`."""
    if cfg.bias_per_layer:
        return None
    return _position_bias(cfg, params["encoder" if side == ENCODER else "decoder"]["relative"]["embedding"], side, *sizes)


def _position_bias(cfg: Config, table: Float[Array, "buckets N"], side: int, *sizes: Any) -> ByDistance:
    """Return the position biases of a table for `sizes` (queries, keys, and the key of the first query, if it is not 0)."""
    both = ARCHITECTURES[cfg.architecture].is_bidirectional(side)
    return Buckets(table=table, bidirectional=both, max_distance=cfg.max_distance).prepare(*sizes)


def _embed(params: dict[str, Any], side: int, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    return lookup(params["embed"]["tokens"]["embedding"], tokens, rows="tensor", source=side == ENCODER)


def _last_norm(cfg: Config, params: dict[str, Any], side: int, x: Float[Array, "B T D"], seeds: Seeds) -> Float[Array, "B T D"]:
    normed = rms_norm(x, ARCHITECTURES[cfg.architecture].norm(params, side)["scale"], cfg.eps)
    # The index of its seeds follows those of the layers.
    return dropout(normed, cfg.dropout, seeds, 1 + (cfg.layers if side == ENCODER else cfg.decoder_layers))


class Embeddings(nnx.Module):
    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        self.tokens = Embed(cfg.vocab, cfg.width, jax.nn.initializers.normal(1.0), rngs, pad=True)


class Side(nnx.Module):
    """The position biases of a side, and its last norm."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs, *, norm: bool):
        if not cfg.bias_per_layer:
            self.relative = Embed(cfg.buckets, cfg.heads, jax.nn.initializers.normal(cfg.width**-0.5), rngs)
        if norm:
            self.norm = RMSNorm(cfg.width, cfg.eps)


class Block(nnx.Module):
    """A layer: x + attention(norm(x)), the same over a source if `cross`, then x + mlp(norm(x))."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs, *, cross: bool):
        width, heads, head = cfg.width, cfg.heads, cfg.head
        normal = jax.nn.initializers.normal
        q_init, in_init, out_init = normal((width * head) ** -0.5), normal(width**-0.5), normal((heads * head) ** -0.5)

        def qkv_init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            return in_init(key, shape, dtype) * jnp.array([head**-0.5, 1, 1], dtype)[:, None, None]  # [D, 3, N, H]

        self.cfg = cfg
        self.norm1 = RMSNorm(width, cfg.eps)
        self.attention = SelfAttention(width, heads, head, qkv_init, out_init, rngs, biases=False)
        self.cross = CrossAttention(width, heads, head, (q_init, in_init, out_init), rngs, biases=False) if cross else None
        self.norm3 = RMSNorm(width, cfg.eps) if cross else None
        self.norm2 = RMSNorm(width, cfg.eps)
        self.mlp = _mlp(cfg, in_init, normal(cfg.ffn**-0.5), rngs)
        self.relative = Embed(cfg.buckets, heads, in_init, rngs) if cfg.bias_per_layer else None

    def position_bias(self, shared: ByDistance | None, side: int, *sizes: Any) -> ByDistance | None:
        """Return the position biases of the layer: those that all share, or its own; `sizes` as in `_position_bias`."""
        return shared if self.relative is None else _position_bias(self.cfg, self.relative.embedding[...], side, *sizes)

    def attend(
        self,
        x: Float[Array, "B T D"],
        mask: Mask,
        bias: ByDistance | None,
        seeds: Seeds,
        past: KVCacheView | None = None,
        layer: LayerIndex = 0,
    ) -> tuple[Float[Array, "B T D"], KVCacheView | None]:
        cfg, attention_seeds = self.cfg, fold_seeds(seeds, ATTENTION_SITE)
        options = {"dropout": cfg.dropout, "seeds": attention_seeds, "scale": SCALE, "compute": cfg.compute}
        y, past = self.attention(self.norm1(x), mask, past, layer, bias=bias, **options)
        return x + dropout(y, cfg.dropout, seeds, RESIDUAL_SITE), past

    def attend_source(self, x: Float[Array, "B T D"], k: Array, v: Array, mask: Mask, seeds: Seeds) -> Float[Array, "B T D"]:
        assert self.cross is not None and self.norm3 is not None
        cfg, cross_seeds = self.cfg, fold_seeds(seeds, CROSS_SITE)
        y = self.cross(self.norm3(x), k, v, mask, dropout=cfg.dropout, seeds=cross_seeds, scale=SCALE, compute=cfg.compute)
        return x + dropout(y, cfg.dropout, seeds, CROSS_RESIDUAL_SITE)

    def feed_forward(self, x: Float[Array, "B T D"], seeds: Seeds) -> Float[Array, "B T D"]:
        rate = self.cfg.dropout
        y = self.mlp(self.norm2(x), dropped=lambda inner: dropout(inner, rate, seeds, INNER_SITE))
        return x + dropout(y, rate, seeds, MLP_SITE)


def _mlp(cfg: Config, init: Init, out_init: Init, rngs: nnx.Rngs) -> Mlp | GatedMlp:
    if cfg.gated:
        return GatedMlp(cfg.width, cfg.ffn, cfg.activation, init, out_init, rngs)
    return Mlp(cfg.width, cfg.ffn, cfg.activation, init, out_init, rngs, biases=False)


# --- published names ------------------------------------------------------------------------------------------------------------


def _rows(side: str, last: int) -> tuple[ParamName, ...]:
    """Return the published names of the parameters that both sides have; the feed-forward layer is number `last` of a block."""
    block, feed = f"{side}.block.{{layer}}.layer", f"{side}.block.{{layer}}.layer.{last}"
    own, inner = f"{block}.0.SelfAttention", f"{feed}.DenseReluDense"
    return (
        ParamName(f"{side}/layers/norm1/scale", f"{block}.0.layer_norm.weight"),
        ParamName(f"{side}/layers/attention/qkv/kernel", tuple(f"{own}.{part}.weight" for part in "qkv"), "(n h) d -> d c n h"),
        ParamName(f"{side}/layers/attention/out/kernel", f"{own}.o.weight", "d (n h) -> n h d"),
        ParamName(f"{side}/relative/embedding", f"{own.format(layer=0)}.relative_attention_bias.weight", optional=True),
        ParamName(f"{side}/layers/relative/embedding", f"{own}.relative_attention_bias.weight", optional=True),
        ParamName(f"{side}/layers/norm2/scale", f"{feed}.layer_norm.weight"),
        ParamName(f"{side}/layers/mlp/up/kernel", f"{inner}.wi.weight", "f d -> d f", optional=True),
        ParamName(
            f"{side}/layers/mlp/gated/kernel",
            (f"{inner}.wi_0.weight", f"{inner}.wi_1.weight"),
            "f d -> d c f",
            optional=True,
        ),
        ParamName(f"{side}/layers/mlp/down/kernel", f"{inner}.wo.weight", "d f -> f d"),
        ParamName(f"{side}/norm/scale", f"{side}.final_layer_norm.weight"),
    )


CROSS = "decoder.block.{layer}.layer.1.EncDecAttention"
NAMES = ParamNames(
    architecture="T5ForConditionalGeneration",
    prefixes=("",),
    rows=(
        ParamName("embed/tokens/embedding", "shared.weight"),
        *_rows("encoder", 1),
        *_rows("decoder", 2),
        ParamName("decoder/layers/norm3/scale", "decoder.block.{layer}.layer.1.layer_norm.weight"),
        ParamName("decoder/layers/cross/q/kernel", f"{CROSS}.q.weight", "(n h) d -> d n h"),
        ParamName("decoder/layers/cross/kv/kernel", (f"{CROSS}.k.weight", f"{CROSS}.v.weight"), "(n h) d -> d c n h"),
        ParamName("decoder/layers/cross/out/kernel", f"{CROSS}.o.weight", "d (n h) -> n h d"),
        ParamName("unembed/embedding", "lm_head.weight", optional=True),
    ),
    tied=dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), "embed/tokens/embedding"
    ),
    # `transformers` 5 uses the embeddings as output table, unscaled, if a file has no other one, and writes such files itself.
    substitutes={"lm_head.weight": "shared.weight"},
    # The released files of T5 1.0 contain position biases for cross-attention that the released code never reads.
    idle=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
)
SCORE = dataclasses.replace(
    NAMES,
    architecture="T5ForSequenceClassification",
    prefixes=("transformer.",),
    rows=(
        *(row for row in NAMES.rows if row.leaf != "unembed/embedding"),
        *head_names("dense", "classification_head.dense"),
        *head_names("classifier", "classification_head.out_proj"),
    ),
    tied=dict.fromkeys(
        ("transformer.encoder.embed_tokens.weight", "transformer.decoder.embed_tokens.weight"), "embed/tokens/embedding"
    ),
)

FAMILY = Family(
    init=init,
    apply=apply,
    unembed=unembed,
    flops=flops,
    init_cache=init_cache,
    sequence_logits=score_head.sequence_logits,
    objectives=("denoising", "text_to_text", "preference", "dpo", "kto", "policy_gradient", "ppo"),
    names={"text_to_text": NAMES, "sequence": SCORE},
    sharding=(
        (r"relative/embedding", (None, "tensor")),
        (r"unembed/embedding", ("tensor", "fsdp")),
    ),
    padded={"embed/tokens/embedding": "vocab", "unembed/embedding": "vocab"},
    lora=("q", "v"),
)
