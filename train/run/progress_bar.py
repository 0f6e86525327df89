"""Progress of work on many bytes: one line with the rate and the time left."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from train.run.console import clock, short

EVERY = 10.0
"""Seconds between two lines where the output is no terminal."""


@contextlib.contextmanager
def shown(activity: str, stream: Any = None) -> Iterator[Callable[[int, int], None]]:
    """Show progress within `with shown("tokenizing") as progress: ...`; call `progress(bytes done, total bytes)`.

    A terminal shows one line, redrawn in place and removed at the end. Elsewhere there is a line of plain text every ten seconds.
    Bytes done at the first call count as done before: the rate and the time left are of the work since then. Several jobs may
    follow each other: a call with another total, or with fewer bytes done, is the first of the next job.
    """
    output = stream or sys.stderr
    terminal = Terminal(file=output)
    if not terminal.is_terminal or terminal.is_dumb_terminal:
        yield _PlainText(activity, output)
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=terminal, transient=True)
    task = bar.add_task(activity, total=None)

    def update(done: int, total: int) -> None:
        # Started late, so that nothing is shown if the work was already done.
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        bar.stop()


class _PlainText:
    """Progress as lines of plain text."""

    def __init__(self, activity: str, stream: Any) -> None:
        self._activity, self._stream = activity, stream
        self._first: tuple[int, float] = (0, 0.0)
        self._done, self._total = 0, -1
        self._printed = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if total != self._total or done < self._done:
            # The first call of a new job; the previous one is finished.
            self._first, self._printed = (done, now), now
        self._done, self._total = done, total
        if now - self._printed < EVERY or done == self._first[0]:
            return
        self._printed = now
        rate = (done - self._first[0]) / (now - self._first[1])
        left = clock((total - done) / rate)
        # `zoo train 2>&1 | head` closes this stream too, and the work continues.
        with contextlib.suppress(OSError):
            print(
                f"{self._activity}: {done / total:.0%} of {short(total)}B, {rate / 1e6:.2f} MB/s, {left} left",
                file=self._stream,
                flush=True,
            )
