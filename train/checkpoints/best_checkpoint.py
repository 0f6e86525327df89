"""The best checkpoint of a run by its validations, and early stopping."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.config_check import check_identity
from train.config import run_config
from train.engine.averages import scored_parameters
from train.run import metric_definitions
from train.run.metric_definitions import METRICS
from train.run.run_dir import RunDir
from zoo.errors import BadInput

OPTION = "--selection.metric"


def check_metric(run: run_config.Run) -> None:
    """Refuse a metric that the validations of a run do not measure.

    Raises:
        BadInput: names the nearest metric, and all of them.
    """
    if run.selection.metric:
        metric_definitions.find_metric(run.selection.metric, metric_definitions.validation_metrics(run), OPTION)


class BestCheckpoint:
    """Keeps the parameters with the best validation in RUN/best, beside the checkpoints that a run is resumed from.

    A run without `selection.best` ends with the parameters of its last step. The best step is a function of the validations
    alone: a run that was killed and resumed, and validates some steps again, selects the same one.
    """

    def __init__(self, run: run_config.Run, folder: RunDir, *, notify: Callable[[str], None]) -> None:
        """Open RUN/best for a run whose `selection.metric` its validations measure."""
        self._run = run
        self._checkpoints = Checkpoints(folder.best, 1, notify=notify)

    def __enter__(self) -> "BestCheckpoint":
        if self._run.selection.best:
            self._checkpoints.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._run.selection.best:
            self._checkpoints.__exit__(*error)

    def save_if_best(self, state: Any, score: Any, meta: dict[str, Any]) -> None:
        """Save the parameters of a state if its validation is the best so far.

        The first of equal validations is the best; one that is not finite never is.
        """
        if not self._run.selection.best:
            return
        numbers = score.record()
        metric = self._run.selection.metric or metric_definitions.leading_metrics(numbers)[0]
        higher = METRICS[metric].better == "higher"
        self._checkpoints.wait()
        value, best = float(numbers[metric]), self._best()
        if not math.isfinite(value) or (best is not None and int(jax.device_get(state.step)) <= best[0]):
            # A resumed run repeats validations that were compared before: on other devices their last digits may differ.
            return
        if best is None or (value > best[1] if higher else value < best[1]):
            # A reader of the best parameters has no use for the optimizer's state.
            params_only = dataclasses.replace(state, params=scored_parameters(state), opt_state={}, carry={})
            self._checkpoints.save(params_only, {**meta, "metric": metric, "value": value})

    def wait(self) -> None:
        """Block until no save of the best parameters is in progress."""
        if self._run.selection.best:
            self._checkpoints.wait()

    def exhausted(self, step: int | None) -> str:
        """Return why training ends at a step: no improvement in `selection.patience` validations; "" = it continues."""
        selection, every = self._run.selection, self._run.log.validate_every
        if not selection.patience or not every or step is None:
            return ""
        self._checkpoints.wait()
        best = self._best()
        is_exhausted = best is not None and (step - best[0]) // every >= selection.patience
        return f"no improvement in {selection.patience} validations" if is_exhausted else ""

    def params(self, state: Any, abstract: Any) -> tuple[Any, int]:
        """Return (parameters, step) of the best validation, or of `state`; `abstract` has the parameters' shardings."""
        if self._run.selection.best:
            self._checkpoints.wait()
            if restored := self._checkpoints.restore({"params": abstract.params, "step": abstract.step}, partial=True):
                best, meta = restored
                check_identity(self._checkpoints.folder, meta, self._run)
                return best["params"], int(best["step"])
        return scored_parameters(state), int(state.step)

    def _best(self) -> tuple[int, float] | None:
        """Return (step, value) of the best validation so far, or None."""
        step = self._checkpoints.latest()
        if step is None:
            return None
        meta = self._checkpoints.meta(step)
        check_identity(self._checkpoints.folder, meta, self._run)
        if "value" not in meta:
            raise BadInput(f"{self._checkpoints.folder}: step {step} has no value of its validation; remove the folder")
        return step, float(meta["value"])
