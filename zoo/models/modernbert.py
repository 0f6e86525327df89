"""ModernBERT: an encoder with rotary positions, gated feed-forward layers and local attention (Warner et al. 2024, section 2).

Its layer is in `zoo.nn.modernbert_layer`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.batch import Batch, Output
from zoo.configs._encoder import Task
from zoo.configs.modernbert import Config
from zoo.hf.param_name_types import ParamName, head_names
from zoo.nn import encoder, task_heads
from zoo.nn.encoder import initializer
from zoo.nn.family import Family
from zoo.nn.kv_cache import check_length, self_mask
from zoo.nn.layer_stack import Layer, init_stack
from zoo.nn.layers import LayerNorm, Seeds, fold_seeds, layer_norm, params_of
from zoo.nn.modernbert_layer import (
    STD,
    Block,
    Embeddings,
    body_names,
    dense_names,
    embed_tokens,
    layer_rotations,
    output_std,
    run_layers,
)
from zoo.nn.task_heads import Head
from zoo.sharding import constrain_tokens


def init(cfg: Config, key: Array) -> dict[str, Any]:
    """Return new parameters, of standard deviation 0.02, or smaller or larger ones as in `transformers`.

    Kernels of outputs and of the dense layer in a head have 0.02/sqrt(2 L), classifiers 1/sqrt(D).
    """
    embed_key, first_key, layers_key, head_key = jax.random.split(key, 4)
    head, rngs = task_heads.find_head(HEADS, cfg), nnx.Rngs(head_key)
    last_init = initializer(cfg, cfg.width**-0.5)
    return {
        "embed": params_of(Embeddings(cfg, initializer(cfg, STD), nnx.Rngs(embed_key))),
        "first": {"layers": init_stack(_block(cfg, first=True), first_key, 1)},
        "layers": init_stack(_block(cfg), layers_key, cfg.layers - 1),
        "norm": params_of(LayerNorm(cfg.width, cfg.eps, bias=False)),
        **params_of(task_heads.HeadParams(cfg, head, initializer(cfg, output_std(cfg.layers)), rngs, last_init=last_init)),
    }


def apply(
    cfg: Config, params: dict[str, Any], batch: Batch, *, cache: None = None, seeds: Seeds = None, carry: Any = None
) -> Output:
    """Return the hidden states after the final norm, [B, T, D], and the means of sequences where the head takes them.

    Rotations depend on `batch.positions`; the window of a local layer on the places of tokens in the row. `seeds`, u32[B, 2],
    enables dropout.

    Raises:
        ValueError: a row longer than `cfg.context`.
    """
    check_length(batch, cfg.context)
    window, rotate = cfg.local_window // 2 + 1, layer_rotations(cfg, batch)
    masks = {"global": self_mask(batch, causal=False), "local": self_mask(batch, causal=False, window=window)}

    def body(block: Block, x: Array, layer: Layer) -> tuple[Array, None]:
        x, _ = block(x, masks[layer.kind], rotate[layer.kind], fold_seeds(seeds, layer.index + 1))
        return constrain_tokens(x), None

    x = run_layers(_block, cfg, params, body, embed_tokens(cfg, params["embed"], batch.tokens, seeds))
    hidden = layer_norm(x, params["norm"]["scale"], None, cfg.eps)
    return Output(hidden=hidden, summaries=_means(hidden, batch) if _pools(cfg) else None)


def _block(cfg: Config, *, first: bool = False) -> Callable[[nnx.Rngs], Block]:
    init, out_init = initializer(cfg, STD), initializer(cfg, output_std(cfg.layers))
    return functools.partial(Block, cfg, init, out_init, first=first)


def _pools(cfg: Config) -> bool:
    return cfg.pooling == "mean" and cfg.task in ("sequence", "choice")


def _means(hidden: Float[Array, "B T D"], batch: Batch) -> Float[Array, "B Q D"]:
    """Return the mean hidden state of each sequence, that of the segment at `batch.summary_at`."""
    segments = jnp.ones_like(batch.tokens) if batch.segments is None else batch.segments
    own = segments[:, :1] if batch.summary_at is None else jnp.take_along_axis(segments, batch.summary_at, axis=1)  # [B, Q]
    member = (segments[:, None] == own[..., None]).astype(jnp.float32)  # [B, Q, T]
    sums = jnp.einsum("bqt,btd->bqd", member, hidden.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return (sums / member.sum(-1, keepdims=True)).astype(hidden.dtype)


# --- published names ------------------------------------------------------------------------------------------------------------


BODY = body_names(("attn.Wqkv",), "(c n h) d -> d c n h")
MASKED = (*dense_names("masked/dense", "masked/norm", "head"), ParamName("masked/bias", "decoder.bias", bare=True))
CLASSIFIER = (*dense_names("dense", "dense/norm", "head"), *head_names("classifier", "classifier"))

HEADS: dict[Task, Head] = {
    "body": Head(architecture="ModernBertModel"),
    # The heads of `transformers` have this activation, whatever activation config.json gives the layers.
    "masked": Head(architecture="ModernBertForMaskedLM", rows=MASKED, masked_activation="gelu"),
    "sequence": Head(architecture="ModernBertForSequenceClassification", rows=CLASSIFIER, summary="gelu"),
    "choice": Head(architecture="ModernBertForMultipleChoice", rows=CLASSIFIER, summary="gelu"),
    "tokens": Head(architecture="ModernBertForTokenClassification", rows=CLASSIFIER, summary="gelu"),
    "span": Head(architecture="ModernBertForQuestionAnswering", rows=CLASSIFIER, summary="gelu"),
}

FAMILY = Family(
    init=init,
    apply=apply,
    unembed=functools.partial(task_heads.masked_logits, HEADS),
    flops=functools.partial(encoder.flops, HEADS, mlp_kernels=3),
    sequence_logits=functools.partial(task_heads.sequence_logits, HEADS),
    token_logits=functools.partial(task_heads.token_logits, HEADS),
    objectives=("masked", "distilled", *task_heads.FINE_TUNED),
    names=encoder.published_names(HEADS, "model.", BODY, tied={"decoder.weight": "embed/tokens/embedding"}),
    padded={"embed/tokens/embedding": "vocab", "masked/bias": "vocab"},
    lora=("Wqkv",),
)
