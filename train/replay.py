"""Repetition of steps of a run in another folder by the training loop: a replay is a resume that ends at a chosen step."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from train.config.run_config import Checkpoint, Run
from train.loop.hooks import log_metrics, validate_and_select
from train.loop.loop_state import TrainingLoop
from train.loop.open_run import open_run, restore_or_init
from train.loop.prepare import Evaluation, Scorer, prepare
from train.run.console import Console
from train.run.matmul_rate import PeakRate
from train.run.run_dir import RunDir
from train.run.stop_signals import StopSignals
from train.run.time_account import TimeAccount
from train.step.assembly import assemble
from train.trainer import train_steps


class Replays:
    """Repetitions of steps of one configuration, which read the data and compile the step once.

    Attributes:
        prepared: the run with its model, its objective and its data.
    """

    def __init__(self, run: Run, *, evaluate: Callable[..., Scorer]) -> None:
        """Prepare a run whose folder has the tokenizer of the original, and no config.json.

        Args:
            evaluate: see `train.loop.prepare.Evaluation`.

        Raises:
            BadInput: see `train.loop.prepare.prepare`.
        """
        # It saves nothing, and shows nothing: only process 0 prints.
        log = dataclasses.replace(run.log, samples=0, sinks=(), hooks=(), ledger=True)
        machine = dataclasses.replace(run.machine, extend=False, profile=0)
        run = dataclasses.replace(run, log=log, machine=machine, checkpoint=Checkpoint(every=run.steps, keep=1))
        self._console = Console(steps=run.steps, process=1)
        self.prepared = prepare(run, self._console, Evaluation(evaluate=evaluate, on_end=lambda path: None))
        parts = self.prepared
        self._assembly = assemble(parts.run, parts.objective, parts.mesh, parts.parameters)
        self._rate = PeakRate(parts.dtype)

    @property
    def abstract_state(self) -> Any:
        """Shapes, dtypes and shardings of the state."""
        return self._assembly.state

    def take_steps(
        self, folder: RunDir, until: int, visit: Callable[[TrainingLoop], None] = lambda loop: None
    ) -> tuple[TrainingLoop, dict[str, Any]]:
        """Take the steps from the checkpoint in a folder, or from the initial parameters if it has none, to step `until`.

        The rows of metrics and of the ledger are written to the folder.

        Args:
            visit: is called after each step.

        Returns:
            The loop after the last step, and the position of its data as checkpoints have it ("feed" and "counts").

        Raises:
            BadInput: see `train.loop.open_run.restore_or_init` and `train.trainer.train_steps`.
        """
        reached: dict[str, Any] = {}

        def stop(loop: TrainingLoop) -> None:
            visit(loop)
            if loop.step >= until:
                reached.update(feed=loop.feed.saved(), counts=loop.counts.total())
                loop.end("the replay ends here")

        account = TimeAccount(time.perf_counter())
        with self._console, contextlib.ExitStack() as stack:
            opened = open_run(dataclasses.replace(self.prepared, folder=folder), stack)
            start, state = restore_or_init(opened, self._assembly)
            loop = TrainingLoop(opened, self._assembly, start, state, account, stack, self._rate)
            train_steps(loop, [log_metrics, validate_and_select, stop], _NoSignals(lambda text: None, lambda: None))
            return loop, reached


class _NoSignals(StopSignals):
    """Signals have their default actions, because a replay has nothing to save."""

    def agreed(self, taken: int) -> bool:
        """Return False: no signal stops a replay after a step."""
        return False
