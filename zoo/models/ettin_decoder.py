"""Ettin's decoders (Weller et al. 2025): ModernBERT's body, in which no token sees those after it.

Local layers see a window that ends at the current token. The head of words is a dense layer, gelu, a norm, and the table of the
embeddings with a bias; a reward model has a dense layer and a norm of its own, and a score. See `zoo.nn.modernbert_layer`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.attention.masks import Mask
from zoo.batch import Batch, Output
from zoo.configs.ettin_decoder import Config
from zoo.hf.param_name_types import ParamName, ParamNames
from zoo.nn import score_head
from zoo.nn.kv_cache import append_tokens, empty_cache
from zoo.nn.layer_stack import init_stack, run_stack
from zoo.nn.layers import (
    KVCacheView,
    LayerIndex,
    LayerNorm,
    Linear,
    Seeds,
    dropout,
    fold_seeds,
    gelu,
    layer_norm,
    padded_rows,
    params_of,
    tied_logits,
)
from zoo.nn.modernbert_layer import DEVIATION, Block, Embeddings, embedded, output_deviation
from zoo.ops import positions
from zoo.ops.adapted_kernel import linear
from zoo.sharding import BATCH, Rules, constrain

OBJECTIVES = ("causal", "instruction", "preference", "dpo", "kto", "policy", "ppo")
SHARDING: Rules = ((r"unembed/bias", ("tensor",)),)
LORA = ("q_proj", "v_proj")
"""Names of the published matrices that have adapters by default (`zoo.lora`)."""
PADDED = {"embed/tokens/embedding": "vocab", "unembed/bias": "vocab"}
"""Leaf -> option that has its true number of rows. Further rows are padding, which is neither exported nor counted."""
SPLIT_CACHE = ("k", "v")

HEAD_SITE, SCORE_SITE = range(2)
"""Numbers that are folded into the key of the initial parameters."""
DROPOUT_SITE = 0


def init(cfg: Config, key: Array) -> dict[str, Any]:
    """Return new parameters, truncated normal of deviation 0.02, or smaller, as in `transformers`.

    Kernels of outputs and of the dense layer in a head have 0.02/sqrt(2 L). A model of words has the part `unembed`, a reward
    model `dense` and `score`; see `zoo.nn.score_head`.
    """
    embed_key, first_key, layers_key = jax.random.split(key, 3)
    rngs = nnx.Rngs(jax.random.fold_in(key, HEAD_SITE))
    if cfg.labels:
        score = score_head.init_score(cfg.width, jax.random.fold_in(key, SCORE_SITE))
        head = {"dense": params_of(NormedDense(cfg, rngs)), **score}
    else:
        head = {"unembed": params_of(Unembed(cfg, rngs))}
    normal = jax.nn.initializers.truncated_normal(DEVIATION)
    return {
        "embed": params_of(Embeddings(cfg, normal, nnx.Rngs(embed_key))),
        "first": {"layers": init_stack(_block(cfg, first=True), first_key, 1)},
        "layers": init_stack(_block(cfg), layers_key, cfg.layers - 1),
        "norm": params_of(LayerNorm(cfg.width, cfg.eps, bias=False)),
        **head,
    }


def apply(cfg: Config, params: dict[str, Any], batch: Batch, *, seeds: Seeds = None, carry: Any = None) -> Output:
    """Return the hidden states after the final norm, [B, T, D].

    Rotations depend on `batch.positions`; the window of a local layer on the places of tokens in the row. `seeds`, u32[B, 2],
    enables dropout.

    Raises:
        ValueError: a row longer than `cfg.context`.
    """
    length = batch.tokens.shape[1]
    if length > cfg.context:
        raise ValueError(f"rows of {length} tokens in a model of {cfg.context} positions; use rows of at most {cfg.context}")
    masks = _masks(cfg, query_segments=batch.segments, key_segments=batch.segments)
    rotate = _rotate(cfg, jnp.arange(length)[None] if batch.positions is None else batch.positions)

    def body(block: Block, x: Array, _: None, index: LayerIndex, kind: str, *, before: int) -> tuple[Array, None]:
        return constrain(block(x, masks[kind], rotate[kind], fold_seeds(seeds, before + index + 1)), BATCH), None

    x = _run(cfg, params, body, embedded(cfg, params["embed"], batch.tokens, seeds), remat=cfg.compute.remat)
    return Output(hidden=layer_norm(x, params["norm"]["scale"], None, cfg.eps))


def init_cache(cfg: Config, rows: int, length: int, dtype: Any) -> dict[str, Any]:
    """Return an empty cache of `length` slots for `rows` rows; see `zoo.models.Model.init_cache`."""
    return empty_cache(cfg.layers, rows, length, cfg.heads, cfg.head, dtype)


def decode(
    cfg: Config, params: dict[str, Any], batch: Batch, cache: dict[str, Any]
) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
    """Return the hidden states of T more tokens after those in the cache; see `zoo.models.Model.decode`.

    Raises:
        ValueError: more tokens than the cache has slots.
    """
    new, cached = append_tokens(batch, cache)
    at = cache["at"]
    masks = _masks(
        cfg,
        query_segments=new["segments"],
        key_segments=cached["segments"],
        query_positions=new["positions"],
        key_positions=cached["positions"],
    )
    rotate = _rotate(cfg, new["positions"])

    def body(block: Block, carry: Any, _: None, index: LayerIndex, kind: str, *, before: int) -> tuple[Any, None]:
        x, k, v = carry
        x, past = block.decode(x, masks[kind], rotate[kind], KVCacheView(k=k, v=v, layer=before + index, at=at))
        return (constrain(x, BATCH), past.k, past.v), None

    x, k, v = _run(cfg, params, body, (embedded(cfg, params["embed"], batch.tokens), cache["k"], cache["v"]))
    hidden = layer_norm(x, params["norm"]["scale"], None, cfg.eps)
    return hidden, {**cached, "k": k, "v": v, "at": at + batch.tokens.shape[1]}


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
    words, score = (0, dense + cfg.width) if cfg.labels else (dense + cfg.width * cfg.vocab, 0)
    return 2.0 * rows * (length * (per_token + words) + score) + 4.0 * cfg.layers * rows * length * length * cfg.width


class NormedDense(Linear):
    """The dense layer of a head, and the norm of its activation."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        normal = jax.nn.initializers.truncated_normal(output_deviation(cfg.layers))
        super().__init__("...d,de->...e", (cfg.width, cfg.width), None, normal, rngs)
        self.norm = LayerNorm(cfg.width, cfg.eps, bias=False)


