"""Standard output and standard error: closed, with ASCII encoding, or with a reader that closes the pipe."""

import codecs
import contextlib
import io
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO, Any

from zoo.errors import printable_lines, without_secrets
from zoo.runtime.native_log import native_log

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
        "↑": "^",
        "↓": "v",
        "✓": "yes",
        "✗": "no",
        "\u00a0": " ",
    }
)
"""Maps symbols of tables, progress bars and prose to ASCII."""
ERRORS = "zoo.ascii"
"""Name of the error handler of `replace_unencodable`."""


def prepare_streams() -> bool:
    """Prepare stdout and stderr for any text, and return True if there is a stdout.

    Python writes UTF-8 even under LC_ALL=C (PEP 540), but a user of that locale has a terminal or a log of plain ASCII. A symbol
    that the encoding lacks is written as in `REPLACEMENTS`, and any other character as its escape (`\\u1234`).
    """
    codecs.register_error(ERRORS, replace_unencodable)
    if sys.stderr is None:
        # Otherwise the next opened file would get this descriptor, and with it the log messages of C++.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="ascii" if is_plain() else None, errors=ERRORS)
    return sys.stdout is not None


def is_plain() -> bool:
    """Return True if the environment selects the locale of plain ASCII."""
    chosen = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := os.environ.get(name))), "")
    return chosen in ("C", "POSIX") and not {"PYTHONUTF8", "PYTHONIOENCODING"} & os.environ.keys()


def replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    """Return the replacement for text that an encoding lacks, and the position after it; an error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(REPLACEMENTS)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def discard_output(stream: IO[Any]) -> None:
    """Redirect a stream to /dev/null, after its reader has closed the pipe or its disk is full."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


_silencing = threading.Lock()


@contextlib.contextmanager
def silence_native() -> Iterator[None]:
    """Discard what is written to stderr in the block: a library in Rust prints a trace before it raises an exception."""
    # Two blocks at the same time could restore each other's /dev/null.
    with _silencing, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # stderr may be closed
            stderr = os.dup(2)
            stack.callback(os.close, stderr)
            null = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, null)
            os.dup2(null, 2)
            stack.callback(os.dup2, stderr, 2)
        yield


def write_error(line: str) -> None:
    """Write a line for the user to stderr. If stderr is full or closed, the exit code does not change."""
    try:
        print(f"zoo: {printable_lines(without_secrets(line))}", file=sys.stderr, flush=True)
    except OSError:
        discard_output(sys.stderr)


def write_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the traceback of an unexpected error to stderr, and what native code wrote last.

    Secrets that the messages of libraries contain are left out.
    """
    text = without_secrets("".join(traceback.format_exception(kind, error, trace))) + native_log.tail()
    print(text, end="", file=sys.stderr, flush=True)


def run_briefly(act: Callable[[], Any], seconds: float) -> bool:
    """Run a function that writes, in another thread, and go on after `seconds` or after an error.

    Returns:
        True if the function returned in time.
    """
    succeeded = []

    def run() -> None:
        with contextlib.suppress(Exception):
            act()
            succeeded.append(True)

    thread = threading.Thread(target=run, daemon=True, name="output")
    with contextlib.suppress(RuntimeError):  # there may be no memory for a thread
        thread.start()
        thread.join(seconds)
    return bool(succeeded)
