"""gpt-oss: a causal decoder with experts in place of feed-forward layers (OpenAI 2025, model card, section 2).

Attention has grouped heads, rotary positions with YaRN, and a sink for each head; layers with a window and layers without
alternate. See `zoo.configs.gpt_oss` and `zoo.nn.experts`.
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
from zoo.configs.gpt_oss import Config
from zoo.hf.param_name_types import ParamName, ParamNames
from zoo.nn import score_head
from zoo.nn.experts import Balance, Experts
from zoo.nn.family import Family
from zoo.nn.grouped_attention import GroupedSelfAttention
from zoo.nn.kv_cache import Cache, KVCacheView, LayerIndex, append_tokens, cache_after, self_mask, view_of
from zoo.nn.layer_stack import Layer, init_stack, run_stack
from zoo.nn.layers import Embed, RMSNorm, Seeds, fold_seeds, lookup, params_of, rms_norm, tied_logits, token_positions
from zoo.ops import positions, rotary_frequencies
from zoo.sharding import BATCH, constrain

SCORE_SITE, UNEMBED_SITE = range(2)
"""Numbers that are folded into the key of the initial parameters."""
ATTENTION_SITE = 0
NORMAL = jax.nn.initializers.normal(0.02)


def init(cfg: Config, key: Array) -> dict[str, Any]:
    """Return new parameters: normal(0.02), sinks too, as in `transformers`; biases are zero. The card states no initial values.

    A reward model has the leaf `score/kernel` in place of an output table; see `zoo.nn.score_head`.
    """
    embed_key, layers_key = jax.random.split(key)
    if cfg.labels:
        last = score_head.init_score(cfg.width, jax.random.fold_in(key, SCORE_SITE))
    else:
        rngs = nnx.Rngs(jax.random.fold_in(key, UNEMBED_SITE))
        last = {"unembed": params_of(Embed(cfg.vocab, cfg.width, NORMAL, rngs, pad=True))}
    return {
        "embed": {"tokens": params_of(Embed(cfg.vocab, cfg.width, NORMAL, nnx.Rngs(embed_key), pad=True))},
        "layers": init_stack(lambda rngs: Block(cfg, rngs), layers_key, cfg.layers),
        "norm": params_of(RMSNorm(cfg.width, cfg.eps)),
        **last,
    }


def loss_factors(cfg: Config) -> dict[str, float]:
    """Return the terms of `Output.losses`: the load-balancing loss of the routers, and the load of the busiest expert."""
    return {"router": cfg.router_loss, "busiest_expert": 0.0}


def apply(
    cfg: Config, params: dict[str, Any], batch: Batch, *, cache: Cache | None = None, seeds: Seeds = None, carry: Any = None
) -> Output:
    """Return the hidden states after the final norm, [B, T, D], and the terms of `loss_factors`, means over the layers.

    Rotations depend on `batch.positions`. `seeds`, u32[B, 2], enables dropout.

    Raises:
        ValueError: a row longer than `cfg.context`, or more tokens than the cache has slots.
    """
    batch, cache = append_tokens(batch, cache, cfg.context)
    masks = {"full": self_mask(batch, cache), "window": self_mask(batch, cache, window=cfg.window)}
    rotate = _rotate(cfg, token_positions(batch))

    def body(block: Block, carry: Any, layer: Layer) -> tuple[Any, Balance]:
        x, past = carry
        layer_seeds = fold_seeds(seeds, layer.index + 1)
        x, even, past = block(x, masks[layer.kind], batch.segments, rotate, layer_seeds, past, layer.index)
        return (constrain(x, BATCH), past), even

    x = constrain(lookup(params["embed"]["tokens"]["embedding"], batch.tokens, rows="tensor"), BATCH)
    block = functools.partial(Block, cfg)
    (x, past), even = run_stack(block, params["layers"], body, (x, view_of(cache)), pattern=cfg.pattern, compute=cfg.compute)
    losses = {"router": even.loss.mean(0), "busiest_expert": even.busiest.mean(0)}  # [L, B] -> [B]
    hidden = rms_norm(x, params["norm"]["scale"], cfg.eps)
    return Output(hidden=hidden, losses=losses, cache=cache_after(cache, past, batch))


def init_cache(cfg: Config, rows: int, length: int, dtype: Any) -> Cache:
    """Return an empty cache of `length` slots for `rows` rows."""
    return Cache.empty(cfg.layers, rows, length, cfg.kv_heads, cfg.head, dtype)


def unembed(cfg: Config, params: dict[str, Any], hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
    """Return float32 logits; rows >= cfg.vocab are padding and get no probability."""
    return tied_logits(hidden, params["unembed"]["embedding"], cfg.vocab)


def flops(cfg: Config, batch: Batch) -> float:
    """Return the matrix-product FLOPs of a forward pass with its head: of a token's own experts; attention in full, T x T."""
    rows, length = batch.tokens.shape
    inner = cfg.heads * cfg.head
    projections = 2 * cfg.width * (inner + cfg.kv_heads * cfg.head)
    per_layer = projections + cfg.width * cfg.experts + cfg.active_experts * 3 * cfg.width * cfg.ffn
    lm_head, score = (0, 2.0 * rows * cfg.width) if cfg.labels else (cfg.width * cfg.vocab, 0.0)
    products = 2.0 * rows * length * (cfg.layers * per_layer + lm_head) + score
    return products + 4.0 * cfg.layers * rows * length * length * inner


