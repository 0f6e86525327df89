"""The common parts of causal decoders: heads, caches, FLOPs, published names, and the layer of Llama and gpt-oss."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from zoo.attention.masks import Mask
from zoo.batch import Batch
from zoo.hf.param_name_types import ParamName, ParamNames
from zoo.nn import score_head
from zoo.nn.family import Family
from zoo.nn.grouped_attention import GroupedSelfAttention
from zoo.nn.kv_cache import Cache, KVCacheView, LayerIndex
from zoo.nn.layer_stack import init_stack
from zoo.nn.layers import Embed, Init, RMSNorm, Seeds, fold_seeds, params_of, tied_logits

SCORE_SITE, UNEMBED_SITE = range(2)
"""Numbers that are folded into the key of the initial parameters."""
ATTENTION_SITE = 0
NORMAL = jax.nn.initializers.normal(0.02)


def decoder_family(**parts: Any) -> Family:
    """Return the family of a causal decoder, with the parts of a `Family` that differ from those of others."""
    usual = {
        "unembed": unembed,
        "init_cache": init_cache,
        "sequence_logits": score_head.sequence_logits,
        "objectives": ("causal", "instruction", "preference", "dpo", "kto", "policy_gradient", "ppo"),
    }
    return Family(**{**usual, **parts})


def init_grouped(block: Callable[[Any, nnx.Rngs], nnx.Module], cfg: Any, key: Array) -> dict[str, Any]:
    """Return new parameters of a model of `GroupedBlock`, normal(0.02).

    A reward model has the leaf `score/kernel` in place of an untied output table; see `zoo.nn.score_head`.
    """
    embed_key, layers_key = jax.random.split(key)
    last: dict[str, Any] = {}
    if cfg.labels:
        last = score_head.init_score(cfg.width, jax.random.fold_in(key, SCORE_SITE))
    elif not getattr(cfg, "tied", False):
        rngs = nnx.Rngs(jax.random.fold_in(key, UNEMBED_SITE))
        last = {"unembed": params_of(Embed(cfg.vocab, cfg.width, NORMAL, rngs, pad=True))}
    return {
        "embed": {"tokens": params_of(Embed(cfg.vocab, cfg.width, NORMAL, nnx.Rngs(embed_key), pad=True))},
        "layers": init_stack(lambda rngs: block(cfg, rngs), layers_key, cfg.layers),
        "norm": params_of(RMSNorm(cfg.width, cfg.eps)),
        **last,
    }


def init_cache(cfg: Any, rows: int, length: int, dtype: Any) -> Cache:
    """Return an empty cache of `length` slots for `rows` rows."""
    return Cache.empty(cfg.layers, rows, length, getattr(cfg, "kv_heads", cfg.heads), cfg.head, dtype)


def unembed(cfg: Any, params: dict[str, Any], hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
    """Return float32 logits, from the output table or else the tied one; rows >= cfg.vocab get no probability."""
    return tied_logits(hidden, params.get("unembed", params["embed"]["tokens"])["embedding"], cfg.vocab)


def flops(cfg: Any, batch: Batch, kernels: int) -> float:
    """Return the matrix-product FLOPs of a forward pass with its head; attention counts in full, T x T (as in PaLM's MFU).

    Args:
        kernels: number of parameters of a layer that a token is multiplied with.
    """
    rows, length = batch.tokens.shape
    lm_head, score = (0, 2.0 * rows * cfg.width) if getattr(cfg, "labels", ()) else (cfg.width * cfg.vocab, 0.0)
    products = 2.0 * rows * length * (cfg.layers * kernels + lm_head) + score
    return products + 4.0 * cfg.layers * rows * length * length * cfg.heads * cfg.head


class GroupedBlock(nnx.Module):
    """A layer: x + attention(norm(x)), then x + mlp(norm(x)), with grouped heads and RMS norms."""

    def __init__(self, cfg: Any, mlp: Callable[[Init, Init, nnx.Rngs], Any], rngs: nnx.Rngs, **attention: Any):
        self.cfg = cfg
        self.norm1 = RMSNorm(cfg.width, cfg.eps)
        sizes = cfg.width, cfg.heads, cfg.kv_heads, cfg.head
        self.attention = GroupedSelfAttention(*sizes, NORMAL, NORMAL, rngs, **attention)
        self.norm2 = RMSNorm(cfg.width, cfg.eps)
        self.mlp = mlp(NORMAL, NORMAL, rngs)

    def attend(
        self,
        x: Float[Array, "B T D"],
        mask: Mask,
        rotate: Callable[[Array], Array],
        seeds: Seeds,
        past: KVCacheView | None,
        layer: LayerIndex,
    ) -> tuple[Float[Array, "B T D"], KVCacheView | None]:
        cfg, attention_seeds = self.cfg, fold_seeds(seeds, ATTENTION_SITE)
        options = {"dropout": cfg.attention_dropout, "seeds": attention_seeds, "compute": cfg.compute}
        y, past = self.attention(self.norm1(x), mask, past, layer, rotate=rotate, **options)
        return x + y, past


def heads_names(leaf: str, **options: Any) -> tuple[ParamName, ParamName]:
    """Return the rows of the projection to the heads of queries, keys or values; `options` are those of the bias."""
    name = f"layers.{{layer}}.self_attn.{leaf}_proj"
    kernel = ParamName(f"layers/attention/{leaf}/kernel", f"{name}.weight", "(n h) d -> d n h")
    return kernel, ParamName(f"layers/attention/{leaf}/bias", f"{name}.bias", "(n h) -> n h", **options)


def score_names(names: ParamNames, architecture: str) -> ParamNames:
    """Return the published names of a reward model, whose `score` is in place of the LM head."""
    body = tuple(row for row in names.rows if row.leaf != "unembed/embedding")
    score = ParamName("score/kernel", "score.weight", "o i -> i o", bare=True)
    return dataclasses.replace(names, architecture=architecture, rows=(*body, score), tied={})
