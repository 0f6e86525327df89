"""Object stores for tests: a folder of this machine, read and written by fsspec, and a real object server (marker `store`).

Nothing here imports `tests.support.environment`, see `tests.support.forked`.
"""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import forked, object_server
from tests.support.object_server import Proxy
from zoo import object_store
from zoo.object_store import Backend, ObjectStore

WAITS = (0.01, 0.01)
"""Seconds between the attempts in tests."""
BUCKET = "runs"
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Place:
    """A place in an object store, empty when a test begins."""

    uri: str
    proxy: Proxy | None = None

    def store(self, name: str) -> ObjectStore:
        return ObjectStore(f"{self.uri}/{name}")


def in_folder(folder: Path, patch: pytest.MonkeyPatch) -> Place:
    """Return a place in a folder, which has the scheme dir://."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    files = LocalFileSystem(auto_mkdir=True)
    backend = Backend(module=fsspec.__name__, extra="none", credentials="", options=lambda: {"path": str(folder), "fs": files})
    patch.setitem(object_store.BACKENDS, "dir", backend)
    patch.setattr(object_store, "WAITS", WAITS)
    return Place(f"dir://{BUCKET}/out")


def enter_with_faults(variables: Mapping[str, str], uri: str, folder: Path, cache: Path, faults: str) -> None:
    """Use a place, a cache and faults in this process until it ends; `before` of `forked.start`.

    Args:
        variables: `environment` of a server; {} = the place is in a folder.
        cache: folder in which a machine has its working copies and its tokens.
        faults: see `zoo.fault_points`.
    """
    os.environ.update(variables)
    enter(uri, folder)
    forked.with_faults(faults, cache=str(cache))


def enter(uri: str, folder: Path) -> None:
    """Use a place in this process until it ends: in a folder, or on a server whose `environment` this process has."""
    patch = pytest.MonkeyPatch()
    if uri.startswith("dir://"):
        in_folder(folder, patch)
    patch.setattr(object_store, "WAITS", WAITS)


def on_server(proxy: Proxy, patch: pytest.MonkeyPatch) -> Place:
    """Return a place in the bucket of a server, which has no volumes for many buckets."""
    set_credentials(patch, object_server.KEY)
    patch.setenv("AWS_ENDPOINT_URL", proxy.url)
    patch.setattr(object_store, "WAITS", WAITS)
    proxy.faults.clear()
    with contextlib.suppress(FileExistsError):
        ObjectStore(f"s3://{BUCKET}")._files.mkdir(BUCKET)
    return Place(f"s3://{BUCKET}/out-{next(_numbers)}", proxy)


def environment(proxy: Proxy) -> dict[str, str]:
    """Return the variables with which another process uses a server."""
    keys = {"AWS_ACCESS_KEY_ID": object_server.KEY, "AWS_SECRET_ACCESS_KEY": object_server.SECRET}
    return {**keys, **NO_OTHERS, "AWS_ENDPOINT_URL": proxy.url}


NO_OTHERS = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/absent"} | {
    "AWS_SHARED_CREDENTIALS_FILE": "/absent"
}
"""Variables that hide the credentials of this machine."""


def set_credentials(patch: pytest.MonkeyPatch, key: str) -> None:
    """Use the access key of a user, or none."""
    for name, value in NO_OTHERS.items():
        patch.setenv(name, value)
    for name, value in (("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", object_server.SECRET)):
        patch.setenv(name, value) if key else patch.delenv(name, raising=False)


def change(store: ObjectStore, key: str, kind: str, scratch: Path) -> None:
    """Damage an object: flip a bit, cut off its second half, or delete it."""
    content = bytearray(store.read(key))
    if kind == "deleted":
        return store.delete(key)
    if kind == "flipped":
        content[len(content) // 2] ^= 1
    scratch.write_bytes(content if kind == "flipped" else content[: len(content) // 2])
    return store.put(scratch, key)
