"""Layers the families share. Modules only declare parameters; all arithmetic is functions of arrays.

The dtype of the arithmetic is the dtype of the parameters given: a step that wants bfloat16 casts the parameters, and a matrix
product then runs in bfloat16 with float32 accumulation. Norms and softmax are float32 always.

Leaf names (the vocabulary of the sharding table and the decay mask): `kernel`, `bias`, `scale`, `embedding`.
Shape letters: see `zoo.batch`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int, UInt32

from zoo.attention.attention import HEADS, attention
from zoo.attention.masks import Bias, Mask
from zoo.configs import Activation
from zoo.ops import counter_rng
from zoo.ops.reductions import spread
from zoo.sharding import BATCH, constrain, single_cpu, target

Init = Callable[..., Array]
Seeds = UInt32[Array, "B 2"] | None

VOCABULARY_MULTIPLE = 128
"""Vocabulary tables are stored padded to a multiple of this, so that they divide over devices; published sizes seldom do."""


class Linear(nnx.Module):
    """A projection along named axes: `Linear("btd,df->btf", (D, F), (F,), init, rngs)`. The kernel's first axes are x's last."""

    def __init__(self, equation: str, kernel: tuple[int, ...], bias: tuple[int, ...] | None, init: Init, rngs: nnx.Rngs):
        of_x, _, of_kernel = equation.partition("->")[0].rpartition(",")
        self.summed = sum(letter in of_x for letter in of_kernel)
        self.kernel = nnx.Param(init(rngs.params(), kernel, jnp.float32))
        self.bias = None if bias is None else nnx.Param(jnp.zeros(bias))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        kernel = self.kernel[...]
        y = product(x, kernel, self.summed).astype(kernel.dtype)
        return y if self.bias is None else y + spread(self.bias[...], y.shape)


class Embed(nnx.Module):
    """A table of `rows` vectors, stored padded to a multiple of `VOCABULARY_MULTIPLE` when `pad`."""

    def __init__(self, rows: int, width: int, init: Init, rngs: nnx.Rngs, *, pad: bool = False):
        stored = padded(rows) if pad else rows
        table = init(rngs.params(), (stored, width), jnp.float32)
        # Padding rows are zero: they get no gradient, so they stay zero.
        self.embedding = nnx.Param(jnp.where(jnp.arange(stored)[:, None] < rows, table, 0))


class LayerNorm(nnx.Module):
    """Layer normalization (Ba et al. 2016) with scale and bias, statistics in float32."""

    def __init__(self, width: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return layer_norm(x, self.scale[...], self.bias[...], self.eps)


class RMSNorm(nnx.Module):
    """Root-mean-square normalization (Zhang and Sennrich 2019): a scale and no bias, statistics in float32."""

    def __init__(self, width: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return rms_norm(x, self.scale[...], self.eps)


class SelfAttention(nnx.Module):
    """Multi-head self-attention: fused q, k, v projection, the attention door, output projection.

    `shift` is what the door calls its bias; a `scale` of None is 1/sqrt(H).
    """

    def __init__(self, width: int, heads: int, head: int, init: Init, out_init: Init, rngs: nnx.Rngs, *, biases: bool = True):
        self.qkv = Linear("btd,dcnh->btcnh", (width, 3, heads, head), (3, heads, head) if biases else None, init, rngs)
        self.out = Linear("btnh,nhd->btd", (heads, head, width), (width,) if biases else None, out_init, rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Mask,
        *,
        dropout: float,
        seeds: Seeds,
        impl: str,
        shift: Bias | None = None,
        scale: float | None = None,
    ) -> Float[Array, "B T D"]:
        q, k, v = unstacked(self.qkv(x), 2)
        drop = None if seeds is None else (dropout, seeds)
        return self.out(attention(q, k, v, mask=mask, bias=shift, scale=scale, dropout=drop, impl=impl))

    def decode(
        self,
        x: Float[Array, "B T D"],
        mask: Mask,
        past: "Past",
        *,
        impl: str,
        shift: Bias | None = None,
        scale: float | None = None,
    ) -> tuple[Float[Array, "B T D"], "Past"]:
        """Attention of T new tokens over all slots of the cache, their own included; `mask` says which slots are seen."""
        q, k, v = unstacked(self.qkv(x), 2)
        past = past.write(k, v)
        return self.out(attention(q, *past.read(), mask=mask, bias=shift, scale=scale, impl=impl)), past


class CrossAttention(nnx.Module):
    """Multi-head attention over the hidden states of a source, whose k and v have one fused projection."""

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
        """Keys and values of a source."""
        k, v = unstacked(self.kv(source), 2)
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
        impl: str,
        scale: float | None = None,
    ) -> Float[Array, "B T D"]:
        drop = None if seeds is None else (dropout, seeds)
        return self.out(attention(self.q(x), k, v, mask=mask, scale=scale, dropout=drop, impl=impl))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Past:
    """The keys and values of all layers, seen by one of them.

    They are the carry of the stack's scan and written in place. As scanned inputs and outputs, every layer's cache would be
    copied for every token.
    """

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]
    layer: Int[Array, ""]
    at: Int[Array, ""]
    """Slot of the first new token."""

    def write(self, k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]) -> "Past":
        """The new tokens' keys and values put into the slots from `at` on."""
        start = (self.layer, 0, self.at, 0, 0)
        grown = (jax.lax.dynamic_update_slice(old, new[None], start) for old, new in ((self.k, k), (self.v, v)))
        k, v = (constrain(each, None, BATCH, None, HEADS) for each in grown)
        return dataclasses.replace(self, k=k, v=v)

    def read(self) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Keys and values of the layer, all slots."""
        k, v = (jax.lax.dynamic_index_in_dim(each, self.layer, keepdims=False) for each in (self.k, self.v))
        return k, v


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
        """`dropped` is dropout of the inner states, where a family has it."""
        return recomputed(lambda inner: self.down(dropped(ACTIVATIONS[self.activation](inner))))(self.up(x))


class GatedMlp(nnx.Module):
    """Activation of one projection times another, linear one, then a third (Shazeer 2020); no biases."""

    def __init__(self, width: int, ffn: int, activation: Activation, init: Init, out_init: Init, rngs: nnx.Rngs):
        self.activation = activation
        self.gated = Linear("btd,dcf->btcf", (width, 2, ffn), None, init, rngs)
        self.down = Linear("btf,fd->btd", (ffn, width), None, out_init, rngs)

    def __call__(self, x: Float[Array, "B T D"], *, dropped: Callable[[Array], Array] = lambda x: x) -> Float[Array, "B T D"]:
        """`dropped` is dropout of the inner states, where a family has it."""

        def inner(gated: Array) -> Array:
            gate, linear = unstacked(gated, 2)
            return self.down(dropped(ACTIVATIONS[self.activation](gate) * linear))

        return recomputed(inner)(self.gated(x))


def unstacked(x: Float[Array, "..."], axis: int) -> list[Float[Array, "..."]]:
    """An array's slices along an axis. Their gradients are joined; those of indexing are padded and added."""
    return [part.squeeze(axis) for part in jax.lax.split(x, [1] * x.shape[axis], axis)]


