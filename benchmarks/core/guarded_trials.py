"""Programs that are prepared and timed side by side: an error in one is reported in one line and does not affect the others.

A benchmark consists of groups of cells. Each cell has a trial, which ends as timed, skipped, wrong or failed; the trials of a
group are timed in the same rounds.
"""

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from benchmarks.core import result_files, timing
from benchmarks.core.memory import free_bytes
from benchmarks.core.peer_process import Peer
from benchmarks.core.result_files import cell_identity
from benchmarks.core.result_tables import format_bytes
from benchmarks.core.timing import Program
from benchmarks.core.worker_process import WorkerFailed
from train.run.progress_display import PieceProgress
from zoo.errors import BadInput

T = TypeVar("T")

MEMORY_SHARE = 0.9
"""Largest share of the free memory that a program may need."""
UNABLE = "NotImplementedError: "
"""Beginning of the failure of a worker that does not do what is requested."""


@dataclass
class Trial:
    """One program to be timed; it has no state until it is timed, skipped, wrong or failed."""

    key: dict[str, Any]
    state: str = ""
    reason: str = ""
    columns: dict[str, Any] = field(default_factory=dict)
    program: Program | None = None
    """Makes one call, to its end; None before it is ready, and after it ended without being timed in rounds."""
    peer: Peer | None = None
    """The process that the program runs in, if it is another library's."""

    def end(self, state: str, reason: str = "") -> None:
        """Set the final state; the process of a peer ends, and a program that was not timed is released."""
        self.state, self.reason = state, reason
        if state != "timed":
            self.program = None
        self.stop_peer()

    def stop_peer(self) -> None:
        """End a peer's process."""
        if self.peer is not None:
            self.peer.close()
        self.peer = None

    def cell(self) -> dict[str, Any]:
        """Return the cell, without the process."""
        return {"key": self.key, "state": self.state, "reason": self.reason, **self.columns}


class Watch:
    """Shows what a process is about to do, and records in the result file which cells it measures, in case it dies."""

    def __init__(self, show: Callable[[str], None], writer: result_files.Writer, process: int) -> None:
        self._show, self._writer, self._process = show, writer, process

    def begin(self, message: str, *keys: Mapping[str, Any]) -> None:
        """Record that the process measures these cells, and no others, from now on."""
        self._writer.begin(keys, self._process)
        self._show(message)

    def died(self, key: Mapping[str, Any]) -> bool:
        """Return whether processes died while they measured a cell so often that it must not be tried again."""
        return self._writer.died(key, self._process)


# --- groups ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Cells that are measured side by side."""

    title: str
    keys: Sequence[dict[str, Any]]
    measure: Callable[[Sequence[dict[str, Any]], Watch], Iterable[dict[str, Any]]]
    """(missing keys, watch) -> their cells, each as soon as it is measured; cells of other keys are not written."""
    weight: float = 1.0
    """About how long one of its cells takes, in arbitrary units."""


def measure_groups(
    groups: Iterable[Group],
    writer: result_files.Writer,
    process: int,
    one_line: Callable[[Sequence[Mapping[str, Any]]], str],
    environment: Mapping[str, Any],
    *,
    deadline: float = float("inf"),
) -> list[str]:
    """Measure the missing cells, write each as soon as it is measured, and return the titles of the groups that were left out.

    Args:
        one_line: returns the outcome of a group for the progress display.
        environment: environment of this process; its measures of how busy the machine was become columns of every cell.
        deadline: value of `time.monotonic()` after which no group but the first begins. A group that began is completed.
    """
    missing = [(group, [key for key in group.keys if not writer.has(key, process)]) for group in groups]
    missing = [(group, keys) for group, keys in missing if keys]
    progress = PieceProgress(sum((group.weight * len(keys) for group, keys in missing), 0.0))
    watch = Watch(progress.doing, writer, process)
    machine = {name: environment[name] for name in ("load", "clock_mhz")}
    left_out: list[str] = []
    try:
        for number, (group, keys) in enumerate(missing):
            if number and time.monotonic() > deadline:
                left_out.append(group.title)
                continue
            progress.begin(group.title)
            identities, written = set(map(cell_identity, keys)), []
            for cell in group.measure(keys, watch):
                if cell_identity(cell["key"]) in identities:
                    writer.write({"process": process, **cell, **machine})
                    written.append(cell)
            progress.done(group.weight * len(keys), one_line(written))
    finally:
        writer.close()
        progress.close()
    return left_out


# --- trials ---------------------------------------------------------------------------------------------------------------------


class RepeatFailure(Exception):
    """A program ran before and fails when it is repeated."""


class SkipTrial(Exception):
    """A program cannot be tried here; the message is the reason."""


class WrongResult(Exception):
    """The results of a program are wrong; the message says how."""


def run_guarded(trial: Trial, act: Callable[[Any], None], watch: Watch, message: str) -> None:
    """Call `act` on a trial, unless earlier processes died while they measured it.

    `SkipTrial`, a refusal (`BadInput`) and a worker's NotImplementedError end the trial as skipped, `WrongResult` as wrong, and
    other errors as failed.
    """
    if watch.died(trial.key):
        trial.end("failed", result_files.DIED)
        return
    watch.begin(message, trial.key)
    try:
        act(trial)
    except (SkipTrial, BadInput) as reason:
        trial.end("skipped", str(reason))
    except WrongResult as reason:
        trial.end("wrong", str(reason))
    except WorkerFailed as failure:
        trial.end("skipped" if str(failure).startswith(UNABLE) else "failed", str(failure).removeprefix(UNABLE))
    except Exception as error:
        trial.end("failed", error_in_one_line(error))


def repeat_without_failures(trials: Sequence[Trial], act: Callable[[Mapping[str, Program]], T]) -> T | None:
    """Return the result of `act` on the programs of trials, by `identity`; None if there are none.

    A program that fails ends its trial, and the others start again without it.
    """
    while programs := {cell_identity(trial.key): functools.partial(call_guarded, trial) for trial in trials if trial.program}:
        try:
            return act(programs)
        except RepeatFailure:
            continue
    return None


def call_guarded(trial: Trial, program: Program | None = None) -> None:
    """Call a trial's program, or another one for it.

    Raises:
        RepeatFailure: it failed, which ends the trial.
    """
    try:
        if run := program or trial.program:
            run()
    except Exception as error:
        trial.end("failed", error_in_one_line(error))
        raise RepeatFailure from error


def error_in_one_line(error: Exception) -> str:
    """Return an error in one line: its type and its first line that is not blank."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"[:300]


def end_if_slow(trial: Trial, spent: float, limit: float, **more: Any) -> bool:
    """Return whether a first call of `spent` seconds took more than `limit`; if so, end the trial with that time alone."""
    if spent <= limit:
        return False
    trial.columns |= {**timing.time_columns([spent]), **more}
    reason = f"its first call took {spent:.1f} s, over --cell-seconds {limit:g}: timed by that alone, without a ratio"
    trial.end("timed", reason)
    trial.program = None
    return True


def skip_too_large(need: int, what: str) -> None:
    """Skip a program that needs more memory than there is: see `too_large_reason`."""
    if reason := too_large_reason(need, what):
        raise SkipTrial(reason)


def too_large_reason(need: int, what: str) -> str:
    """Return why a program that needs `need` bytes cannot be tried; "" if it can."""
    available = free_bytes()
    return "" if need <= MEMORY_SHARE * available else f"{what} {format_bytes(need)}, and {format_bytes(available)} are free"
