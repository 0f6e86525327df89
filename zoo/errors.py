"""The one exception that means "the user can fix this"."""

import errno
import os
from pathlib import Path
from typing import Any


class BadInput(Exception):
    """Wrong input. The message is one line that names the key, file or name at fault and says how to mend it.

    The command line prints it and exits with 2; any other exception is a defect of ours and keeps its traceback.
    """


def require(ok: bool, key: str, value: Any, fix: str) -> None:
    """Refuse a value by the name it has on the command line. A comparison with NaN is False, so NaN never passes.

    Raises:
        BadInput: unless `ok`.
    """
    if not ok:
        raise BadInput(f"--{key.replace('_', '-')} {value}: {fix}")


REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room: your quota is used up",
    errno.EFBIG: "make room, or raise the limit on the size of files (ulimit -f)",
    errno.ENOMEM: "free memory",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EROFS: "choose a file system that can be written to",
    errno.ENOENT: "its folder was removed: put it back",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network file system",
}
"""Error number of a write that failed -> what to do about it."""


def remedy(cause: object) -> str:
    """Return what to do about a write that failed, from an exception or from its text, in which libraries quote the system."""
    code = getattr(cause, "errno", 0)
    if isinstance(cause, MemoryError) or "can't start new thread" in str(cause):
        code = errno.ENOMEM
    text = str(cause)
    return REMEDIES.get(code or 0) or next(
        (fix for number, fix in REMEDIES.items() if os.strerror(number) in text), "check the disk"
    )


def cannot_write(path: str | Path, error: OSError) -> BadInput:
    """Return the refusal of a file that cannot be written."""
    return BadInput(f"{path} cannot be written ({error.strerror or error}); {remedy(error)}, and run the same command again")
