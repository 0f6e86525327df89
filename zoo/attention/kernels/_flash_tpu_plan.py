"""The static part of a call of `flash_tpu`, and the operations on the arrays of a tile that its kernels share."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from zoo.attention.kernels._flash_common import FlashPlan
from zoo.attention.masks import ALL_PAIRS, SOME_PAIRS

LANES = 128
"""Width of a vector register, to which lengths are padded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(FlashPlan):
    """The static part of a call."""

    position: Literal["", "consecutive", "scattered"]
    """The queries of a relative bias: consecutive keys, or keys anywhere; "" = there is no such bias."""
    first: int
    """The largest distance of a relative bias."""
    has_types: bool
    """A relative bias compares types, which are the last row of the numbers."""

    @property
    def num_rows(self) -> int:
        """Return the number of rows of the numbers of queries and of keys."""
        return len(self.numbers) + self.has_types

    @property
    def kernel(self) -> str:
        """Return the beginning of the names of the kernels in compiled programs and profiles."""
        return {"": "flash", "consecutive": "flash_relative", "scattered": "flash_scattered"}[self.position]

    def tile_of_bias(self, i: Any, j: Any) -> Any:
        """Return the number of the bias's tile for a block of queries and one of keys."""
        return jnp.clip(j - i + self.diagonal, 0, self.num_tiles - 1)

    def distances_of_tile(self, i: Any, j: Any) -> Any:
        """Return the number of the first of the two blocks of distances that a tile of consecutive queries has."""
        return j - i + self.num_q - 1


def when_active(plan: Plan, states: Any, b: Any, index: Any, tile: Callable[[bool], None]) -> None:
    """Compute a tile with or without its mask, or skip it."""
    state = states[0 if states.shape[0] == 1 else b, index]
    if plan.has_mask:
        pl.when(state == SOME_PAIRS)(functools.partial(tile, True))
    pl.when(state == ALL_PAIRS)(functools.partial(tile, False))


def as_column(row: Array) -> Array:
    """Return a row [1, rows] as a column [rows, LANES] of equal lanes."""
    return jnp.broadcast_to(row.T, (row.shape[1], LANES))


def lanes(x: Array, width: int) -> Array:
    """Return an array [rows, LANES] whose lanes are equal with `width` lanes."""
    copies = -(-width // LANES)
    x = jnp.concatenate([x] * copies, axis=1) if copies > 1 else x
    return x[:, :width]


def lane_sums(x: Array) -> Array:
    """Return the sums [rows, LANES] of the columns of equal lane; all lanes together have the sums of rows."""
    return sum((x[:, lane : lane + LANES] for lane in range(LANES, x.shape[1], LANES)), x[:, :LANES])


def dot(x: Array, y: Array, i: int, j: int) -> Float[Array, "_ _"]:
    """Return the sums of products over axis i of x and axis j of y, in float32."""
    return lax.dot_general(x, y, (((i,), (j,)), ((), ())), preferred_element_type=jnp.float32)
