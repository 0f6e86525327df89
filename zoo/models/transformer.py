"""The original Transformer (Vaswani et al. 2017): encoder and decoder, post-layer-norm, with fixed or learned positions."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from zoo.attention.masks import Mask
from zoo.batch import Batch, Output
from zoo.configs.transformer import Config, table_rows
from zoo.hf.param_name_types import ParamName, ParamNames, linear_names, names_of_split_projection, norm_names
from zoo.nn import score_head
from zoo.nn.family import Family
from zoo.nn.kv_cache import Cache, KVCacheView, LayerIndex, append_tokens, cache_after, self_mask, view_of
from zoo.nn.layer_stack import Layer, init_stack, run_stack
from zoo.nn.layers import (
    CrossAttention,
    Embed,
    Init,
    LayerNorm,
    Mlp,
    Seeds,
    SelfAttention,
    dropout,
    fold_seeds,
    lookup,
    padded_rows,
    params_of,
    tied_logits,
)
from zoo.nn.source_cache import DECODER, ENCODER, SIDES, cache_source, cached_keys, cross_mask, source_keys
from zoo.nn.unequal_head_sizes import KeySizedCrossAttention, KeySizedSelfAttention
from zoo.ops import positions
from zoo.sharding import constrain_tokens

EMBEDDING_SITE = 0
ATTENTION_SITE, CROSS_SITE, MLP_SITE, SCORE_SITE = range(4)


def init(cfg: Config, key: Array) -> dict[str, Any]:
    """Return new parameters: kernels Glorot-uniform, the table normal with standard deviation 1/sqrt(D).

    Embeddings are multiplied by sqrt(D), so their standard deviation is 1. Learned positions have standard deviation 0.1, as in
    Gehring et al. 2017, section 3.5, which the paper cites for them. A reward model has the leaf `score/kernel` in place of the
    bias of the vocabulary; see `zoo.nn.score_head`.
    """
    embed_key, *keys = jax.random.split(key, 3)

    def side(number: int) -> dict[str, Any]:
        layers = init_stack(lambda rngs: Block(cfg, rngs, cross=number == DECODER), keys[number], cfg.layers)
        if cfg.positions == "sinusoid":
            return {"layers": layers}
        rngs = nnx.Rngs(jax.random.fold_in(embed_key, number))
        table = Embed(cfg.max_positions, cfg.width, jax.nn.initializers.normal(0.1), rngs)
        return {"layers": layers, "positions": params_of(table)}

    return {
        "embed": params_of(Embeddings(cfg, nnx.Rngs(embed_key))),
        **({"unembed": params_of(OutputBias(cfg))} if cfg.output_bias and not cfg.labels else {}),
        **(score_head.init_score(cfg.width, jax.random.fold_in(key, SCORE_SITE)) if cfg.labels else {}),
        **{name: side(number) for number, name in enumerate(SIDES)},
    }


def apply(
    cfg: Config, params: dict[str, Any], batch: Batch, *, cache: Cache | None = None, seeds: Seeds = None, carry: Any = None
) -> Output:
    """Return the hidden states of `batch.tokens` and of `batch.source`.

    `seeds`, u32[B, 2], enables dropout.

    Raises:
        ValueError: no source, more tokens than learned positions, or more than the cache has slots.
    """
    batch, cache = append_tokens(batch, cache)
    source = None if batch.source is None else _encode(cfg, params, batch.source, fold_seeds(seeds, ENCODER))
    run = functools.partial(_run, cfg, params, DECODER)
    cache = cache_source(cache, batch, source, run)
    mask, source_mask = self_mask(batch, cache), cross_mask(batch, cache)
    decoder_seeds = fold_seeds(seeds, DECODER)

    def body(block: Block, carry: Any, layer: Layer) -> tuple[Any, None]:
        x, past = carry
        layer_seeds = fold_seeds(decoder_seeds, layer.index + 1)
        x, past = block.attend(x, mask, layer_seeds, past, layer.index)
        x = block.attend_source(x, *source_keys(block.cross, source, layer), source_mask, layer_seeds)
        return (constrain_tokens(block.feed_forward(x, layer_seeds)), past), None

    x = dropout(_embed(cfg, params, DECODER, batch), cfg.dropout, decoder_seeds, EMBEDDING_SITE)
    (x, past), _ = run(body, (x, view_of(cache)), cached_keys(cache))
    return Output(hidden=x, source_hidden=source, cache=cache_after(cache, past, batch))


def init_cache(cfg: Config, rows: int, length: int, dtype: Any) -> Cache:
    """Return an empty cache of `length` slots for `rows` rows."""
    return Cache.empty(cfg.layers, rows, length, cfg.heads, max(cfg.head, cfg.key_size), dtype)


def unembed(cfg: Config, params: dict[str, Any], hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
    """Return float32 logits from the shared table; rows >= cfg.vocab are padding and get no probability."""
    logits = tied_logits(hidden, params["embed"]["tokens"]["embedding"], cfg.vocab)
    return logits + params["unembed"]["bias"].astype(jnp.float32) if cfg.output_bias else logits


def flops(cfg: Config, batch: Batch) -> float:
    """Return the matrix-product FLOPs of a forward pass with its head; attention counts in full, T x T and T x S.

    Products with the zeros that pad keys or values to one size are not counted.
    """
    assert batch.source is not None
    rows, length = batch.tokens.shape
    width, source_length = cfg.width, batch.source.tokens.shape[1]
    # Queries and keys have the inner width N * d_k, values and the output D; without `head_dim` both are D.
    inner = cfg.heads * cfg.key_size + cfg.heads * cfg.head
    attention, mlp = 2 * width * inner, 2 * width * cfg.ffn
    target, source = 2.0 * rows * length, 2.0 * rows * source_length
    # Cross-attention projects queries and outputs for the target's tokens, and keys and values for the source's.
    lm_head, score = (0, 2.0 * rows * width) if cfg.labels else (width * cfg.vocab, 0.0)
    per_target = cfg.layers * (1.5 * attention + mlp + (length + source_length) * inner) + lm_head
    per_source = cfg.layers * (1.5 * attention + mlp + source_length * inner)
    return target * per_target + source * per_source + score


# --- the stacks -----------------------------------------------------------------------------------------------------------------


def _encode(cfg: Config, params: dict[str, Any], source: Batch, seeds: Seeds) -> Float[Array, "B S D"]:
    mask = self_mask(source, causal=False)

    def body(block: Block, x: Array, layer: Layer) -> tuple[Array, None]:
        layer_seeds = fold_seeds(seeds, layer.index + 1)
        x, _ = block.attend(x, mask, layer_seeds)
        return constrain_tokens(block.feed_forward(x, layer_seeds)), None

    x = dropout(_embed(cfg, params, ENCODER, source), cfg.dropout, seeds, EMBEDDING_SITE)
    return _run(cfg, params, ENCODER, body, x)[0]


def _run(cfg: Config, params: dict[str, Any], side: int, body: Any, carry: Any, per_layer: Any = None) -> tuple[Any, Any]:
    """Run `run_stack` over the layers of a side."""
    block = functools.partial(Block, cfg, cross=side == DECODER)
    return run_stack(block, params[SIDES[side]]["layers"], body, carry, per_layer, compute=cfg.compute)


def _embed(cfg: Config, params: dict[str, Any], side: int, batch: Batch) -> Float[Array, "B T D"]:
    x = lookup(params["embed"]["tokens"]["embedding"], batch.tokens, rows="tensor", source=side == ENCODER)
    length = x.shape[1]
    if cfg.positions == "learned":
        # A longer row is a padded one with explicit positions, which are below this.
        if batch.positions is None and length > cfg.max_positions:
            raise ValueError(f"rows of {length} tokens in a model of {cfg.max_positions} positions; use shorter rows")
        table = params[SIDES[side]]["positions"]["embedding"]
        encodings = table[None, :length] if batch.positions is None else lookup(table, batch.positions)  # [1 or B, T, D]
    else:
        at = jnp.arange(length)[None] if batch.positions is None else batch.positions
        encodings = positions.sinusoids_at(at, cfg.width, halves=cfg.sinusoids == "halves")  # [1 or B, T, D]
    return constrain_tokens(x * jnp.asarray(math.sqrt(cfg.width), x.dtype) + encodings.astype(x.dtype))


class Embeddings(nnx.Module):
    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        self.tokens = Embed(cfg.vocab, cfg.width, jax.nn.initializers.normal(cfg.width**-0.5), rngs, pad=True)


class OutputBias(nnx.Module):
    def __init__(self, cfg: Config):
        self.bias = nnx.Param(jnp.zeros(padded_rows(cfg.vocab)))


class Block(nnx.Module):
    """A layer: norm(x + attention(x)), the same over a source if `cross`, then norm(x + mlp(x))."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs, *, cross: bool):
        width, mlp_init = cfg.width, _glorot(cfg.width, cfg.ffn)
        self.cfg = cfg
        self.scale = None if cfg.key_size == cfg.head else cfg.key_size**-0.5
        self.attention = _self_attention(cfg, rngs)
        self.norm1 = LayerNorm(width, cfg.eps)
        self.cross = _cross_attention(cfg, rngs) if cross else None
        self.norm3 = LayerNorm(width, cfg.eps) if cross else None
        self.mlp = Mlp(width, cfg.ffn, cfg.activation, mlp_init, mlp_init, rngs)
        self.norm2 = LayerNorm(width, cfg.eps)

    def attend(
        self, x: Float[Array, "B T D"], mask: Mask, seeds: Seeds, past: KVCacheView | None = None, layer: LayerIndex = 0
    ) -> tuple[Float[Array, "B T D"], KVCacheView | None]:
        cfg = self.cfg
        y, past = self.attention(x, mask, past, layer, dropout=0.0, seeds=None, compute=cfg.compute, scale=self.scale)
        return self.norm1(x + dropout(y, cfg.dropout, seeds, ATTENTION_SITE)), past

    def attend_source(self, x: Float[Array, "B T D"], k: Array, v: Array, mask: Mask, seeds: Seeds) -> Float[Array, "B T D"]:
        assert self.cross is not None and self.norm3 is not None
        y = self.cross(x, k, v, mask, dropout=0.0, seeds=None, compute=self.cfg.compute, scale=self.scale)
        return self.norm3(x + dropout(y, self.cfg.dropout, seeds, CROSS_SITE))

    def feed_forward(self, x: Float[Array, "B T D"], seeds: Seeds) -> Float[Array, "B T D"]:
        return self.norm2(x + dropout(self.mlp(x), self.cfg.dropout, seeds, MLP_SITE))


