"""Progress of a grid on stderr: what runs, what is left, and when it will end."""

import contextlib
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from eval.experiments import node_status
from eval.experiments.grid import Grid, Node
from train.run.console import format_duration
from zoo.errors import printable


class RunProgress:
    """The progress of a grid: a line that is redrawn on a terminal, elsewhere a line when a node begins and ends."""

    def __init__(self, grid: Grid, folder: Path, stream: Any = None) -> None:
        self._grid, self._folder, self._stream = grid, folder, stream or sys.stderr
        self._bar: Progress | None = None
        self._task: Any = None
        self._began = time.monotonic()
        self._seconds = {
            node.name: seconds for node in grid.nodes if (seconds := node_status.seconds_of(node, folder)) is not None
        }
        """Seconds that finished nodes took."""

    def __enter__(self) -> "RunProgress":
        console = Console(file=self._stream)
        if self._stream.isatty() and console.is_terminal and not console.is_dumb_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(20),
                TextColumn("{task.fields[left]}", markup=False),
            )
            self._bar = Progress(*columns, console=console, transient=True, redirect_stdout=False)
            self._task = self._bar.add_task(self._grid.experiment.name, total=len(self._grid.nodes), left="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def started(self, node: Node) -> None:
        """Show that a node begins."""
        self._began = time.monotonic()
        if self._bar is None:
            done = self._done()
            self._print(f"{node.name} begins; {done} of {len(self._grid.nodes)} done{self._left(0.0)}")
        self.update(node)

    def update(self, node: Node) -> None:
        """Show how far the running node is."""
        if self._bar is not None:
            share = 0.0 if node.task else min(1.0, node_status.steps_taken(node, self._folder) / node.config.steps)
            step = "" if node.task else f" step {node_status.steps_taken(node, self._folder):,} of {node.config.steps:,}"
            done = self._done()
            left = f"{done} of {len(self._grid.nodes)}{self._left(time.monotonic() - self._began)}"
            self._bar.update(self._task, description=f"{node.name}{step}", completed=done + share, left=left)

    def waiting(self, node: Node, reason: str) -> None:
        """Show that a node waits for a lock."""
        if self._bar is not None:
            self._bar.update(self._task, description=printable(f"{node.name} waits: {reason}"))
        else:
            self._print(f"{node.name} waits: {reason}")

    def ended(self, node: Node, done: bool, message: str) -> None:
        """Show how a node ended, and take its time into account."""
        seconds = time.monotonic() - self._began
        if done:
            self._seconds[node.name] = seconds
        line = f"{node.name} {'done' if done else 'FAILED'} in {format_duration(seconds)}: {message}"
        if self._bar is not None:
            self._bar.console.print(printable(line), markup=False, highlight=False)
        else:
            self._print(line)

    def seconds_left(self, spent: float = 0.0) -> float | None:
        """Return the estimated seconds until the end; None before a node has finished.

        A node takes as long as the finished ones of its stage, or as long per token as all finished training runs.

        Args:
            spent: seconds since the running node began.
        """
        by_name = {node.name: node for node in self._grid.nodes}
        finished = [(by_name[name], seconds) for name, seconds in self._seconds.items()]
        rates = [seconds / _tokens(node) for node, seconds in finished if not node.task and node.config.steps > 1]
        total = -spent
        for node in self._grid.nodes:
            if node.name in self._seconds or node_status.is_done(node, self._folder):
                continue
            if same_stage := [seconds for other, seconds in finished if (other.stage, other.task) == (node.stage, node.task)]:
                total += statistics.mean(same_stage)
            elif node.task:
                total += node.seconds
            elif rates:
                total += statistics.mean(rates) * _tokens(node)
            else:
                return None
        return max(0.0, total)

    def _left(self, spent: float) -> str:
        seconds = self.seconds_left(spent)
        return "" if seconds is None else f", {format_duration(seconds)} left"

    def _done(self) -> int:
        return sum(node_status.is_done(node, self._folder) for node in self._grid.nodes)

    def _print(self, line: str) -> None:
        # The work continues when the reader has closed the stream.
        with contextlib.suppress(OSError):
            print(printable(line), file=self._stream, flush=True)


def _tokens(node: Node) -> int:
    return node.config.steps * node.config.data.batch * node.config.data.length
