"""Progress of a long measurement, on stderr: a line redrawn in place on a terminal, else a line for each piece of work."""

import shutil
import sys
import time
from typing import Any

from train.run.console import clock


class Progress:
    """Progress over pieces of work of known weights; work of earlier processes does not count for the time left."""

    def __init__(self, weights: float, stream: Any = None) -> None:
        self._stream = stream or sys.stderr
        self._all, self._done, self._began = weights, 0.0, time.monotonic()
        self._piece, self._width = "", 0

    def begin(self, piece: str) -> None:
        """Show which piece of work begins."""
        self._piece = piece
        self._show(piece)

    def doing(self, what: str) -> None:
        """Show which part of the piece is worked on; on a terminal only."""
        self._show(f"{self._piece}: {what}")

    def done(self, weight: float, outcome: str) -> None:
        """Show the `outcome` of a finished piece."""
        self._done += weight
        if self._stream.isatty():
            self._show(f"{self._piece}: {outcome}")
        else:
            print(f"{self._piece}: {outcome}  [{self._left()}]", file=self._stream, flush=True)

    def close(self) -> None:
        """Clear the line."""
        if self._stream.isatty():
            print(f"\r{'':{self._width}}\r", end="", file=self._stream, flush=True)

    def _left(self) -> str:
        share = self._done / self._all if self._all else 1.0
        if not share:
            return "0%"
        return f"{share:.0%}, {clock((time.monotonic() - self._began) * (1 / share - 1))} left"

    def _show(self, text: str) -> None:
        if not self._stream.isatty():
            return
        line = f"[{self._left()}] {text}"[: shutil.get_terminal_size().columns - 1]
        print(f"\r{line:<{self._width}}", end="", file=self._stream, flush=True)
        self._width = len(line)
