"""The log of native code: what C++ libraries write to file descriptor 2, which the command line keeps from the terminal.

XLA, libtpu and absl write warnings to descriptor 2 (that a compilation is slow, that this machine has no TPU), which say nothing
to most users and damage the line that shows the progress. The messages of Python go to `sys.stderr`. So the command line gives
`sys.stderr` a descriptor of its own, and makes descriptor 2 a file; in Python (`import zoo`) both stay as they are.

The end of the file is printed after a traceback. When a signal ends the process (SIGABRT after "Check failed", SIGSEGV), nothing
can be printed but the stacks of all threads, by `faulthandler`; one of them names the file.
"""

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from zoo.errors import printable_lines, without_secrets
from zoo.file_access import open_to_append

LARGEST = 16 << 20
"""Bytes of a log at which it begins again."""
PERIOD = 5.0
"""Seconds between two looks at the size of the log."""
TAIL = 20
"""Number of lines that are printed after a traceback."""


class NativeLog:
    """The log of this process, if it is the command line's."""

    def __init__(self) -> None:
        """Leave descriptor 2 as it is."""
        self.is_separate = False
        """True if `sys.stderr` has a descriptor of its own, so that descriptor 2 may become a file."""
        self._inherited = self._stderr = sys.stderr
        self._path, self._file, self._begin = Path(), None, 0
        self._closed, self._thread = threading.Event(), None

    @property
    def is_redirected(self) -> bool:
        """True if descriptor 2 is a file."""
        return self._file is not None

    def separate(self) -> None:
        """Give `sys.stderr` a descriptor of its own, before other modules keep it; nothing changes if stderr is closed."""
        self._inherited = sys.stderr  # deleting it could close descriptor 2
        with contextlib.suppress(OSError):
            old, descriptor = sys.stderr, os.dup(2)
            self._stderr = os.fdopen(descriptor, "w", buffering=1, encoding=old.encoding, errors=old.errors)
            sys.stderr = sys.__stderr__ = self._stderr
            self.is_separate = True

    def redirect(self, path: Path) -> None:
        """Append to a file what native code writes from now on, and what it has written before.

        If the file cannot be opened, descriptor 2 stays what it is: at first, the user's stderr.
        """
        if not self.is_separate or (self._file is not None and path == self._path):
            return
        with contextlib.suppress(OSError):
            file, earlier = open_to_append(path, buffering=0), self._read()
            self._close()
            if os.fstat(file.fileno()).st_size > LARGEST:
                file.truncate(0)
            self._path, self._file, self._begin = path, file, os.fstat(file.fileno()).st_size
            os.dup2(file.fileno(), 2)
            faulthandler.enable(self._stderr)
            self._watch(path, file)
            file.write(earlier)

    @contextlib.contextmanager
    def redirected(self, path: Path) -> Iterator[None]:
        """Append to a file what native code writes in the block, and after it; a file that is empty at the end is removed."""
        before = self._path
        self.redirect(path)
        try:
            yield
        finally:
            if self._file is not None and self._path == path != before and not os.fstat(self._file.fileno()).st_size:
                self.redirect(before)
                with contextlib.suppress(OSError):
                    path.unlink()

    def tail(self) -> str:
        """Return the last lines that native code wrote in this process, below a line that names the log; "" if there are none."""
        lines = self._read().decode(errors="replace").rstrip().splitlines()
        if not lines:
            return ""
        text = "\n".join([f"The last messages of native code (all of them: {self._path}):", *lines[-TAIL:]])
        return printable_lines(without_secrets(text)) + "\n"

    def _read(self) -> bytes:
        """Return the end of what this process wrote, at most 64 KiB."""
        if self._file is None:
            return b""
        with contextlib.suppress(OSError):
            size = os.fstat(self._file.fileno()).st_size
            # Another process may have truncated a log that several share.
            begin = max(self._begin if self._begin <= size else 0, size - (64 << 10))
            return os.pread(self._file.fileno(), size - begin, begin)
        return b""

    def _watch(self, path: Path, file: IO[bytes]) -> None:
        """Start a thread that bounds the size of the log, and by its stack names the log among those that `faulthandler` writes.

        `faulthandler` writes in a signal handler, and can write nothing but files, lines and functions of stacks.
        """
        closed = self._closed = threading.Event()
        wait = compile("wait()", f"native code has written messages to {path}", "eval")

        def run() -> None:
            while not eval(wait, {"wait": lambda: closed.wait(PERIOD)}):
                with contextlib.suppress(OSError):
                    if os.fstat(file.fileno()).st_size > LARGEST:
                        file.truncate(0)
                        file.write(f"(earlier messages were removed: more than {LARGEST >> 20} MiB)\n".encode())
                        self._begin = 0

        thread = threading.Thread(target=run, daemon=True, name="native log")
        with contextlib.suppress(RuntimeError):  # there may be no memory for a thread
            thread.start()
            self._thread = thread

    def _close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        if self._file is not None:
            self._file.close()
        self._file = None


native_log = NativeLog()
"""The log of the process that imports this."""
