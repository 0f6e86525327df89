"""The progress of a run in the terminal: a header, one live line, notices above it, a last line."""

import math
import sys
import time
from collections.abc import Mapping
from typing import IO, Any

from rich.table import Table
from rich.text import Text

from train.run import metric_definitions
from train.run.metric_definitions import METRICS
from train.run.metrics_file import row_line
from train.run.progress_display import Clock, LiveLine, format_duration, short_number
from zoo.errors import BadInput, printable, printable_lines, write_remedy
from zoo.runtime import stdio
from zoo.runtime.progress import this_process

REDRAW = 0.2
"""Seconds between two redraws of the live line, so that drawing costs far less than a step."""

TICK, LINE = 1.0, 10.0
"""Seconds between two displays of the time that a slow activity has taken: on a terminal, and as lines of text elsewhere."""


class Console:
    """Progress of a run of `steps` steps, written by process 0; the other processes call the same methods and print nothing.

    On a terminal one line is redrawn in place. Elsewhere (a pipe, a log file, a dumb terminal) each row of metrics is a line of
    plain text. Use it as a context manager: leaving it, also by an error, restores the terminal.

    A run continues when its output fails: if the reader exits (`| head`), the terminal is closed or the disk is full, a line on
    stderr says so, nothing more is written, and training continues. An output that cannot be written before the first line is an
    error, except a reader that has exited.
    """

    def __init__(
        self, *, steps: int, process: int = 0, selected: str = "", stream: IO[str] | None = None, as_json: bool = False
    ) -> None:
        """Show nothing yet.

        Args:
            selected: the metric that the run selects its best checkpoint by, which is the one that is shown; "" = the main one.
            stream: the output; None = stdout, or stderr with `as_json`.
            as_json: write the rows to stdout, as metrics.jsonl has them, and everything else to stderr.
        """
        self._stream = stream or (sys.stderr if as_json else sys.stdout)
        self._rows = sys.stdout if as_json and process == 0 else None
        self._quiet = process != 0
        self._line = LiveLine(self._stream, quiet=self._quiet, on_error=self._lose_output)
        self._written = False
        self._steps, self._selected = steps, selected
        self._step = 0
        self._doing = self._spent = ""
        self._clock: Clock | None = None
        self._train: Mapping[str, Any] | None = None
        self._valid: Mapping[str, Any] | None = None
        self._first: tuple[int, float] | None = None
        self._drawn = 0.0

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *_: object) -> None:
        self._end_activity()
        self._line.clear()

    def header(self, title: str, facts: Mapping[str, str]) -> None:
        """Print the run's name and its facts, aligned, one per line; a long fact continues on the next lines of its column."""
        width = max(map(len, facts), default=0)
        if not self._line.is_animated:
            return self._print("\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in facts.items())]))
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in facts.items():
            grid.add_row(Text(f"  {name}"), Text(printable_lines(value)))
        self._print(printable(title), "bold")
        self._line.render(grid)

    def doing(self, activity: str) -> None:
        """Show the slow activity before or between steps ("compiling the step"), a phase, and the time that it has taken.

        The next row or step replaces it.
        """
        this_process.begin(activity)
        self._end_activity()
        self._doing = activity
        if not self._line.is_animated:
            self._print(f"{activity} ...")
        self._draw(now=True)
        if not self._quiet:
            self._clock = Clock(self._show_time, TICK if self._line.is_animated else LINE)

    def progress(self, activity: str, *, now: bool = False) -> None:
        """Show how far a slow activity is, on a terminal alone; cheap enough for every batch, unless it is drawn `now`."""
        self._doing = activity
        self._draw(now=now)

    def clear(self) -> None:
        """Remove the live line until the next call, for another progress display."""
        self._line.clear()

    def step(self, step: int) -> None:
        """Record that `step` steps have been taken; cheap enough for every step."""
        this_process.step(step)
        self._end_activity()
        self._step = step
        self._draw()

    def row(self, row: Mapping[str, Any]) -> None:
        """Show a row of metrics, as made by `train_row` and `valid_row` of train.run.metrics_file."""
        self._end_activity()
        self._write_json(row)
        self._step = row["step"]
        if row["kind"] == "valid":
            self._valid = row
        else:
            self._train = row
            self._first = self._first or (row["step"], time.perf_counter())
        if not self._line.is_animated:
            parts = self._parts() if row["kind"] == "train" else [self._counter(), self._validation(row)]
            self._print("  ".join(parts))
        self._draw()

    def notice(self, text: str) -> None:
        """Print a line that the user must not miss, above the live line."""
        self._print(f"! {text}", "bold yellow")

    def sample(self, text: str) -> None:
        """Print a line of text that the model wrote, above the live line."""
        self._print(f"  {text}", "dim")

    def finish(self, text: str) -> None:
        """Clear the live line and print the run's last line."""
        self._end_activity()
        self._line.clear()
        self._print(text, "bold")

    def _show_time(self, seconds: float) -> None:
        self._spent = f" {format_duration(seconds)}"
        if not self._line.is_animated:
            self._print(f"{self._doing} ...{self._spent}")
        self._draw(now=True)

    def _end_activity(self) -> None:
        if self._clock is not None:
            self._clock.stop()
        self._clock, self._doing, self._spent = None, "", ""

    def _print(self, text: str, style: str = "") -> None:
        self._line.print(text, style)
        self._written = True

    def _write_json(self, row: Mapping[str, Any]) -> None:
        if self._rows is None:
            return
        # Both streams may be the same terminal.
        self._line.clear()
        try:
            self._rows.write(row_line(row))
            self._rows.flush()
        except OSError as error:
            stream, self._rows = self._rows, None
            self._lose(stream, "standard output", error)

    def _lose_output(self, error: OSError) -> None:
        self._quiet = True
        self._lose(self._stream, "standard error" if self._stream is sys.stderr else "standard output", error)

    def _lose(self, stream: IO[str], name: str, error: OSError) -> None:
        stdio.discard_output(stream)
        if not self._written and not isinstance(error, BrokenPipeError):
            raise BadInput(f"{name} cannot be written ({error.strerror}); {write_remedy(error)}") from None
        stdio.write_error(f"{name} is lost ({error.strerror}); the run continues without it")

    def _draw(self, now: bool = False) -> None:
        if not self._line.is_animated or not (now or time.perf_counter() - self._drawn >= REDRAW):
            return
        self._drawn = time.perf_counter()
        parts = [f"{self._doing} ...{self._spent}"] if self._doing else self._parts()
        # Columns that do not fit are dropped from the right: a line that wraps could not be redrawn in place.
        while len(parts) > 1 and len("  ".join(parts)) + 2 > self._line.width:
            parts.pop()
        self._line.show("  ".join(parts), None if self._doing else self._step / self._steps)

    def _validation(self, row: Mapping[str, Any]) -> str:
        return f"valid {metric_definitions.score_summary(row, 1, self._selected)}"

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
        if self._valid and self._line.is_animated:
            parts.append(self._validation(self._valid))
        if self._train:
            rate, share = self._train["time"]["tokens_per_s"], self._train["time"]["mfu"]
            # Neither is known in a row whose only step was the one that was compiled.
            parts += [f"{short_number(rate)} tok/s"] if math.isfinite(rate) else []
            parts += [f"MFU {share:.0%}"] if share is not None and math.isfinite(share) else []
        return parts
