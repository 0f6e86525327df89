"""The base class of masks and biases: small specifications, which become dense arrays only where an implementation needs them.

Every array field is optional and carries the letters of its axes (see `zoo.batch`): `attention` checks its shape and derives its
sharding from them. Fields are untyped because the same trees hold arrays, shapes and shardings.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from zoo.attention import tiles
from zoo.attention.tiles import Tile
from zoo.ops.selects import distinct


def array_field(letters: str) -> Any:
    """Declare an array field with these axes; "-" is an axis without a letter."""
    return dataclasses.field(default=None, metadata={"axes": letters})


def static_field(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"static": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskOrBias:
    """Base of masks and biases, which can be padded and sliced to what a tile of the scores needs.

    A slice is a specification of the same kind, for the queries and keys of the tile alone.
    """

    def arrays(self) -> Iterator[tuple[str, str, Any]]:
        """Yield (field, letters of its axes, array) for every array field that is set."""
        for field in dataclasses.fields(self):
            if "axes" in field.metadata and (array := getattr(self, field.name)) is not None:
                yield field.name, field.metadata["axes"], array

    def padded(self, t: int, s: int) -> Any:
        """Return the specification padded with zeros to `t` queries and `s` keys; the caller masks the padding."""
        size = {"T": t, "S": s}
        return self._map_arrays(
            lambda letters, x: jnp.pad(
                x, [(0, size.get(c, n) - n if n > 1 else 0) for c, n in zip(letters, x.shape, strict=True)]
            )
        )

    def tile_size(self, block_q: int, block_k: int, s: int) -> tuple[int, int]:
        """Return the numbers of queries and keys in a tile, given the best numbers without this mask or bias.

        `s` is the number of all keys.
        """
        return block_q, block_k

    def for_tiles(self, block_q: int, t: int, s: int) -> Any:
        """Return the form that tiles of `block_q` queries are sliced from, padded to `t` queries and `s` keys."""
        return self.padded(t, s)

    def missing_distances(self, t: int, s: int) -> str | None:
        """Return which distances `t` queries and `s` keys need and which there are; None if none are missing."""
        return None

    def slice_tile(self, tile: Tile) -> Any:
        """Return the specification for the queries, keys and distances of a tile alone."""
        tile = self._with_distances(tile)
        return self._map_arrays(lambda letters, x: tiles.take(x, letters, tile))

    def add_tile(self, sums: Any, update: Any, tile: Tile) -> Any:
        """Return `sums`, shaped like `differentiable()`, with the `update` of a tile added at the tile's position."""
        tile, updates = self._with_distances(tile), {name: array for name, _, array in update.arrays()}
        new_sums = {name: tiles.add(x, updates[name], axes, tile) for name, axes, x in sums.arrays()}
        return dataclasses.replace(sums, **new_sums)

    def differentiable(self) -> Any:
        """Return the specification with only its differentiable arrays, which are the floating-point ones."""
        others = {name: None for name, _, x in self.arrays() if not jnp.issubdtype(x.dtype, jnp.floating)}
        return dataclasses.replace(self, **others)

    def with_differentiable(self, arrays: Any) -> Any:
        """Return the specification with the differentiable arrays of another one."""
        return dataclasses.replace(self, **{name: x for name, _, x in arrays.arrays()})

    def _with_distances(self, tile: Tile) -> Tile:
        """Return the tile with its position along the axis of distances, D, if the specification has one."""
        return tile

    def _distinct_keys(self, dtype: Any) -> Any:
        """Return a copy whose arrays of keys (letters BS) have another dtype, which represents their values exactly.

        They are then `zoo.ops.selects.distinct` from the arrays of queries.
        """
        return self._map_arrays(lambda letters, x: distinct(x, dtype) if letters == "BS" else x)

    def _map_arrays(self, change: Any) -> Any:
        return dataclasses.replace(self, **{name: change(axes, x) for name, axes, x in self.arrays()})
