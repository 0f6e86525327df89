"""A cache on disk of log-probabilities under a reference: one file per set of rows, named by the digest of its dependencies."""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from zoo.fault_points import fault_point
from zoo.file_access import open_regular
from zoo.runtime import caches

FORMAT = 1
"""Version of the files: incremented with every change of their content."""
LONGEST_HEADER = 4096
"""Bytes of the longest first line of a file, which is about 200."""

log = logging.getLogger(__name__)


def read_log_probs(folder: Path, key: str, rows: int) -> Float32[np.ndarray, "rows 2"] | None:
    """Return the log-probabilities of `rows` pairs under a key, or None if there are none.

    A file that is damaged or belongs to another key or number of rows is not used, with a warning.

    Raises:
        BadInput: other users can write to the folder.
    """
    file = folder / key
    try:
        fault_point("reference.read")
        caches.private_folder(folder)
        with open_regular(file) as stream:
            header = stream.readline(LONGEST_HEADER).removesuffix(b"\n")
            content = stream.read(8 * rows + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s: cannot be read (%s); the reference is computed again", file, error.strerror)
        return None
    if header != _header(key, rows, content) or len(content) != 8 * rows:
        log.warning("%s: damaged, or of another reference; the reference is computed again", file)
        return None
    return np.frombuffer(content, np.float32).reshape(rows, 2).copy()


def write_log_probs(folder: Path, key: str, values: Float32[np.ndarray, "rows 2"]) -> None:
    """Write log-probabilities under a key, atomically; if that is not possible, only log a warning."""
    content = np.ascontiguousarray(values).tobytes()
    try:
        caches.private_folder(folder)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writing-", delete=False) as file:
            fault_point("reference.write")
            file.write(_header(key, len(values), content) + b"\n" + content)
        fault_point("reference.rename")
        os.replace(file.name, folder / key)
    except OSError as error:
        log.warning("%s: the reference cannot be cached there (%s); a resumed run computes it again", folder, error.strerror)


def _header(key: str, rows: int, content: bytes) -> bytes:
    facts = {"format": FORMAT, "key": key, "rows": rows, "sha256": hashlib.sha256(content).hexdigest()}
    return json.dumps(facts).encode()
