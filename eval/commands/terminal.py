"""What commands write on the terminal: results on stdout, how far they are on stderr."""

import re
import shutil
import sys
from collections import deque

import jax
from rich.cells import cell_len


def say(text: str) -> None:
    """Write a piece of the result. Several processes run one program, and only the first has the terminal."""
    if jax.process_index() == 0:
        sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def progress(done: int, count: int) -> None:
    """Show how much is done, where somebody looks and until all is."""
    if sys.stderr.isatty() and jax.process_index() == 0:
        told = f"{done}/{count}"
        print(f"\r{told}" if done < count else f"\r{' ' * len(told)}\r", end="", file=sys.stderr, flush=True)


def harmless(text: str) -> str:
    """Text in which a terminal finds no commands: control characters other than tab and line end are spelled out."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def columns() -> int | None:
    """Columns of the terminal; None where stdout is none, and a line may have any length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def excerpt(text: str, start: int, end: int, room: int | None) -> str:
    """A text on one line of at most `room` columns (None: any), around its characters [start, end); … is what is left out."""
    line = re.sub(r"\s", " ", text)
    if room is None or cell_len(line) <= room:
        return line
    first, last = start, min(end, start + room)
    while last > first and cell_len(line[first:last]) > room - 2:
        last -= 1
    sides = deque([(1, 0), (0, 1)])
    while sides:
        left, right = sides.popleft()
        wider = max(0, first - left), min(len(line), last + right)
        if wider != (first, last) and cell_len(line[slice(*wider)]) <= room - 2:
            first, last = wider
            sides.append((left, right))
    return "…" * (first > 0) + line[first:last] + "…" * (last < len(line))
