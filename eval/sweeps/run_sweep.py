"""A sweep: trials whose options Optuna draws, each a training run, in processes of this machine.

The study is Optuna's journal in a file of the sweep's folder, which any number of processes, also on other machines that see the
folder, read and extend. A trial that was begun and whose run no process trains is continued by the next free process, from the
last checkpoint of its run.
"""

import contextlib
import dataclasses
import importlib.util
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.experiments import node_status
from eval.experiments.grid import Node
from eval.experiments.grid_runner import PATIENCE, POLL, PassedSignals
from eval.experiments.workers.local_workers import LocalWorkers
from eval.experiments.workers.node_process import ClaimedElsewhere, NodeProcess, Outcome
from eval.sweeps.search_space import Varied
from train.config.run_config import Run
from train.run.metric_definitions import METRICS
from train.run.metrics_file import read_metrics
from train.run.run_dir import RunDir
from zoo.errors import BadInput, cannot_write, install_advice, printable
from zoo.file_access import open_regular, open_to_append, refuse_links_out

if TYPE_CHECKING:
    import optuna
    from filelock import FileLock
    from optuna.trial import FrozenTrial

STUDY, LOCK, NAME, SETTINGS = "study.log", "study.lock", "sweep", "settings"
"""Files of the study and of its lock in the folder of a sweep, name of the study, and its attribute with the settings."""
ReadValues = Callable[[Mapping[str, Any], Sequence[str]], tuple[list[str], Run]]
"""Function of the values of the varied options and of further words, which returns the words after `zoo train` and their run."""
UNPRUNED = 5
"""Trials that end with a value before one is pruned."""
FAILURES = 3
"""Failed trials of a process after which it stops, if no trial of the sweep has ended otherwise."""


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


def open_study(sweep: Sweep, folder: Path) -> "tuple[optuna.Study, FileLock]":
    """Return the study in a folder, which is made if there is none, and the lock that its file needs.

    Raises:
        BadInput: Optuna is not installed, the folder has a sweep with other settings, or it cannot be written.
    """
    if importlib.util.find_spec("optuna") is None:
        raise BadInput(f"Optuna is not installed; {install_advice('sweep')}")
    import optuna
    from filelock import FileLock
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    refuse_links_out(folder, (STUDY, LOCK, node_status.LOGS), levels=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Unlike Optuna's own locks, it ends with its process. It is held again within itself.
        lock: Any = FileLock(folder / LOCK, fallback_to_soft=False)
        with lock:
            _cut_torn_line(folder / STUDY)
            study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(folder / STUDY), lock_obj=lock)),
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
    return study, lock


def _cut_torn_line(path: Path) -> None:
    """Remove a last line without an end, which a full disk or a power failure leaves, and which Optuna cannot read."""
    with open_to_append(path) as file, open_regular(path) as content:
        complete = content.read().rfind(b"\n") + 1
        file.truncate(complete)


