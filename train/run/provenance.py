"""Provenance of a run: the commit of this project, the host and its devices; and the memory that it has used."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from zoo.errors import BadInput
from zoo.json_shapes import read_shaped_json

REGISTRATION = "registration.json"
"""Name of the file with the registration of an experiment, in its folder; its runs are two levels below."""
PACKAGES = ("zoo", "train", "eval")
"""Folders of a checkout whose changes make it dirty."""
PATIENCE = 10.0
"""Seconds to wait for git."""


def read_provenance() -> dict[str, Any]:
    """Return the facts about where a run is computed, as JSON.

    version: version of the package. commit: commit of the checkout that this program runs from; None if there is no checkout, or
    git is not available. dirty: whether the code there differs from the commit, new files included; None without a commit. host,
    processor (a digest of its kind, on which the bits of a result on CPU depend), device (its kind), devices and processes.
    """
    import jax

    from zoo.runtime.jax_setup import processor_digest

    places = {"host": socket.gethostname(), "processor": processor_digest(), "device": jax.devices()[0].device_kind}
    counts = {"devices": jax.device_count(), "processes": jax.process_count()}
    return {**read_code(), **places, **counts}


def read_code() -> dict[str, Any]:
    """Return the version, the commit and `dirty` of this program, as in `read_provenance`."""
    return {"version": importlib.metadata.version("transformer-zoo"), **read_commit(_root())}


def registered_hash(run: Path) -> str | None:
    """Return the hash of the registration that is in force now, if the folder of a run is EXPERIMENT/runs/NAME; None if not.

    A run records it when it starts, so that a registration that replaces it later is noticed.
    """
    with contextlib.suppress(BadInput):
        content = read_shaped_json(run.resolve().parent.parent / REGISTRATION, {"hash": str}, "")
        return content["hash"] if content else None
    return None


@functools.cache
def read_commit(root: Path, packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """Return the commit of the checkout in a folder, and whether its packages were changed; both None if it is not a checkout."""
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    changes = None if commit is None else _git(root, "status", "--porcelain", "--", *packages)
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def peak_bytes() -> int | None:
    """Return the most memory that was in use on a device of this process so far; on a CPU the most that the process used.

    None where the system does not report it.
    """
    import jax

    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if max(peaks):
        return max(peaks)
    with contextlib.suppress(ImportError):
        import resource

        # In KiB, except on macOS.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None


def _root() -> Path:
    """Return the folder that this project's packages are in."""
    spec = importlib.util.find_spec("zoo")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).resolve().parents[1]


def _git(root: Path, *command: str) -> str | None:
    """Return what a command of git prints; None if git is not available, or refuses it."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=PATIENCE, check=True)
        return done.stdout.strip()
    return None
