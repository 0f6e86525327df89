"""Progress of work: one line redrawn in place on a terminal, and at most a few lines of plain text elsewhere."""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from zoo.errors import BadInput, printable, printable_lines

BYTES = "bytes"
"""Unit of work whose rate is shown too."""
EVERY = 10.0
"""Seconds between two lines of long work where the output is no terminal."""
WIDE = 110
"""Terminal columns from which a line ends in a bar; on a narrower terminal the text needs the space."""


class LiveLine:
    """A line redrawn in place on a terminal, below lines that stay; elsewhere only the lines that stay are written.

    No thread redraws it, which would take the interpreter from the work at arbitrary times. Nothing is drawn before the first
    `show`. Work continues without its output: after an error of the stream nothing more is written.
    """

    def __init__(
        self, stream: Any = None, *, quiet: bool = False, on_error: Callable[[OSError], None] = lambda error: None
    ) -> None:
        """Write nothing yet.

        Args:
            stream: the output instead of stderr.
            quiet: write nothing at all, as in processes other than the first.
            on_error: called once when the stream cannot be written.
        """
        self._stream, self._quiet, self._on_error = stream or sys.stderr, quiet, on_error
        self._terminal = Terminal(file=self._stream, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        if not quiet and is_animated(self._terminal):
            self._live = Live(console=self._terminal, auto_refresh=False, transient=True)

    @property
    def is_animated(self) -> bool:
        """Return whether `show` draws anything."""
        return self._live is not None

    @property
    def width(self) -> int:
        """Return the number of the terminal's columns."""
        return self._terminal.width

    def show(self, text: str, share: float | None = None) -> None:
        """Draw the line, cut to the terminal's width; on a wide terminal it ends in a bar of the `share` that is done."""
        if self._live is None:
            return
        line = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [words := Text(f" {printable(text)}", no_wrap=True, overflow="ellipsis")]
        if share is not None and self.width >= WIDE:
            bar = Bar(total=1.0, completed=share, width=max(1, min(40, self.width - 2 - words.cell_len)))
            bar.complete_style = bar.finished_style = "cyan"
            cells.append(bar)
        line.add_row(*cells)
        with self._output():
            self._live.update(line)
            # Started here, not earlier: an empty live line would leave a gap above it.
            self._live.start(refresh=False)
            self._live.refresh()

    def print(self, text: str, style: str = "") -> None:
        """Write lines that stay, above the live line; only a terminal shows their `style`."""
        if self._live is not None:
            self.render(Text(printable_lines(text), style=style))
        elif not self._quiet:
            with self._output():
                print(printable_lines(text), file=self._stream, flush=True)

    def render(self, content: RenderableType) -> None:
        """Write content of rich that stays, on a terminal alone."""
        if self._live is not None:
            with self._output():
                self._terminal.print(content, soft_wrap=isinstance(content, Text))

    def clear(self) -> None:
        """Remove the line until the next `show`."""
        if self._live is not None:
            with self._output():
                self._live.stop()

    @contextlib.contextmanager
    def _output(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            live, self._live, self._quiet = self._live, None, True
            self._on_error(error)
            if live is not None:
                with contextlib.suppress(OSError):
                    live.stop()


def is_animated(terminal: Terminal) -> bool:
    """Return whether a line can be redrawn in place."""
    return terminal.file.isatty() and terminal.is_terminal and not terminal.is_dumb_terminal


class PieceProgress:
    """Progress over pieces of work with weights that are known; the time left is estimated from this process's work alone."""

    def __init__(self, weights: float | int, stream: Any = None) -> None:
        """Show nothing yet; `weights` is the sum of all."""
        self._line = LiveLine(stream)
        self._all, self._done, self._began = weights, 0.0, time.monotonic()
        self._piece = ""

    def extend(self, weights: float | int) -> None:
        """Add pieces of work whose weights have this sum."""
        self._all += weights

    def begin(self, piece: str) -> None:
        """Show which piece of work begins."""
        self._piece = piece
        self._line.show(f"[{self._left()}] {piece}")

    def doing(self, what: str) -> None:
        """Show which part of the piece is worked on; on a terminal only."""
        self._line.show(f"[{self._left()}] {self._piece}: {what}")

    def done(self, weight: float | int, outcome: str) -> None:
        """Show the `outcome` of a finished piece."""
        self._done += weight
        self.doing(outcome)
        if not self._line.is_animated:
            self._line.print(printable(f"{self._piece}: {outcome}  [{self._left()}]"))

    def close(self) -> None:
        """Clear the line of progress."""
        self._line.clear()

    def _left(self) -> str:
        share = self._done / self._all if self._all else 1.0
        if not share:
            return "0%"
        return f"{share:.0%}, {format_duration((time.monotonic() - self._began) * (1 / share - 1))} left"


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
        if is_animated(terminal):
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


class Clock:
    """Calls a function with the seconds since it was made, every `interval` seconds, in a thread of its own until `stop`."""

    def __init__(self, show: Callable[[float], None], interval: float) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(show, interval), daemon=True, name="clock")
        self._thread.start()

    def stop(self) -> None:
        """Return when the function is not called any more."""
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self, show: Callable[[float], None], interval: float) -> None:
        start = time.monotonic()
        while not self._ended.wait(interval):
            # The output is lost; the thread that works finds out by itself.
            with contextlib.suppress(BadInput):
                show(time.monotonic() - start)


def short_number(number: float | int) -> str:
    """Return a count in at most five characters: 950, 12.3k, 4.56M, 175B."""
    for unit, scale in (("", 1), ("k", 1e3), ("M", 1e6), ("B", 1e9)):
        if abs(number) < 999.5 * scale or unit == "B":
            break
    scaled = number / scale
    return f"{scaled:.0f}{unit}" if unit == "" or abs(scaled) >= 99.95 else f"{scaled:.{1 if abs(scaled) >= 9.995 else 2}f}{unit}"


def format_duration(seconds: float | int) -> str:
    """Return a duration as m:ss, h:mm:ss or, from two days on, in days."""
    total = max(0, round(seconds))
    if total >= 48 * 3600:
        return f"{total / 86400:.1f} days"
    minutes, hours = total // 60 % 60, total // 3600
    return f"{hours}:{minutes:02}:{total % 60:02}" if hours else f"{minutes}:{total % 60:02}"
