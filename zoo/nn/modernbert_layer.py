"""The embeddings and the layer of ModernBERT (Warner et al. 2024, section 2) and of Ettin's decoders (Weller et al. 2025).

Norms come before each sub-layer, and have no bias, as no layer has. The first layer has no norm before its attention, since the
embeddings have been normalized: its parameters are a stack of one layer, `first/layers`, and those of the others are `layers`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.attention.masks import Mask
from zoo.batch import Batch
from zoo.configs import ettin_decoder, modernbert
from zoo.hf.param_name_types import DENSE, ParamName, linear_names
from zoo.nn.kv_cache import KVCacheView, LayerIndex
from zoo.nn.layer_stack import run_stack
from zoo.nn.layers import (
    Embed,
    GatedMlp,
    Init,
    LayerNorm,
    Seeds,
    SelfAttention,
    dropout,
    fold_seeds,
    layer_norm,
    lookup,
    token_positions,
)
from zoo.ops import positions
from zoo.sharding import constrain_tokens

EMBEDDING_SITE, ATTENTION_SITE, RESIDUAL_SITE, MLP_SITE = range(4)
STD = 0.02
"""Standard deviation of fresh kernels and tables, but for those of `output_std`."""

Config = modernbert.Config | ettin_decoder.Config


def output_std(layers: int) -> float:
    """Return the standard deviation of fresh kernels whose products are added to the residual stream, or are in a head."""
    return STD / math.sqrt(2 * layers)


class Embeddings(nnx.Module):
    """Table of tokens, and the norm of its rows."""

    def __init__(self, cfg: Config, init: Init, rngs: nnx.Rngs):
        self.tokens = Embed(cfg.vocab, cfg.width, init, rngs, pad=True)
        self.norm = LayerNorm(cfg.width, cfg.eps, bias=False)


def embed_tokens(cfg: Config, embed: dict[str, Any], tokens: Int[Array, "B T"], seeds: Seeds = None) -> Float[Array, "B T D"]:
    """Return the normalized rows of tokens; `seeds` enables dropout."""
    x = layer_norm(lookup(embed["tokens"]["embedding"], tokens, rows="tensor"), embed["norm"]["scale"], None, cfg.eps)
    return dropout(constrain_tokens(x), cfg.dropout, seeds, EMBEDDING_SITE)


class Block(nnx.Module):
    """A layer: x + attention(norm(x)), then x + mlp(norm(x)). The `first` one has no norm before its attention."""

    def __init__(self, cfg: Config, init: Init, out_init: Init, rngs: nnx.Rngs, *, first: bool = False):
        self.cfg = cfg
        self.norm1 = None if first else LayerNorm(cfg.width, cfg.eps, bias=False)
        self.attention = SelfAttention(cfg.width, cfg.heads, cfg.head, init, out_init, rngs, biases=False)
        self.norm2 = LayerNorm(cfg.width, cfg.eps, bias=False)
        self.mlp = GatedMlp(cfg.width, cfg.ffn, cfg.activation, init, out_init, rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Mask,
        rotate: Callable[[Array], Array],
        seeds: Seeds,
        past: KVCacheView | None = None,
        layer: LayerIndex = 0,
    ) -> tuple[Float[Array, "B T D"], KVCacheView | None]:
        cfg, attention_seeds = self.cfg, fold_seeds(seeds, ATTENTION_SITE)
        options = {"dropout": cfg.attention_dropout, "seeds": attention_seeds, "compute": cfg.compute}
        y, past = self.attention(x if self.norm1 is None else self.norm1(x), mask, past, layer, rotate=rotate, **options)
        x = x + dropout(y, cfg.attention_dropout, seeds, RESIDUAL_SITE)
        return x + self.mlp(self.norm2(x), dropped=lambda inner: dropout(inner, cfg.mlp_dropout, seeds, MLP_SITE)), past


def run_layers(
    block: Callable[..., Callable[[nnx.Rngs], Block]], cfg: Config, params: dict[str, Any], body: Callable[..., Any], carry: Any
) -> Any:
    """Return the carry after the first layer, `block(cfg, first=True)`, and the stack of the others, `block(cfg)`."""
    carry, _ = run_stack(block(cfg, first=True), params["first"]["layers"], body, carry, pattern=("global",), compute=cfg.compute)
    return run_stack(block(cfg), params["layers"], body, carry, pattern=cfg.pattern, first=1, compute=cfg.compute)[0]


def layer_rotations(cfg: Config, batch: Batch) -> dict[str, Callable[[Array], Array]]:
    """Return, for each kind of layer, the function that rotates queries or keys by the positions of a batch."""
    at, bases = token_positions(batch), {"global": cfg.global_base, "local": cfg.local_base}
    rotation = {kind: positions.rotation(at, cfg.head, base=base) for kind, base in bases.items()}
    return {kind: functools.partial(positions.rotate, rotation=pair) for kind, pair in rotation.items()}


def body_names(qkv: tuple[str, ...], qkv_layout: str) -> tuple[ParamName, ...]:
    """Return the published names of the body; `qkv` are those of the projection of queries, keys and values."""

    def both(leaf: str, layout: str, *names: str) -> tuple[ParamName, ParamName]:
        """Return the rows of a leaf of the first layer and of the others."""
        published = [f"layers.{{layer}}.{name}.weight" for name in names]
        full = tuple(published) if len(published) > 1 else published[0]
        return ParamName(f"first/layers/{leaf}", full, layout), ParamName(f"layers/{leaf}", full, layout, first=1)

    return (
        ParamName("embed/tokens/embedding", "embeddings.tok_embeddings.weight"),
        ParamName("embed/norm/scale", "embeddings.norm.weight"),
        ParamName("layers/norm1/scale", "layers.{layer}.attn_norm.weight", first=1),
        *both("attention/qkv/kernel", qkv_layout, *qkv),
        *both("attention/out/kernel", "d (n h) -> n h d", "attn.Wo"),
        *both("norm2/scale", "", "mlp_norm"),
        *both("mlp/gated/kernel", "(c f) d -> d c f", "mlp.Wi"),
        *both("mlp/down/kernel", DENSE, "mlp.Wo"),
        ParamName("norm/scale", "final_norm.weight"),
    )


def dense_names(leaf: str, norm: str, name: str) -> tuple[ParamName, ...]:
    """Return the rows of the dense layer that a head begins with, and of its norm."""
    return (
        *linear_names(leaf, f"{name}.dense", bias=None, bare=True),
        ParamName(f"{norm}/scale", f"{name}.norm.weight", bare=True),
    )
