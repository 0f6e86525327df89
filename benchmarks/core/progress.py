"""Progress of a long measurement, on stderr: a line redrawn in place on a terminal, else a line for each piece of work."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from train.run.console import format_duration
from zoo.errors import printable


class Progress:
    """Progress over pieces of work with known weights; the time left is estimated from this process's work alone."""

    def __init__(self, weights: float | int, stream: Any = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, markup=False, emoji=False)
        # No refresh thread: it would disturb the measurement.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._all, self._done, self._began = weights, 0.0, time.monotonic()
        self._piece = ""
        if self._console.is_terminal:
            self._live.start()

    def begin(self, piece: str) -> None:
        """Show which piece of work begins."""
        self._piece = piece
        self._show(piece)

    def doing(self, what: str) -> None:
        """Show which part of the piece is worked on; on a terminal only."""
        self._show(f"{self._piece}: {what}")

    def done(self, weight: float | int, outcome: str) -> None:
        """Show the `outcome` of a finished piece."""
        self._done += weight
        self._show(f"{self._piece}: {outcome}")
        if not self._console.is_terminal:
            self._console.print(printable(f"{self._piece}: {outcome}  [{self._left()}]"), soft_wrap=True)

    def close(self) -> None:
        """Clear the line of progress."""
        self._live.stop()

    def _left(self) -> str:
        share = self._done / self._all if self._all else 1.0
        if not share:
            return "0%"
        return f"{share:.0%}, {format_duration((time.monotonic() - self._began) * (1 / share - 1))} left"

    def _show(self, line: str) -> None:
        if self._console.is_terminal:
            self._live.update(Text(f"[{self._left()}] {line}", no_wrap=True, overflow="ellipsis"), refresh=True)
