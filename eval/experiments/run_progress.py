"""Progress of a grid on stderr: what runs, what is left, and when it will end."""

import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eval.experiments import cost_estimates, node_status
from eval.experiments.grid import Grid, Node
from train.run.progress_display import LiveLine, format_duration
from zoo.errors import printable


class RunProgress:
    """The progress of a grid: a line that is redrawn on a terminal, elsewhere a line when a node begins and ends."""

    def __init__(self, grid: Grid, folder: Path, workers: int, stream: Any = None) -> None:
        self._grid, self._folder, self._workers = grid, folder, workers
        self._line = LiveLine(stream)
        self._began: dict[str, float] = {}
        """When nodes that run were started here."""
        self._waits: set[str] = set()
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
        self._began[node.name] = time.monotonic()
        self._waits.discard(node.name)
        if not self._line.is_animated:
            self._line.print(f"{node.name} begins; {self._done()} of {len(self._grid.nodes)} done{self._left()}")

    def update(self, running: Iterable[str]) -> None:
        """Show how far the running nodes are."""
        if not self._line.is_animated:
            return
        texts, shares = [], 0.0
        for node in (node for node in self._grid.nodes if node.name in running):
            step = ""
            if not node.task:
                steps = node_status.steps_taken(node, self._folder)
                step = f" step {steps:,} of {node.config.steps:,}"
                shares += min(1.0, steps / node.config.steps)
            texts.append(f"{node.name}{step}")
        texts = texts or [f"waiting for {', '.join(sorted(self._waits))}"]
        done, count = self._done(), len(self._grid.nodes)
        self._line.show(f"{', '.join(texts)}  {done} of {count}{self._left()}", (done + shares) / count)

    def waiting(self, node: Node, reason: str) -> None:
        """Say once that another process runs a node, and that this one waits for it."""
        self._began.pop(node.name, None)
        if node.name not in self._waits:
            self._waits.add(node.name)
            self._line.print(printable(f"{node.name} waits: {reason}"))

    def ended(self, node: Node, done: bool, message: str) -> None:
        """Show how a node ended, and take its time into account."""
        self._waits.discard(node.name)
        began = self._began.pop(node.name, None)
        seconds = None if began is None else time.monotonic() - began
        if done and seconds is not None:
            self._seconds[node.name] = seconds
        time_taken = "" if seconds is None else f" in {format_duration(seconds)}"
        self._line.print(printable(f"{node.name} {'done' if done else 'FAILED'}{time_taken}: {message}"))

    def seconds_left(self) -> float | None:
        """Return the estimated seconds until the end; None before a node has finished.

        Nodes are assumed to be divided equally among the workers.
        """
        now, total = time.monotonic(), 0.0
        for node in self._grid.nodes:
            if node.name in self._seconds or node_status.is_done(node, self._folder):
                continue
            if (seconds := self.node_seconds(node)) is None:
                return None
            total += max(0.0, seconds - (now - self._began.get(node.name, now)))
        return total / self._workers

    def node_seconds(self, node: Node) -> float | None:
        """Return the estimated seconds of a node; None before a training run has finished.

        A node takes as long as the same one with other seeds. Otherwise an evaluation takes as long as others of its task, and a
        training run takes the time of a run of one step, and for its tokens as long as the runs of its stage, or else all runs.
        """
        by_name = {other.name: other for other in self._grid.nodes}
        finished = [(by_name[name], seconds) for name, seconds in self._seconds.items()]
        if same := [seconds for other, seconds in finished if (other.row, other.stage) == (node.row, node.stage)]:
            return statistics.mean(same)
        if node.task:
            same_task = [seconds for other, seconds in finished if (other.stage, other.task) == (node.stage, node.task)]
            return statistics.mean(same_task) if same_task else cost_estimates.START_EVALUATION + node.seconds
        trained = [(other, seconds) for other, seconds in finished if not other.task]
        if not trained:
            return None
        start = min([seconds for other, seconds in trained if other.config.steps == 1], default=cost_estimates.START)
        if node.config.steps == 1:
            return start + node.seconds
        rates = [
            (other.stage, max(0.0, seconds - start - other.seconds) / _tokens(other))
            for other, seconds in trained
            if other.config.steps > 1
        ]
        if not rates:
            return None
        same_stage = [rate for stage, rate in rates if stage == node.stage]
        return start + node.seconds + statistics.mean(same_stage or [rate for _, rate in rates]) * _tokens(node)

    def _left(self) -> str:
        seconds = self.seconds_left()
        return "" if seconds is None else f", {format_duration(seconds)} left"

    def _done(self) -> int:
        return sum(node_status.is_done(node, self._folder) for node in self._grid.nodes)


def _tokens(node: Node) -> int:
    return node.config.data.sizes.examples(node.config.steps) * node.config.data.length
