"""Standard output and standard error: closed, in a locale of ASCII, or with a reader that leaves."""

import codecs
import contextlib
import io
import os
import sys
from typing import IO, Any

REPLACEMENTS = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212─━═╌╍┄┅", "-"),
        **dict.fromkeys("│┃║╎╏┆┇", "|"),
        **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╯╰┏┓┗┛┣┫┳┻╋╸╺", "+"),
        **dict.fromkeys("█▉▊▋▌▍▎▏▓▒░▇▆▅▄▃▂▁", "#"),
        **dict.fromkeys("\u2018\u2019\u201a", "'"),
        **dict.fromkeys("\u201c\u201d\u201e", '"'),
        "\u00d7": "x",
        "·": ".",
        "•": "*",
        "…": "...",
        "±": "+-",
        "≤": "<=",
        "≥": ">=",
        "≈": "~",
        "→": "->",
        "←": "<-",
        "✓": "yes",
        "✗": "no",
        "\u00a0": " ",
    }
)
"""Symbols of tables, progress bars and prose -> ASCII."""
ERRORS = "zoo.ascii"
"""Name of the error handler of `replace`."""


def prepare() -> bool:
    """Make stdout and stderr ready for any text, and return whether there is a stdout.

    Under LC_ALL=C Python writes UTF-8 all the same (PEP 540); who asks for that locale has a terminal or a log of plain ASCII.
    Where an encoding has no character for a symbol, `REPLACEMENTS` stands for it, and for any other text its escape (`\\u1234`).
    """
    codecs.register_error(ERRORS, replace)
    if sys.stderr is None:
        # The next file that is opened would get its number, and what C++ logs.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="ascii" if is_plain() else None, errors=ERRORS)
    return sys.stdout is not None


def is_plain() -> bool:
    """Return whether the environment asks for the locale of plain ASCII."""
    chosen = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := os.environ.get(name))), "")
    return chosen in ("C", "POSIX") and not {"PYTHONUTF8", "PYTHONIOENCODING"} & os.environ.keys()


def replace(error: UnicodeError) -> tuple[str, int]:
    """Return what is written for text that an encoding lacks, and where to go on: an error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(REPLACEMENTS)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def discard(stream: IO[Any]) -> None:
    """Have what is written to a stream from now on go nowhere: its reader has left, or its disk is full."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def complain(line: str) -> None:
    """Write a line for the user to stderr; one that is full or closed changes no exit code."""
    try:
        print(f"zoo: {line}", file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)
