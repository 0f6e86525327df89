"""Access to files that others may have written: regular files only, bounded reads, and writes that follow no link.

What is refused is an `OSError`, so that a caller reports it like a file that is missing or lacks a permission.
"""

import contextlib
import errno
import io
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from zoo.errors import BadInput, printable, require

LARGEST_JSON = 64 << 20
"""Bytes of the largest JSON file of results that is read into memory."""

KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""Kind of a file that never ends, or waits for another process -> its name."""
SHELL_PIPE = re.compile(r"/dev/(stdin|fd/\d+)|/proc/self/fd/\d+")
"""Paths of files that are open already; only the user's own command line names one."""


class UnusableFile(OSError, BadInput):
    """A file that is not opened: it is not regular, too large, or a link. `strerror` says which.

    It is also a `BadInput`: one line without a traceback where a command does not add to the message.
    """

    def __init__(self, number: int, why: str, path: str | Path) -> None:
        OSError.__init__(self, number, why, str(path))

    def __str__(self) -> str:
        return printable(f"{self.strerror}: {self.filename}")


def open_regular(path: str | Path, *, shell_pipe: bool = False) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading bytes; a FIFO does not block.

    Args:
        shell_pipe: also open what the user's shell has opened, of whatever kind: /dev/stdin, or /dev/fd/63 for `<(COMMAND)`.

    Raises:
        OSError: there is no such file, it cannot be read, or it is a FIFO, a socket, a device or a folder.
    """
    # Before it is opened too, because opening alone can change the state of a device.
    status = os.stat(path)
    if shell_pipe and SHELL_PIPE.fullmatch(str(path)):
        return open(path, "rb")
    _require_regular(status, path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(descriptor), path)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | Path, largest: int) -> bytes:
    """Return the content of a regular file of at most `largest` bytes.

    Raises:
        OSError: as `open_regular`, or the file is larger.
    """
    with open_regular(path) as stream:
        # The size of a file is not enough: those of /proc have none.
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise too_large(path, largest)
    return content


def read_regular_text(path: str | Path, largest: int = LARGEST_JSON) -> str:
    """Return the UTF-8 text of a regular file of at most `largest` bytes.

    Raises:
        OSError: as `read_regular`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_regular(path, largest).decode("utf-8")


def too_large(path: str | Path, largest: int) -> UnusableFile:
    """Return the error for a file with more than `largest` bytes."""
    size = f"{largest >> 20:,} MiB" if largest >= 1 << 20 else f"{largest:,} bytes"
    return UnusableFile(errno.EINVAL, f"larger than {size}", path)


def open_to_append(path: str | Path, *, new: bool = False, buffering: int = -1) -> IO[bytes]:
    """Open a regular file for appending and reading, and create it if need be. A link is not followed.

    Args:
        new: the file must not exist.
        buffering: as of `open`; 0 = without a buffer.

    Raises:
        OSError: it cannot be written, is a link or not a regular file, or exists and must be new.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if not new:
        refuse_link(path)
        with contextlib.suppress(FileNotFoundError):
            _require_regular(os.stat(path), path)
    descriptor = os.open(path, flags | os.O_EXCL * new, 0o666)
    try:
        _require_regular(os.fstat(descriptor), path)
        return open(descriptor, "a+b", buffering=buffering)
    except BaseException:
        os.close(descriptor)
        raise


def partial_path(path: Path) -> Path:
    """Return a name for a file that is to replace `path` once it is complete, which nobody can predict."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")


def remove_partial(path: Path) -> None:
    """Remove the files under the `partial_path` of `path` that killed processes left; its name may be a pattern of `glob`.

    Raises:
        OSError: one cannot be removed.
    """
    for partial in path.parent.glob(f".{path.name}.*.partial"):
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def open_new(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Yield a new `partial_path` of `path`, and its file; it is removed at the end, unless it was renamed.

    Nothing that has this name already is opened.
    """
    partial = partial_path(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(partial, flags, 0o666), "wb") as file:
        try:
            yield partial, file
        finally:
            # It would hide another error.
            with contextlib.suppress(OSError):
                partial.unlink()


def real_path(path: str | Path) -> Path:
    """Return an absolute path with its links resolved. A link to itself remains, on which `Path.resolve` fails."""
    return Path(os.path.realpath(path))


def check_output_file(path: Path, option: str) -> None:
    """Refuse a file that cannot be written, before anything is computed.

    Raises:
        BadInput: its folder does not exist, or it is a folder; the message names the option.
    """
    require(path.absolute().parent.is_dir(), option, path, "its folder does not exist; create it, or name another")
    require(not path.is_dir(), option, path, "it is a folder; name a file")


def refuse_link(path: str | Path) -> None:
    """Refuse a path that is a symbolic link, whatever it leads to.

    Raises:
        OSError: it is one.
    """
    if os.path.islink(path):
        raise UnusableFile(errno.ELOOP, "it is a symbolic link", path)


def refuse_link_out(file: Path) -> None:
    """Refuse a file that is a link out of its folder; in the cache of the hub files are links to ../../blobs.

    Raises:
        OSError: it is one.
    """
    if file.is_symlink():
        target = real_path(file)
        if not any(target.is_relative_to(os.path.realpath(folder)) for folder in (file.parent, file.parent / "../../blobs")):
            raise UnusableFile(errno.ELOOP, f"it is a link out of its folder, to {target}", file)


def refuse_links_out(folder: str | Path, names: Collection[str], *, levels: int = 2) -> None:
    """Refuse a folder in which a link leads out of it; the folder itself may be a link.

    Args:
        folder: nothing is refused if it does not exist.
        names: entries of the folder that are examined.
        levels: number of levels below these entries that are examined too.

    Raises:
        BadInput: names the link, and where it leads.
    """
    top = os.path.realpath(folder)

    def check_entries(path: str, level: int) -> None:
        # What cannot be listed is reported by whatever uses it.
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                if level == 0 and entry.name not in names:
                    continue
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if os.path.commonpath([top, target]) != top:
                        raise BadInput(f"{entry.path}: a link out of {folder}, to {target}; replace it by a copy")
                elif level < levels and entry.is_dir():
                    check_entries(entry.path, level + 1)

    check_entries(str(folder), 0)


def _require_regular(status: os.stat_result, path: str | Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise UnusableFile(errno.EINVAL, f"it is {KINDS.get(stat.S_IFMT(status.st_mode), 'special')}, not a regular file", path)
