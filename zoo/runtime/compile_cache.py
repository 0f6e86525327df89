"""Persistent compilation cache whose entries are written atomically and checked when they are read.

JAX writes an entry in place and stores no checksum. A process that is killed while it writes leaves half an entry, which every
later process reads and warns about, and none replaces. Here an entry is written to a temporary file and renamed, and begins with
the SHA-256 digest of the rest. An entry that does not match its digest is deleted and counts as missing: the program is compiled
and stored again.
"""

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path

import jax
from jax._src import compilation_cache  # JAX has no public way to replace the storage of its cache
from jax._src.compilation_cache_interface import CacheInterface

from zoo.fault_points import fault_point
from zoo.file_access import read_regular
from zoo.runtime import caches, stdio

SUFFIX = ".program"
"""Suffix of an entry's file. JAX's own files end in -cache, so both kinds can be in one folder."""
UNFINISHED = ".unfinished"
"""Suffix of a file that is being written."""
DIGEST = hashlib.sha256().digest_size
LARGEST_PROGRAM = 4 << 30
"""Bytes of the largest compiled program that is read."""


class CheckedCache(CacheInterface):
    """Compiled programs in the files of one folder, shared by any number of processes."""

    def __init__(self, folder: Path):
        self.folder = self._path = folder
        self._writable = True

    def get(self, key: str) -> bytes | None:  # pyright: ignore[reportIncompatibleMethodOverride] - JAX's has no annotation
        """Return the entry's content; None if there is no entry, or it cannot be read, or it does not match its digest."""
        file = self.folder / (key + SUFFIX)
        try:
            fault_point("compiled.read")
            content = read_regular(file, LARGEST_PROGRAM)
        except OSError:
            return None
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
            with contextlib.suppress(OSError):
                file.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(file)  # the time of last use, which `remove_unused` compares
        return content[DIGEST:]

    def put(self, key: str, value: bytes) -> None:
        """Store an entry. The first one that cannot be written is reported on stderr, and no more are stored."""
        if not self._writable:
            return
        try:
            self._write(key, value)
        except OSError as error:
            self._writable = False
            why = f"cannot be written ({error.strerror}); compiled programs are not stored for the next command"
            stdio.write_error(f"cache folder {self.folder} {why}")

    def _write(self, key: str, value: bytes) -> None:
        descriptor, name = tempfile.mkstemp(UNFINISHED, dir=self.folder)
        try:
            with open(descriptor, "wb") as file:
                fault_point("compiled.write")
                file.write(hashlib.sha256(value).digest())
                file.write(value)
            fault_point("compiled.rename")
            os.replace(name, self.folder / (key + SUFFIX))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def install_checked_cache() -> None:
    """Make JAX store compiled programs in a `CheckedCache`.

    Remote folders, and folders with a size limit (jax_compilation_cache_max_size), still use JAX's own cache.
    """
    compilation_cache.get_file_cache = _file_cache


def remove_unused(folder: Path, days: float) -> None:
    """Delete the entries that were not used in the last `days` days, and the unfinished files that are older than an hour."""
    now = time.time()
    for suffix, age in ((SUFFIX, days * 86_400), (UNFINISHED, 3_600)):
        for file in folder.glob(f"*{suffix}"):
            with contextlib.suppress(OSError):  # another process may delete the same file
                if now - file.stat().st_mtime > age:
                    file.unlink()


_jax_file_cache = compilation_cache.get_file_cache


def check_folder(path: str) -> None:
    """Create the folder of JAX's option, and refuse it if it is not private; a remote one (a URL) is left to its service.

    Raises:
        BadInput: see `caches.private_folder`.
    """
    if "://" not in path:
        caches.private_folder(Path(path), "JAX_COMPILATION_CACHE_DIR")


def _file_cache(path: str) -> tuple[CacheInterface, str] | None:
    # Also here, for an option that was set after `jax_setup.prepare_jax`.
    check_folder(path)
    if "://" in path or jax.config.values["jax_compilation_cache_max_size"] != -1:
        return _jax_file_cache(path)
    return CheckedCache(Path(path)), path
