"""Llama: a causal decoder with rotary positions, grouped heads, RMS norms and gated feed-forward layers.

It has the shapes of Llama 3 (Llama Team 2024), Qwen2.5, whose queries, keys and values have biases, Qwen3, whose queries and keys
are normalized, SmolLM2, and SmolLM3, where some layers have no positions; see `zoo.configs.llama`.
"""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array

from zoo.batch import Batch, Output
from zoo.configs.llama import Config
from zoo.hf.param_name_types import ParamName, ParamNames
from zoo.nn import causal_decoder
from zoo.nn.causal_decoder import GroupedBlock, decoder_family, heads_names, init_grouped, score_names
from zoo.nn.kv_cache import Cache, append_tokens, cache_after, self_mask, view_of
from zoo.nn.layer_stack import Layer, run_stack
from zoo.nn.layers import (
    GatedMlp,
    Seeds,
    document_lengths,
    fold_seeds,
    lookup,
    rms_norm,
    token_positions,
)
from zoo.ops import positions, rotary_frequencies
from zoo.sharding import constrain_tokens


def apply(
    cfg: Config, params: dict[str, Any], batch: Batch, *, cache: Cache | None = None, seeds: Seeds = None, carry: Any = None
) -> Output:
    """Return the hidden states after the final norm, [B, T, D]. `seeds`, u32[B, 2], enables dropout.

    Rotations depend on `batch.positions`. Dynamic scaling also depends on the length of a token's document, up to the newest
    token of the call: with a cache, earlier keys keep the rotation that they had when they were appended, as in `transformers`.
    There, all rows of a call have the scaling of the longest one; here, each document has that of its own length, as if it were
    alone.

    Raises:
        ValueError: a row longer than `cfg.context`, or more tokens than the cache has slots.
    """
    batch, cache = append_tokens(batch, cache, cfg.context)
    mask, rotate = self_mask(batch, cache), _rotate(cfg, batch)

    def body(block: Block, carry: Any, layer: Layer) -> tuple[Any, None]:
        x, past = carry
        x, past = block.attend(x, mask, rotate[layer.kind], fold_seeds(seeds, layer.index + 1), past, layer.index)
        return (constrain_tokens(x + block.mlp(block.norm2(x))), past), None

    x = constrain_tokens(lookup(params["embed"]["tokens"]["embedding"], batch.tokens, rows="tensor"))
    block = functools.partial(Block, cfg)
    (x, past), _ = run_stack(block, params["layers"], body, (x, view_of(cache)), pattern=cfg.pattern, compute=cfg.compute)
    return Output(hidden=rms_norm(x, params["norm"]["scale"], cfg.eps), cache=cache_after(cache, past, batch))


def flops(cfg: Config, batch: Batch) -> float:
    """Return the matrix-product FLOPs of a forward pass with its head; attention counts in full, T x T."""
    projections = 2 * cfg.width * (cfg.heads * cfg.head + cfg.kv_heads * cfg.head)
    return causal_decoder.flops(cfg, batch, projections + 3 * cfg.width * cfg.ffn)


def _rotate(cfg: Config, batch: Batch) -> dict[str, Callable[[Array], Array]]:
    """Return, for each kind of layer, the function that rotates queries or keys of a batch's tokens."""
    rotation = positions.scaled_rotation(token_positions(batch), _frequencies(cfg, batch))
    return {"rotary": functools.partial(positions.rotate, rotation=rotation), "none": lambda x: x}


def _frequencies(cfg: Config, batch: Batch) -> rotary_frequencies.Frequencies | rotary_frequencies.TokenFrequencies:
    width, base, factor, original_context = cfg.head, cfg.base, cfg.scaling_factor, cfg.original_context
    if cfg.scaling == "linear":
        return rotary_frequencies.linear(width, base, factor=factor)
    if cfg.scaling == "dynamic":
        lengths = document_lengths(batch)
        return rotary_frequencies.dynamic(width, base, lengths, factor=factor, original_context=original_context)
    if cfg.scaling == "yarn":
        return rotary_frequencies.yarn(
            width,
            base,
            factor=factor,
            beta_fast=cfg.beta_fast,
            beta_slow=cfg.beta_slow,
            original_context=original_context,
            truncate=cfg.truncate,
            attention_factor=cfg.attention_factor,
        )
    if cfg.scaling == "llama3":
        return rotary_frequencies.llama3(
            width,
            base,
            factor=factor,
            low_freq_factor=cfg.low_freq_factor,
            high_freq_factor=cfg.high_freq_factor,
            original_context=original_context,
        )
    return rotary_frequencies.plain(width, base)


class Block(GroupedBlock):
    """A layer, whose feed-forward layer is gated."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        super().__init__(
            cfg,
            functools.partial(GatedMlp, cfg.width, cfg.ffn, cfg.activation),
            rngs,
            qkv_biases=cfg.attention_bias or cfg.qkv_bias,
            out_bias=cfg.attention_bias,
            norm_eps=cfg.eps if cfg.query_key_norm else None,
        )


# --- published names ------------------------------------------------------------------------------------------------------------

BODY = (
    ParamName("embed/tokens/embedding", "embed_tokens.weight"),
    ParamName("layers/norm1/scale", "layers.{layer}.input_layernorm.weight"),
    *(row for leaf in "qkv" for row in heads_names(leaf, optional=True)),
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
FAMILY = decoder_family(
    # The Llama paper does not state its initial values; these are those of `transformers`.
    init=functools.partial(init_grouped, Block),
    apply=apply,
    flops=flops,
    names={"causal": NAMES, "sequence": score_names(NAMES, "LlamaForSequenceClassification")},
    sharding=((r"unembed/embedding", ("tensor", "fsdp")),),
    padded={"embed/tokens/embedding": "vocab", "unembed/embedding": "vocab"},
    lora=("q_proj", "v_proj"),
)
