"""Options as the help of a command prints them."""

import contextlib
import io
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def capture_help(command: Callable[[], Any]) -> str:
    """Return what a command prints for --help on a terminal of 80 columns: groups of options are not side by side."""
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    try:
        with contextlib.redirect_stdout(stdout), contextlib.suppress(SystemExit):
            command()
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    stdout.seek(0)
    return stdout.read()


def option_boxes(text: str) -> Iterator[tuple[str, list[str], list[tuple[str, str]]]]:
    """Yield the prefix of each group of options, the lines of its description, and the heading and text of each option."""
    for title, box in re.findall(r"^╭─ ([\w.-]* ?)options ─*╮\n(.*?)^╰", text, re.MULTILINE | re.DOTALL):
        lines = [line[2:-2].rstrip() for line in box.splitlines()]
        rule = next((number for number, line in enumerate(lines) if line and not line.strip("─")), -1)
        options = [(head, body) for head, body in _option_lines(lines[rule + 1 :]) if not head.startswith("-h")]
        yield title.strip(), lines[: max(rule, 0)], options


def split_heading(heading: str) -> tuple[list[str], str]:
    """Return the names of an option, the negative one of a flag too, and its metavar, "" for a flag."""
    names, _, metavar = heading.replace(", --", ",--").partition(" ")
    return names.split(","), metavar


def inner_metavar(metavar: str) -> tuple[str, bool]:
    """Return the metavar of a value without the brackets of a list and without None, and whether the option takes a list."""
    # A long one is not repeated.
    inner = re.sub(r"^\[(\S+?) ?\[(\S+ )?\.\.\.\]\]$", r"\1", metavar)
    return inner.removeprefix("{None}|"), inner != metavar


def _option_lines(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the heading of each option and its text, both without line breaks."""
    starts = [number for number, line in enumerate(lines) if line.startswith("-") and not lines[number - 1].endswith(",")]
    for start, end in itertools.pairwise([*starts, len(lines)]):
        # The text begins beside a short heading, and below a long one.
        parts = [re.split(r" {2,}|$", line, maxsplit=1) for line in lines[start:end]]
        yield "".join(head for head, _ in parts), " ".join(text for _, text in parts if text)
