"""Rows to be scored and the way to do it, and the score that results."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from eval.inference.batch_loop import BatchLoop, Progress, no_progress
from train.config import run_config
from train.engine import device_mesh
from train.rows.row_source import RowSource
from train.run.item_outcomes import Outcomes
from zoo.batch import Batch
from zoo.models import Model

Summary = TypeVar("Summary")
MOST_ITEMS = 100_000
"""Rows of a text up to which the loss of each is stored."""


def no_items() -> None:
    """Return no outcomes of items."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """The metrics of a model, and what each example contributes to them."""

    numbers: dict[str, float | int]
    outcomes: Outcomes | None = None
    """Correctness and loss of each example, if it has them; a sentence is right if all its tags are, a tie is wrong."""
    mistakes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The "labels" and "confusion" matrix (true by predicted) of a classifier, and the "worst" examples; else empty."""

    def record(self) -> dict[str, float | int]:
        """Return the score as it is in metrics and JSON."""
        return self.numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowsToScore:
    """Rows to be scored by a model, and how."""

    model: Model
    mesh: Mesh
    rows: RowSource
    build: Callable[..., Any]
    """Function that makes the arrays of a row."""
    batch: int
    """Number of rows at a time; it is rounded up to a number that the mesh divides."""
    dtype: Any
    """Dtype of the arithmetic."""
    progress: Progress = no_progress
    """Called with (batches done, total batches)."""
    origins: Callable[[], Sequence[str]] | None = None
    """Returns the place that each row was read from; None = rows have no names."""

    def outcomes(self, right: np.ndarray, nats: np.ndarray, count: np.ndarray) -> Outcomes | None:
        """Return the outcomes of all rows from arrays [rows]; None if rows have no names, or are more than `MOST_ITEMS`."""
        if self.origins is None or len(self.rows) > MOST_ITEMS:
            return None
        return Outcomes.of(self.origins(), right, nats, count)

    @property
    def size(self) -> int:
        """Number of rows of a batch, those that fill up the last one included."""
        return device_mesh.round_up_rows(self.mesh, min(self.batch, len(self.rows)))

    def scorer(
        self,
        compute: Callable[[Any, Batch, Any], tuple[jax.Array, Any]],
        summarize: Callable[[Iterator[np.ndarray]], Summary],
        *,
        init_carry: Callable[[int], Any] | None = None,
        size: int = 0,
    ) -> Callable[[Any], Summary]:
        """Return the function of parameters that computes all rows and returns what `summarize` makes of the batches' results.

        Args:
            compute, init_carry: see `BatchLoop`; the last batch has results for rows that fill it up, which must not count.
            size: rows of a batch; 0 = the property `size`.
        """
        loop = BatchLoop(self.mesh, np.dtype(self.dtype), compute, init_carry)

        def score(params: Any) -> Summary:
            rows, build = self.rows, self.build
            return summarize(loop.results(loop.cast(params), rows, build, size or self.size, progress=self.progress))

        return score


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringInputs(RowsToScore):
    """The rows of a run to be scored: the argument of the functions in `eval.tasks.held_out.scorers.SCORERS`."""

    run: run_config.Run
    data: Any
    """The run's `train.inputs.run_inputs.Inputs`; the scores of labelled examples do not use it."""