recomputed = functools.partial(jax.checkpoint, prevent_cse=False)
"""Of such a function the gradient keeps the arguments and nothing else. Doing elementwise arithmetic again costs less than to
store and load what is between, most of all in a scan, which stacks it for all layers."""


def gelu(x: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """x times the normal distribution's function at x, in float32 (Hendrycks and Gimpel 2016); x's dtype comes back.

    By erf, as published models had it: XLA on CPU takes half as long for it as for the erfc of `jax.nn.gelu`.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def gelu_tanh(x: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """`gelu` with the normal distribution approximated by a tanh (the same paper, section 2), as GPT-2 and T5 1.1 have it."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": jax.nn.relu,
}


def product(x: Float[Array, "*BD"], kernel: Float[Array, "..."], summed: int, *, turned: bool = False) -> Float[Array, "*BE"]:
    """float32 sums of products over the last `summed` axes of x, which are the first of the kernel; its last if it is `turned`.

    Its gradients are products of the kernel's dtype too, whatever the cotangent's is. That of the kernel is a product of matrices
    as it is stored: from the derivative that JAX makes of an einsum over [B, T, D], XLA on CPU first makes a transposed dy, and
    then takes twice as long for the product.
    """
    y: Any = _product(x, kernel, summed, turned)
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: Array, kernel: Array, summed: int, turned: bool) -> Array:
    return _contracted(x, kernel, range(x.ndim - summed, x.ndim), _axes(kernel, summed, turned))


def _product_kept(x: Array, kernel: Array, summed: int, turned: bool) -> tuple[Any, tuple[Array, Array]]:
    return _product(x, kernel, summed, turned), (x, kernel)


