"""nanochat: a causal decoder whose norms have no parameters, with rotary positions and squared ReLU; see `zoo.configs.nanochat`.

Source: karpathy/nanochat at b8076dd, `nanochat/gpt.py`. Queries and keys are normalized, the embeddings too, the logits are
bounded, and input and output have a table each.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.attention.masks import Mask
from zoo.batch import Batch, Output
from zoo.configs.nanochat import Config
from zoo.hf.param_name_types import ParamName, ParamNames, linear_names
from zoo.nn import causal_decoder
from zoo.nn.causal_decoder import decoder_family, heads_names
from zoo.nn.grouped_attention import GroupedSelfAttention
from zoo.nn.kv_cache import Cache, KVCacheView, LayerIndex, append_tokens, cache_after, self_mask, view_of
from zoo.nn.layer_stack import Layer, init_stack, run_stack
from zoo.nn.layers import Embed, Mlp, Seeds, fold_seeds, lookup, params_of, rms_norm, tied_logits, token_positions
from zoo.ops import positions, rotary_frequencies
from zoo.sharding import constrain_tokens

ZEROS = jax.nn.initializers.zeros


def init(cfg: Config, key: Array) -> dict[str, Any]:
    """Return new parameters as `init_weights` of the source: embeddings normal(1), and projections by `_init_projection`.

    Projections into the residual stream and the output table are zero.
    """
    embed_key, layers_key = jax.random.split(key)
    tokens = Embed(cfg.vocab, cfg.width, jax.nn.initializers.normal(1.0), nnx.Rngs(embed_key), pad=True)
    return {
        "embed": {"tokens": params_of(tokens)},
        "layers": init_stack(lambda rngs: Block(cfg, rngs), layers_key, cfg.layers),
        "unembed": params_of(Embed(cfg.vocab, cfg.width, ZEROS, nnx.Rngs(embed_key), pad=True)),
    }


def apply(
    cfg: Config, params: dict[str, Any], batch: Batch, *, cache: Cache | None = None, seeds: Seeds = None, carry: Any = None
) -> Output:
    """Return the hidden states after the final norm, [B, T, D]. `seeds`, u32[B, 2], enables dropout.

    Raises:
        ValueError: a row longer than `cfg.context`, or more tokens than the cache has slots.
    """
    batch, cache = append_tokens(batch, cache, cfg.context)
    mask = self_mask(batch, cache)
    frequencies, factor = rotary_frequencies.plain(cfg.head, cfg.base)
    # Rotations are in the opposite direction to those of other families.
    rotation = positions.scaled_rotation(token_positions(batch), (-frequencies, factor))
    rotate = functools.partial(positions.rotate, rotation=rotation)

    def body(block: Block, carry: Any, layer: Layer) -> tuple[Any, None]:
        x, past = carry
        x, past = block(x, mask, rotate, fold_seeds(seeds, layer.index + 1), past, layer.index)
        return (constrain_tokens(x), past), None

    x = lookup(params["embed"]["tokens"]["embedding"], batch.tokens, rows="tensor")
    x = constrain_tokens(_normalize(cfg, x))
    block = functools.partial(Block, cfg)
    (x, past), _ = run_stack(block, params["layers"], body, (x, view_of(cache)), compute=cfg.compute)
    return Output(hidden=_normalize(cfg, x), cache=cache_after(cache, past, batch))


def unembed(cfg: Config, params: dict[str, Any], hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
    """Return float32 logits between -softcap and softcap; rows >= cfg.vocab get no probability."""
    return tied_logits(hidden, params["unembed"]["embedding"], cfg.vocab, softcap=cfg.softcap)


def flops(cfg: Config, batch: Batch) -> float:
    """Return the matrix-product FLOPs of a forward pass with its head; attention counts in full, T x T."""
    projections = 2 * cfg.width * (cfg.heads * cfg.head + cfg.kv_heads * cfg.head)
    return causal_decoder.flops(cfg, batch, projections + 2 * cfg.width * cfg.ffn)


def _normalize(cfg: Config, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Divide by the root mean square of the last axis."""
    return rms_norm(x, jnp.ones(x.shape[-1]), cfg.eps)


def _init_projection(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return a kernel whose first axis is the input, normal with the deviation of Yang et al. 2023 (arXiv:2310.17813)."""
    inputs, outputs = shape[0], math.prod(shape[1:])
    return jax.random.normal(key, shape, dtype) * (min(1.0, math.sqrt(outputs / inputs)) / math.sqrt(inputs))


class Attention(GroupedSelfAttention):
    """Self-attention whose queries and keys are normalized. A rotation does not change a norm, so their order is immaterial."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        super().__init__(cfg.width, cfg.heads, cfg.kv_heads, cfg.head, _init_projection, ZEROS, rngs)
        self.cfg = cfg

    def split_heads(self, x: Float[Array, "B T D"]) -> list[Float[Array, "B T _ H"]]:
        q, k, v = super().split_heads(x)
        return [_normalize(self.cfg, q), _normalize(self.cfg, k), v]


class Block(nnx.Module):
    """A layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        self.cfg = cfg
        self.attention = Attention(cfg, rngs)
        self.mlp = Mlp(cfg.width, cfg.ffn, cfg.activation, _init_projection, ZEROS, rngs, biases=False)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Mask,
        rotate: Callable[[Array], Array],
        seeds: Seeds,
        past: KVCacheView | None,
        layer: LayerIndex,
    ) -> tuple[Float[Array, "B T D"], KVCacheView | None]:
        cfg = self.cfg
        options = {"dropout": cfg.attention_dropout, "seeds": seeds, "compute": cfg.compute}
        y, past = self.attention(_normalize(cfg, x), mask, past, layer, rotate=rotate, **options)
        x = x + y
        return x + self.mlp(_normalize(cfg, x)), past


# --- published names ------------------------------------------------------------------------------------------------------------

NAMES = ParamNames(
    architecture="NanoChatForCausalLM",
    prefixes=("model.", ""),
    released_in_bfloat16=True,
    rows=(
        ParamName("embed/tokens/embedding", "embed_tokens.weight"),
        *(heads_names(leaf)[0] for leaf in "qkv"),
        ParamName("layers/attention/out/kernel", "layers.{layer}.self_attn.o_proj.weight", "d (n h) -> n h d"),
        *linear_names("layers/mlp/up", "layers.{layer}.mlp.fc1", bias=None),
        *linear_names("layers/mlp/down", "layers.{layer}.mlp.fc2", bias=None),
        ParamName("unembed/embedding", "lm_head.weight", bare=True),
    ),
)
FAMILY = decoder_family(
    init=init,
    apply=apply,
    unembed=unembed,
    flops=flops,
    names={"causal": NAMES},
    sequence_logits=None,
    objectives=("causal", "instruction", "dpo", "kto", "policy_gradient", "ppo"),
    sharding=((r"unembed/embedding", ("tensor", "fsdp")),),
    padded={"embed/tokens/embedding": "vocab", "unembed/embedding": "vocab"},
    lora=("q_proj", "v_proj"),
)
