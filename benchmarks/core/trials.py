"""Guarded preparation of programs to be timed: an error in one is reported in one line and does not affect the others."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from benchmarks.core import result_files, timing
from benchmarks.core.free_memory import free

MEMORY_SHARE = 0.9
"""Largest share of the free memory that a program may need."""


@runtime_checkable
class Trial(Protocol):
    """One program to be timed; it has no state until it is timed, skipped, wrong or failed."""

    key: dict[str, Any]
    columns: dict[str, Any]

    def end(self, state: str, reason: str = "") -> None: ...


class RepeatFailure(Exception):
    """A program ran before and fails when it is repeated."""


class Watch:
    """Shows what a process is about to do, and records in the result file which cells it may die of."""

    def __init__(self, show: Callable[[str], None], writer: result_files.Writer, process: int) -> None:
        self._show, self._writer, self._process = show, writer, process

    def begin(self, message: str, *keys: Mapping[str, Any]) -> None:
        """Record that these cells, and no others, are worked on from now on."""
        self._writer.begin(keys, self._process)
        self._show(message)

    def died(self, key: Mapping[str, Any]) -> bool:
        """Return whether processes died of a cell so often that it must not be tried again."""
        return self._writer.died(key, self._process)


def run_guarded(trial: Trial, act: Callable[[Any], None], watch: Watch, message: str) -> None:
    """Call `act` on a trial, unless earlier processes died of it; an error ends the trial as failed."""
    if watch.died(trial.key):
        trial.end("failed", result_files.DIED)
        return
    watch.begin(message, trial.key)
    try:
        act(trial)
    except Exception as error:
        trial.end("failed", first_line(error))


def first_line(error: Exception) -> str:
    """Return an error in one line: its type and its first line that is not blank."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"[:300]


def end_if_slow(trial: Trial, spent: float, limit: float, **more: Any) -> bool:
    """Return whether a first call of `spent` seconds took more than `limit`; if so, end the trial with that time alone."""
    if spent <= limit:
        return False
    trial.columns |= {**timing.columns([spent]), **more}
    reason = f"its first call took {spent:.1f} s, over --cell-seconds {limit:g}: timed by that alone, without a ratio"
    trial.end("timed", reason)
    return True


def too_large_reason(need: int, what: str) -> str:
    """Return why a program that needs `need` bytes cannot be tried; "" if it can."""
    available = free()
    return "" if need <= MEMORY_SHARE * available else f"{what} {gigabytes(need)}, and {gigabytes(available)} are free"


def gigabytes(size: int | float) -> str:
    """Return a number of bytes in GB or MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