def _product_gradients(summed: int, turned: bool, residuals: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    d_y, leading = d_y.astype(kernel.dtype), x.ndim - summed
    if single_cpu() and (x.ndim, kernel.ndim) != (2, 2):
        # Of a product over several axes XLA on CPU first transposes the kernel. A mesh cannot divide a joined axis.
        columns = math.prod(x.shape[leading:])
        matrices = x.reshape(-1, columns), kernel.reshape((-1, columns) if turned else (columns, -1))
        d_x, d_kernel = _product_gradients(1, turned, matrices, d_y.reshape(matrices[0].shape[0], -1))
        return d_x.reshape(x.shape), d_kernel.reshape(kernel.shape)
    d_x = _contracted(d_y, kernel, range(leading, d_y.ndim), _axes(kernel, kernel.ndim - summed, not turned))
    rows, d_rows = (each.reshape(-1, *each.shape[leading:]) for each in (x, d_y))
    d_kernel = _summed_over_rows(d_rows, rows) if turned else _summed_over_rows(rows, d_rows)
    return d_x.astype(x.dtype), d_kernel.astype(kernel.dtype)


_product.defvjp(_product_kept, _product_gradients)


def _axes(kernel: Array, count: int, last: bool) -> range:
    return range(kernel.ndim - count, kernel.ndim) if last else range(count)


def _summed_over_rows(x: Float[Array, "R *D"], y: Float[Array, "R *E"]) -> Float[Array, "*DE"]:
    """float32 x^T y. XLA on CPU has no product of a transposed bfloat16: it computes that in float32, at a fourth of the speed.

    So x is stored transposed first; without the demand of a layout XLA would take the transposition into the product.
    """
    if target() == "cpu" and x.dtype == jnp.bfloat16:
        if single_cpu() and x.ndim == 2:
            # An activation that is done again just for this would be done while it is transposed, entry by entry.
            x = jax.lax.optimization_barrier(x)
            return _contracted(with_layout_constraint(x.T, BY_ROWS), y, (1,), (0,))
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return _contracted(x, y, (0,), (0,))


BY_ROWS = Layout(major_to_minor=(0, 1))


def _contracted(x: Array, y: Array, of_x: Iterable[int], of_y: Iterable[int]) -> Array:
    return jax.lax.dot_general(x, y, ((tuple(of_x), tuple(of_y)), ((), ())), preferred_element_type=jnp.float32)


@functools.partial(recomputed, static_argnums=3)
def layer_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis, in float32; x's dtype comes back."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    scale, bias = (spread(each.astype(jnp.float32), x.shape) for each in (scale, bias))
    return (centred * jax.lax.rsqrt(variance + eps) * scale + bias).astype(x.dtype)


@functools.partial(recomputed, static_argnums=2)
def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """x / sqrt(mean of squares + eps) * scale over the last axis, in float32; x's dtype comes back."""
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
    return (wide * inverse * spread(scale.astype(jnp.float32), x.shape)).astype(x.dtype)


def dropout(x: Float[Array, "B T D"], rate: float, seeds: Seeds, site: int) -> Float[Array, "B T D"]:
    """Zero a share `rate` of the entries and scale up the rest (Srivastava et al. 2014); the identity without seeds.

    `site` numbers the place in the layer, so that no two places of a layer drop alike.
    """
    if seeds is None or rate == 0:
        return x
    coordinates = (jnp.arange(size, dtype=jnp.uint32) for size in x.shape[1:])
    kept = counter_rng.keep(counter_rng.fold(seeds, site), rate, *coordinates)
    return jnp.where(kept, x * jnp.asarray(1 / (1 - rate), x.dtype), 0)


def lookup(table: Float[Array, "V D"], ids: Int[Array, "B T"], rows: str | None = None) -> Float[Array, "B T D"]:
    """Rows of a table. Ids are checked on the host when text is prepared: here one out of range would be clamped.

    `rows` is the mesh axis that the table's rows are split over. Its width is gathered first: the partitioner cannot carry a
    width split over fsdp into a batch split over fsdp.
    """
    return constrain(constrain(table, rows, None)[ids], BATCH)


def tied_logits(hidden: Float[Array, "*B D"], table: Float[Array, "rows D"], vocabulary: int) -> Float[Array, "*B rows"]:
    """float32 logits hidden . table^T; the table's padding rows beyond `vocabulary` get no probability and no gradient."""
    padding, joined = table.shape[0] - vocabulary, single_cpu()
    with jax.named_scope("unembed"):
        # Its width is gathered here, as in `lookup`: once for the logits and for both of their gradients.
        kernel = constrain(table, "tensor", None)
        logits = product(hidden.reshape(-1, hidden.shape[-1]) if joined else hidden, kernel, 1, turned=True)
    if padding and joined:
        # Written in place, in the matrix as the product made it: a select would copy all logits, and their gradient.
        masked = jnp.full((logits.shape[0], padding), -1e30, logits.dtype)
        logits = jax.lax.dynamic_update_slice_in_dim(logits, masked, vocabulary, axis=1)
    elif padding:
        logits = jnp.where(jnp.arange(table.shape[0]) < vocabulary, logits, -1e30)
    return logits.reshape(*hidden.shape[:-1], table.shape[0])


def padded(rows: int) -> int:
    """Rows a vocabulary table is stored with."""
    return -(-rows // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