def _self_attention(cfg: Config, rngs: nnx.Rngs) -> SelfAttention:
    sizes, init, biases = (cfg.width, cfg.heads, cfg.head), _glorot(cfg.width, cfg.width), cfg.attention_bias
    if cfg.key_size == cfg.head:
        return SelfAttention(*sizes, init, init, rngs, biases=biases)
    return KeySizedSelfAttention(*sizes, cfg.key_size, (_key_init(cfg), init), rngs, biases=biases)


def _cross_attention(cfg: Config, rngs: nnx.Rngs) -> CrossAttention:
    sizes, init, biases = (cfg.width, cfg.heads, cfg.head), _glorot(cfg.width, cfg.width), cfg.attention_bias
    if cfg.key_size == cfg.head:
        return CrossAttention(*sizes, (init, init, init), rngs, biases=biases)
    return KeySizedCrossAttention(*sizes, cfg.key_size, (_key_init(cfg), init), rngs, biases=biases)


def _key_init(cfg: Config) -> Init:
    return _glorot(cfg.width, cfg.heads * cfg.key_size)


def _glorot(inputs: int, outputs: int) -> Init:
    """Return an initializer, uniform within sqrt(6 / (inputs + outputs)) (Glorot and Bengio 2010).

    `inputs` and `outputs` are the sizes of each projection, even if several projections are fused into one kernel.
    """
    limit = math.sqrt(6 / (inputs + outputs))
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


