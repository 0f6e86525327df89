"""Ettin's decoders (Weller et al. 2025): ModernBERT's body, in which no token sees those after it.

Local layers see a window that ends at the current token. The LM head is a dense layer, gelu, a norm, and the table of the
embeddings with a bias; a reward model has a dense layer and a norm of its own, and a score. See `zoo.nn.modernbert_layer`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.batch import Batch, Output
from zoo.configs.ettin_decoder import Config
from zoo.hf.param_name_types import DENSE, ParamName, ParamNames
from zoo.nn import score_head
from zoo.nn.causal_decoder import decoder_family
from zoo.nn.kv_cache import Cache, append_tokens, cache_after, self_mask, view_of
from zoo.nn.layer_stack import Layer, init_stack
from zoo.nn.layers import (
    LayerNorm,
    Linear,
    Seeds,
    apply_linear,
    dropout,
    fold_seeds,
    gelu,
    layer_norm,
    padded_rows,
    params_of,
    tied_logits,
)
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
from zoo.sharding import constrain_tokens

HEAD_SITE, SCORE_SITE = range(2)
"""Numbers that are folded into the key of the initial parameters."""
DROPOUT_SITE = 0


def init(cfg: Config, key: Array) -> dict[str, Any]:
    """Return new parameters, truncated normal with standard deviation 0.02 or less, as in `transformers`.

    Kernels of outputs and of the dense layer in a head have 0.02/sqrt(2 L). An LM head is the part `unembed`; a reward model
    has `dense` and `score`; see `zoo.nn.score_head`.
    """
    embed_key, first_key, layers_key = jax.random.split(key, 3)
    rngs = nnx.Rngs(jax.random.fold_in(key, HEAD_SITE))
    if cfg.labels:
        score = score_head.init_score(cfg.width, jax.random.fold_in(key, SCORE_SITE))
        head = {"dense": params_of(NormedDense(cfg, rngs)), **score}
    else:
        head = {"unembed": params_of(Unembed(cfg, rngs))}
    normal = jax.nn.initializers.truncated_normal(STD)
    return {
        "embed": params_of(Embeddings(cfg, normal, nnx.Rngs(embed_key))),
        "first": {"layers": init_stack(_block(cfg, first=True), first_key, 1)},
        "layers": init_stack(_block(cfg), layers_key, cfg.layers - 1),
        "norm": params_of(LayerNorm(cfg.width, cfg.eps, bias=False)),
        **head,
    }


def apply(
    cfg: Config, params: dict[str, Any], batch: Batch, *, cache: Cache | None = None, seeds: Seeds = None, carry: Any = None
) -> Output:
    """Return the hidden states after the final norm, [B, T, D]. `seeds`, u32[B, 2], enables dropout.

    Rotations depend on `batch.positions`; the window of a local layer on the places of tokens in the row.

    Raises:
        ValueError: a row longer than `cfg.context`, or more tokens than the cache has slots.
    """
    batch, cache = append_tokens(batch, cache, cfg.context)
    masks = {"global": self_mask(batch, cache), "local": self_mask(batch, cache, window=cfg.window)}
    rotate = layer_rotations(cfg, batch)

    def body(block: Block, carry: Any, layer: Layer) -> tuple[Any, None]:
        x, past = carry
        layer_seeds = fold_seeds(seeds, layer.index + 1)
        x, past = block(x, masks[layer.kind], rotate[layer.kind], layer_seeds, past, layer.index)
        return (constrain_tokens(x), past), None

    x, past = run_layers(_block, cfg, params, body, (embed_tokens(cfg, params["embed"], batch.tokens, seeds), view_of(cache)))
    hidden = layer_norm(x, params["norm"]["scale"], None, cfg.eps)
    return Output(hidden=hidden, cache=cache_after(cache, past, batch))


def unembed(cfg: Config, params: dict[str, Any], hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
    """Return float32 logits; rows >= cfg.vocab are padding and get no probability."""
    part = params["unembed"]
    logits = tied_logits(_normed_dense(cfg, part["dense"], hidden), params["embed"]["tokens"]["embedding"], cfg.vocab)
    return logits + part["bias"].astype(jnp.float32)


def sequence_logits(
    cfg: Config, params: dict[str, Any], hidden: Float[Array, "B Q D"], *, seeds: Seeds = None
) -> Float[Array, "B Q O"]:
    """Return the float32 score of each sequence, O = 1, from the hidden state that summarizes it; `seeds` enables dropout.

    Raises:
        ValueError: the model has no such head.
    """
    if cfg.labels:
        hidden = _normed_dense(cfg, params["dense"], hidden)
        hidden = dropout(hidden, cfg.head_dropout, fold_seeds(seeds, cfg.layers + 1), DROPOUT_SITE)
    return score_head.sequence_logits(cfg, params, hidden)


def flops(cfg: Config, batch: Batch) -> float:
    """Return the matrix-product FLOPs of a forward pass with its head; attention counts in full, T x T, in local layers too."""
    rows, length = batch.tokens.shape
    dense = cfg.width * cfg.width
    per_token = cfg.layers * (4 * dense + 3 * cfg.width * cfg.ffn)
    lm_head, score = (0, dense + cfg.width) if cfg.labels else (dense + cfg.width * cfg.vocab, 0)
    return 2.0 * rows * (length * (per_token + lm_head) + score) + 4.0 * cfg.layers * rows * length * length * cfg.width


class NormedDense(Linear):
    """The dense layer of a head, and the norm of its activation."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        normal = jax.nn.initializers.truncated_normal(output_std(cfg.layers))
        super().__init__("...d,de->...e", (cfg.width, cfg.width), None, normal, rngs)
        self.norm = LayerNorm(cfg.width, cfg.eps, bias=False)


