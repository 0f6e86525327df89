"""A cache on disk of numbers that a frozen model computes of rows: one file per set of rows, named by what it depends on."""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from zoo.fault_points import fault_point
from zoo.file_access import open_regular
from zoo.runtime import caches

FORMAT = 2
"""Version of the files: incremented with every change of their content."""
HEADER = 512
"""Bytes of the first line of a file, which is padded with spaces."""
PART = 1 << 24
"""Bytes that are read at a time."""
ABANDONED = 3600.0
"""Seconds after which a file that is not written to is that of a process that was killed."""
PAIR = np.dtype((np.float32, (2,)))
"""The log-probabilities of both answers of a pair."""

log = logging.getLogger(__name__)


def read_log_probs(folder: Path, key: str, rows: int) -> Float32[np.ndarray, "rows 2"] | None:
    """Return the log-probabilities of `rows` pairs under a key, or None if there are none; see `read_rows`.

    Raises:
        BadInput: other users can write to the folder.
    """
    values = read_rows(folder, key, rows, PAIR)
    return None if values is None else np.array(values)


def write_log_probs(folder: Path, key: str, values: Float32[np.ndarray, "rows 2"]) -> None:
    """Write log-probabilities under a key, atomically; if that is not possible, only log a warning."""
    try:
        write_rows(folder, key, len(values), [values])
    except OSError as error:
        log.warning("%s: the reference cannot be cached there (%s); a resumed run computes it again", folder, error.strerror)


def read_rows(folder: Path, key: str, rows: int, dtype: np.dtype[Any]) -> Any:
    """Return the numbers of `rows` rows under a key, memory-mapped and read-only, or None if there are none.

    A file that is damaged or belongs to another key, number of rows or type of a row is not used, with a warning.

    Raises:
        BadInput: other users can write to the folder.
    """
    file = folder / key
    try:
        fault_point("reference.read")
        caches.private_folder(folder)
        with open_regular(file) as stream:
            header, digest = stream.read(HEADER), hashlib.sha256()
            while part := stream.read(PART):
                digest.update(part)
            size = stream.tell() - HEADER
            if header == _header(key, rows, digest.hexdigest()) and size == rows * dtype.itemsize:
                return np.memmap(stream, dtype, "r", HEADER, (rows,))
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s: cannot be read (%s); the reference is computed again", file, error.strerror)
        return None
    log.warning("%s: damaged, or of another reference; the reference is computed again", file)
    return None


def write_rows(folder: Path, key: str, rows: int, parts: Iterable[np.ndarray]) -> None:
    """Write the numbers of rows under a key, part by part; the file gets its name when all of them are written.

    Raises:
        OSError: the file cannot be written. Nothing is left of it then. A process that is killed leaves a part of it, without its
            name; a later call removes parts that no process has written to for an hour.
        BadInput: other users can write to the folder.
    """
    caches.private_folder(folder)
    for part in folder.glob(".writing-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".writing-", delete=False) as file:
        try:
            fault_point("reference.write")
            file.write(b" " * HEADER)
            for part in parts:
                content = np.ascontiguousarray(part).tobytes()
                digest.update(content)
                file.write(content)
            file.seek(0)
            file.write(_header(key, rows, digest.hexdigest()))
            file.flush()
            fault_point("reference.rename")
            os.replace(file.name, folder / key)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _header(key: str, rows: int, digest: str) -> bytes:
    facts = {"format": FORMAT, "key": key, "rows": rows, "sha256": digest}
    return json.dumps(facts).encode().ljust(HEADER - 1) + b"\n"
