"""The types of the campaign: a row, what it is given, and its outcome."""

import collections
import contextlib
import dataclasses
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MOST_FAILURES = 10
"""Failures whose text is stored."""


class CannotRun(Exception):
    """Raised by a row for which this machine lacks something; the message says what."""


@dataclasses.dataclass
class Outcome:
    """The trials of a row; threads may add to it."""

    count: int = 0
    failed: int = 0
    parts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Kind of trial -> number of trials."""
    failures: list[str] = dataclasses.field(default_factory=list)
    measured: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """Quantity, with its unit -> value of each trial."""
    notes: list[str] = dataclasses.field(default_factory=list)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def add(self, part: str, number: int = 1) -> None:
        """Count trials of a kind."""
        with self._lock:
            self.count += number
            self.parts[part] += number

    def fail(self, text: str) -> None:
        """Count a failure."""
        with self._lock:
            self.failed += 1
            if len(self.failures) < MOST_FAILURES:
                self.failures.append(text[:2000])

    def measure(self, name: str, value: float) -> None:
        """Store the value of a trial."""
        with self._lock:
            self.measured.setdefault(name, []).append(round(value, 3))

    @contextlib.contextmanager
    def check(self, text: str) -> Iterator[None]:
        """Count a block that raises an exception as a failure, described by `text`."""
        try:
            yield
        except Exception as error:
            # An assertion has no text of its own outside of pytest.
            line = traceback.extract_tb(error.__traceback__)[-1].line
            self.fail(f"{text}: {type(error).__name__}: {error}: {line}")


@dataclasses.dataclass(frozen=True)
class Task:
    """What a row is given."""

    goal: int
    seed: int
    deadline: float
    """Time of `time.monotonic` from which no trial begins."""
    folder: Path
    """An empty folder."""
    jobs: int
    """Number of trials at the same time, where time is not measured."""

    def more(self, outcome: Outcome) -> bool:
        """Return whether another trial begins: there is at least one."""
        return outcome.count == 0 or (outcome.count < self.goal and time.monotonic() < self.deadline)

    def seconds(self) -> float:
        """Return the time that is left."""
        return max(0.0, self.deadline - time.monotonic())

    def random(self, name: object = "") -> random.Random:
        """Return a generator that depends on the campaign's seed and on a name alone."""
        return random.Random(f"{self.seed} {name}")


@dataclasses.dataclass(frozen=True)
class Row:
    """A fault, and the number of trials that the full campaign makes."""

    name: str
    matrix: tuple[int, ...]
    """Numbers in the fault matrix."""
    goal: int
    expected: str
    """What must be true of each trial."""
    share: int
    """Part of the time, relative to those of the other rows."""
    run: Callable[[Task, Outcome], None]


def verdict(record: dict[str, Any]) -> str:
    """Return the verdict on the record of a row: passed, passed with fewer trials than the goal, failed, or not run."""
    if record["reason"]:
        return "not run"
    if record["failed"]:
        return "failed"
    return "passed" if record["count"] >= record["goal"] else "passed, fewer trials"
