"""Tiles, which are rectangles of the scores [B, N, T, S], and the slices of arrays that they need.

The axes of an array are named by the letters of `zoo.batch`, which masks and biases also carry; D is an axis of distances. A tile
takes all of an axis whose letter it does not have, and of an axis of size 1, which is broadcast.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Shaped


@dataclasses.dataclass(frozen=True)
class Tile:
    """The start of a tile along the axis of each letter (traced), and its size there (static)."""

    start: Mapping[str, Any]
    size: Mapping[str, int]

    def along(self, letter: str, start: Any, size: int) -> "Tile":
        """Return the tile with its start and size along one more axis."""
        return Tile({**self.start, letter: start}, {**self.size, letter: size})


def take(array: Shaped[Array, "..."], letters: str, tile: Tile) -> Shaped[Array, "..."]:
    """Return the slice of an array that a tile needs."""
    return jax.lax.dynamic_slice(array, _starts(array, letters, tile), _sizes(array, letters, tile))


def add(array: Shaped[Array, "..."], part: Shaped[Array, "..."], letters: str, tile: Tile) -> Shaped[Array, "..."]:
    """Return the array with `part` added to the slice that `take` returns."""
    old = take(array, letters, tile)
    return jax.lax.dynamic_update_slice(array, old + part.astype(array.dtype), _starts(array, letters, tile))


def _starts(array: Array, letters: str, tile: Tile) -> list[Any]:
    return [tile.start.get(letter, 0) if size > 1 else 0 for letter, size in zip(letters, array.shape, strict=True)]


def _sizes(array: Array, letters: str, tile: Tile) -> list[int]:
    return [min(tile.size.get(letter, size), size) for letter, size in zip(letters, array.shape, strict=True)]
