"""Llama: a causal decoder with rotary positions, grouped heads, RMS norms and gated feed-forward layers.

It has the shapes of Llama 3 (Llama Team 2024), Qwen2.5, whose queries, keys and values have biases, Qwen3, whose queries and keys
are normalized, SmolLM2, and SmolLM3, where some layers have no positions; see `zoo.configs.llama`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.attention.masks import Mask
from zoo.batch import Batch, Output
from zoo.configs.llama import Config
from zoo.hf.param_name_types import ParamName, ParamNames
from zoo.nn import score_head
from zoo.nn.family import Family
from zoo.nn.grouped_attention import GroupedSelfAttention
from zoo.nn.kv_cache import Cache, KVCacheView, LayerIndex, append_tokens, cache_after, self_mask, view_of
from zoo.nn.layer_stack import Layer, init_stack, run_stack
from zoo.nn.layers import (
    Embed,
    GatedMlp,
    RMSNorm,
    Seeds,
    fold_seeds,
    lookup,
    params_of,
    rms_norm,
    tied_logits,
    token_positions,
)
from zoo.ops import positions, rotary_frequencies
from zoo.sharding import BATCH, constrain

SCORE_SITE, UNEMBED_SITE = range(2)
"""Numbers that are folded into the key of the initial parameters."""
ATTENTION_SITE = 0
NORMAL = jax.nn.initializers.normal(0.02)


def init(cfg: Config, key: Array) -> dict[str, Any]:
    """Return new parameters: normal(0.02), as in `transformers`; the Llama paper does not state its initial values.

    A reward model has the leaf `score/kernel` in place of an untied output table; see `zoo.nn.score_head`.
    """
    embed_key, layers_key = jax.random.split(key)
    last: dict[str, Any] = {}
    if cfg.labels:
        last = score_head.init_score(cfg.width, jax.random.fold_in(key, SCORE_SITE))
    elif not cfg.tied:
        rngs = nnx.Rngs(jax.random.fold_in(key, UNEMBED_SITE))
        last = {"unembed": params_of(Embed(cfg.vocab, cfg.width, NORMAL, rngs, pad=True))}
    return {
        "embed": {"tokens": params_of(Embed(cfg.vocab, cfg.width, NORMAL, nnx.Rngs(embed_key), pad=True))},
        "layers": init_stack(lambda rngs: Block(cfg, rngs), layers_key, cfg.layers),
        "norm": params_of(RMSNorm(cfg.width, cfg.eps)),
        **last,
    }


def apply(
    cfg: Config, params: dict[str, Any], batch: Batch, *, cache: Cache | None = None, seeds: Seeds = None, carry: Any = None
) -> Output:
    """Return the hidden states after the final norm, [B, T, D]. `seeds`, u32[B, 2], enables dropout.

    Rotations depend on `batch.positions`.

    Raises:
        ValueError: a row longer than `cfg.context`, or more tokens than the cache has slots.
    """
    batch, cache = append_tokens(batch, cache, cfg.context)
    mask, rotate = self_mask(batch, cache), _rotate(cfg, token_positions(batch))

    def body(block: Block, carry: Any, layer: Layer) -> tuple[Any, None]:
        x, past = carry
        x, past = block(x, mask, rotate[layer.kind], fold_seeds(seeds, layer.index + 1), past, layer.index)
        return (constrain(x, BATCH), past), None

    x = constrain(lookup(params["embed"]["tokens"]["embedding"], batch.tokens, rows="tensor"), BATCH)
    block = functools.partial(Block, cfg)
    (x, past), _ = run_stack(block, params["layers"], body, (x, view_of(cache)), pattern=cfg.pattern, compute=cfg.compute)
    return Output(hidden=rms_norm(x, params["norm"]["scale"], cfg.eps), cache=cache_after(cache, past, batch))


def init_cache(cfg: Config, rows: int, length: int, dtype: Any) -> Cache:
    """Return an empty cache of `length` slots for `rows` rows."""
    return Cache.empty(cfg.layers, rows, length, cfg.kv_heads, cfg.head, dtype)


def unembed(cfg: Config, params: dict[str, Any], hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
    """Return float32 logits; rows >= cfg.vocab are padding and get no probability."""
    table = params["embed"]["tokens"] if cfg.tied else params["unembed"]
    return tied_logits(hidden, table["embedding"], cfg.vocab)


def flops(cfg: Config, batch: Batch) -> float:
    """Return the matrix-product FLOPs of a forward pass with its head; attention counts in full, T x T."""
    rows, length = batch.tokens.shape
    inner = cfg.heads * cfg.head
    per_layer = 2 * cfg.width * (inner + cfg.kv_heads * cfg.head) + 3 * cfg.width * cfg.ffn
    lm_head, score = (0, 2.0 * rows * cfg.width) if cfg.labels else (cfg.width * cfg.vocab, 0.0)
    products = 2.0 * rows * length * (cfg.layers * per_layer + lm_head) + score
    return products + 4.0 * cfg.layers * rows * length * length * inner


def _rotate(cfg: Config, at: Int[Array, "#B T"]) -> dict[str, Callable[[Array], Array]]:
    """Return, for each kind of layer, the function that rotates queries or keys at positions `at`."""
    rotation = positions.scaled_rotation(at, _frequencies(cfg))
    return {"rotary": functools.partial(positions.rotate, rotation=rotation), "none": lambda x: x}


def _frequencies(cfg: Config) -> rotary_frequencies.Frequencies:
    if cfg.scaling == "linear":
        return rotary_frequencies.linear(cfg.head, cfg.base, factor=cfg.scaling_factor)
    if cfg.scaling == "llama3":
        return rotary_frequencies.llama3(
            cfg.head,
            cfg.base,
            factor=cfg.scaling_factor,
            low_freq_factor=cfg.low_freq_factor,
            high_freq_factor=cfg.high_freq_factor,
            original_context=cfg.original_context,
        )
    return rotary_frequencies.plain(cfg.head, cfg.base)


class Block(nnx.Module):
    """A layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        self.cfg = cfg
        self.norm1 = RMSNorm(cfg.width, cfg.eps)
        self.attention = GroupedSelfAttention(
            cfg.width,
            cfg.heads,
            cfg.kv_heads,
            cfg.head,
            NORMAL,
            NORMAL,
            rngs,
            qkv_biases=cfg.attention_bias or cfg.qkv_bias,
            out_bias=cfg.attention_bias,
            norm_eps=cfg.eps if cfg.query_key_norm else None,
        )
        self.norm2 = RMSNorm(cfg.width, cfg.eps)
        self.mlp = GatedMlp(cfg.width, cfg.ffn, cfg.activation, NORMAL, NORMAL, rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Mask,
        rotate: Callable[[Array], Array],
        seeds: Seeds,
        past: KVCacheView | None,
        layer: LayerIndex,
    ) -> tuple[Float[Array, "B T D"], KVCacheView | None]:
        cfg, attention_seeds = self.cfg, fold_seeds(seeds, ATTENTION_SITE)
        options = {"dropout": cfg.attention_dropout, "seeds": attention_seeds, "impl": cfg.compute.attention}
        y, past = self.attention(self.norm1(x), mask, past, layer, rotate=rotate, **options)
        x = x + y
        return x + self.mlp(self.norm2(x)), past


