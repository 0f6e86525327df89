"""Extension of a finished run by more steps (--extend).

config.json is written first, with the new number of steps and the earlier ones in `extended_from`; then the results of the
shorter run are removed. Until the first new checkpoint every start does this again, so the run can be killed at any moment.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from train.config.run_config import Run
from train.engine import schedules
from train.run.run_dir import RunDir, read_config
from zoo.errors import BadInput


def with_earlier_steps(run: Run, folder: RunDir) -> Run:
    """Return a run with the numbers of steps that it had before it was extended, by its folder and --extend."""
    if not (folder.has_results and folder.config.exists()):
        return run
    old = read_config(folder.path, compute=False)
    begins = run.machine.extend and old.steps < run.steps
    return dataclasses.replace(run, extended_from=(*old.extended_from, *[old.steps] * begins))


def check_continues(run: Run, folder: RunDir, meta: Mapping[str, Any], reason: str) -> None:
    """Refuse to extend a run that ended before its last step.

    Args:
        meta: the JSON of its newest checkpoint.
        reason: why no step would follow; "" = one does.

    Raises:
        BadInput: names the reason.
    """
    if reason and meta["config"]["steps"] != run.steps:
        fix = f"choose another --name; --init {folder.path} begins with its parameters"
        raise BadInput(f"--extend: {folder.path} would take no further step: {reason}; {fix}")


def begin_extension(run: Run, folder: RunDir, meta: Mapping[str, Any], step: int, *, notify: Callable[[str], None]) -> None:
    """Remove the results of a run before it was extended, and state how the learning rate changes.

    Args:
        meta: the JSON of the checkpoint that the run continues from, {} for none. If it has the steps of `run`, nothing is to do.
        step: its step.
        notify: receives the statement.
    """
    steps = meta["config"]["steps"] if meta else run.steps
    if steps == run.steps:
        return
    with folder.lock_results(notify):
        for file in (folder.scores, folder.predictions, folder.outcomes, folder.samples, folder.report):
            file.unlink(missing_ok=True)
    new, last = _rate(run, run.steps, step), _rate(run, steps, steps - 1)
    rates = f"the learning rate of step {step + 1:,} is {new:.1e}, where the schedule of {steps:,} steps ended at {last:.1e}"
    notify(f"extended from {steps:,} to {run.steps:,} steps; {rates}")


def _rate(run: Run, steps: int, step: int) -> float:
    """Return the learning rate of a step, counted from 0, of a run of `steps` steps."""
    return np.asarray(schedules.make_schedule(run.optim, steps)(step)).item()
