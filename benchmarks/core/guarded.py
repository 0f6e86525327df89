"""Programs on their way to being timed: what goes wrong with one is its own end, told in a line, and nobody else's."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from benchmarks.core import result_files, timing
from benchmarks.core.free_memory import free

ROOM = 0.9
"""Share of the free memory that a program may need."""


@runtime_checkable
class Trial(Protocol):
    """One program; without a state it is still on its way."""

    key: dict[str, Any]
    columns: dict[str, Any]

    def end(self, state: str, reason: str = "") -> None: ...


class Broken(Exception):
    """A program that ran before and does not any more."""


class Watch:
    """Is told what a process does before it does it: shows it, and notes in the file of results of which cells it may die."""

    def __init__(self, show: Callable[[str], None], writer: result_files.Writer, process: int) -> None:
        self._show, self._writer, self._process = show, writer, process

    def begin(self, message: str, *keys: Mapping[str, Any]) -> None:
        """These cells are worked on from now on, and no others any more."""
        self._writer.begin(keys, self._process)
        self._show(message)

    def died(self, key: Mapping[str, Any]) -> bool:
        """Whether processes died of a cell so often that it is not to be tried again."""
        return self._writer.died(key, self._process)


def guarded(trial: Trial, act: Callable[[Any], None], watch: Watch, message: str) -> None:
    """Do something with a trial, unless processes died of it; an error is its end."""
    if watch.died(trial.key):
        trial.end("failed", result_files.DIED)
        return
    watch.begin(message, trial.key)
    try:
        act(trial)
    except Exception as error:
        trial.end("failed", first_line(error))


def first_line(error: Exception) -> str:
    """An error in a line: its kind, and the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"[:300]


def slow(trial: Trial, spent: float, limit: float, **more: Any) -> bool:
    """Whether a first call of `spent` seconds took more than `most`; then it is what the trial is timed by."""
    if spent <= limit:
        return False
    trial.columns |= {**timing.columns([spent]), **more}
    reason = f"its first call took {spent:.1f} s, over --cell-seconds {limit:g}: timed by that alone, without a ratio"
    trial.end("timed", reason)
    return True


def too_large(need: int, what: str) -> str:
    """Why a program that needs so many bytes is not tried; "" if it can be."""
    available = free()
    return "" if need <= ROOM * available else f"{what} {gigabytes(need)}, and {gigabytes(available)} are free"


def gigabytes(size: int | float) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
