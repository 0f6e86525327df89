"""Another library (a peer) that does the work of a program of ours, in a process of its own, which works only while ours waits.

In one process, the thread pools of torch and XLA would compete, and a failure of a peer would end everything; separate processes
also show how much memory each needs. A peer gets the same weights, as a published folder, and the same request and arrays. Its
numbers must agree with ours before it is timed. Importing this module does not import JAX.
"""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core.worker_process import Answer, Worker

REQUEST, ARRAYS = "request.json", "arrays.npz"
PATIENCE = 600.0
"""Seconds that a peer may take to start, compilation included, and for each call."""
COLD = {"JAX_ENABLE_COMPILATION_CACHE": "0", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
"""Environment of a peer: its seconds of compilation are those of a first compilation, as ours are."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """The module, packages and options that build a peer."""

    module: str
    """Module with `build(folder, request, arrays)`, which returns a function that does the work once and returns a JSON value."""
    packages: tuple[str, ...]
    """Packages that must be installed. They are imported after the module and before any clock starts."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Additions to the request."""
    reduced: bool = True
    """True if it is also measured in bfloat16, in its own way."""

    def missing_packages(self) -> str:
        """Return why a peer cannot run here; "" if it can."""
        absent = [package for package in self.packages if importlib.util.find_spec(package) is None]
        return f"{' and '.join(absent)} not installed" if absent else ""


def export_for_peers(folder: Path, config: Any, params: Any, request: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write the weights, the request and the arrays for peers, unless the folder has them."""
    from zoo import published_weights

    if not (folder / REQUEST).exists():
        published_weights.save_published(folder, config, params)
        np.savez(folder / ARRAYS, **arrays)
        (folder / REQUEST).write_text(json.dumps(request))


def optimizer_numbers(optim: Any) -> dict[str, float]:
    """Return the numbers of our optimizer that peers use, for their request."""
    return {name: getattr(optim, name) for name in ("lr", "b1", "b2", "eps", "weight_decay", "clip")}


class Peer(Worker):
    """The process of a peer, until `close`; `resident` is its peak resident memory in bytes."""

    def __init__(self, kind: Kind, folder: Path, more: Mapping[str, Any] | None = None) -> None:
        """Start its process, which builds it; `more` are additions to the request."""
        super().__init__(serve_peer, dataclasses.asdict(kind), str(folder), more or {}, env=COLD)
        self.resident = 0

    def begin(self) -> dict[str, Any]:
        """Wait until it is built; return the "seconds" of that, and the "versions" of its packages.

        Raises:
            WorkerFailed: it cannot be built.
        """
        return self.answer(PATIENCE)

    def run(self) -> dict[str, Any]:
        """Let it do its work once more, to its end; return its "result" and the "seconds" that it took.

        Raises:
            WorkerFailed: its process ended.
        """
        answer = self.next_answer(PATIENCE)
        self.resident = answer["rss"]
        return answer


# --- the peer's own process -----------------------------------------------------------------------------------------------------


def serve_peer(kind_fields: Mapping[str, Any], folder: str, more: Mapping[str, Any]) -> tuple[Answer, Callable[[], Answer]]:
    """Build a peer; return the answer of `Peer.begin`, and the function that gives those of `Peer.run`."""
    kind, files = Kind(**kind_fields), Path(folder)
    request = json.loads((files / REQUEST).read_text()) | {**more, **kind.options}
    build = importlib.import_module(kind.module).build
    for package in kind.packages:
        importlib.import_module(package)
    with np.load(files / ARRAYS) as stored:
        arrays = dict(stored)
    began = time.perf_counter()
    program = build(files, request, arrays)
    built = time.perf_counter() - began

    def run() -> Answer:
        began = time.perf_counter()
        result = program()
        return {"result": result, "seconds": time.perf_counter() - began, "rss": peak_resident()}

    versions = {package: importlib.metadata.version(package.replace("_", "-")) for package in kind.packages}
    return {"seconds": built, "versions": versions}, run


def peak_resident() -> int:
    """Return the peak memory of this process in bytes."""
    # The peak of `getrusage` includes the parent process up to the start of this one.
    status = Path("/proc/self/status")
    if status.exists() and (match := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(match[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
