"""Progress of a grid on stderr: what runs, what is left, and when it will end."""

import statistics
import time
from pathlib import Path
from typing import Any

from eval.experiments import node_status
from eval.experiments.grid import Grid, Node
from train.run.progress_display import LiveLine, format_duration
from zoo.errors import printable


class RunProgress:
    """The progress of a grid: a line that is redrawn on a terminal, elsewhere a line when a node begins and ends."""

    def __init__(self, grid: Grid, folder: Path, stream: Any = None) -> None:
        self._grid, self._folder = grid, folder
        self._line = LiveLine(stream)
        self._began = time.monotonic()
        self._seconds = {
            node.name: seconds for node in grid.nodes if (seconds := node_status.seconds_of(node, folder)) is not None
        }
        """Seconds that finished nodes took."""

    def __enter__(self) -> "RunProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._line.clear()

    def started(self, node: Node) -> None:
        """Show that a node begins."""
        self._began = time.monotonic()
        if not self._line.is_animated:
            self._line.print(f"{node.name} begins; {self._done()} of {len(self._grid.nodes)} done{self._left(0.0)}")
        self.update(node)

    def update(self, node: Node) -> None:
        """Show how far the running node is."""
        if not self._line.is_animated:
            return
        step, share = "", 0.0
        if not node.task:
            steps = node_status.steps_taken(node, self._folder)
            step, share = f" step {steps:,} of {node.config.steps:,}", min(1.0, steps / node.config.steps)
        done, count = self._done(), len(self._grid.nodes)
        left = self._left(time.monotonic() - self._began)
        self._line.show(f"{node.name}{step}  {done} of {count}{left}", (done + share) / count)

    def waiting(self, node: Node, reason: str) -> None:
        """Show that a node waits for a lock."""
        text = printable(f"{node.name} waits: {reason}")
        self._line.show(text)
        if not self._line.is_animated:
            self._line.print(text)

    def ended(self, node: Node, done: bool, message: str) -> None:
        """Show how a node ended, and take its time into account."""
        seconds = time.monotonic() - self._began
        if done:
            self._seconds[node.name] = seconds
        self._line.print(printable(f"{node.name} {'done' if done else 'FAILED'} in {format_duration(seconds)}: {message}"))

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


def _tokens(node: Node) -> int:
    return node.config.steps * node.config.data.batch * node.config.data.length
