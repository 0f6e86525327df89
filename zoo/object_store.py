"""Object stores: their URIs, the local folder that stands for each, and a client with a bounded number of attempts.

The objects are read and written by fsspec through the backends of `etils.epath`: s3fs for s3://, gcsfs for gs://. Both are
extras, and are imported when a URI is used.
"""

import dataclasses
import errno
import json
import random
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from zoo.errors import BadInput, cannot_write, import_optional, without_secrets
from zoo.fault_points import fault_point
from zoo.runtime import caches

T = TypeVar("T")

MARK = "://"
TIMEOUT = 60.0
"""Seconds without a byte after which an attempt has failed."""
WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before the second and each later attempt of an operation, of which a random half is left out."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of the local disk, which another attempt does not fix, as are those of permission that name a local file."""
LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "requests", "urllib3", "fsspec", "asyncio")
"""Packages whose exceptions are failures of the network or the server."""
CREDENTIALS = re.compile(r"Credential|Token|Profile|RefreshError")
"""Names of the libraries' errors of credentials, which another attempt does not fix."""
SETTINGS = re.compile(r"(Invalid|Config|ParamValidation|NoRegion|UnknownEndpoint|UnknownRegion)")
"""Beginnings of the names of the libraries' errors of settings and names, which another attempt does not fix either."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """The fsspec file system of a scheme."""

    module: str
    extra: str
    credentials: str
    """Ways to provide credentials, for messages."""
    address: str = "the name of the bucket"
    """Settings to correct if one of them or a name is invalid, for messages."""
    options: Callable[[], dict[str, Any]] = dict
    """Returns options of the file system that set its timeouts and its own attempts."""


def _s3_options() -> dict[str, Any]:
    # The client of this module makes the attempts; those of botocore would multiply them.
    timeouts = {"connect_timeout": TIMEOUT, "read_timeout": TIMEOUT}
    return {"config_kwargs": {**timeouts, "retries": {"total_max_attempts": 1}}}


BACKENDS = {
    "s3": Backend(
        module="s3fs",
        extra="s3",
        credentials="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        address="AWS_ENDPOINT_URL (http://HOST:PORT or https://HOST), the other AWS settings, or the name of the bucket",
        options=_s3_options,
    ),
    "gs": Backend(
        module="gcsfs",
        extra="gcs",
        credentials="set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    ),
}
"""Maps a scheme to its backend."""


class Unavailable(BadInput):
    """Error: the store did not answer, or answered with an error, in every attempt."""


def is_uri(name: str) -> bool:
    """Return whether a name is a URI, of whatever scheme, and not a local path."""
    return MARK in name


def split_uri(uri: str) -> tuple[str, tuple[str, ...]]:
    """Return (scheme, (bucket, names of folders...)) of the URI of a folder.

    Raises:
        BadInput: another scheme, credentials, no bucket, or a name that cannot be that of a local folder.
    """
    scheme, _, rest = uri.partition(MARK)
    if scheme not in BACKENDS:
        schemes = " or ".join(f"{name}{MARK}" for name in BACKENDS)
        raise BadInput(f"{uri}: there is no object store {scheme}{MARK}; begin with {schemes}, or name a local folder")
    names = tuple(rest.rstrip("/").split("/"))
    if "@" in names[0]:
        fix = f"{BACKENDS[scheme].credentials}, and write {scheme}{MARK}BUCKET/FOLDER"
        raise BadInput(f"{uri}: a URI with credentials would be stored in the run; {fix}")
    if any(name in ("", ".", "..") or "\0" in name for name in names):
        raise BadInput(f"{uri}: write {scheme}{MARK}BUCKET/FOLDER, without empty names and without '..'")
    return scheme, names


def working_folder(name: str) -> Path:
    """Return the local folder in which the content of a URI is, in the cache; a local path is returned as it is.

    Raises:
        BadInput: see `split_uri`.
    """
    if not is_uri(name):
        return Path(name)
    scheme, names = split_uri(name)
    return caches.cache_dir().joinpath("runs", scheme, *names)


class ObjectStore:
    """The objects below a URI, by their key relative to it ("checkpoints/00000040/COMMIT.json").

    Every operation is attempted up to `len(WAITS) + 1` times. All of them raise `BadInput` if credentials, a permission or the
    bucket is missing, and `Unavailable` if the last attempt failed.
    """

    def __init__(self, uri: str) -> None:
        """Describe the objects below a URI; nothing is read yet.

        Raises:
            BadInput: see `split_uri`; the extra of the scheme is not installed; or credentials or a setting are invalid.
        """
        self.uri = uri.rstrip("/")
        self._scheme, names = split_uri(uri)
        self._bucket, self._root = names[0], "/".join(names)
        self._backend = BACKENDS[self._scheme]
        import_optional(self._backend.module, self._backend.extra, f"for {self.uri}")
        import fsspec

        # A cached listing would hide what another process has written.
        options = {"skip_instance_cache": True, "use_listings_cache": False, **self._backend.options()}
        try:
            self._files = fsspec.filesystem(self._scheme, **options)
        except Exception as error:
            self._refuse_settings(error)
            if not _is_failure(error):
                raise
            raise self._no_credentials(error) from None
        if hasattr(self._files, "retries"):
            self._files.retries = 1

    def list(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of every object whose key begins with `prefix`, a folder ("checkpoints/") or nothing."""
        path = f"{self._root}/{prefix}".rstrip("/")

        def find() -> Mapping[str, Mapping[str, Any]]:
            fault_point("store.list")
            return self._files.find(path, detail=True)

        entries = self._attempt(prefix, find)
        start = len(self._root) + 1
        sizes = {name.lstrip("/")[start:]: int(entry["size"]) for name, entry in entries.items()}
        # Consoles of stores leave empty objects in the place of folders.
        return {key: size for key, size in sizes.items() if key and not key.endswith("/")}

    def put(self, file: Path, key: str) -> None:
        """Upload a file; other processes see its object completely or not at all.

        Raises:
            FileNotFoundError: the file does not exist, or was removed in the meantime.
        """

        def upload() -> None:
            fault_point("store.put")
            self._files.put_file(str(file), self._path(key))

        file.lstat()
        self._attempt(key, upload, file)

    def get(self, key: str, file: Path) -> None:
        """Download an object to a file, which is incomplete if this raises.

        Raises:
            FileNotFoundError: there is no such object.
        """

        def download() -> None:
            fault_point("store.get")
            self._files.get_file(self._path(key), str(file))

        self._attempt(key, download)

    def read(self, key: str) -> bytes:
        """Return the content of an object.

        Raises:
            FileNotFoundError: there is no such object.
        """

        def read() -> bytes:
            fault_point("store.read")
            return self._files.cat_file(self._path(key))

        return self._attempt(key, read)

    def delete(self, key: str) -> None:
        """Delete an object, or do nothing if there is none."""

        def remove() -> None:
            fault_point("store.delete")
            try:
                self._files.rm_file(self._path(key))
            except FileNotFoundError:
                if not self._has_bucket():
                    raise

        self._attempt(key, remove)

    def _name(self, key: str) -> str:
        return f"{self.uri}/{key}".rstrip("/")

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _attempt(self, key: str, operation: Callable[[], T], file: Path | None = None) -> T:
        """Return the result of an operation on an object, to which `file` is uploaded."""
        began = time.monotonic()
        for wait in (*WAITS, None):
            try:
                return operation()
            except Exception as error:
                self._refuse(error, key, file)
                if not _is_failure(error):
                    raise
                if wait is None:
                    passed = f"{len(WAITS) + 1} attempts in {time.monotonic() - began:.0f} s"
                    fix = "check the network and the store"
                    raise Unavailable(f"{self._name(key)}: {_describe(error)}, after {passed}; {fix}") from None
                time.sleep(wait * random.uniform(0.5, 1))
        raise AssertionError("the last attempt returns or raises")

    def _refuse(self, error: Exception, key: str, file: Path | None) -> None:
        """Raise the error that another attempt does not change, if `error` is of that kind."""
        if isinstance(error, FileNotFoundError):
            if file is not None and not file.exists():
                raise error
            if self._has_bucket():
                if file is None:
                    raise FileNotFoundError(errno.ENOENT, "no such object", f"{self.uri}/{key}") from None
                return  # An upload in parts that the server has lost.
            fix = "create it, or correct the name"
            raise BadInput(f"{self.uri}: there is no bucket {self._bucket!r} in {self._scheme}{MARK}; {fix}") from None
        self._refuse_settings(error)
        if isinstance(error, OSError) and (error.errno in FULL_DISK or (isinstance(error, PermissionError) and error.filename)):
            raise cannot_write(error.filename or caches.cache_dir(), error) from None
        if isinstance(error, PermissionError) or getattr(error, "code", None) in (401, 403):
            fix = f"grant access to the bucket, or use other credentials ({self._backend.credentials})"
            raise BadInput(f"{self._name(key)}: access is refused ({_describe(error)}); {fix}") from None

    def _refuse_settings(self, error: Exception) -> None:
        """Raise `BadInput` if `error` is one of credentials, an address, a setting or a name."""
        is_library, name = _is_of_library(error), type(error).__name__
        if is_library and CREDENTIALS.search(name):
            raise self._no_credentials(error) from None
        is_value = isinstance(error, ValueError) and not isinstance(error, OSError | json.JSONDecodeError | UnicodeError)
        if is_value or (is_library and SETTINGS.match(name)):
            fix = f"correct {self._backend.address}"
            raise BadInput(f"{self.uri}: an address, a setting or a name is invalid ({_describe(error)}); {fix}") from None

    def _no_credentials(self, error: Exception) -> BadInput:
        reason = f"no credentials for {self._scheme}{MARK} ({_describe(error)})"
        return BadInput(f"{self.uri}: {reason}; {self._backend.credentials}")

    def _has_bucket(self) -> bool:
        """Return False if the store says that there is no such bucket."""
        try:
            self._files.ls(self._bucket, detail=False)
        except FileNotFoundError:
            return False
        except Exception as error:
            if not _is_failure(error):
                raise
        return True


def _is_failure(error: Exception) -> bool:
    """Return whether an error is one of the network or the server, which may end by itself."""
    return isinstance(error, OSError) or _is_of_library(error)


def _is_of_library(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in LIBRARIES


def _describe(error: Exception) -> str:
    return " ".join(without_secrets(str(error)).split())[:160].rstrip(".") or type(error).__name__
