"""Maxima, sums and tests of finiteness along the last axis of arrays, and sums of all squares.

XLA on CPU splits a reduction of more than 32 numbers into windows of 32, which it reads one number at a time. For the maxima or
sums of two halves it uses vector instructions and takes a third to a tenth of the time. A form below that halves rows can be
removed when its plain definition is vectorized. On a mesh a sharded row would be exchanged between devices for every half.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from zoo.ops.cpu_forms import with_cpu_form


@with_cpu_form
def row_max(x: Shaped[Array, "*B S"]) -> Shaped[Array, "*B"]:
    """Return maxima along the last axis."""
    return x.max(-1)


@row_max.on_cpu
def _row_max_by_halves(x: Array) -> Array:
    """Return maxima of two halves, repeatedly; for rows on one device, such as the tiles of an attention kernel.

    On TPU v5e a step of the loop would have a tenth more traffic.
    """
    while x.shape[-1] > 16:
        # The halves of an odd number of columns share the middle one.
        half = -(-x.shape[-1] // 2)
        x = jnp.maximum(x[..., :half], x[..., -half:])
    return x.max(-1)


@with_cpu_form
def row_argmax(x: Float[Array, "*B S"]) -> Int[Array, "*B"]:
    """Return the index of the largest number along the last axis, int32: the first of equal ones, and any in a row with a NaN."""
    return jnp.argmax(x, axis=-1).astype(jnp.int32)


@row_argmax.on_one_cpu
def _row_argmax_by_halves(x: Array) -> Array:
    """Return the index by two maxima.

    XLA on CPU also computes x, such as Gumbel noise, in the loop that reads one number at a time. For [32, 32128] numbers this
    takes 0.4 instead of 7.3 ms, and with their noise 4.8 instead of 30 ms.
    """
    # Without the barrier x would be computed twice.
    x, size = lax.optimization_barrier(x), x.shape[-1]
    reversed_index = jnp.arange(size - 1, -1, -1, dtype=jnp.int32)
    return size - 1 - row_max(jnp.where(x == row_max(x)[..., None], reversed_index, 0))


@with_cpu_form
def all_finite(x: Float[Array, "*B S"]) -> Bool[Array, "*B"]:
    """Return whether all numbers along the last axis are finite."""
    return jnp.isfinite(x).all(-1)


@all_finite.on_one_cpu
def _max_of_sizes_is_finite(x: Array) -> Array:
    return max_is_finite(jnp.abs(x))


@with_cpu_form
def max_is_finite(x: Float[Array, "*B S"]) -> Bool[Array, "*B"]:
    """Return whether the largest number along the last axis is finite, for rows without a NaN: see `all_finite`.

    A maximum over a sharded axis may omit a NaN: on simulated CPU devices it does.
    """
    return jnp.isfinite(x.max(-1))


@max_is_finite.on_one_cpu
def _max_by_halves_is_finite(x: Array) -> Array:
    return jnp.isfinite(row_max(x))


@with_cpu_form
def row_sum(x: Float[Array, "*B S"]) -> Float[Array, "*B"]:
    """Return sums along the last axis; elsewhere than on CPU not as a product, for which an accelerator may round x."""
    return x.sum(-1)


@row_sum.on_cpu
def _row_sum_by_product(x: Array) -> Array:
    """Return sums as products with ones, for the tiles of an attention kernel. The gain was not measured alone."""
    return lax.dot_general(x, jnp.ones(x.shape[-1], x.dtype), (((x.ndim - 1,), (0,)), ((), ())))


@jax.custom_jvp
def log_sum_exp(x: Float[Array, "*B S"]) -> Float[Array, "*B"]:
    """Return log sum exp along the last axis, with the softmax as its gradient."""
    return _log_sum_exp(x)


@log_sum_exp.defjvp
def _log_sum_exp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (d_x,) = primals, tangents
    out = log_sum_exp(x)
    return out, (jnp.exp(x - out[..., None]) * d_x).sum(-1)


@with_cpu_form
def _log_sum_exp(x: Array) -> Array:
    return jax.nn.logsumexp(x, axis=-1)


@_log_sum_exp.on_one_cpu
def _log_sum_exp_by_halves(x: Array) -> Array:
    """Return log sum exp by halves. For [1024, 50304] logits this takes 29.7 instead of 86.9 ms."""
    maximum = row_max(x)
    # The result of a row of -inf, or of one with inf, is its maximum, as in `jax.nn.logsumexp`.
    finite_max = jnp.where(jnp.isfinite(maximum), maximum, 0)
    exponentials = jnp.exp(x - finite_max[..., None])
    while exponentials.shape[-1] % 2 == 0 and exponentials.shape[-1] > 16:
        half = exponentials.shape[-1] // 2
        exponentials = exponentials[..., :half] + exponentials[..., half:]
    return finite_max + jnp.log(exponentials.sum(-1))


@with_cpu_form
def sum_of_squares(x: Float[Array, "*D"]) -> Float[Array, ""]:
    """Return the sum of all squares, float32."""
    return jnp.square(x.astype(jnp.float32)).sum()


@sum_of_squares.on_one_cpu
def _sum_of_squares_by_rows(x: Array) -> Array:
    """Return the sum over a few rows first, which XLA on CPU vectorizes: for [12, 3072, 768] in 5.5 instead of 54.9 ms."""
    # Rows whose addresses differ by a power of two evict each other from the cache: rows of 512 or 1024 numbers are five to seven
    # times as slow.
    columns = math.gcd(x.size // 16, 768)
    if x.size % 16 or columns < 16:
        return sum_of_squares.plain(x)
    squares = jnp.square(x.astype(jnp.float32)).reshape(-1, 16, columns).sum(1)  # [R, columns]
    # Otherwise XLA merges the two sums.
    return lax.optimization_barrier(squares).sum()


@with_cpu_form
def broadcast_rows(x: Float[Array, "*D"], shape: tuple[int, ...]) -> Float[Array, "*B_D"]:
    """Broadcast an array over leading axes; on one CPU the gradient, the sum over them, is computed in float32."""
    return jnp.broadcast_to(x, shape)


@broadcast_rows.on_one_cpu
def _broadcast_rows(x: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast, with a sum over one merged axis as the gradient.

    XLA on CPU: a sum over several leading axes takes four times as long as over one: 2.6 and 0.7 ms of [8, 128, 3072].
    Remove when both take the same time.
    """
    return _broadcast(shape, x.ndim, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _broadcast(shape: tuple[int, ...], ndim: int, x: Array) -> Array:
    return jnp.broadcast_to(x, shape)


def _broadcast_fwd(shape: tuple[int, ...], ndim: int, x: Array) -> tuple[Any, None]:
    return _broadcast(shape, ndim, x), None


def _broadcast_bwd(shape: tuple[int, ...], ndim: int, _: None, d: Array) -> tuple[Array]:
    x_shape = shape[len(shape) - ndim :]
    # Without the barrier XLA would undo the reshape.
    rows = lax.optimization_barrier(d.astype(jnp.float32).reshape(-1, math.prod(x_shape)))  # [R, x.size]
    return (rows.sum(0).reshape(x_shape).astype(d.dtype),)


_broadcast.defvjp(_broadcast_fwd, _broadcast_bwd)
