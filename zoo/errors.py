"""The one exception that means "the user can fix this"."""

import contextlib
import difflib
import errno
import importlib
import importlib.metadata
import json
import os
import re
import sys
import urllib.parse
from pathlib import Path
from typing import Any

DISTRIBUTION = "transformer-zoo"
"""The distribution of this project, which is on no package index."""


class BadInput(Exception):
    """Wrong input. The message is one line that names the key, file or name at fault and says how to fix it.

    The command line prints it and exits with 2; any other exception is a bug of this project and keeps its traceback. Characters
    that are not printable, which keys and names in a damaged file may have, are escaped. Secrets, which messages of libraries
    and wrong addresses may contain, are left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(without_secrets(message)))


SECRET_NAMES = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
"""Ends of the names of environment variables whose values are secret."""
SHORTEST_SECRET = 8
"""Characters of the shortest value that is taken for a secret; shorter ones occur in ordinary words."""
IN_TEXT = re.compile(r"(?<=://)[^/\s'\"]*(?=@)|(?<=Bearer )[^\s'\"\\]+")
"""Pattern of credentials in an address (scheme://USER:PASSWORD@host) and in a header of HTTP."""


def without_secrets(text: str) -> str:
    """Return a text with *** in place of the secrets of the environment, and of credentials in addresses and headers.

    Call it before a text is shortened: a part of a secret is not recognized.
    """
    forms = set()
    for name, value in os.environ.items():
        # Where it is the name of a file, that name helps to find a mistake.
        is_file = name.upper().endswith("CREDENTIALS") and "{" not in value
        if SECRET_NAMES.search(name) and not is_file and len(value.strip()) >= SHORTEST_SECRET:
            forms |= {value.strip(), " ".join(value.split()), repr(value.strip())[1:-1]}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    return IN_TEXT.sub("***", text)


def printable(text: str) -> str:
    """Escape characters that are not printable: a newline becomes a backslash and an n."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """Return a text of any language without terminal commands: control characters other than tab and line end are escaped.

    So are the characters that turn around the direction of what follows. The joiners of emoji and of Persian stay.
    """
    return COMMANDS.sub(lambda match: repr(match[0])[1:-1], text)


COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Pattern of the characters that control a terminal, or the order of its characters."""


def require(ok: bool, key: str, value: Any, fix: str) -> None:
    """Raise `BadInput` unless `ok`; the message names the option as on the command line: "--key value: fix".

    A comparison with NaN is False, so NaN never passes.

    Raises:
        BadInput: `ok` is False.
    """
    if not ok:
        raise BadInput(f"--{key.replace('_', '-')} {value}: {fix}")


REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room: your quota is used up",
    errno.EFBIG: "make room, or raise the limit on the size of files (ulimit -f)",
    errno.ENOMEM: "free memory or raise the limit (ulimit -v)",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EROFS: "choose a file system that can be written to",
    errno.ENOENT: "its folder was removed: restore it",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network file system",
}
"""Maps the error number of a failed write to what the user can do about it."""


def write_remedy(cause: object) -> str:
    """Return what to do about a failed write, from the exception or its text, where libraries quote the system's error."""
    code = getattr(cause, "errno", 0)
    if isinstance(cause, MemoryError) or "can't start new thread" in str(cause):
        code = errno.ENOMEM
    text = str(cause)
    return REMEDIES.get(code or 0) or next(
        (fix for number, fix in REMEDIES.items() if os.strerror(number) in text), "check the disk"
    )


def write_failure_reason(cause: object) -> str:
    """Return why a write failed: the system's error message if the text of the exception quotes one, else the end of the text."""
    text = " ".join(str(cause).split())
    message = next((os.strerror(number) for number in REMEDIES if os.strerror(number) in text), text[-100:])
    return message or type(cause).__name__


def no_such_file(name: str | Path, option: str = "") -> BadInput:
    """Return the exception to raise for a file that does not exist; it names the nearest file, or the folder that is missing.

    Args:
        option: the option that names the file, with a space after it; "" = the message begins with the name.
    """
    path = Path(name)
    missing = next((folder for folder in reversed(path.parents) if not os.path.isdir(folder)), None)
    names: list[str] = []
    # The folder may not be readable; then no name is known.
    with contextlib.suppress(OSError):
        names = [] if missing is not None else sorted(os.listdir(path.parent))[:10_000]
    near = difflib.get_close_matches(path.name, names, n=1)
    fix = f"there is no folder {missing}" if missing is not None else f"the nearest is {path.with_name(near[0])}" if near else ""
    return BadInput(f"{option}{name}: no such file; {fix or f'name one that exists, relative to {Path.cwd()}'}")


def import_optional(module: str, extra: str, purpose: str) -> Any:
    """Import a module of a package that the optional dependencies `extra` contain.

    Raises:
        BadInput: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise BadInput(f"{error.name} is needed {purpose} and is not installed; {install_advice(extra)}") from None


def install_advice(extra: str) -> str:
    """Return the command that installs the optional dependencies `extra`, which depends on how this package was installed."""
    if (stamp := Path(sys.prefix) / "zoo-stamp.json").exists():
        return f"python3 {os.path.relpath(stamp.parents[1] / 'run.py')} --extra {extra} ... installs it"
    try:
        origin = json.loads(importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:
        origin = {}
    source = urllib.parse.urlsplit(origin.get("url", ""))
    folder = urllib.parse.unquote(source.path)
    if source.scheme == "file" and Path(folder).is_dir():
        editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
        return f"pip install {editable}'{folder}[{extra}]' -c '{folder}/constraints.txt'"
    if source.scheme == "file" and Path(folder).is_file():
        return f"pip install '{folder}[{extra}]'"
    return f"pip install 'FOLDER[{extra}]', where FOLDER is a clone of {DISTRIBUTION}"


def cannot_write(path: str | Path, error: OSError) -> BadInput:
    """Return the exception to raise for a file that cannot be written."""
    return BadInput(
        f"{path} cannot be written ({error.strerror or error}); {write_remedy(error)}, and run the same command again"
    )
