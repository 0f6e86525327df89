"""Reports of a save that takes long. They come from a thread of their own, since all others may be waiting for the save."""

import threading
import time
from collections.abc import Callable

PERIOD = 60.0
"""Seconds after which a save is reported, and between two reports of the same save."""


class SlowSaveReports:
    """A thread that reports a save which has taken `PERIOD` seconds, and then once in each period until the save ends."""

    def __init__(self, report: Callable[[int, float], None]) -> None:
        """Start the thread, which calls `report` with the step that is saved and the seconds since the save began."""
        self._report = report
        self._changed = threading.Condition()
        self._step: int | None = None
        self._began = self._due = 0.0
        self._closed = False
        # It is started now: at a save there may be no memory for a thread.
        self._thread = threading.Thread(target=self._watch, daemon=True, name="slow saves")
        self._thread.start()

    def begin(self, step: int) -> None:
        """Record that the save of a step begins."""
        with self._changed:
            self._step, self._began = step, time.monotonic()
            self._due = self._began + PERIOD
            self._changed.notify()

    def end(self, step: int) -> None:
        """Record that the save of a step has ended; it may be called after the next one has begun."""
        with self._changed:
            if self._step == step:
                self._step = None

    def close(self) -> None:
        """End the thread, without waiting for a report that the terminal does not accept."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                if self._step is None or now < self._due:
                    self._changed.wait(None if self._step is None else self._due - now)
                    continue
                step, seconds, self._due = self._step, now - self._began, now + PERIOD
            self._report(step, seconds)