# --- published names ------------------------------------------------------------------------------------------------------------


def _heads(leaf: str) -> tuple[ParamName, ParamName]:
    """Return the rows of the projection to the heads of queries, keys or values."""
    name = f"layers.{{layer}}.self_attn.{leaf}_proj"
    kernel = ParamName(f"layers/attention/{leaf}/kernel", f"{name}.weight", "(n h) d -> d n h")
    return kernel, ParamName(f"layers/attention/{leaf}/bias", f"{name}.bias", "(n h) -> n h", optional=True)


BODY = (
    ParamName("embed/tokens/embedding", "embed_tokens.weight"),
    ParamName("layers/norm1/scale", "layers.{layer}.input_layernorm.weight"),
    *_heads("q"),
    *_heads("k"),
    *_heads("v"),
    ParamName("layers/attention/q_norm/scale", "layers.{layer}.self_attn.q_norm.weight", optional=True),
    ParamName("layers/attention/k_norm/scale", "layers.{layer}.self_attn.k_norm.weight", optional=True),
    ParamName("layers/attention/out/kernel", "layers.{layer}.self_attn.o_proj.weight", "d (n h) -> n h d"),
    ParamName("layers/attention/out/bias", "layers.{layer}.self_attn.o_proj.bias", optional=True),
    ParamName("layers/norm2/scale", "layers.{layer}.post_attention_layernorm.weight"),
    ParamName(
        "layers/mlp/gated/kernel",
        ("layers.{layer}.mlp.gate_proj.weight", "layers.{layer}.mlp.up_proj.weight"),
        "f d -> d c f",
    ),
    ParamName("layers/mlp/down/kernel", "layers.{layer}.mlp.down_proj.weight", "d f -> f d"),
    ParamName("norm/scale", "norm.weight"),
)
NAMES = ParamNames(
    architecture="LlamaForCausalLM",
    prefixes=("model.", ""),
    released_in_bfloat16=True,
    rows=(*BODY, ParamName("unembed/embedding", "lm_head.weight", bare=True, optional=True)),
    tied={"lm_head.weight": "embed/tokens/embedding"},
    # Old files contain the frequencies of the rotations.
    constants=("layers.{layer}.self_attn.rotary_emb.inv_freq",),
)
SCORE = dataclasses.replace(
    NAMES,
    architecture="LlamaForSequenceClassification",
    rows=(*BODY, ParamName("score/kernel", "score.weight", "o i -> i o", bare=True)),
    tied={},
)

FAMILY = Family(
    init=init,
    apply=apply,
    unembed=unembed,
    flops=flops,
    init_cache=init_cache,
    sequence_logits=score_head.sequence_logits,
    objectives=("causal", "instruction", "preference", "dpo", "kto", "policy", "ppo"),
    names={"causal": NAMES, "sequence": SCORE},
    sharding=((r"unembed/embedding", ("tensor", "fsdp")),),
    padded={"embed/tokens/embedding": "vocab", "unembed/embedding": "vocab"},
    lora=("q_proj", "v_proj"),
)
