"""SHA-256 digests of files, and fsync, which writes their cached content to the disk, so that it survives a power failure."""

import hashlib
import os
from pathlib import Path

from zoo.fault_points import fault_point
from zoo.file_access import open_regular


def sha256(file: Path, *, sync: bool = False) -> str:
    """Return the SHA-256 of a file's content in hexadecimal; with `sync`, its content is on the disk when this returns."""
    fault_point("file.digest")
    with open_regular(file) as stream:
        if sync:
            fault_point("file.fsync")
            os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fsync(path: str | Path) -> None:
    """Write a file's content, or a folder's entries, to the disk."""
    fault_point("file.fsync")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
