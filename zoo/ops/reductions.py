"""Reductions in forms that XLA compiles to fast code on CPU.

XLA on CPU splits a reduction of more than 32 numbers into windows of 32, which it reads one number at a time. When one half of
an array is combined with the other half, and in sums over a few rows, it uses vector instructions and takes a third to a tenth of
the time. The sums are as exact. An axis that a mesh shards cannot be split without communication, so under a mesh `log_sum_exp`,
`square_sum` and `broadcast_rows` are the plain ones.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from zoo.sharding import single_cpu


def row_max(x: Float[Array, "*B S"]) -> Float[Array, "*B"]:
    """Return maxima along the last axis, of one half and the other, repeatedly."""
    while x.shape[-1] % 2 == 0 and x.shape[-1] > 16:
        half = x.shape[-1] // 2
        x = jnp.maximum(x[..., :half], x[..., half:])
    return x.max(-1)


def row_sum(x: Float[Array, "*B S"]) -> Float[Array, "*B"]:
    """Return sums along the last axis, of one half and the other, repeatedly."""
    while x.shape[-1] % 2 == 0 and x.shape[-1] > 16:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x.sum(-1)


@jax.custom_jvp
def log_sum_exp(x: Float[Array, "*B S"]) -> Float[Array, "*B"]:
    """Return log sum exp along the last axis. Its gradient is computed as the softmax, without the halves."""
    if not single_cpu():
        return jax.nn.logsumexp(x, axis=-1)
    maximum = row_max(x)
    # The result of a row of -inf, or of one with inf, is its maximum, as in `jax.nn.logsumexp`.
    shift = jnp.where(jnp.isfinite(maximum), maximum, 0)
    return shift + jnp.log(row_sum(jnp.exp(x - shift[..., None])))


@log_sum_exp.defjvp
def _log_sum_exp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (d_x,) = primals, tangents
    out = log_sum_exp(x)
    return out, (jnp.exp(x - out[..., None]) * d_x).sum(-1)


def square_sum(x: Float[Array, "*D"]) -> Float[Array, ""]:
    """Return the sum of all squares, float32."""
    squares = jnp.square(x.astype(jnp.float32))
    # Rows at a distance of a power of two evict each other from the cache: rows of 512 or 1024 numbers are five to seven times as
    # slow.
    columns = math.gcd(x.size // 16, 768)
    if single_cpu() and x.size % 16 == 0 and columns >= 16:
        squares = squares.reshape(-1, 16, columns).sum(1)  # [R, columns]
        # Otherwise XLA merges the two sums.
        squares = lax.optimization_barrier(squares)
    return squares.sum()


def broadcast_rows(x: Float[Array, "*D"], shape: tuple[int, ...]) -> Float[Array, "*B_D"]:
    """Broadcast an array over leading axes, as `jnp.broadcast_to`; the gradient is the sum over them, in float32."""
    return _broadcast_rows(shape, x.ndim, x) if single_cpu() else jnp.broadcast_to(x, shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _broadcast_rows(shape: tuple[int, ...], ndim: int, x: Array) -> Array:
    return jnp.broadcast_to(x, shape)


def _broadcast_rows_fwd(shape: tuple[int, ...], ndim: int, x: Array) -> tuple[Any, None]:
    return _broadcast_rows(shape, ndim, x), None


def _broadcast_rows_bwd(shape: tuple[int, ...], ndim: int, _: None, d: Array) -> tuple[Array]:
    x_shape = shape[len(shape) - ndim :]
    # A sum over several leading axes takes XLA four times as long; without the barrier it would undo the reshape.
    rows = lax.optimization_barrier(d.astype(jnp.float32).reshape(-1, math.prod(x_shape)))  # [R, x.size]
    return (rows.sum(0).reshape(x_shape).astype(d.dtype),)


_broadcast_rows.defvjp(_broadcast_rows_fwd, _broadcast_rows_bwd)
