"""Folders for what the zoo caches, to which only this user can add."""

import contextlib
import os
import shlex
import stat
from pathlib import Path

from zoo.errors import BadInput
from zoo.runtime import stdio


def cache_dir() -> Path:
    """Return the cache folder, without creating it: ZOO_CACHE if set, else `zoo` below the user's cache folder."""
    if chosen := os.environ.get("ZOO_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "zoo"


class NoCache(BadInput, OSError):
    """Error: a cache folder cannot be created, for example in a home folder without write permission.

    It is an `OSError` with the `errno` and `strerror` of the cause, for code that can do without a cache.
    """

    __str__ = Exception.__str__


def cache_folder(name: str) -> Path | None:
    """Return a `private_folder` folder of the cache; None, with a notice on stderr, if it cannot be created.

    Raises:
        BadInput: the folder belongs to another user, or others can write to it.
    """
    try:
        return private_folder(cache_dir() / name)
    except NoCache as error:
        stdio.write_error(f"{error}. Until then nothing is cached for the next command")
        return None


def private_folder(folder: Path, setting: str = "ZOO_CACHE") -> Path:
    """Return a folder to whose content only this user and root can add, after creating it with mode 0700 if it is missing.

    What a cache holds is executed or taken for the user's own, and its digests do not protect it from whoever can write both. So
    the folder, all folders above it, and all symbolic links on the way must belong to this user or root. No group and no other
    user may have write permission; above the folder, a sticky folder such as /tmp is allowed, where others cannot rename it.

    Args:
        setting: environment variable that names the folder or one above it, for messages.

    Raises:
        NoCache: the folder cannot be created.
        BadInput: another user owns one of these folders, or can write to it.
    """
    folder = folder.absolute()
    try:
        for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            missing.mkdir(exist_ok=True, mode=0o700)
        for path, status in _path_components(folder):
            _require_private(folder, path, status, setting)
    except OSError as error:
        refusal = NoCache(f"cache folder {folder}: {error.strerror}; set {setting} to a folder you can write to")
        refusal.errno, refusal.strerror = error.errno, error.strerror
        raise refusal from None
    return folder


def _path_components(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Return a folder, those above it, and the symbolic links on the way with their targets, each with its own status."""
    components, todo = {}, [folder]
    while todo:
        path = todo.pop()
        for component in (path, *path.parents):
            if component not in components:
                components[component] = component.lstat()
                if stat.S_ISLNK(components[component].st_mode):
                    todo.append(component.parent / component.readlink())
    return list(components.items())


def _require_private(folder: Path, path: Path, status: os.stat_result, setting: str) -> None:
    """Raise `BadInput` if a component of the path of a folder belongs to another user, or others can write to it."""
    where = "" if path == folder else f"{path}: "
    other = f"set {setting} to a private folder"
    if status.st_uid not in {os.geteuid(), *_owners_of_system()}:
        raise BadInput(f"cache folder {folder}: {where}it belongs to user {status.st_uid}, who can replace the content; {other}")
    mode = stat.S_IMODE(status.st_mode)
    if not mode & 0o022 or stat.S_ISLNK(status.st_mode) or (path != folder and mode & stat.S_ISVTX):
        return
    command = f"chmod {'700' if path == folder else 'go-w'} {shlex.quote(str(path))}"
    raise BadInput(f"cache folder {folder}: {where}others can write to it (mode {mode:04o}); run `{command}`, or {other}")


def _owners_of_system() -> set[int]:
    """Return the user ids that own the system's folders: 0, and in a user namespace the one shown for owners outside of it."""
    owners = {0}
    with contextlib.suppress(OSError, ValueError):  # There is no such file on systems other than Linux.
        if Path("/proc/self/uid_map").read_text().split() != ["0", "0", str(2**32 - 1)]:
            owners.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    return owners
