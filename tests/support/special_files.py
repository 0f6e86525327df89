"""Files that are not regular, in the place of one that is read, and a deadline for the reader."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

KINDS = {"fifo": "a FIFO", "device": "a device", "socket": "a socket"}
"""Kind of a file -> its name in messages."""


def make_special(file: Path, kind: str) -> None:
    """Put a FIFO, a link to an endless device, or a socket in the place of a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        # The path of a socket has at most 107 bytes.
        with socket.socket(socket.AF_UNIX) as server:
            folder = os.open(file.parent, os.O_RDONLY)
            server.bind(f"/proc/self/fd/{folder}/{file.name}")
            os.close(folder)


@contextlib.contextmanager
def deadline(seconds: int = 20) -> Iterator[None]:
    """Raise `TimeoutError` in a block that waits for longer, as for the writer of a FIFO."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it waits for more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
