"""The body of BERT, RoBERTa and DistilBERT: Vaswani et al.'s encoder with norms after each sub-layer and learned positions."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from zoo.attention.masks import Mask
from zoo.batch import Batch, Output
from zoo.configs._encoder import BodyConfig, EncoderConfig
from zoo.hf.param_name_types import ParamName, ParamNames, head_names, linear_names, names_of_split_projection, norm_names
from zoo.nn import task_heads
from zoo.nn.family import Family
from zoo.nn.kv_cache import check_length, self_mask
from zoo.nn.layer_stack import Layer, init_stack, run_stack
from zoo.nn.layers import (
    Embed,
    Init,
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
from zoo.nn.task_heads import Heads
from zoo.sharding import constrain_tokens

EMBEDDING_SITE, ATTENTION_SITE, RESIDUAL_SITE, MLP_SITE = range(4)


def encoder_family(
    heads: Heads, prefix: str, body: tuple[ParamName, ...], *, tied: Mapping[str, str], lora: tuple[str, ...]
) -> Family:
    """Return a family that has this body and these heads, with published names as in `published_names`."""
    return Family(
        init=functools.partial(init, heads, Embeddings, Block),
        apply=apply,
        unembed=functools.partial(task_heads.masked_logits, heads),
        flops=functools.partial(flops, heads),
        sequence_logits=functools.partial(task_heads.sequence_logits, heads),
        token_logits=functools.partial(task_heads.token_logits, heads),
        objectives=("masked", "left_to_right", "distilled", *task_heads.FINE_TUNED),
        names=published_names(heads, prefix, body, tied=tied, constants=("embeddings.position_ids",)),
        padded={"embed/tokens/embedding": "vocab", "masked/bias": "vocab"},
        lora=lora,
    )


def init(heads: Heads, embeddings: Callable[..., Any], block: Callable[..., Any], cfg: Any, key: Array) -> dict[str, Any]:
    """Return new parameters: kernels and tables of standard deviation 0.02 (Devlin et al. 2019, code), biases 0, scales 1."""
    embed_key, layers_key, head_key = jax.random.split(key, 3)
    head = task_heads.find_head(heads, cfg)
    return {
        "embed": params_of(embeddings(cfg, nnx.Rngs(embed_key))),
        "layers": init_stack(lambda rngs: block(cfg, rngs), layers_key, cfg.layers),
        **params_of(task_heads.HeadParams(cfg, head, initializer(cfg), nnx.Rngs(head_key))),
    }


def apply(
    cfg: EncoderConfig, params: dict[str, Any], batch: Batch, *, cache: None = None, seeds: Seeds = None, carry: Any = None
) -> Output:
    """Return the hidden states after the last norm, [B, T, D]. `seeds`, u32[B, 2], enables dropout.

    Raises:
        ValueError: a row longer than the learned positions.
    """
    check_length(batch, cfg.context)
    mask = self_mask(batch, causal=cfg.causal)

    def body(block: Block, x: Array, layer: Layer) -> tuple[Array, None]:
        return constrain_tokens(block(x, mask, fold_seeds(seeds, layer.index + 1))), None

    x = dropout(_embed(cfg, params["embed"], batch), cfg.dropout, seeds, EMBEDDING_SITE)
    x, _ = run_stack(functools.partial(Block, cfg), params["layers"], body, x, compute=cfg.compute)
    return Output(hidden=x)


def flops(heads: Heads, cfg: BodyConfig, batch: Batch, *, mlp_kernels: int = 2) -> float:
    """Return the matrix-product FLOPs of a forward pass with its head; attention counts in full, T x T.

    Args:
        mlp_kernels: number of kernels [D, F] of a feed-forward layer.
    """
    tokens, length = float(math.prod(batch.tokens.shape)), batch.tokens.shape[-1]
    products = 2.0 * tokens * cfg.layers * (4 * cfg.width * cfg.width + mlp_kernels * cfg.width * cfg.ffn)
    attention = 4.0 * cfg.layers * tokens * length * cfg.width
    return products + attention + task_heads.flops(heads, cfg, batch)


class Embeddings(nnx.Module):
    """Tables of tokens, positions and types, and the LayerNorm of their sum."""

    def __init__(self, cfg: EncoderConfig, rngs: nnx.Rngs):
        init = initializer(cfg)
        self.tokens = Embed(cfg.vocab, cfg.width, init, rngs, pad=True)
        self.positions = Embed(cfg.context + cfg.position_offset, cfg.width, init, rngs)
        if cfg.types:
            self.types = Embed(cfg.types, cfg.width, init, rngs)
        self.norm = LayerNorm(cfg.width, cfg.eps)


class Block(nnx.Module):
    """A layer: norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, cfg: EncoderConfig, rngs: nnx.Rngs):
        init = initializer(cfg)
        self.cfg = cfg
        self.attention = SelfAttention(cfg.width, cfg.heads, cfg.head, init, init, rngs)
        self.norm1 = LayerNorm(cfg.width, cfg.eps)
        self.mlp = Mlp(cfg.width, cfg.ffn, cfg.activation, init, init, rngs)
        self.norm2 = LayerNorm(cfg.width, cfg.eps)

    def __call__(self, x: Float[Array, "B T D"], mask: Mask, seeds: Seeds) -> Float[Array, "B T D"]:
        cfg, attention_seeds = self.cfg, fold_seeds(seeds, ATTENTION_SITE)
        y, _ = self.attention(x, mask, dropout=cfg.attention_dropout, seeds=attention_seeds, compute=cfg.compute)
        x = self.norm1(x + dropout(y, cfg.dropout, seeds, RESIDUAL_SITE))
        return self.norm2(x + dropout(self.mlp(x), cfg.dropout, seeds, MLP_SITE))


