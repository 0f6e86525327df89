"""Training of a run: data, model, steps, checkpoints and final score.

A run that was interrupted is started by the same command, and continues from its newest checkpoint as if it had not stopped.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from train.config import run_config
from train.loop.finish import finish, finish_again
from train.loop.hooks import Hook, hooks_of
from train.loop.loop_state import TrainingLoop
from train.loop.open_run import open_run, restore_or_init
from train.loop.prepare import Evaluation, Scorer, prepare
from train.run.console import Console
from train.run.result_files import failure_recorded
from train.run.run_dir import RunDir, confirm_own
from train.run.stop_signals import StopSignals
from train.run.time_account import TimeAccount
from train.step.assembly import assemble
from zoo.fault_points import fault_point
from zoo.runtime import hang_watch


def run(
    run: run_config.Run,
    *,
    evaluate: Callable[..., Scorer],
    on_end: Callable[[Path], Any],
    sample: Callable[..., Any] | None = None,
    preview: Callable[..., str] | None = None,
    began: float | None = None,
    as_json: bool = False,
) -> int:
    """Train to the end, from the newest checkpoint if there is one, and return the exit code (128 + signal after a signal).

    Args:
        evaluate: see `train.loop.prepare.Evaluation`, as for the other functions.
        on_end: writes the report.
        sample: writes continuations of held-out text.
        preview: returns a continuation to show after each validation.
        began: the time at which the start-up began, by `time.perf_counter`; None = now.
        as_json: write the rows of metrics.jsonl to stdout, and what is shown of the run to stderr.

    Raises:
        BadInput: the configuration, the data and this machine do not fit together, or the folder contains another run.
    """
    account, process = TimeAccount(time.perf_counter() if began is None else began), jax.process_index()
    console = Console(steps=run.steps, process=process, selected=run.selection.metric, as_json=as_json)
    stacks = RunDir.of(run).stacks(process)
    # A process of several may only wait for the one that is stuck.
    subject = "the run is stuck" if jax.process_count() == 1 else f"process {process} is stuck or waits for one that is"
    watch = hang_watch.watch_progress(run.machine.hang_after, stacks, subject, console.__exit__)
    evaluation = Evaluation(evaluate=evaluate, on_end=on_end, sample=sample, preview=preview)
    with console, StopSignals(console.notice, console.__exit__) as stop, watch, contextlib.ExitStack() as stack:
        prepared = prepare(run, console, evaluation)
        hooks = hooks_of(prepared.run)
        opened = open_run(prepared, stack)
        if opened.is_finished:
            return finish_again(opened)
        assembly = assemble(opened.run, opened.objective, opened.mesh, opened.parameters)
        start, state = restore_or_init(opened, assembly)
        if opened.process == 0:
            # Not in `restore_or_init`, by which an audit replays a run of somebody else.
            confirm_own(opened.folder.path, notify=console.notice)
        # A refused start changes nothing in the folder, and so is not recorded.
        stack.enter_context(failure_recorded(opened.folder, opened.process))
        loop = TrainingLoop(opened, assembly, start, state, account, stack)
        train_steps(loop, hooks, stop)
        return finish(loop, stop)


def train_steps(loop: TrainingLoop, hooks: Sequence[Hook], stop: StopSignals) -> None:
    """Take the steps of a run from `loop.step` on, and call the hooks after each, until the last step or a reason to stop.

    Raises:
        BadInput: too many steps in a row were skipped; or as the hooks.
    """
    run, checkpoints, recorder = loop.opened.run, loop.opened.checkpoints, loop.recorder
    loop.opened.console.doing("compiling the step")
    loop.account.switch("compilation")
    fault_point("train.compile")
    with jax.transfer_guard("disallow"), loop.feeding as loop.feed:
        # A fresh head would be scored by chance before the first step.
        if run.init and loop.opened.model.generates and loop.step == 0 and not loop.stopping:
            loop.validated()
        while loop.step < run.steps and not loop.stopping:
            if recorder.due(run.checkpoint.every, ahead=1):
                # Wait before this step and not in `save`: a run that is killed while it waits would lose one more step.
                with recorder.pause("waiting for the save"):
                    checkpoints.wait()
            loop.take_step(stop)
            for hook in hooks:
                hook(loop)
