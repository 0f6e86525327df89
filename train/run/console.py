"""The progress of a run in the terminal: a header, one live line, notices above it, a last line."""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from rich.console import Console as Terminal
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from train.run import metric_definitions
from train.run.metric_definitions import METRICS
from zoo.errors import BadInput, printable, printable_lines, remedy
from zoo.runtime import stdio
from zoo.runtime.progress import this_process

REDRAW = 0.2
"""Seconds between two redraws of the live line, so that drawing costs far less than a step."""

TICK, LINE = 1.0, 10.0
"""Seconds between two displays of the time that a slow activity has taken: on a terminal, and as lines of text elsewhere."""

WIDE = 110
"""Terminal columns from which the live line ends in a bar; on a narrower terminal the numbers need the space."""


class Console:
    """Progress of a run of `steps` steps, written by process 0; the other processes call the same methods and print nothing.

    On a terminal one line is redrawn in place. Elsewhere (a pipe, a log file, a dumb terminal) each row of metrics is a line of
    plain text. Use it as a context manager: leaving it, also by an error, restores the terminal.

    A run continues when its output fails: if the reader exits (`| head`), the terminal is closed or the disk is full, a line on
    stderr says so, nothing more is written, and training continues. Only a disk that is full before the first line is an error.
    """

    def __init__(self, *, steps: int, process: int = 0, selected: str = "", stream: IO[str] | None = None) -> None:
        """Show nothing yet.

        Args:
            selected: the metric that the run selects its best checkpoint by, which is the one that is shown; "" = the main one.
        """
        self._stream = stream or sys.stdout
        self._terminal = Terminal(file=self._stream, highlight=False, markup=False, emoji=False)
        self._quiet = process != 0
        self._written = False
        self._steps, self._selected = steps, selected
        self._step = 0
        self._doing = self._spent = ""
        self._clock: Clock | None = None
        self._train: Mapping[str, Any] | None = None
        self._valid: Mapping[str, Any] | None = None
        self._first: tuple[int, float] | None = None
        self._drawn = 0.0
        self._live: Live | None = None
        animated = self._stream.isatty() and self._terminal.is_terminal and not self._terminal.is_dumb_terminal
        if animated and not self._quiet:
            # No refresh thread: it would take the interpreter from the training loop at arbitrary times.
            self._live = Live(console=self._terminal, auto_refresh=False, transient=True)

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *_: object) -> None:
        self._end_activity()
        if self._live:
            with self._output():
                self._live.stop()

    def header(self, title: str, facts: Mapping[str, str]) -> None:
        """Print the run's name and its facts, aligned, one per line; a long fact continues on the next lines of its column."""
        if self._quiet:
            return
        width = max(map(len, facts), default=0)
        if not self._live:
            self._plain("\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in facts.items())]))
            return
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in facts.items():
            grid.add_row(Text(f"  {name}"), Text(printable_lines(value)))
        with self._output():
            self._terminal.print(Text(printable(title), style="bold"))
            self._terminal.print(grid)

    def doing(self, activity: str) -> None:
        """Show the slow activity before or between steps ("compiling the step"), a phase, and the time that it has taken.

        The next row or step replaces it.
        """
        this_process.begin(activity)
        self._end_activity()
        self._doing = activity
        if not self._live:
            self._plain(f"{activity} ...")
        self._draw(now=True)
        if not self._quiet:
            self._clock = Clock(self._show_time, TICK if self._live else LINE)

    def progress(self, activity: str, *, now: bool = False) -> None:
        """Show how far a slow activity is, on a terminal alone; cheap enough for every batch, unless it is drawn `now`."""
        self._doing = activity
        self._draw(now=now)

    def clear(self) -> None:
        """Remove the live line until the next call, for another progress display."""
        if self._live:
            with self._output():
                self._live.stop()

    def step(self, step: int) -> None:
        """Record that `step` steps have been taken; cheap enough for every step."""
        this_process.step(step)
        self._end_activity()
        self._step = step
        self._draw()

    def row(self, row: Mapping[str, Any]) -> None:
        """Show a row of metrics, as made by `train_row` and `valid_row` of train.run.metrics_file."""
        self._end_activity()
        self._step = row["step"]
        if row["kind"] == "valid":
            self._valid = row
        else:
            self._train = row
            self._first = self._first or (row["step"], time.perf_counter())
        if not self._live:
            parts = self._parts() if row["kind"] == "train" else [self._counter(), self._validation(row)]
            self._plain("  ".join(parts))
        self._draw()

    def notice(self, text: str) -> None:
        """Print a line that the user must not miss, above the live line."""
        if self._live:
            with self._output():
                self._terminal.print(Text(f"! {printable_lines(text)}", style="bold yellow"), soft_wrap=True)
        elif not self._quiet:
            self._plain(f"! {text}")

    def sample(self, text: str) -> None:
        """Print a line of text that the model wrote, above the live line."""
        if self._live:
            with self._output():
                self._terminal.print(Text(f"  {printable_lines(text)}", style="dim"), soft_wrap=True)
        elif not self._quiet:
            self._plain(f"  {text}")

    def finish(self, text: str) -> None:
        """Clear the live line and print the run's last line."""
        self._end_activity()
        if self._live:
            with self._output():
                self._live.stop()
                self._terminal.print(Text(printable_lines(text), style="bold"), soft_wrap=True)
            self._live = None
        else:
            self._plain(text)

    def _show_time(self, seconds: float) -> None:
        self._spent = f" {format_duration(seconds)}"
        if not self._live:
            self._plain(f"{self._doing} ...{self._spent}")
        self._draw(now=True)

    def _end_activity(self) -> None:
        if self._clock is not None:
            self._clock.stop()
        self._clock, self._doing, self._spent = None, "", ""

    def _plain(self, text: str) -> None:
        if not self._quiet:
            with self._output():
                print(printable_lines(text), file=self._stream, flush=True)

    @contextlib.contextmanager
    def _output(self) -> Iterator[None]:
        """Run the block that writes; once one fails, write nothing any more."""
        try:
            yield
        except OSError as error:
            live, self._live, self._quiet = self._live, None, True
            stdio.discard(self._stream)
            if live:
                live.stop()
            if not self._written and not isinstance(error, BrokenPipeError):
                raise BadInput(f"standard output cannot be written ({error.strerror}); {remedy(error)}") from None
            stdio.write_error(f"standard output is lost ({error.strerror}); the run continues without it")
        self._written = True

    def _draw(self, now: bool = False) -> None:
        if not self._live or not (now or time.perf_counter() - self._drawn >= REDRAW):
            return
        self._drawn = time.perf_counter()
        width = self._terminal.width
        parts = [f"{self._doing} ...{self._spent}"] if self._doing else self._parts()
        # Columns that do not fit are dropped from the right: a line that wraps could not be redrawn in place.
        while len(parts) > 1 and len("  ".join(parts)) + 2 > width:
            parts.pop()
        line = Table.grid(padding=(0, 1))
        cells = [Text(f" {'  '.join(parts)}", no_wrap=True, overflow="ellipsis")]
        if width >= WIDE and not self._doing:
            bar = ProgressBar(total=self._steps, completed=self._step, width=min(40, width - 2 - cells[0].cell_len))
            bar.complete_style = bar.finished_style = "cyan"
            line.add_row(*cells, bar)
        else:
            line.add_row(*cells)
        with self._output():
            self._live.update(line)
            # Started here, not earlier: an empty live line would leave a gap in the header.
            self._live.start(refresh=False)
            self._live.refresh()

    def _validation(self, row: Mapping[str, Any]) -> str:
        return f"valid {metric_definitions.summary(row, 1, self._selected)}"

    def _counter(self) -> str:
        return f"{self._step:>{len(str(self._steps))}}/{self._steps}"

    def _parts(self) -> list[str]:
        """Return the columns of the line, the most important first; values that are not known yet are left out."""
        parts = [self._counter()]
        if self._first and self._step > self._first[0]:
            step, at = self._first
            parts.append(f"ETA {format_duration((time.perf_counter() - at) / (self._step - step) * (self._steps - self._step))}")
        if self._train:
            # The loss of a policy is not informative: at the start of a rollout it is 0 for any rewards.
            rollout = self._train.get("rollout", {})
            numbers = [f"{METRICS[name].label} {rollout[name]:.3f}" for name in ("reward", "kl") if name in rollout]
            parts += numbers or [f"loss {self._train['loss']:.3f}"]
        if self._valid and self._live:
            parts.append(self._validation(self._valid))
        if self._train:
            rate, share = self._train["time"]["tokens_per_s"], self._train["time"]["mfu"]
            # Neither is known in a row whose only step was the one that was compiled.
            parts += [f"{short_number(rate)} tok/s"] if math.isfinite(rate) else []
            parts += [f"MFU {share:.0%}"] if share is not None and math.isfinite(share) else []
        return parts


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
