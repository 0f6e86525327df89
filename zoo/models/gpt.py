"""GPT: a causal decoder with learned positions and pre-layer-norm blocks.

It has the shapes of GPT-2 (Radford et al. 2019), GPT-3 (Brown et al. 2020), Turing-NLG and Megatron-LM; see `zoo.configs.gpt`.
"""

import functools
import math
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.attention.masks import Mask
from zoo.batch import Batch, Output
from zoo.configs.gpt import Config
from zoo.hf.param_name_types import ParamName, ParamNames, linear_names, norm_names
from zoo.nn import causal_decoder, score_head
from zoo.nn.causal_decoder import decoder_family, score_names
from zoo.nn.kv_cache import Cache, KVCacheView, LayerIndex, append_tokens, cache_after, self_mask, view_of
from zoo.nn.layer_stack import Layer, init_stack, run_stack
from zoo.nn.layers import (
    Embed,
    LayerNorm,
    Mlp,
    Seeds,
    SelfAttention,
    dropout,
    fold_seeds,
    layer_norm,
    lookup,
    params_of,
)
from zoo.sharding import constrain_tokens

EMBEDDING_SITE, ATTENTION_SITE, RESIDUAL_SITE, MLP_SITE, SCORE_SITE = range(5)


def init(cfg: Config, key: Array) -> dict[str, Any]:
    """Return new parameters: normal(0.02), projections into the residual stream scaled by 1/sqrt(2 L) (GPT-2, section 2.3).

    A reward model also has the leaf `score/kernel`; see `zoo.nn.score_head`.
    """
    embed_key, layers_key = jax.random.split(key)
    score = score_head.init_score(cfg.width, jax.random.fold_in(key, SCORE_SITE)) if cfg.labels else {}
    return {
        "embed": params_of(Embeddings(cfg, nnx.Rngs(embed_key))),
        "layers": init_stack(lambda rngs: Block(cfg, rngs), layers_key, cfg.layers),
        "norm": params_of(LayerNorm(cfg.width, cfg.eps)),
        **score,
    }


def apply(
    cfg: Config, params: dict[str, Any], batch: Batch, *, cache: Cache | None = None, seeds: Seeds = None, carry: Any = None
) -> Output:
    """Return the hidden states after the final norm, [B, T, D]. `seeds`, u32[B, 2], enables dropout.

    Raises:
        ValueError: a row longer than the learned positions, or more tokens than the cache has slots.
    """
    batch, cache = append_tokens(batch, cache, cfg.context)
    masks = {kind: self_mask(batch, cache, window=cfg.window if kind == "window" else None) for kind in cfg.pattern}

    def body(block: Block, carry: Any, layer: Layer) -> tuple[Any, None]:
        x, past = carry
        x, past = block(x, masks[layer.kind], fold_seeds(seeds, layer.index + 1), past, layer.index)
        return (constrain_tokens(x), past), None

    x = dropout(_embed(params["embed"], batch.tokens, batch.positions), cfg.embedding_dropout, seeds, EMBEDDING_SITE)
    block = functools.partial(Block, cfg)
    (x, past), _ = run_stack(block, params["layers"], body, (x, view_of(cache)), pattern=cfg.pattern, compute=cfg.compute)
    hidden = layer_norm(x, params["norm"]["scale"], params["norm"]["bias"], cfg.eps)
    return Output(hidden=hidden, cache=cache_after(cache, past, batch))


def flops(cfg: Config, batch: Batch) -> float:
    """Return the matrix-product FLOPs of a forward pass with its head; attention counts in full, T x T."""
    return causal_decoder.flops(cfg, batch, 4 * cfg.width * cfg.heads * cfg.head + 2 * cfg.width * cfg.ffn)


def _embed(embed: dict[str, Any], tokens: Int[Array, "B T"], positions: Int[Array, "B T"] | None) -> Float[Array, "B T D"]:
    table = embed["positions"]["embedding"]
    by_position = table[None, : tokens.shape[1]] if positions is None else lookup(table, positions)  # [1 or B, T, D]
    return constrain_tokens(lookup(embed["tokens"]["embedding"], tokens, rows="tensor") + by_position)


class Embeddings(nnx.Module):
    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(0.02)
        self.tokens = Embed(cfg.vocab, cfg.width, init, rngs, pad=True)
        self.positions = Embed(cfg.context, cfg.width, init, rngs)


class Block(nnx.Module):
    """A layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(0.02)
        out_init = jax.nn.initializers.normal(0.02 / math.sqrt(2 * cfg.layers))
        self.cfg = cfg
        self.norm1 = LayerNorm(cfg.width, cfg.eps)
        self.attention = SelfAttention(cfg.width, cfg.heads, cfg.head, init, out_init, rngs)
        self.norm2 = LayerNorm(cfg.width, cfg.eps)
        self.mlp = Mlp(cfg.width, cfg.ffn, cfg.activation, init, out_init, rngs)

    def __call__(
        self, x: Float[Array, "B T D"], mask: Mask, seeds: Seeds, past: KVCacheView | None, layer: LayerIndex
    ) -> tuple[Float[Array, "B T D"], KVCacheView | None]:
        cfg, attention_seeds = self.cfg, fold_seeds(seeds, ATTENTION_SITE)
        options = {"dropout": cfg.attention_dropout, "seeds": attention_seeds, "compute": cfg.compute}
        y, past = self.attention(self.norm1(x), mask, past, layer, **options)
        x = x + dropout(y, cfg.dropout, seeds, RESIDUAL_SITE)
        return x + dropout(self.mlp(self.norm2(x)), cfg.dropout, seeds, MLP_SITE), past


NAMES = ParamNames(
    architecture="GPT2LMHeadModel",
    # The files released in 2019 have no prefix.
    prefixes=("transformer.", ""),
    # Unlike all other families, GPT-2 publishes matrices as [in, out].
    input_first=True,
    rows=(
        ParamName("embed/tokens/embedding", "wte.weight"),
        ParamName("embed/positions/embedding", "wpe.weight"),
        *norm_names("layers/norm1", "h.{layer}.ln_1"),
        *linear_names("layers/attention/qkv", "h.{layer}.attn.c_attn", "d (c n h) -> d c n h", "(c n h) -> c n h"),
        *linear_names("layers/attention/out", "h.{layer}.attn.c_proj", "(n h) d -> n h d"),
        *norm_names("layers/norm2", "h.{layer}.ln_2"),
        *linear_names("layers/mlp/up", "h.{layer}.mlp.c_fc", ""),
        *linear_names("layers/mlp/down", "h.{layer}.mlp.c_proj", ""),
        *norm_names("norm", "ln_f"),
    ),
    tied={"lm_head.weight": "embed/tokens/embedding"},
    # Old files contain the causal mask.
    constants=("h.{layer}.attn.bias", "h.{layer}.attn.masked_bias"),
)
FAMILY = decoder_family(
    init=init,
    apply=apply,
    flops=flops,
    names={"causal": NAMES, "sequence": score_names(NAMES, "GPT2ForSequenceClassification")},
    padded={"embed/tokens/embedding": "vocab"},
    lora=("c_attn",),
)
