"""GPT: a causal decoder with learned positions and pre-layer-norm blocks.

GPT-2 (Radford et al. 2019), GPT-3 (Brown et al. 2020), Turing-NLG and Megatron-LM shapes; sizes are in `zoo.configs.gpt`.
"""

import math
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from zoo import seeds as seeding
from zoo.batch import Batch, Output
from zoo.configs.gpt import Config
from zoo.layers import Embed, LayerNorm, Mlp, Seeds, SelfAttention, dropout, layer_norm, lookup, tied_logits
from zoo.masks import Mask
from zoo.sharding import BATCH, Rules, constrain
from zoo.stack import init_stack, run_stack

OBJECTIVES = ("causal",)
SHARDING: Rules = ()
PADDED = {"embed/tokens/embedding": "vocab"}
"""Leaf -> field with its true number of rows; the rows beyond it are padding, cut at export and not counted."""

EMBEDDING_SITE, ATTENTION_SITE, RESIDUAL_SITE, MLP_SITE = range(4)


def init(cfg: Config, key: Array) -> dict[str, Any]:
    """Parameters: normal(0.02), the projections into the residual stream scaled by 1/sqrt(2 L) (GPT-2, section 2.3)."""
    outside, layers = jax.random.split(key)
    params = nnx.to_pure_dict(nnx.state(Outside(cfg, nnx.Rngs(outside))))
    return {**params, "layers": init_stack(lambda rngs: Block(cfg, rngs), layers, cfg.layers)}


def apply(cfg: Config, params: dict[str, Any], batch: Batch, *, seeds: Seeds = None, carry: Any = None) -> Output:
    """Hidden states after the final norm, [B, T, D]. `seeds` u32[B, 2] turns dropout on.

    Raises:
        ValueError: a row longer than the learned positions.
    """
    length = batch.tokens.shape[1]
    if length > cfg.context:
        raise ValueError(f"rows of {length} tokens in a model of {cfg.context} positions")
    embed = params["embed"]
    table = embed["positions"]["embedding"]
    positions = table[None, :length] if batch.positions is None else lookup(table, batch.positions)
    x = constrain(lookup(embed["tokens"]["embedding"], batch.tokens, rows="tensor") + positions, BATCH)
    x = dropout(x, cfg.embedding_dropout, seeds, EMBEDDING_SITE)

    def body(block: Block, x: Array, _: None, index: Array, attends: str) -> tuple[Array, None]:
        mask = Mask(
            causal=True,
            window=cfg.window if attends == "window" else None,
            query_segments=batch.segments,
            key_segments=batch.segments,
        )
        layer_seeds = None if seeds is None else seeding.fold(seeds, index + 1)
        return constrain(block(x, mask, layer_seeds), BATCH), None

    x, _ = run_stack(
        lambda rngs: Block(cfg, rngs),
        params["layers"],
        body,
        x,
        pattern=cfg.pattern,
        remat=cfg.compute.remat,
        unroll=cfg.compute.unroll,
    )
    return Output(hidden=layer_norm(x, params["norm"]["scale"], params["norm"]["bias"], cfg.eps))


def unembed(cfg: Config, params: dict[str, Any], hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
    """float32 logits from the tied embedding; rows >= cfg.vocab are padding and get no probability."""
    return tied_logits(hidden, params["embed"]["tokens"]["embedding"], cfg.vocab)


def flops(cfg: Config, batch: Batch) -> float:
    """Matrix-product FLOPs of a forward pass, unembedding included; attention counted in full, T x T (as PaLM's MFU does)."""
    rows, length = batch.tokens.shape
    inner = cfg.heads * cfg.head
    per_layer = 4 * cfg.width * inner + 2 * cfg.width * cfg.ffn
    products = 2.0 * rows * length * (cfg.layers * per_layer + cfg.width * cfg.vocab)
    return products + 4.0 * cfg.layers * rows * length * length * inner


class Outside(nnx.Module):
    """What exists once: the embeddings and the final norm."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        self.embed = Embeddings(cfg, rngs)
        self.norm = LayerNorm(cfg.width, cfg.eps)


class Embeddings(nnx.Module):
    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(0.02)
        self.tokens = Embed(cfg.vocab, cfg.width, init, rngs, pad=True)
        self.positions = Embed(cfg.context, cfg.width, init, rngs)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(0.02)
        out_init = jax.nn.initializers.normal(0.02 / math.sqrt(2 * cfg.layers))
        self.cfg = cfg
        self.norm1 = LayerNorm(cfg.width, cfg.eps)
        self.attention = SelfAttention(cfg.width, cfg.heads, cfg.head, init, out_init, rngs)
        self.norm2 = LayerNorm(cfg.width, cfg.eps)
        self.mlp = Mlp(cfg.width, cfg.ffn, cfg.activation, init, out_init, rngs)

    def __call__(self, x: Float[Array, "B T D"], mask: Mask, seeds: Seeds) -> Float[Array, "B T D"]:
        cfg = self.cfg
        inside = None if seeds is None else seeding.fold(seeds, ATTENTION_SITE)
        y = self.attention(self.norm1(x), mask, dropout=cfg.attention_dropout, seeds=inside, impl=cfg.compute.attention)
        x = x + dropout(y, cfg.dropout, seeds, RESIDUAL_SITE)
        return x + dropout(self.mlp(self.norm2(x)), cfg.dropout, seeds, MLP_SITE)
