"""Running a function of a model over all rows: parameters are cast, the function is compiled, and batches follow in order."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float64

from train.engine import device_mesh
from train.rows import batches
from zoo.batch import Batch

Progress = Callable[[int, int], None]
"""Function that is called with (batches done, total batches)."""


def no_progress(done: int, count: int) -> None:
    """Show nothing."""


@functools.cache
def cast_to(dtype: np.dtype) -> Callable[[Any], Any]:
    """Return the compiled function that casts parameters to the dtype of the arithmetic."""
    return jax.jit(lambda params: jax.tree.map(lambda leaf: leaf.astype(dtype), params))


@dataclasses.dataclass(frozen=True)
class BatchLoop:
    """A function of (parameters, batch, carry) that is computed over a mesh, for all rows; it is compiled once."""

    mesh: Mesh
    dtype: np.dtype
    """Dtype of the arithmetic."""
    compute: Callable[[Any, Batch, Any], tuple[jax.Array, Any]]
    """Returns an array whose first or last axis is the batch's rows, and the carry for the next batch."""
    init_carry: Callable[[int], Any] | None = None
    """Returns the carry before the first of the batches of so many rows; None: there is no carry."""

    def cast(self, params: Any) -> Any:
        """Return parameters in the dtype of the arithmetic."""
        with jax.set_mesh(self.mesh):
            return cast_to(self.dtype)(params)

    def all_results(
        self, params: Any, rows: Any, build: Callable[..., Any], batch: int, *, progress: Progress = no_progress
    ) -> Float64[np.ndarray, "N *results"]:
        """Return the results of all rows, whose first axis is the rows; at most `batch`, rounded up to the mesh, at a time.

        `params` have any dtype; the other arguments are those of `results`.
        """
        size = device_mesh.round_up_rows(self.mesh, min(batch, len(rows)))
        return np.concatenate(list(self.results(self.cast(params), rows, build, size, progress=progress)))[: len(rows)]

    def results(
        self, params: Any, rows: Any, build: Callable[..., Any], batch: int, *, progress: Progress = no_progress
    ) -> Iterator[Float64[np.ndarray, "..."]]:
        """Yield the result of each batch of rows, in order; the last batch is padded with rows that are not counted.

        Args:
            params: as `cast` returns them.
            build: makes the arrays of a row.
            batch: rows of a batch; the mesh divides it.
        """
        local, count = device_mesh.local_rows(self.mesh, batch), -(-len(rows) // batch)
        progress(0, count)
        with jax.set_mesh(self.mesh):
            carry, previous = self._first_carry(batch), None
        for number, local_batch in enumerate(batches.in_order(rows, build, batch, local)):
            with jax.set_mesh(self.mesh):
                current, carry = self._program(params, device_mesh.shard_batch(local_batch, self.mesh, batch), carry)
            # The devices compute this batch while the previous one is used and the next one is made.
            if previous is not None:
                yield np.asarray(jax.device_get(previous), np.float64)
                progress(number, count)
            previous = current
        if previous is not None:
            yield np.asarray(jax.device_get(previous), np.float64)
            progress(count, count)

    @functools.cached_property
    def _program(self) -> Callable[[Any, Batch, Any], tuple[jax.Array, Any]]:
        replicated = NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(self.compute, out_shardings=(replicated, device_mesh.batch_sharding(self.mesh)))

    @functools.cached_property
    def _first_carry(self) -> Callable[[int], Any]:
        if self.init_carry is None:
            return lambda batch: {}
        return jax.jit(self.init_carry, static_argnums=0, out_shardings=device_mesh.batch_sharding(self.mesh))
