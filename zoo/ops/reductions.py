"""Reductions that XLA on CPU is slow at, in forms it is quick at.

It cuts a reduction of more than 32 numbers into windows of 32, which it goes through a number at a time. Where halves meet
halves, and in sums of a few rows, it uses the processor's vectors and takes a third to a tenth of the time. Such sums are as
exact. An axis that a mesh divides cannot be cut without sending it: under a mesh, `log_sum_exp`, `square_sum` and `spread` are
the plain ones.
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
    """Maxima along the last axis, half against half."""
    while x.shape[-1] % 2 == 0 and x.shape[-1] > 16:
        half = x.shape[-1] // 2
        x = jnp.maximum(x[..., :half], x[..., half:])
    return x.max(-1)


def row_sum(x: Float[Array, "*B S"]) -> Float[Array, "*B"]:
    """Sums along the last axis, half onto half."""
    while x.shape[-1] % 2 == 0 and x.shape[-1] > 16:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x.sum(-1)


@jax.custom_jvp
def log_sum_exp(x: Float[Array, "*B S"]) -> Float[Array, "*B"]:
    """log sum exp along the last axis. Its gradient is the softmax, not that of halves."""
    if not single_cpu():
        return jax.nn.logsumexp(x, axis=-1)
    top = row_max(x)
    # A row of -inf, or with inf, is its maximum, as in `jax.nn.logsumexp`.
    at = jnp.where(jnp.isfinite(top), top, 0)
    return at + jnp.log(row_sum(jnp.exp(x - at[..., None])))


@log_sum_exp.defjvp
def _log_sum_exp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (d_x,) = primals, tangents
    out = log_sum_exp(x)
    return out, (jnp.exp(x - out[..., None]) * d_x).sum(-1)


def square_sum(x: Float[Array, "*D"]) -> Float[Array, ""]:
    """Sum of all squares, float32."""
    squares = jnp.square(x.astype(jnp.float32))
    # Rows a power of two apart would push each other out of the cache: of 512 or 1024 numbers, five to seven times as slow.
    columns = math.gcd(x.size // 16, 768)
    if single_cpu() and x.size % 16 == 0 and columns >= 16:
        squares = squares.reshape(-1, 16, columns).sum(1)
        # XLA would make one sum of two in a row.
        squares = lax.optimization_barrier(squares)
    return squares.sum()


def spread(x: Float[Array, "*D"], shape: tuple[int, ...]) -> Float[Array, "*B_D"]:
    """An array at every place of leading axes, as `jnp.broadcast_to`; its gradient is the sum over them, in float32."""
    return _spread(shape, x.ndim, x) if single_cpu() else jnp.broadcast_to(x, shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _spread(shape: tuple[int, ...], kept: int, x: Array) -> Array:
    return jnp.broadcast_to(x, shape)


def _spread_forward(shape: tuple[int, ...], kept: int, x: Array) -> tuple[Any, None]:
    return _spread(shape, kept, x), None


def _spread_backward(shape: tuple[int, ...], kept: int, _: None, d: Array) -> tuple[Array]:
    within = shape[len(shape) - kept :]
    # Over several leading axes at once XLA takes four times as long, and it would make them so again.
    rows = lax.optimization_barrier(d.astype(jnp.float32).reshape(-1, math.prod(within)))
    return (rows.sum(0).reshape(within).astype(d.dtype),)


_spread.defvjp(_spread_forward, _spread_backward)
