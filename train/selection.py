"""The best checkpoint of a run by its validations, and the end of a run that no longer gets better."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from train import config, quantities
from train.checkpoint import Checkpoints
from train.folder import Folder, check_identity
from train.quantities import QUANTITIES

JUDGES = tuple(name for name, quantity in QUANTITIES.items() if quantity.better)
"""Quantities of which one value is better than another."""
OPTION = "--selection.measure"


class Choice:
    """Keeps the parameters with the best validation in RUN/best, beside the checkpoints that a run is resumed from.

    A run that keeps none is its last step's. What is best is a function of the validations alone: a run that was killed and
    resumed, and validates some steps again, ends with the same.
    """

    def __init__(self, run: config.Run, folder: Folder, *, notify: Callable[[str], None]) -> None:
        """
        Raises:
            BadInput: there is no measure of the name that decides.
        """
        if run.selection.measure:
            quantities.find(run.selection.measure, JUDGES, OPTION)
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

        Raises:
            BadInput: the score lacks the measure that decides.
        """
        if not self._run.selection.best:
            return
        numbers = score.record()
        measure = self._run.selection.measure or quantities.leading(numbers)[0]
        higher = quantities.find(measure, [name for name in JUDGES if name in numbers], OPTION).better == "higher"
        self._kept.wait()
        value, before = float(numbers[measure]), self._best()
        if not math.isfinite(value) or (before is not None and int(jax.device_get(state.step)) <= before[0]):
            # A resumed run comes by validations that were judged before: on other devices they may differ in their last digits.
            return
        if before is None or (value > before[1] if higher else value < before[1]):
            # What the optimizer knows is of no use to whoever reads the best parameters.
            kept = dataclasses.replace(state, opt_state={}, carry={})
            self._kept.save(kept, {**meta, "measure": measure, "value": value})

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
