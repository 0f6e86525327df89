"""gpt-oss: a causal decoder with experts in place of feed-forward layers (OpenAI 2025, model card, section 2).

Attention has grouped heads, rotary positions with YaRN, and a sink for each head; layers with a window and layers without
alternate. See `zoo.configs.gpt_oss` and `zoo.nn.experts`.
"""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Int

from zoo.batch import Batch, Output
from zoo.configs.gpt_oss import Config
from zoo.hf.param_name_types import ParamName, ParamNames
from zoo.nn import causal_decoder
from zoo.nn.causal_decoder import NORMAL, GroupedBlock, decoder_family, heads_names, init_grouped, score_names
from zoo.nn.experts import Balance, Experts
from zoo.nn.kv_cache import Cache, append_tokens, cache_after, self_mask, view_of
from zoo.nn.layer_stack import Layer, run_stack
from zoo.nn.layers import Seeds, fold_seeds, lookup, rms_norm, token_positions
from zoo.ops import positions, rotary_frequencies
from zoo.sharding import constrain_tokens


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
        x, past = block.attend(x, masks[layer.kind], rotate, fold_seeds(seeds, layer.index + 1), past, layer.index)
        y, even = block.mlp(block.norm2(x), batch.segments)
        return (constrain_tokens(x + y), past), even

    x = constrain_tokens(lookup(params["embed"]["tokens"]["embedding"], batch.tokens, rows="tensor"))
    block = functools.partial(Block, cfg)
    (x, past), even = run_stack(block, params["layers"], body, (x, view_of(cache)), pattern=cfg.pattern, compute=cfg.compute)
    losses = {"router": even.loss.mean(0), "busiest_expert": even.busiest.mean(0)}  # [L, B] -> [B]
    hidden = rms_norm(x, params["norm"]["scale"], cfg.eps)
    return Output(hidden=hidden, losses=losses, cache=cache_after(cache, past, batch))


def flops(cfg: Config, batch: Batch) -> float:
    """Return the matrix-product FLOPs of a forward pass with its head: of a token's own experts; attention in full, T x T."""
    projections = 2 * cfg.width * (cfg.heads * cfg.head + cfg.kv_heads * cfg.head)
    experts = cfg.width * cfg.experts + cfg.active_experts * 3 * cfg.width * cfg.ffn
    return causal_decoder.flops(cfg, batch, projections + experts)


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


class Block(GroupedBlock):
    """A layer with experts in place of the feed-forward layer, and sinks."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        experts = functools.partial(Experts, cfg.width, cfg.ffn, cfg.experts, cfg.active_experts, limit=cfg.limit)
        super().__init__(cfg, experts, rngs, qkv_biases=True, out_bias=True, sinks=NORMAL)


# --- published names ------------------------------------------------------------------------------------------------------------

BODY = (
    ParamName("embed/tokens/embedding", "embed_tokens.weight"),
    ParamName("layers/norm1/scale", "layers.{layer}.input_layernorm.weight"),
    *(row for leaf in "qkv" for row in heads_names(leaf)),
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
FAMILY = decoder_family(
    # Sinks are normal too, as in `transformers`, and biases are zero; the model card states no initial values.
    init=functools.partial(init_grouped, Block),
    apply=apply,
    flops=flops,
    loss_factors=loss_factors,
    names={"causal": NAMES, "sequence": score_names(NAMES, "GptOssForSequenceClassification")},
    sharding=((r"unembed/embedding", ("tensor", "fsdp")),),
    padded={"embed/tokens/embedding": "vocab", "unembed/embedding": "vocab"},
    lora=("q_proj", "v_proj"),
)