# --- published names ------------------------------------------------------------------------------------------------------------


def _rows(side: str) -> tuple[ParamName, ...]:
    """Return the published names of the parameters that both sides have."""
    leaf, name = f"{side}/layers", f"{side}.layers.{{layer}}"
    return (
        *names_of_split_projection(f"{leaf}/attention/qkv", *(f"{name}.self_attn.{part}_proj" for part in "qkv")),
        *linear_names(f"{leaf}/attention/out", f"{name}.self_attn.out_proj", "d (n h) -> n h d"),
        *norm_names(f"{leaf}/norm1", f"{name}.self_attn_layer_norm"),
        *linear_names(f"{leaf}/mlp/up", f"{name}.fc1"),
        *linear_names(f"{leaf}/mlp/down", f"{name}.fc2"),
        *norm_names(f"{leaf}/norm2", f"{name}.final_layer_norm"),
    )


def _sinusoids(cfg: Config) -> np.ndarray:
    """Return the table that an export contains, float32 [positions, D]: all sines, then all cosines."""
    angles = np.arange(table_rows(cfg))[:, None] / positions.BASE ** (np.arange(0, cfg.width, 2) / cfg.width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


CROSS = "decoder.layers.{layer}.encoder_attn"
NAMES = ParamNames(
    # Marian's models are this architecture with biases in every layer; the paper's models were not published.
    architecture="MarianMTModel",
    prefixes=("model.",),
    rows=(
        ParamName("embed/tokens/embedding", "shared.weight"),
        *_rows("encoder"),
        *_rows("decoder"),
        *linear_names("decoder/layers/cross/q", f"{CROSS}.q_proj", "(n h) d -> d n h", "(n h) -> n h"),
        *names_of_split_projection("decoder/layers/cross/kv", f"{CROSS}.k_proj", f"{CROSS}.v_proj"),
        *linear_names("decoder/layers/cross/out", f"{CROSS}.out_proj", "d (n h) -> n h d"),
        *norm_names("decoder/layers/norm3", f"{CROSS}_layer_norm"),
        ParamName("unembed/bias", "final_logits_bias", "() v -> v", bare=True),
    ),
    tied=dict.fromkeys(
        ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"), "embed/tokens/embedding"
    ),
    # Old files contain the tables of sinusoids, and `transformers` uses the tables of the file.
    tables={f"{side}.embed_positions.weight": _sinusoids for side in ("encoder", "decoder")},
)
SCORE = dataclasses.replace(
    NAMES,
    architecture="",
    rows=(*(row for row in NAMES.rows if row.leaf != "unembed/bias"), ParamName("score/kernel", "score.weight", bare=True)),
)
"""`transformers` has no Marian with a score, so this one is not exported."""

FAMILY = Family(
    init=init,
    apply=apply,
    unembed=unembed,
    flops=flops,
    init_cache=init_cache,
    sequence_logits=score_head.sequence_logits,
    objectives=("text_to_text", "preference", "dpo", "kto", "policy_gradient", "ppo"),
    names={"text_to_text": NAMES, "sequence": SCORE},
    sharding=(
        (r"unembed/bias", ("tensor",)),
        (r"(encoder|decoder)/positions/embedding", (None, "fsdp")),
        # If keys have another size than values.
        (r"cross/[kv]/kernel", ("fsdp", "tensor", None)),
        (r"cross/[kv]/bias", ("tensor", None)),
    ),
    padded={"embed/tokens/embedding": "vocab", "unembed/bias": "vocab"},
    lora=("q_proj", "v_proj"),
)
