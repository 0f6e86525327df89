"""Terminal output of commands: results on stdout, fitted to the terminal and without its control characters."""

import re
import shutil
import sys
from collections import deque

import jax
from rich.cells import cell_len

from zoo.errors import printable_lines


def write_output(text: str) -> None:
    """Write a part of the result; of several processes only the first writes."""
    if jax.process_index() == 0:
        sys.stdout.write(printable_lines(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def terminal_width() -> int | None:
    """Return the columns of the terminal; None if stdout is not a terminal, so that a line may have any length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def text_excerpt(text: str, start: int, end: int, width: int | None) -> str:
    """Return a text on one line of at most `width` columns (None: any), around its characters [start, end); … marks omissions."""
    line = re.sub(r"\s", " ", text)
    if width is None or cell_len(line) <= width:
        return line
    first, last = start, min(end, start + width)
    while last > first and cell_len(line[first:last]) > width - 2:
        last -= 1
    sides = deque([(1, 0), (0, 1)])
    while sides:
        left, right = sides.popleft()
        wider = max(0, first - left), min(len(line), last + right)
        if wider != (first, last) and cell_len(line[slice(*wider)]) <= width - 2:
            first, last = wider
            sides.append((left, right))
    return "…" * (first > 0) + line[first:last] + "…" * (last < len(line))
