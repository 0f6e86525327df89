"""What a person sees of work on many bytes: one line with the rate and the time left."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from train.run.console import clock, short

EVERY = 10.0
"""Seconds between two lines where there is no terminal."""


@contextlib.contextmanager
def shown(what: str, stream: Any = None) -> Iterator[Callable[[int, int], None]]:
    """`with shown("tokenizing") as progress: ...` gives a function to call with (bytes done, bytes in all).

    A terminal shows one line, redrawn in place and gone in the end. Elsewhere there is a line of plain text every ten seconds.
    What the first call says is done counts as done before: rate and time left are of the work since. One work may follow another:
    a call with another total, or with less done, is the first of the next.
    """
    out = stream or sys.stderr
    terminal = Terminal(file=out)
    if not terminal.is_terminal or terminal.is_dumb_terminal:
        yield _Plain(what, out)
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=terminal, transient=True)
    task = bar.add_task(what, total=None)

    def update(done: int, total: int) -> None:
        # Started late: nothing is shown of work that was done before.
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        bar.stop()


class _Plain:
    def __init__(self, what: str, stream: Any) -> None:
        self._what, self._stream = what, stream
        self._first: tuple[int, float] = (0, 0.0)
        self._done, self._total = 0, -1
        self._said = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if total != self._total or done < self._done:
            # The first call of this work; an earlier one of the same line is over.
            self._first, self._said = (done, now), now
        self._done, self._total = done, total
        if now - self._said < EVERY or done == self._first[0]:
            return
        self._said = now
        rate = (done - self._first[0]) / (now - self._first[1])
        left = clock((total - done) / rate)
        # `zoo train 2>&1 | head` closes this stream too, and the work goes on.
        with contextlib.suppress(OSError):
            print(
                f"{self._what}: {done / total:.0%} of {short(total)}B, {rate / 1e6:.2f} MB/s, {left} left",
                file=self._stream,
                flush=True,
            )
