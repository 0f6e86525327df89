"""Hooks: functions that the training loop calls after every step, each of which decides whether it has something to do.

A hook takes the `train.loop.loop_state.TrainingLoop`. A plug-in in the group `zoo.hooks` provides a function that returns one for
a run, and --log.hooks names the plug-ins that a run uses. A hook may read everything and must not change the state; it may end
the run by `loop.end(reason)`.
"""

from collections.abc import Callable

import jax

from train.config.run_config import Run
from train.config.run_plugins import load_hook_factory
from train.loop.loop_state import TrainingLoop
from zoo.fault_points import fault_point
from zoo.runtime.progress import this_process

Hook = Callable[[TrainingLoop], None]


def hooks_of(run: Run) -> list[Hook]:
    """Return the hooks of a run in the order of their calls. The checkpoint is saved last, after all that may end the run.

    Raises:
        BadInput: a plug-in cannot be loaded.
    """
    return [
        profile_steps,
        log_metrics,
        validate_and_select,
        *(load_hook_factory(name)(run) for name in run.log.hooks),
        save_checkpoint,
    ]


def profile_steps(loop: TrainingLoop) -> None:
    """Trace `--profile` steps, from the second step after the start on, because the first one compiles."""
    count, taken = loop.opened.run.machine.profile, loop.step - loop.start.first
    if count and taken == 1:
        jax.profiler.start_trace(loop.opened.folder.profile)
    if count and taken == 1 + count:
        with this_process.phase("writing the profile"):
            jax.profiler.stop_trace()


def log_metrics(loop: TrainingLoop) -> None:
    """Write a row of metrics every `log.every` steps."""
    if loop.recorder.due(loop.opened.run.log.every):
        loop.recorder.row(loop.counts.total(), *loop.feed.metrics())


def validate_and_select(loop: TrainingLoop) -> None:
    """Validate every `log.validate_every` steps, save the best parameters, and end the run that no longer improves."""
    if loop.recorder.due(loop.opened.run.log.validate_every):
        score, best = loop.validated(), loop.opened.best
        with loop.recorder.pause("saving"):
            best.save_if_best(loop.global_state(), score, loop.start.metadata)
        loop.stopping = loop.stopping or bool(best.exhausted(loop.step))


def save_checkpoint(loop: TrainingLoop) -> None:
    """Begin to save a checkpoint every `checkpoint.every` steps, and at the last step."""
    opened, recorder = loop.opened, loop.recorder
    if not recorder.due(opened.run.checkpoint.every) and not loop.stopping:
        return
    with recorder.pause("saving"):
        fault_point("train.save")
        loop.rate.update()
        recorder.sync()
        counted = {"records": recorder.summaries(), "counts": loop.counts.total()}
        reached = {"feed": loop.feed.saved(), "ended": loop.exhausted}
        opened.uploads.before_save(opened.best.wait)
        opened.checkpoints.save(loop.global_state(), loop.start.metadata | counted | reached)
        loop.record_usage()
