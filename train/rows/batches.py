"""Host batches of rows. The row that is example number i of the stream is a pure function of (seed, i)."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jaxtyping import Int, Int64

from train.config.batch_sizes import BatchSizes, batch_sizes
from train.rows.mixture import Mixture
from train.rows.row_source import RowSource, are_rows_ordered
from zoo.batch import IGNORED, Batch

Build = Callable[[np.random.Generator, Any, int], dict[str, Any]]
"""Signature of the `build` of an objective: (generator, row, length) -> the fields of `Batch` for one row, which are arrays,
`weights` among them, and a `Batch` for `source`."""


class RowUse(NamedTuple):
    """The row that is used for an example of the stream."""

    row: int
    """Number of the row over all components."""
    epoch: int
    """Number of times that all rows of its component were used before."""


class Batches:
    """The training batches of a run. Each component is shuffled again in each of its epochs, unless its rows continue each other.

    Step n has the examples of the stream after those of the steps before it: with batches of one size B, example i is example
    i % B of step i // B. `rows.component_of` returns its component. An epoch of a component is
    as many of its examples as it has rows, each row once; it may end inside a batch. `build` samples from a generator keyed by
    (seed, epoch, row): its samples for a row repeat after `period` epochs, or never if `period` is 0. With `repeat` n > 1, n
    consecutive examples of the stream use the same row, and the rules above hold for groups of n examples.
    """

    def __init__(
        self,
        rows: Mixture,
        build: Build,
        seed: int,
        batch: int,
        local: Int[np.ndarray, " local"],
        period: int = 0,
        repeat: int = 1,
        *,
        sizes: BatchSizes | None = None,
        local_of: Callable[[int], Int[np.ndarray, " local"]] | None = None,
    ) -> None:
        """Store the rows and their order.

        Args:
            seed: below 2**32.
            batch: the number of rows of a global batch, B.
            local: this process's examples of a batch.
            sizes: the rows of each step, if they are not always `batch`.
            local_of: returns `local` for another number of rows.
        """
        self._rows, self._build, self._seed, self._batch, self._period = rows, build, seed, batch, period
        self._repeat, self._sizes = repeat, sizes or batch_sizes(batch)
        smaller = {stage.rows for stage in self._sizes.stages} - {batch}
        self._local = {batch: local.astype(np.int64)}
        if local_of is not None:
            self._local |= {rows: local_of(rows).astype(np.int64) for rows in smaller}
        self._orders: list[Any] = [_order(component.rows, seed, number) for number, component in enumerate(rows.components)]

    def use(self, example: int) -> RowUse:
        """Return the row of example number `example` of the stream."""
        component, before = self._rows.component_of(example // self._repeat)
        row = self._rows.number(component, self._orders[component][before])
        return RowUse(row, before // len(self._rows.components[component].rows))

    def rows_of(self, step: int) -> Int64[np.ndarray, " B"]:
        """Return the numbers of all rows in the global batch of a step, whatever `local` is."""
        first = self._sizes.examples(step)
        return np.array([self.use(first + offset).row for offset in range(self._sizes.rows(step))], np.int64)

    def local_rows(self, step: int) -> Int64[np.ndarray, " local"]:
        """Return the offsets of this process's rows within the global batch of a step."""
        return self._local[self._sizes.rows(step)]

    def shapes(self) -> Batch:
        """Return the shapes and dtypes of a global batch of `batch` rows."""
        example = _stack([self._example(0)], np.zeros(1, np.int64))
        return jax.tree.map(lambda array: jax.ShapeDtypeStruct((self._batch, *array.shape[1:]), array.dtype), example)

    @contextlib.contextmanager
    def read(self, first_step: int) -> Iterator[Iterator[Batch]]:
        """Open an endless iterator over this process's part of the batches of steps `first_step`, `first_step` + 1, ...

        Every array has this process's examples of the batch; `index` is the number in the stream, modulo 2**32. Threads prefetch
        batches and end with the `with` block. An exception in `build` is raised in place of its batch and ends the iteration.
        """
        steps = grain.MapDataset.range(first_step, sys.maxsize).map(self.batch)
        # More threads would only compete for the interpreter lock.
        threads = iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))
        try:
            # Grain would continue with the batch after a failed one; a generator that has raised is exhausted.
            yield (batch for batch in threads)
        finally:
            threads.close()

    def batch(self, step: int) -> Batch:
        """Return this process's part of the batch of a step."""
        numbers = self._sizes.examples(step) + self.local_rows(step)
        return _stack([self._example(number) for number in numbers.tolist()], numbers)

    def _example(self, number: int) -> dict[str, Any]:
        row, epoch = self.use(number)
        rng = _generator(self._seed, epoch % self._period if self._period else epoch, row)
        return self._build(rng, self._rows.row(row), self._rows.length)


def in_order(rows: RowSource | Mixture, build: Build, batch: int, local: Int[np.ndarray, " local"]) -> Iterator[Batch]:
    """Yield every row once, in order, for scoring: this process's part of each global batch; `index` is the row number.

    The last global batch is filled up with examples of weight 0 whose labels are ignored. `build` samples from a generator keyed
    by the row.
    """
    for first in range(0, len(rows), batch):
        numbers = first + local.astype(np.int64)
        examples = []
        for number in numbers.tolist():
            row = min(number, len(rows) - 1)
            arrays = build(_generator(0, 0, row), rows.row(row), rows.length)
            examples.append(arrays if number < len(rows) else _uncounted(arrays))
        yield _stack(examples, numbers)


def _uncounted(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return an example with weights of 0 and ignored labels, so that it does not count."""
    neutral = {"weights": 0, "labels": IGNORED}
    return arrays | {name: np.full_like(arrays[name], value) for name, value in neutral.items() if name in arrays}


def _order(rows: RowSource, seed: int, component: int) -> grain.MapDataset[int]:
    """Return the rows of a component in the order in which they are used, epoch after epoch."""
    order = grain.MapDataset.range(len(rows))
    if not are_rows_ordered(rows):
        # Components of equal size must be shuffled differently, also from those of a run with the next seed: so their seeds are
        # far apart.
        order = order.seed((seed + component * 0x9E3779B1) % (1 << 32)).shuffle()
    order = order.repeat()
    # Grain prepares a dataset at its first use, which is not safe in several threads at once.
    order[0]
    return order


def _generator(seed: int, epoch: int, row: int) -> np.random.Generator:
    """Return the generator of a row and epoch; those of different keys, or of counters this far apart, never overlap."""
    key, counter = np.array([seed, row], np.uint64), np.array([0, 0, 0, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _stack(examples: list[dict[str, Any]], numbers: Int64[np.ndarray, " local"]) -> Batch:
    fields: dict[str, Any] = jax.tree.map(lambda *arrays: np.stack(arrays), *examples)
    return Batch(**fields, index=(numbers % (1 << 32)).astype(np.uint32))
