"""Progress of work, on stderr: one line redrawn in place on a terminal, and at most a few lines of plain text elsewhere."""

import contextlib
import math
import sys
import time
from typing import Any

from rich.console import Console as Terminal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from train.run.console import Clock, format_duration, short_number

BYTES = "bytes"
"""Unit of work whose rate is shown too."""
EVERY = 10.0
"""Seconds between two lines of long work where the output is no terminal."""


class ProgressBar:
    """The progress of an activity, within `with ProgressBar("scoring", "batches") as progress:`; call `progress(done, total)`.

    A terminal shows one line, removed at the end. Elsewhere nothing is written, unless `announce` or `every` asks for it.
    Several jobs may follow each other: a call with another total, or with less done, is the first of the next job.
    """

    def __init__(
        self,
        activity: str,
        unit: str = "",
        *,
        before: str = "",
        late: bool = False,
        announce: bool = False,
        every: float = math.inf,
        timed: bool = False,
        quiet: bool = False,
        stream: Any = None,
    ) -> None:
        """Describe the work; nothing is shown before the block is entered.

        Args:
            unit: name of the counted things, in the plural; for `BYTES` the rate is shown.
            before: activity until the first part of the work is done, such as "compiling".
            late: show the line at the first call, so that work that was already done shows nothing.
            announce: where the output is no terminal, write "`activity` ..." at the beginning.
            every: where the output is no terminal, seconds between two lines with the share, the rate and the time left of
                bytes. The rate does not include the bytes that were done before the first call.
            timed: also show the time since the beginning, as a line every `EVERY` seconds where the output is no terminal.
            quiet: show nothing at all, as in processes other than the first.
            stream: the output instead of stderr.
        """
        self._activity, self._unit, self._before, self._late = activity, unit, before, late
        self._announce, self._every, self._timed, self._quiet = announce, every, timed, quiet
        self._clock: Clock | None = None
        self._stream = stream or sys.stderr
        self._bar: Progress | None = None
        self._task: Any = None
        self._first: tuple[int, float] = (0, 0.0)
        self._done, self._total, self._printed = 0, -1, 0.0

    def __enter__(self) -> "ProgressBar":
        if self._quiet:
            return self
        terminal = Terminal(file=self._stream)
        if self._stream.isatty() and terminal.is_terminal and not terminal.is_dumb_terminal:
            count = (DownloadColumn(), TransferSpeedColumn()) if self._unit == BYTES else (TextColumn("{task.fields[count]}"),)
            left = TimeElapsedColumn() if self._timed else TimeRemainingColumn()
            columns = TextColumn("{task.description}", markup=False), BarColumn(20), *count, left
            # Results are written to stdout, which the line on stderr must not redirect.
            self._bar = Progress(*columns, console=terminal, transient=True, redirect_stdout=False)
            description = f"{self._activity} ({self._before})" if self._before else self._activity
            self._task = self._bar.add_task(description, total=None, count="")
            if not self._late:
                self._bar.start()
        else:
            if self._announce:
                self._print(f"{self._activity} ...")
            if self._timed:
                self._clock = Clock(lambda seconds: self._print(f"{self._activity} ... {format_duration(seconds)}"), EVERY)
        return self

    def __exit__(self, *_: object) -> None:
        if self._clock is not None:
            self._clock.stop()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, done: int, total: int | None) -> None:
        """Show how much is done. A total of None means that the total is unknown."""
        if self._bar is not None:
            count = f"{done:,}{f' of {total:,}' if total is not None else ''} {self._unit}".rstrip() if done else ""
            description = self._activity if done or not self._before else f"{self._activity} ({self._before})"
            self._bar.start()
            self._bar.update(self._task, description=description, completed=done, total=total, count=count)
        elif total is not None and math.isfinite(self._every) and not self._quiet:
            self._print_share(done, total)

    def _print_share(self, done: int, total: int) -> None:
        now = time.monotonic()
        if total != self._total or done < self._done:
            # The first call of a new job; the previous one is finished.
            self._first, self._printed = (done, now), now
        self._done, self._total = done, total
        if now - self._printed < self._every or done == self._first[0]:
            return
        self._printed = now
        rate = (done - self._first[0]) / (now - self._first[1])
        left = format_duration((total - done) / rate)
        self._print(f"{self._activity}: {done / total:.0%} of {short_number(total)}B, {rate / 1e6:.2f} MB/s, {left} left")

    def _print(self, line: str) -> None:
        # `zoo train 2>&1 | head` closes this stream too, and the work continues.
        with contextlib.suppress(OSError):
            print(line, file=self._stream, flush=True)