class Trials:
    """The trials that this process runs."""

    def __init__(
        self, sweep: Sweep, study: "optuna.Study", lock: Any, folder: Path, *, count: int, workers: int, read_values: ReadValues
    ) -> None:
        """Prepare to run trials until the study has `count` of them, as many at a time as there are workers.

        Args:
            lock: the lock of the study, see `open_study`.
            read_values: see `ReadValues`.

        Raises:
            BadInput: see `LocalWorkers`.
        """
        self._sweep, self._study, self._lock, self._folder, self._count = sweep, study, lock, folder, count
        self._read_values = read_values
        self._workers = LocalWorkers(folder, workers, cwd=Path.cwd())
        self._nodes: dict[int, Node] = {}
        self._running: dict[int, NodeProcess] = {}
        self._slots: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        """Trials -> the bytes of metrics.jsonl at the last look."""
        self._pruned: set[int] = set()
        self._later: dict[int, float] = {}
        """Trials of other processes -> when to look at them again."""
        self._signals = PassedSignals()
        self._failures = 0

    def run(self) -> int:
        """Run trials, and return 0, or the number of the signal that stopped them."""
        (self._folder / node_status.LOGS).mkdir(exist_ok=True)
        received = self._signals.received
        with self._signals.collect(), contextlib.ExitStack() as stack:
            stack.callback(self._kill_all)
            while True:
                self._signals.pass_on(self._running.values())
                if not self._stops():
                    self._start()
                if not self._running and (self._stops() or not self._unfinished()):
                    return next(iter(received), 0)
                self._collect()
                time.sleep(POLL)

    def _kill_all(self) -> None:
        for process in self._running.values():
            process.kill()

    def _stops(self) -> bool:
        """Return whether no further trial is to begin: after a signal, or where the options seem to be wrong in all trials."""
        if self._failures < FAILURES or any(trial.state.name in ("COMPLETE", "PRUNED") for trial in self._trials()):
            return bool(self._signals.received)
        return True

    def _trials(self) -> "list[FrozenTrial]":
        return self._study.get_trials(deepcopy=False)

    def _unfinished(self) -> "list[FrozenTrial]":
        return [trial for trial in self._trials() if not trial.state.is_finished()]

    def _start(self) -> None:
        """Start trials while there are free workers: first those that were begun and that no process trains."""
        now = time.monotonic()
        for begun in self._unfinished():
            if begun.number not in self._running and self._later.get(begun.number, 0.0) <= now and self._may_begin():
                self._begin(begun.number)
        while self._may_begin() and (number := self._ask()) is not None:
            self._begin(number)

    def _may_begin(self) -> bool:
        return len(self._running) < self._workers.count and not self._signals.received

    def _ask(self) -> int | None:
        """Add a trial to the study, and return its number; None if there are enough."""
        # Another process sees the trial with its values, or does not see it.
        with self._lock:
            if (number := len(self._trials())) >= self._count:
                return None
            self._set_sampler(number)
            self._suggest(self._study.ask())
        return number

    def _set_sampler(self, number: int) -> None:
        """Let the values of a trial depend on the seed, its number and the trials before it, and not on earlier draws here."""
        import optuna

        seed = int(np.random.SeedSequence((self._sweep.seed, number)).generate_state(1)[0])
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def _suggest(self, trial: "optuna.Trial") -> dict[str, Any]:
        return {varied.name: varied.suggest(trial) for varied in self._sweep.space}

    def _begin(self, number: int) -> None:
        """Start the run of a trial, unless another process trains it."""
        try:
            node = self._node(number)
        except BadInput as error:
            self._fail(number, str(error))
            return
        slot = min(set(range(self._workers.count)) - set(self._slots.values()))
        try:
            self._running[number] = self._workers.start(node, slot)
        except ClaimedElsewhere:
            self._later[number] = time.monotonic() + PATIENCE
            if node_status.is_done(node, self._folder):
                self._report(number)
                self._end(number, Outcome("done", ""))
            return
        self._slots[number] = slot
        _print(f"trial {number} begins: {format_values(node.options)}")

    def _node(self, number: int) -> Node:
        """Return the run of a trial; values that a kill left undrawn are drawn."""
        if number not in self._nodes:
            with self._lock:
                self._set_sampler(number)
                values = self._suggest(self._trial(number))
            name = run_name(number)
            words, config = self._read_values(values, ["--out", str(self._folder.resolve()), "--name", name])
            self._nodes[number] = Node(
                name=name,
                run=name,
                argv=("train", *words),
                options=values,
                stage="train",
                row="",
                seed=config.seed,
                parents=(),
                config=config,
            )
        return self._nodes[number]

    def _trial(self, number: int) -> "optuna.Trial":
        import optuna

        return optuna.Trial(self._study, self._trials()[number]._trial_id)

    def _collect(self) -> None:
        """Report the validations of the running trials, prune them, and end those whose runs have ended."""
        for number, process in [*self._running.items()]:
            outcome = process.poll()
            has_news = self._report(number)
            if outcome is not None:
                del self._running[number], self._slots[number]
                self._end(number, outcome)
            elif has_news and self._sweep.prune and not self._signals.received and self._trial(number).should_prune():
                self._pruned.add(number)
                process.stop(signal.SIGTERM)

    def _report(self, number: int) -> bool:
        """Add validations to the study that it does not have, and return whether there were any."""
        import optuna

        run = RunDir(self._folder / run_name(number))
        size = run.metrics.stat().st_size if run.metrics.exists() else 0
        if size == self._sizes.get(number):
            return False
        self._sizes[number] = size
        reported, trial, has_news = self._trials()[number].intermediate_values, self._trial(number), False
        for step, value in validations(run, self._sweep.metric):
            if step not in reported:
                # Another process may have ended the trial.
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    trial.report(value, step)
                has_news = True
        return has_news

    def _end(self, number: int, outcome: Outcome) -> None:
        values = self._trials()[number].intermediate_values
        last, log = values.get(max(values, default=-1)), node_status.log_file(self._nodes[number], self._folder)
        if outcome.status == "failed":
            self._fail(number, f"{outcome.message}; see {log}")
        elif outcome.status == "done" and last is None:
            self._fail(number, f"its run has no validation; see {log}")
        elif outcome.status == "done" and last is not None and math.isfinite(last):
            self._tell(number, "COMPLETE", last, f"{self._sweep.metric} {last:.6g}")
        elif outcome.status == "done":
            # The sampler learns from pruned trials, and not from failed ones.
            self._tell(number, "PRUNED", None, f"its last {self._sweep.metric} is not finite, and the trial counts as pruned")
        elif number in self._pruned and not self._signals.received:
            self._tell(number, "PRUNED", None, f"pruned at {self._sweep.metric} {last:.6g}")
        else:
            self._later[number] = time.monotonic() + PATIENCE

    def _fail(self, number: int, reason: str) -> None:
        self._failures += 1
        self._tell(number, "FAIL", None, f"failed: {reason}")
        if self._failures == FAILURES and self._stops():
            _print(f"! {FAILURES} trials failed and none ended; correct their options, and choose another folder for others")

    def _tell(self, number: int, state: str, value: float | None, line: str) -> None:
        """End a trial in the study, unless another process has ended it, and print a line."""
        from optuna.trial import TrialState

        self._study.tell(number, value, state=TrialState[state], skip_if_finished=True)
        _print(f"trial {number}: {line}")


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