def _rotate(cfg: Config, at: Int[Array, "#B T"]) -> Callable[[Array], Array]:
    """Return the function that rotates queries or keys at positions `at`."""
    frequencies = rotary_frequencies.yarn(
        cfg.head,
        cfg.base,
        factor=cfg.scaling_factor,
        beta_fast=cfg.beta_fast,
        beta_slow=cfg.beta_slow,
        original_context=cfg.original_context,
    )
    return functools.partial(positions.rotate, rotation=positions.scaled_rotation(at, frequencies))


class Block(nnx.Module):
    """A layer: x + attention(norm(x)), then x + experts(norm(x))."""

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
            qkv_biases=True,
            out_bias=True,
            sinks=NORMAL,
        )
        self.norm2 = RMSNorm(cfg.width, cfg.eps)
        self.mlp = Experts(cfg.width, cfg.ffn, cfg.experts, cfg.active_experts, NORMAL, NORMAL, rngs, limit=cfg.limit)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Mask,
        segments: Int[Array, "B T"] | None,
        rotate: Callable[[Array], Array],
        seeds: Seeds,
        past: KVCacheView | None,
        layer: LayerIndex,
    ) -> tuple[Float[Array, "B T D"], Balance, KVCacheView | None]:
        cfg, attention_seeds = self.cfg, fold_seeds(seeds, ATTENTION_SITE)
        options = {"dropout": cfg.attention_dropout, "seeds": attention_seeds, "impl": cfg.compute.attention}
        y, past = self.attention(self.norm1(x), mask, past, layer, rotate=rotate, **options)
        x = x + y
        y, even = self.mlp(self.norm2(x), segments)
        return x + y, even, past


# --- published names ------------------------------------------------------------------------------------------------------------


def _heads(leaf: str) -> tuple[ParamName, ParamName]:
    """Return the rows of the projection to the heads of queries, keys or values."""
    name = f"layers.{{layer}}.self_attn.{leaf}_proj"
    kernel = ParamName(f"layers/attention/{leaf}/kernel", f"{name}.weight", "(n h) d -> d n h")
    return kernel, ParamName(f"layers/attention/{leaf}/bias", f"{name}.bias", "(n h) -> n h")


BODY = (
    ParamName("embed/tokens/embedding", "embed_tokens.weight"),
    ParamName("layers/norm1/scale", "layers.{layer}.input_layernorm.weight"),
    *_heads("q"),
    *_heads("k"),
    *_heads("v"),
    ParamName("layers/attention/out/kernel", "layers.{layer}.self_attn.o_proj.weight", "d (n h) -> n h d"),
    ParamName("layers/attention/out/bias", "layers.{layer}.self_attn.o_proj.bias"),
    ParamName("layers/attention/sinks", "layers.{layer}.self_attn.sinks"),
    ParamName("layers/norm2/scale", "layers.{layer}.post_attention_layernorm.weight"),
    ParamName("layers/mlp/router/kernel", "layers.{layer}.mlp.router.weight", "e d -> d e", linear=False),
    ParamName("layers/mlp/router/bias", "layers.{layer}.mlp.router.bias"),
    # Gate and linear half alternate along the last axis.
    ParamName("layers/mlp/experts/gated/kernel", "layers.{layer}.mlp.experts.gate_up_proj", "e d (f c) -> e d c f"),
    ParamName("layers/mlp/experts/gated/bias", "layers.{layer}.mlp.experts.gate_up_proj_bias", "e (f c) -> e c f"),
    ParamName("layers/mlp/experts/down/kernel", "layers.{layer}.mlp.experts.down_proj"),
    ParamName("layers/mlp/experts/down/bias", "layers.{layer}.mlp.experts.down_proj_bias"),
    ParamName("norm/scale", "norm.weight"),
)
NAMES = ParamNames(
    architecture="GptOssForCausalLM",
    prefixes=("model.", ""),
    released_in_bfloat16=True,
    rows=(*BODY, ParamName("unembed/embedding", "lm_head.weight", bare=True)),
)
SCORE = dataclasses.replace(
    NAMES,
    architecture="GptOssForSequenceClassification",
    rows=(*BODY, ParamName("score/kernel", "score.weight", "o i -> i o", bare=True)),
)

FAMILY = Family(
    init=init,
    apply=apply,
    unembed=unembed,
    flops=flops,
    init_cache=init_cache,
    sequence_logits=score_head.sequence_logits,
    loss_factors=loss_factors,
    objectives=("causal", "instruction", "preference", "dpo", "kto", "policy", "ppo"),
    names={"causal": NAMES, "sequence": SCORE},
    sharding=((r"unembed/embedding", ("tensor", "fsdp")),),
    padded={"embed/tokens/embedding": "vocab", "unembed/embedding": "vocab"},
    lora=("q_proj", "v_proj"),
)
