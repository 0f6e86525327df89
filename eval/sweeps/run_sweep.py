"""A sweep: trials whose options Optuna draws, each a training run, in processes of this machine.

The study is Optuna's journal in a file of the sweep's folder, which any number of processes, also on other machines that see the
folder, read and extend. A trial that was begun and whose run no process trains is continued by the next free process, from the
last checkpoint of its run.
"""

import dataclasses
import importlib.util
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.experiments import node_status
from eval.experiments.grid import Node
from eval.experiments.grid_runner import PATIENCE, POLL
from eval.experiments.workers.local_workers import LocalWorkers
from eval.experiments.workers.node_process import ClaimedElsewhere, NodeProcess, Outcome
from eval.sweeps.search_space import Varied
from train.config.run_config import Run
from train.run.metric_definitions import METRICS
from train.run.metrics_file import read_metrics
from train.run.run_dir import RunDir
from zoo.errors import BadInput, cannot_write, printable

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

STUDY, NAME, SETTINGS = "study.log", "sweep", "settings"
"""File of the study in the folder of a sweep, name of the study, and its attribute with the settings."""
ReadValues = Callable[[Mapping[str, Any], Sequence[str]], tuple[list[str], Run]]
"""Function of the values of the varied options and of further words, which returns the words after `zoo train` and their run."""
UNPRUNED = 5
"""Trials that end before one is pruned."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Settings that all processes of a sweep have in common."""

    recipe: str
    options: tuple[str, ...]
    """Words after the recipe that every trial has."""
    space: tuple[Varied, ...]
    metric: str
    """Key of the rows of validations in metrics.jsonl, one of `METRICS` of which lower or higher is better."""
    prune: bool
    """End a trial whose validation is worse than the median of the others at the same step."""
    seed: int

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON has them."""
        space = [[varied.name, list(varied.values), varied.is_range, varied.is_logarithmic] for varied in self.space]
        return dataclasses.asdict(self) | {"options": list(self.options), "space": space}


def open_study(sweep: Sweep, folder: Path) -> "optuna.Study":
    """Return the study in a folder, which is made if there is none.

    Raises:
        BadInput: Optuna is not installed, the folder has a sweep with other settings, or it cannot be written.
    """
    if importlib.util.find_spec("optuna") is None:
        raise BadInput("zoo sweep: Optuna is not installed; install the extra sweep (docs/install.md)")
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(folder / STUDY)))
        study = optuna.create_study(
            storage=storage,
            study_name=NAME,
            direction="maximize" if METRICS[sweep.metric].better == "higher" else "minimize",
            pruner=optuna.pruners.MedianPruner(UNPRUNED) if sweep.prune else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        before, now = study.user_attrs.get(SETTINGS), sweep.settings()
        if before is None:
            study.set_user_attr(SETTINGS, now)
    except OSError as error:
        raise cannot_write(folder, error) from None
    except (ValueError, KeyError) as error:
        raise BadInput(f"{folder / STUDY}: not a study of Optuna ({error}); choose another folder") from None
    for key, value in now.items():
        if before is not None and before.get(key) != value:
            raise BadInput(f"{folder}: its sweep has another {key}: {before.get(key)}, and now {value}; choose another folder")
    return study


class Trials:
    """The trials that this process runs."""

    def __init__(
        self, sweep: Sweep, study: "optuna.Study", folder: Path, count: int, *, workers: int, read_values: ReadValues
    ) -> None:
        """Prepare to run trials until the study has `count` of them, as many at a time as there are workers.

        Args:
            read_values: see `ReadValues`.

        Raises:
            BadInput: see `LocalWorkers`.
        """
        self._sweep, self._study, self._folder, self._count = sweep, study, folder, count
        self._read_values = read_values
        self._workers = LocalWorkers(folder, workers, cwd=Path.cwd())
        self._running: dict[int, tuple[optuna.Trial, NodeProcess]] = {}
        self._slots: dict[int, int] = {}
        self._pruned: set[int] = set()
        self._later: dict[int, float] = {}
        """Trials of other processes -> when to look at them again."""
        self._received: list[int] = []

    def run(self) -> int:
        """Run trials, and return 0, or the number of the signal that stopped them."""
        (self._folder / node_status.LOGS).mkdir(exist_ok=True)
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while True:
                if not self._received:
                    self._start()
                if not self._running and (self._received or not self._unfinished()):
                    return next(iter(self._received), 0)
                self._collect()
                time.sleep(POLL)
        finally:
            for _, process in self._running.values():
                process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        """Let the runs save and end; a second signal kills them."""
        self._received.append(number)
        for _, process in self._running.values():
            process.stop(number) if len(self._received) == 1 else process.kill()

    def _unfinished(self) -> "list[FrozenTrial]":
        return [trial for trial in self._study.get_trials(deepcopy=False) if not trial.state.is_finished()]

    def _start(self) -> None:
        """Start trials while there are free workers: first those that were begun and that no process trains."""
        import optuna

        now = time.monotonic()
        for begun in self._unfinished():
            if begun.number not in self._running and self._later.get(begun.number, 0.0) <= now:
                self._begin(optuna.Trial(self._study, begun._trial_id))
        while len(self._running) < self._workers.count and len(self._study.get_trials(deepcopy=False)) < self._count:
            # A generator that continued after a restart would draw the values of the first trials again.
            seed = self._sweep.seed + len(self._study.get_trials(deepcopy=False))
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            self._begin(self._study.ask())

    def _begin(self, trial: "optuna.Trial") -> None:
        """Start the run of a trial, unless there is no free worker or another process trains it."""
        if len(self._running) >= self._workers.count:
            return
        values = {varied.name: varied.suggest(trial) for varied in self._sweep.space}
        try:
            node = self._node(trial.number, values)
        except BadInput as error:
            self._fail(trial, f"{format_values(values)}: {error}")
            return
        slot = min(set(range(self._workers.count)) - set(self._slots.values()))
        try:
            self._running[trial.number] = trial, self._workers.start(node, slot)
        except ClaimedElsewhere:
            self._later[trial.number] = time.monotonic() + PATIENCE
            if node_status.is_done(node, self._folder):
                self._report(trial, node)
                self._end(trial, node, Outcome("done", ""))
            return
        self._slots[trial.number] = slot
        _print(f"trial {trial.number} begins: {format_values(values)}")

    def _node(self, number: int, values: Mapping[str, Any]) -> Node:
        name = run_name(number)
        words, config = self._read_values(values, ["--out", str(self._folder.resolve()), "--name", name])
        return Node(
            name=name,
            run=name,
            argv=("train", *words),
            options=dict(values),
            stage="train",
            row="",
            seed=config.seed,
            parents=(),
            config=config,
        )

    def _collect(self) -> None:
        """Report the validations of the running trials, prune them, and end those whose runs have ended."""
        for number, (trial, process) in [*self._running.items()]:
            outcome = process.poll()
            self._report(trial, process.node)
            if outcome is not None:
                del self._running[number], self._slots[number]
                self._end(trial, process.node, outcome)
            elif self._sweep.prune and number not in self._pruned and not self._received and trial.should_prune():
                self._pruned.add(number)
                process.stop(signal.SIGTERM)

    def _report(self, trial: "optuna.Trial", node: Node) -> None:
        """Add validations to the study that it does not have."""
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        for step, value in validations(RunDir(self._folder / node.run), self._sweep.metric):
            if step not in frozen.intermediate_values:
                trial.report(value, step)

    def _end(self, trial: "optuna.Trial", node: Node, outcome: Outcome) -> None:
        from optuna.trial import TrialState

        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        if frozen.state.is_finished():
            return
        last = frozen.intermediate_values.get(max(frozen.intermediate_values, default=-1), math.nan)
        if outcome.status == "done" and not math.isnan(last):
            self._study.tell(trial, last)
            _print(f"trial {trial.number}: {self._sweep.metric} {last:.6g}")
        elif outcome.status == "done":
            self._fail(trial, "its run has no validation; choose --log.validate-every 0 or a number of steps below --steps")
        elif outcome.status == "failed":
            self._fail(trial, f"{outcome.message}; see {node_status.log_file(node, self._folder)}")
        elif trial.number in self._pruned and not self._received:
            self._study.tell(trial, state=TrialState.PRUNED)
            _print(f"trial {trial.number} is pruned: {self._sweep.metric} {last:.6g}")
        else:
            self._later[trial.number] = time.monotonic() + PATIENCE

    def _fail(self, trial: "optuna.Trial", reason: str) -> None:
        from optuna.trial import TrialState

        self._study.tell(trial, state=TrialState.FAIL)
        _print(f"trial {trial.number} failed: {reason}")


def validations(run: RunDir, metric: str) -> list[tuple[int, float]]:
    """Return (step, value of a metric) of the validations of a run, as far as it is.

    Raises:
        BadInput: validations do not have this metric.
    """
    if not run.metrics.exists():
        return []
    rows = [row for row in read_metrics(run) if row["kind"] == "valid"]
    for row in rows:
        if metric not in row:
            names = ", ".join(name for name, value in row.items() if name != "step" and isinstance(value, int | float))
            raise BadInput(f"--metric {metric}: the validations of {run.path} do not have it; choose one of {names}")
    return [(row["step"], float(row[metric])) for row in rows]


def run_name(number: int) -> str:
    """Return the name of a trial's run."""
    return f"trial-{number:04}"


def format_values(values: Mapping[str, Any]) -> str:
    """Return the values of the varied options on a line."""
    return ", ".join(f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in values.items())


def _print(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)
