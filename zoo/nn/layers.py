"""Layers that several families use. Modules only declare parameters; all arithmetic is functions of arrays.

The dtype of the arithmetic is the dtype of the parameters: a step in bfloat16 casts the parameters, and a matrix product then
runs in bfloat16 with float32 accumulation. Norms and softmax are always float32.

Leaf names (the vocabulary of the sharding table and the decay mask): `kernel`, `bias`, `scale`, `embedding`, `sinks`.
Shape letters: see `zoo.batch`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, UInt32

from zoo.attention.attention import attention
from zoo.attention.biases import Bias
from zoo.attention.masks import Mask
from zoo.batch import Batch
from zoo.configs import Activation, Compute
from zoo.nn.kv_cache import KVCacheView, LayerIndex
from zoo.ops import counter_rng
from zoo.ops.adapted_kernel import linear
from zoo.ops.products import OutputMajor, product
from zoo.ops.reductions import broadcast_rows
from zoo.ops.selects import fill_columns, lookup_of_two, merge_rows
from zoo.sharding import constrain, constrain_tokens

Init = Callable[..., Array]
Seeds = UInt32[Array, "B 2"] | None

VOCABULARY_MULTIPLE = 128
"""Vocabulary tables are stored padded to a multiple of this, so that devices can share their rows; published sizes seldom fit."""


def params_of(module: nnx.Module) -> dict[str, Any]:
    """Return the parameters that a module declares, as a nested dict."""
    return nnx.to_pure_dict(nnx.state(module))


class Linear(nnx.Module):
    """A projection: `Linear("btd,df->btf", (D, F), (F,), init, rngs)`. The kernel's first axes are x's last."""

    def __init__(self, equation: str, kernel: tuple[int, ...], bias: tuple[int, ...] | None, init: Init, rngs: nnx.Rngs):
        x_letters, _, kernel_letters = equation.partition("->")[0].rpartition(",")
        self.summed = sum(letter in x_letters for letter in kernel_letters)
        self.kernel = nnx.Param(init(rngs.params(), kernel, jnp.float32))
        self.bias = None if bias is None else nnx.Param(jnp.zeros(bias))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = linear(x, self.kernel[...], self.summed)
        return y if self.bias is None else y + broadcast_rows(self.bias[...], y.shape)


def apply_linear(part: dict[str, Any], x: Float[Array, "*B D"]) -> Float[Array, "*B E"]:
    """Return x . kernel + bias, of the parameters of a linear layer, which may have no bias."""
    y = linear(x, part["kernel"], 1)
    return y + part["bias"] if "bias" in part else y


class Embed(nnx.Module):
    """A table of `rows` vectors; with `pad`, stored padded to a multiple of `VOCABULARY_MULTIPLE`."""

    def __init__(self, rows: int, width: int, init: Init, rngs: nnx.Rngs, *, pad: bool = False):
        stored = padded_rows(rows) if pad else rows
        table = init(rngs.params(), (stored, width), jnp.float32)
        # Padding rows are zero and stay zero, because they get no gradient.
        self.embedding = nnx.Param(jnp.where(jnp.arange(stored)[:, None] < rows, table, 0))


class LayerNorm(nnx.Module):
    """Layer normalization (Ba et al. 2016) with a scale and, unless `bias` is False, a bias; statistics in float32."""

    def __init__(self, width: int, eps: float, *, bias: bool = True):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width)) if bias else None

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return layer_norm(x, self.scale[...], None if self.bias is None else self.bias[...], self.eps)


class RMSNorm(nnx.Module):
    """Root-mean-square normalization (Zhang and Sennrich 2019): a scale and no bias, statistics in float32."""

    def __init__(self, width: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return rms_norm(x, self.scale[...], self.eps)


class SelfAttention(nnx.Module):
    """Multi-head self-attention: fused q, k, v projection, `attention`, output projection.

    `bias` is that of `attention`; a `scale` of None is 1/sqrt(H). `rotate` rotates queries and keys by their positions.
    """

    sinks: nnx.Param | None = None
    """Sinks of `attention`, in layers that have them."""

    def __init__(self, width: int, heads: int, head: int, init: Init, out_init: Init, rngs: nnx.Rngs, *, biases: bool = True):
        self.qkv = Linear("btd,dcnh->btcnh", (width, 3, heads, head), (3, heads, head) if biases else None, init, rngs)
        self.out = Linear("btnh,nhd->btd", (heads, head, width), (width,) if biases else None, out_init, rngs)

    def split_heads(self, x: Float[Array, "B T D"]) -> list[Float[Array, "B T N H"]]:
        """Return the queries, keys and values of tokens."""
        return unstacked(checkpoint_name(self.qkv(x), "qkv"), 2)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Mask,
        past: KVCacheView | None = None,
        layer: LayerIndex = 0,
        *,
        dropout: float,
        seeds: Seeds,
        compute: Compute,
        bias: Bias | None = None,
        scale: float | None = None,
        rotate: Callable[[Array], Array] = lambda x: x,
    ) -> tuple[Float[Array, "B T D"], KVCacheView | None]:
        """Attend from T tokens to each other or, with a cache, as layer number `layer` to all of its slots, their own included.

        `mask` selects the visible keys. The cache has rotated keys.
        """
        q, k, v = self.split_heads(x)
        q, k = rotate(q), rotate(k)
        if past is not None:
            k, v, past = past.append(layer, k, v)
        drop = None if seeds is None else (dropout, seeds)
        y = attention(
            q,
            k,
            v,
            mask=mask,
            bias=bias,
            scale=scale,
            dropout=drop,
            sinks=self.sink_logits(),
            impl=compute.attention,
            sequence=compute.sequence,
        )
        return checkpoint_name(self.out(y), "out"), past

    def sink_logits(self) -> Float[Array, " N"] | None:
        """Return the sinks of the heads, in a layer that has them."""
        return None if self.sinks is None else self.sinks[...]


class CrossAttention(nnx.Module):
    """Multi-head attention over the hidden states of a source, with a fused projection for k and v."""

    def __init__(
        self,
        width: int,
        heads: int,
        head: int,
        inits: tuple[Init, Init, Init],
        rngs: nnx.Rngs,
        *,
        biases: bool = True,
    ):
        q_init, kv_init, out_init = inits
        self.q = Linear("btd,dnh->btnh", (width, heads, head), (heads, head) if biases else None, q_init, rngs)
        self.kv = Linear("bsd,dcnh->bscnh", (width, 2, heads, head), (2, heads, head) if biases else None, kv_init, rngs)
        self.out = Linear("btnh,nhd->btd", (heads, head, width), (width,) if biases else None, out_init, rngs)

    def read(self, source: Float[Array, "B S D"]) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N H"]]:
        """Return the keys and values of a source."""
        k, v = unstacked(checkpoint_name(self.kv(source), "qkv"), 2)
        return k, v

    def __call__(
        self,
        x: Float[Array, "B T D"],
        k: Float[Array, "B S N H"],
        v: Float[Array, "B S N H"],
        mask: Mask,
        *,
        dropout: float,
        seeds: Seeds,
        compute: Compute,
        scale: float | None = None,
    ) -> Float[Array, "B T D"]:
        drop = None if seeds is None else (dropout, seeds)
        q = checkpoint_name(self.q(x), "qkv")
        y = attention(q, k, v, mask=mask, scale=scale, dropout=drop, impl=compute.attention, sequence=compute.sequence)
        return checkpoint_name(self.out(y), "out")


class Mlp(nnx.Module):
    """Two projections with an activation between them."""

    def __init__(
        self,
        width: int,
        ffn: int,
        activation: Activation,
        init: Init,
        out_init: Init,
        rngs: nnx.Rngs,
        *,
        biases: bool = True,
    ):
        self.activation = activation
        self.up = Linear("btd,df->btf", (width, ffn), (ffn,) if biases else None, init, rngs)
        self.down = Linear("btf,fd->btd", (ffn, width), (width,) if biases else None, out_init, rngs)

    def __call__(self, x: Float[Array, "B T D"], *, dropped: Callable[[Array], Array] = lambda x: x) -> Float[Array, "B T D"]:
        """Apply the layer; `dropped` is the dropout of the inner states, in families that have it."""
        y = recomputed(lambda inner: self.down(dropped(ACTIVATIONS[self.activation](inner))))(checkpoint_name(self.up(x), "mlp"))
        return checkpoint_name(y, "down")


class GatedMlp(nnx.Module):
    """The activation of one projection times a second, linear one, then a third projection (Shazeer 2020); no biases."""

    def __init__(self, width: int, ffn: int, activation: Activation, init: Init, out_init: Init, rngs: nnx.Rngs):
        self.activation = activation
        self.gated = Linear("btd,dcf->btcf", (width, 2, ffn), None, init, rngs)
        self.down = Linear("btf,fd->btd", (ffn, width), None, out_init, rngs)

    def __call__(self, x: Float[Array, "B T D"], *, dropped: Callable[[Array], Array] = lambda x: x) -> Float[Array, "B T D"]:
        """Apply the layer; `dropped` is the dropout of the inner states, in families that have it."""

        def inner(gated: Array) -> Array:
            gate, linear = unstacked(gated, 2)
            return self.down(dropped(ACTIVATIONS[self.activation](gate) * linear))

        return checkpoint_name(recomputed(inner)(checkpoint_name(self.gated(x), "mlp")), "down")


def unstacked(x: Float[Array, "..."], axis: int) -> list[Float[Array, "..."]]:
    """Return an array's slices along an axis. Their gradients are concatenated; those of indexing would be padded and added."""
    return [part.squeeze(axis) for part in jax.lax.split(x, [1] * x.shape[axis], axis)]


