"""Tiles: rectangles of the scores [B, N, T, S], and the parts of arrays that they need.

An array's axes are named by letters (see `zoo.batch`), the same that masks and biases carry; D is an axis of distances. A tile
takes the whole of an axis that it has no letter for, and of one of size 1, which is broadcast.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Shaped


@dataclasses.dataclass(frozen=True)
class Tile:
    """Where a tile begins along each letter's axis (traced), and how long it is there (static)."""

    start: Mapping[str, Any]
    size: Mapping[str, int]

    def along(self, letter: str, start: Any, size: int) -> "Tile":
        """The tile that also says where it is along another axis."""
        return Tile({**self.start, letter: start}, {**self.size, letter: size})


def take(array: Shaped[Array, "..."], letters: str, tile: Tile) -> Shaped[Array, "..."]:
    """The part of an array that a tile needs."""
    return jax.lax.dynamic_slice(array, _starts(array, letters, tile), _sizes(array, letters, tile))


def add(array: Shaped[Array, "..."], part: Shaped[Array, "..."], letters: str, tile: Tile) -> Shaped[Array, "..."]:
    """The array with `part` added where `take` would take it from."""
    old = take(array, letters, tile)
    return jax.lax.dynamic_update_slice(array, old + part.astype(array.dtype), _starts(array, letters, tile))


def _starts(array: Array, letters: str, tile: Tile) -> list[Any]:
    return [tile.start.get(letter, 0) if size > 1 else 0 for letter, size in zip(letters, array.shape, strict=True)]


def _sizes(array: Array, letters: str, tile: Tile) -> list[int]:
    return [min(tile.size.get(letter, size), size) for letter, size in zip(letters, array.shape, strict=True)]
