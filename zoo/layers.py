"""Layers the families share. Modules only declare parameters; all arithmetic is functions of arrays.

The dtype of the arithmetic is the dtype of the parameters given: a step that wants bfloat16 casts the parameters, and a matrix
product then runs in bfloat16 with float32 accumulation. Norms and softmax are float32 always.

Leaf names (the vocabulary of the sharding table and the decay mask): `kernel`, `bias`, `scale`, `embedding`.
Shape letters: see `zoo.batch`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32

from zoo import seeds as seeding
from zoo.attention import HEADS, attention
from zoo.configs import Activation
from zoo.masks import Bias, Mask
from zoo.sharding import BATCH, constrain

Init = Callable[..., Array]
Seeds = UInt32[Array, "B 2"] | None

VOCABULARY_MULTIPLE = 128
"""Vocabulary tables are stored padded to a multiple of this, so that they divide over devices; published sizes seldom do."""


class Linear(nnx.Module):
    """A projection along named axes: `Linear("btd,df->btf", (D, F), (F,), init, rngs)`."""

    def __init__(self, equation: str, kernel: tuple[int, ...], bias: tuple[int, ...] | None, init: Init, rngs: nnx.Rngs):
        self.equation = equation
        self.kernel = nnx.Param(init(rngs.params(), kernel, jnp.float32))
        self.bias = None if bias is None else nnx.Param(jnp.zeros(bias))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        kernel = self.kernel[...]
        y = jnp.einsum(self.equation, x, kernel, preferred_element_type=jnp.float32).astype(kernel.dtype)
        return y if self.bias is None else y + self.bias[...]


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
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
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
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
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
        k, v = jnp.moveaxis(self.kv(source), 2, 0)
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
        return self.down(dropped(ACTIVATIONS[self.activation](self.up(x))))


class GatedMlp(nnx.Module):
    """Activation of one projection times another, linear one, then a third (Shazeer 2020); no biases."""

    def __init__(self, width: int, ffn: int, activation: Activation, init: Init, out_init: Init, rngs: nnx.Rngs):
        self.activation = activation
        self.gated = Linear("btd,dcf->btcf", (width, 2, ffn), None, init, rngs)
        self.down = Linear("btf,fd->btd", (ffn, width), None, out_init, rngs)

    def __call__(self, x: Float[Array, "B T D"], *, dropped: Callable[[Array], Array] = lambda x: x) -> Float[Array, "B T D"]:
        gate, linear = jnp.moveaxis(self.gated(x), 2, 0)
        return self.down(dropped(ACTIVATIONS[self.activation](gate) * linear))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def layer_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis, in float32; x's dtype comes back."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps) * scale + bias).astype(x.dtype)


def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """x / sqrt(mean of squares + eps) * scale over the last axis, in float32; x's dtype comes back."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps) * scale).astype(x.dtype)


def dropout(x: Float[Array, "B T D"], rate: float, seeds: Seeds, site: int) -> Float[Array, "B T D"]:
    """Zero a share `rate` of the entries and scale up the rest (Srivastava et al. 2014); the identity without seeds.

    `site` numbers the place in the layer, so that no two places of a layer drop alike.
    """
    if seeds is None or rate == 0:
        return x
    coordinates = (jnp.arange(size, dtype=jnp.uint32) for size in x.shape[1:])
    kept = seeding.keep(seeding.fold(seeds, site), rate, *coordinates)
    return jnp.where(kept, x * jnp.asarray(1 / (1 - rate), x.dtype), 0)


def lookup(table: Float[Array, "V D"], ids: Int[Array, "B T"], rows: str | None = None) -> Float[Array, "B T D"]:
    """Rows of a table. Ids are checked on the host when text is prepared: here one out of range would be clamped.

    `rows` is the mesh axis that the table's rows are split over. Its width is gathered first: the partitioner cannot carry a
    width split over fsdp into a batch split over fsdp.
    """
    return constrain(constrain(table, rows, None)[ids], BATCH)


def tied_logits(hidden: Float[Array, "*B D"], table: Float[Array, "rows D"], vocabulary: int) -> Float[Array, "*B rows"]:
    """float32 logits hidden . table^T; the table's padding rows beyond `vocabulary` get no probability and no gradient."""
    logits = jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
    if table.shape[0] == vocabulary:
        return logits
    return jnp.where(jnp.arange(table.shape[0]) < vocabulary, logits, -1e30)


def padded(rows: int) -> int:
    """Rows a vocabulary table is stored with."""
    return -(-rows // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