recomputed = functools.partial(jax.checkpoint, prevent_cse=False)
"""Wraps a function so that its gradient saves the arguments and nothing else. Computing elementwise arithmetic again costs less
than storing and loading the intermediate results, especially in a scan, which stacks them for all layers."""


def gelu(x: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """Return x times the normal cumulative distribution function at x, in float32 (Hendrycks and Gimpel 2016).

    The result has x's dtype. It is computed by erf, as in published models, where `jax.nn.gelu` has erfc.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def gelu_tanh(x: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """Return `gelu` with the normal distribution approximated by a tanh (the same paper, section 2), as in GPT-2 and T5 1.1."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


def silu(x: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """Return x times its logistic function, in float32 (Hendrycks and Gimpel 2016, section 2). UL2's gate is this."""
    return jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype)


def relu2(x: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """Return the square of x where it is positive, else 0 (So et al. 2021, Primer, section 3)."""
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": jax.nn.relu,
    "relu2": relu2,
    "silu": silu,
}


@functools.partial(recomputed, static_argnums=3)
def layer_norm(
    x: Float[Array, "*B D"], scale: Float[Array, " D"], bias: Float[Array, " D"] | None, eps: float
) -> Float[Array, "*B D"]:
    """Return (x - mean) / sqrt(variance + eps) * scale + bias over the last axis, computed in float32, in x's dtype."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt(variance + eps) * broadcast_rows(scale.astype(jnp.float32), x.shape)
    return (scaled if bias is None else scaled + broadcast_rows(bias.astype(jnp.float32), x.shape)).astype(x.dtype)


@functools.partial(recomputed, static_argnums=2)
def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """Return x / sqrt(mean of squares + eps) * scale over the last axis, computed in float32, in x's dtype."""
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
    return (wide * inverse * broadcast_rows(scale.astype(jnp.float32), x.shape)).astype(x.dtype)


def fold_seeds(seeds: Seeds, number: int | Int[Array, ""]) -> Seeds:
    """Return the seeds of the layer, site or stream of that number (`counter_rng.fold`); None, without dropout, stays None."""
    return None if seeds is None else counter_rng.fold(seeds, number)


def dropout(x: Float[Array, "B T D"], rate: float, seeds: Seeds, site: int) -> Float[Array, "B T D"]:
    """Zero a fraction `rate` of the entries and scale up the rest (Srivastava et al. 2014); the identity without seeds.

    `site` numbers the calls in a layer, so that each call drops independently.
    """
    if seeds is None or rate == 0:
        return x
    return counter_rng.dropped(x, rate, counter_rng.fold(seeds, site))


def token_positions(batch: Batch) -> Int[Array, "#B T"]:
    """Return the positions of a batch's tokens: 0 .. T-1 for all rows alike if it has none."""
    return jnp.arange(batch.tokens.shape[1])[None] if batch.positions is None else batch.positions


def document_lengths(batch: Batch) -> Int[Array, "#B T"]:
    """Return the length of each token's document in a row: the largest position in it, plus 1. Padding counts as a document."""
    at = token_positions(batch)
    if batch.segments is None:
        return jnp.broadcast_to(at.max(-1, keepdims=True) + 1, at.shape)
    same = batch.segments[:, :, None] == batch.segments[:, None]  # [B, T, T], fused into the maximum
    return jnp.where(same, at[:, None], 0).max(-1) + 1


def lookup(
    table: Float[Array, "V D"], ids: Int[Array, "B T"], rows: str | None = None, *, source: bool = False
) -> Float[Array, "B T D"]:
    """Return rows of a table. Ids are checked on the host when text is prepared; an id out of range would be clamped here.

    `rows` is the mesh axis over which the table's rows are sharded. Its width is gathered first: the partitioner cannot reshard a
    width that is sharded over fsdp into a batch that is sharded over fsdp. `source`: the ids are those of a source, and those of
    the target are looked up in the same table.
    """
    table = constrain(table, rows, None)
    return constrain_tokens(lookup_of_two(table, ids) if source else table[ids])


def tied_logits(
    hidden: Float[Array, "*B D"], table: Float[Array, "rows D"], vocabulary: int, *, softcap: float = 0.0
) -> Float[Array, "*B rows"]:
    """Return float32 logits hidden . table^T; the table's padding rows beyond `vocabulary` get no probability and no gradient.

    With `softcap` c > 0 they are c tanh(logits / c) (Gemma Team 2024, Gemma 2, section 2).
    """
    with jax.named_scope("unembed"):
        # The table's width is gathered here, as in `lookup`: once for the logits and for both of their gradients.
        kernel = constrain(table, "tensor", None)
        if hidden.ndim == 2:
            # One position of each text, as in decoding.
            logits = product(hidden, OutputMajor(kernel), 1)
        else:
            logits = product(merge_rows(hidden), kernel, 1, transposed=True)
        if softcap:
            logits = softcap * jnp.tanh(logits / softcap)
    if vocabulary < table.shape[0]:
        logits = fill_columns(logits, vocabulary, -1e30)
    return logits.reshape(*hidden.shape[:-1], table.shape[0])  # [*B, rows]


def padded_rows(rows: int) -> int:
    """Return the number of rows with which a vocabulary table of `rows` entries is stored."""
    return -(-rows // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
