"""The best checkpoint of a run by its validations, and the end of a run that no longer gets better."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.identity import check_identity
from train.config import run_config
from train.data.example_types import is_iob
from train.run import metric_names
from train.run.metric_names import QUANTITIES
from train.run.run_dir import Folder

METRICS: dict[str, tuple[str, ...]] = {
    "causal": ("bits_per_byte", "perplexity", "loss"),
    "masked": ("perplexity", "loss", "masked_loss", "accuracy"),
    "permutation": ("perplexity", "loss", "masked_loss", "accuracy"),
    "distilled": ("perplexity", "loss", "masked_loss", "accuracy"),
    "denoising": ("perplexity", "loss"),
    "text_to_text": ("perplexity", "loss"),
    "span": ("loss", "f1", "exact"),
    "choice": ("loss", "accuracy"),
}
"""Objective -> metrics of a validation, any of which may select the checkpoint; `metrics` has those that depend on labels."""
OPTION = "--selection.metric"


def metrics(run: run_config.Run) -> tuple[str, ...]:
    """Return the quantities that a validation of a run measures and of which one value is better than another."""
    labels = getattr(run.model, "labels", ())
    if run.objective == "classification":
        if len(labels) == 1:
            return "loss", "pearson", "spearman", "mean_squared_error"
        return "loss", "accuracy", "f1" if len(labels) == 2 else "f1_macro", "matthews"
    if run.objective == "tagging":
        return "loss", "entity_f1" if is_iob(labels) else "accuracy"
    pairs = ("next_loss", "next_accuracy") if getattr(run.model, "task", "") == "pretraining" else ()
    return METRICS[run.objective] + pairs


def check(run: run_config.Run) -> None:
    """Refuse a metric that the validations of a run do not measure.

    Raises:
        BadInput: names the nearest one, and all of them.
    """
    if run.selection.metric:
        metric_names.find(run.selection.metric, metrics(run), OPTION)


class Choice:
    """Keeps the parameters with the best validation in RUN/best, beside the checkpoints that a run is resumed from.

    A run that keeps none is its last step's. What is best is a function of the validations alone: a run that was killed and
    resumed, and validates some steps again, ends with the same.
    """

    def __init__(self, run: run_config.Run, folder: Folder, *, notify: Callable[[str], None]) -> None:
        """
        Raises:
            BadInput: the metric that decides is not measured.
        """
        check(run)
        self._run = run
        self._kept = Checkpoints(folder.best, 1, notify=notify)

    def __enter__(self) -> "Choice":
        if self._run.selection.best:
            self._kept.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._run.selection.best:
            self._kept.__exit__(*error)

    def note(self, state: Any, score: Any, meta: dict[str, Any]) -> None:
        """Keep the parameters of a state if its validation is the best so far; of equal ones the first. One that is not finite
        is never the best.
        """
        if not self._run.selection.best:
            return
        numbers = score.record()
        metric = self._run.selection.metric or metric_names.leading(numbers)[0]
        higher = QUANTITIES[metric].better == "higher"
        self._kept.wait()
        value, before = float(numbers[metric]), self._best()
        if not math.isfinite(value) or (before is not None and int(jax.device_get(state.step)) <= before[0]):
            # A resumed run comes by validations that were judged before: on other devices they may differ in their last digits.
            return
        if before is None or (value > before[1] if higher else value < before[1]):
            # What the optimizer knows is of no use to whoever reads the best parameters.
            kept = dataclasses.replace(state, opt_state={}, carry={})
            self._kept.save(kept, {**meta, "metric": metric, "value": value})

    def exhausted(self, step: int | None) -> bool:
        """Whether, at a step, as many validations as the run has patience for were no better than the best."""
        chosen, every = self._run.selection, self._run.log.validate_every
        if not chosen.patience or not every or step is None:
            return False
        self._kept.wait()
        best = self._best()
        return best is not None and (step - best[0]) // every >= chosen.patience

    def params(self, state: Any, abstract: Any) -> tuple[Any, int]:
        """(parameters, step) of the run's choice at its end: the best, or those of `state`; `abstract` says where they lie."""
        if self._run.selection.best:
            self._kept.wait()
            if restored := self._kept.restore({"params": abstract.params, "step": abstract.step}, partial=True):
                best, meta = restored
                check_identity(self._kept.folder, meta, self._run)
                return best["params"], int(best["step"])
        return state.params, int(state.step)

    def _best(self) -> tuple[int, float] | None:
        """(step, value) of the best so far."""
        step = self._kept.latest()
        if step is None:
            return None
        meta = self._kept.meta(step)
        check_identity(self._kept.folder, meta, self._run)
        return step, float(meta["value"])