class Unembed(nnx.Module):
    """The head of words, without the table that it is tied to."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        self.dense = NormedDense(cfg, rngs)
        self.bias = nnx.Param(jnp.zeros(padded_rows(cfg.vocab)))


def _normed_dense(cfg: Config, part: dict[str, Any], x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    y = gelu(linear(x, part["kernel"], 1))
    return layer_norm(y, part["norm"]["scale"], None, cfg.eps)


def _block(cfg: Config, *, first: bool = False) -> Callable[[nnx.Rngs], Block]:
    normal = jax.nn.initializers.truncated_normal
    return functools.partial(Block, cfg, normal(DEVIATION), normal(output_deviation(cfg.layers)), first=first)


def _masks(cfg: Config, **sides: Any) -> dict[str, Mask]:
    """Return the mask of each kind of layer; `sides` are the segments and positions of queries and keys."""
    return {"global": Mask(causal=True, **sides), "local": Mask(causal=True, window=cfg.window, **sides)}


def _rotate(cfg: Config, at: Int[Array, "#B T"]) -> dict[str, Callable[[Array], Array]]:
    """Return, for each kind of layer, the function that rotates queries or keys at positions `at`."""
    bases = {"global": cfg.global_base, "local": cfg.local_base}
    rotations = {kind: positions.rotation(at, cfg.head, base=base) for kind, base in bases.items()}
    return {kind: functools.partial(positions.rotate, rotation=rotation) for kind, rotation in rotations.items()}


def _run(cfg: Config, params: dict[str, Any], body: Callable[..., Any], carry: Any, *, remat: str = "none") -> Any:
    """Return the carry after the first layer and the stack of the others; `before` numbers the layers before a stack."""
    first, others = functools.partial(body, before=0), functools.partial(body, before=1)
    carry, _ = run_stack(_block(cfg, first=True), params["first"]["layers"], first, carry, pattern=("global",), remat=remat)
    options = {"pattern": cfg.pattern, "remat": remat, "unroll": cfg.compute.unroll}
    return run_stack(_block(cfg), params["layers"], others, carry, **options)[0]


# --- published names ------------------------------------------------------------------------------------------------------------


def _layer(leaf: str, names: str | tuple[str, ...], layout: str = "") -> tuple[ParamName, ParamName]:
    """Return the rows of a leaf of the first layer and of the others."""

    def published(name: str) -> str:
        return f"layers.{{layer}}.{name}.weight"

    full = published(names) if isinstance(names, str) else tuple(map(published, names))
    return ParamName(f"first/layers/{leaf}", full, layout), ParamName(f"layers/{leaf}", full, layout, first=1)


def _dense(leaf: str, name: str) -> tuple[ParamName, ParamName]:
    """Return the rows of the dense layer of a head and its norm."""
    kernel = ParamName(f"{leaf}/kernel", f"{name}.dense.weight", "o i -> i o", bare=True)
    return kernel, ParamName(f"{leaf}/norm/scale", f"{name}.norm.weight", bare=True)


BODY = (
    ParamName("embed/tokens/embedding", "embeddings.tok_embeddings.weight"),
    ParamName("embed/norm/scale", "embeddings.norm.weight"),
    ParamName("layers/norm1/scale", "layers.{layer}.attn_norm.weight", first=1),
    *_layer("attention/qkv/kernel", ("attn.q_proj", "attn.k_proj", "attn.v_proj"), "(n h) d -> d c n h"),
    *_layer("attention/out/kernel", "attn.Wo", "d (n h) -> n h d"),
    *_layer("norm2/scale", "mlp_norm"),
    *_layer("mlp/gated/kernel", "mlp.Wi", "(c f) d -> d c f"),
    *_layer("mlp/down/kernel", "mlp.Wo", "d f -> f d"),
    ParamName("norm/scale", "final_norm.weight"),
)
NAMES = ParamNames(
    architecture="ModernBertDecoderForCausalLM",
    prefixes=("model.", ""),
    rows=(*BODY, *_dense("unembed/dense", "lm_head"), ParamName("unembed/bias", "decoder.bias", bare=True)),
    tied={"decoder.weight": "embed/tokens/embedding"},
)
SCORE = dataclasses.replace(
    NAMES,
    architecture="ModernBertDecoderForSequenceClassification",
    rows=(*BODY, *_dense("dense", "head"), ParamName("score/kernel", "classifier.weight", "o i -> i o", bare=True)),
    tied={},
)
HF = {"causal": NAMES, "sequence": SCORE}
