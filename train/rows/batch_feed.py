"""The interface from which the training loop gets its batches: the batch of a step, given the state before it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int64

from train.config.run_config import Run
from train.rows.batches import Batches
from train.run.run_dir import RunDir
from train.run.time_account import Category
from zoo.batch import Batch
from zoo.models import Model


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FeedSource:
    """The parts of a run that a feed may use."""

    run: Run
    model: Model
    mesh: Mesh
    dtype: Any
    """Dtype of the arithmetic."""
    data: Any
    """The run's `train.inputs.run_inputs.Inputs`."""
    batches: Batches
    local: np.ndarray
    """Offsets of this process's rows within a global batch, as in `batches`, int64 [n]."""
    params: Callable[[Any], Any]
    """Function from the state of the step to the parameters that the loss reads, float32, sharded over the mesh: those of the
    model, and those that the objective adds."""
    saved: Mapping[str, Any]
    """Result of `Feed.saved` in the checkpoint that the run continues from; empty = there is no checkpoint."""
    folder: RunDir
    process: int
    notify: Callable[[str], None]
    """Function that shows a line."""
    progress: Callable[[str], None]
    """Function that shows what the process is doing, until the next step."""


class FeedMetrics(NamedTuple):
    """Numbers about the batch of the last step, for a row of metrics.jsonl."""

    values: Mapping[str, float]
    """Numbers that are the same in every run of the same configuration; empty = there are none."""
    timing: Mapping[str, float]
    """Numbers that depend on the machine."""


class Feed:
    """The batches of a run in the order of its steps: those of the data, which do not depend on the state."""

    category: Category = "data_wait"
    """Category of the time in which the loop waits for a batch."""

    def __init__(self, batches: Batches, stream: Iterator[Batch]) -> None:
        """Store the batches of the run, and the stream of batches that begins with the batch of the first step."""
        self._batches_of_data, self._stream = batches, stream

    def batch(self, step: int, state: Any) -> Batch:
        """Return this process's part of the batch of a step, on the host; steps follow each other.

        Args:
            step: number of steps taken before this one.
            state: the state before the step, laid out for it.
        """
        return next(self._stream)

    def rows_of(self, step: int) -> Int64[np.ndarray, " B"]:
        """Return the numbers of the rows of the data in the global batch of a step."""
        return self._batches_of_data.rows_of(step)

    def at_boundary(self, step: int) -> bool:
        """Return whether a run that continues from the state after `step` steps gets the same further batches."""
        return True

    def exhausted(self) -> str:
        """Return why further steps would learn nothing, so that the run ends before its last step; "" = continue."""
        return ""

    def saved(self) -> dict[str, Any]:
        """Return what a run needs, beside the state and the step, to continue as if it had not stopped, as JSON."""
        return {}

    def metrics(self) -> FeedMetrics:
        """Return the numbers about the batch of the last step."""
        return FeedMetrics({}, {})


@contextlib.contextmanager
def data_feed(source: FeedSource, first: int) -> Iterator[Feed]:
    """Open the batches of the data from step `first` on; threads make them ahead and end with the `with` block."""
    with source.batches.read(first) as stream:
        yield Feed(source.batches, stream)