class Unembed(nnx.Module):
    """The LM head, without the table that it is tied to."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        self.dense = NormedDense(cfg, rngs)
        self.bias = nnx.Param(jnp.zeros(padded_rows(cfg.vocab)))


def _normed_dense(cfg: Config, part: dict[str, Any], x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    y = gelu(apply_linear(part, x))
    return layer_norm(y, part["norm"]["scale"], None, cfg.eps)


def _block(cfg: Config, *, first: bool = False) -> Callable[[nnx.Rngs], Block]:
    normal = jax.nn.initializers.truncated_normal
    return functools.partial(Block, cfg, normal(STD), normal(output_std(cfg.layers)), first=first)


# --- published names ------------------------------------------------------------------------------------------------------------


BODY = body_names(("attn.q_proj", "attn.k_proj", "attn.v_proj"), "(n h) d -> d c n h")
LM_HEAD = (*dense_names("unembed/dense", "unembed/dense/norm", "lm_head"), ParamName("unembed/bias", "decoder.bias", bare=True))
SCORE_HEAD = (*dense_names("dense", "dense/norm", "head"), ParamName("score/kernel", "classifier.weight", DENSE, bare=True))
NAMES = ParamNames(
    architecture="ModernBertDecoderForCausalLM",
    prefixes=("model.", ""),
    rows=(*BODY, *LM_HEAD),
    tied={"decoder.weight": "embed/tokens/embedding"},
)
SCORE = dataclasses.replace(NAMES, architecture="ModernBertDecoderForSequenceClassification", rows=(*BODY, *SCORE_HEAD), tied={})

FAMILY = decoder_family(
    init=init,
    apply=apply,
    unembed=unembed,
    flops=flops,
    sequence_logits=sequence_logits,
    names={"causal": NAMES, "sequence": SCORE},
    sharding=((r"unembed/bias", ("tensor",)),),
    padded={"embed/tokens/embedding": "vocab", "unembed/bias": "vocab"},
    lora=("q_proj", "v_proj"),
)
