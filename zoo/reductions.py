"""Reductions that XLA on CPU is slow at, in forms it is quick at.

It cuts a reduction of more than 32 numbers into windows of 32, which it goes through a number at a time. Where halves meet
halves, and in sums of at most 32 rows, it uses the processor's vectors and takes a third to a tenth of the time. Such sums are as
exact. An axis that a mesh divides cannot be cut without sending it, so there `log_sum_exp` and `square_sum` are the plain ones.
"""

import math

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
    columns = math.gcd(x.size // 32, 1024)
    if single_cpu() and x.size % 32 == 0 and columns >= 16:
        squares = squares.reshape(-1, 32, columns).sum(1)
        # XLA would make one sum of two in a row.
        squares = lax.optimization_barrier(squares)
    return squares.sum()