def _embed(cfg: EncoderConfig, embed: dict[str, Any], batch: Batch) -> Float[Array, "B T D"]:
    table = embed["positions"]["embedding"]
    length = batch.tokens.shape[1]
    if batch.positions is None:
        positions = table[None, cfg.position_offset : cfg.position_offset + length]  # [1, T, D]
    else:
        positions = lookup(table, batch.positions + cfg.position_offset)  # [B, T, D]
    x = lookup(embed["tokens"]["embedding"], batch.tokens, rows="tensor") + positions
    if cfg.types:
        types = embed["types"]["embedding"]
        x = x + (types[None, :1] if batch.types is None else lookup(types, batch.types))
    return constrain_tokens(layer_norm(x, embed["norm"]["scale"], embed["norm"]["bias"], cfg.eps))


def initializer(cfg: BodyConfig, std: float = 0.02) -> Init:
    """Return the initializer of kernels and tables, with standard deviation `std`."""
    # It is that before truncation, both in Google's code and in JAX; after it, 0.88 of that.
    initializers = {"normal": jax.nn.initializers.normal, "truncated": jax.nn.initializers.truncated_normal}
    return initializers[cfg.initializer](std)


# --- published names ------------------------------------------------------------------------------------------------------------


def published_names(
    table: Heads,
    prefix: str,
    body: tuple[ParamName, ...],
    *,
    tied: Mapping[str, str],
    constants: tuple[str, ...] = (),
) -> dict[str, ParamNames]:
    """Return the published names of a family by task: the body, with `prefix` or without if saved alone, and each head's rows."""
    return {
        task: ParamNames(
            architecture=head.architecture,
            prefixes=("", prefix) if task == "body" else (prefix, ""),
            rows=(*body, *head.rows),
            tied=tied if head.parts & {"masked", "unembed"} else {},
            constants=constants,
            idle=head.idle,
            renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        )
        for task, head in table.items()
    }


BERT_LAYER = "encoder.layer.{layer}"
BERT_BODY = (
    ParamName("embed/tokens/embedding", "embeddings.word_embeddings.weight"),
    ParamName("embed/positions/embedding", "embeddings.position_embeddings.weight"),
    ParamName("embed/types/embedding", "embeddings.token_type_embeddings.weight"),
    *norm_names("embed/norm", "embeddings.LayerNorm"),
    *names_of_split_projection(
        "layers/attention/qkv", *(f"{BERT_LAYER}.attention.self.{part}" for part in ("query", "key", "value"))
    ),
    *linear_names("layers/attention/out", f"{BERT_LAYER}.attention.output.dense", "d (n h) -> n h d"),
    *norm_names("layers/norm1", f"{BERT_LAYER}.attention.output.LayerNorm"),
    *linear_names("layers/mlp/up", f"{BERT_LAYER}.intermediate.dense"),
    *linear_names("layers/mlp/down", f"{BERT_LAYER}.output.dense"),
    *norm_names("layers/norm2", f"{BERT_LAYER}.output.LayerNorm"),
)
"""BERT's names; RoBERTa has the same with another prefix."""

POOLER = linear_names("pooler", "pooler.dense")
"""The pooler is published as a part of the body."""

POOLER_NAMES = tuple(str(row.names) for row in POOLER)


def masked(dense: str, norm: str, bias: str) -> tuple[ParamName, ...]:
    """Return the rows of a masked head, without the table that it is tied to."""
    return (
        *head_names("masked/dense", dense),
        *norm_names("masked/norm", norm, bare=True),
        ParamName("masked/bias", bias, bare=True),
    )
