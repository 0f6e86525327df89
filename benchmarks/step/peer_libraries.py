"""Other implementations of the same step, each in a separate process; only one of the processes works at a time.

A peer gets the same weights, as a published folder, and the same batch. Its losses before and after an update must agree with
ours before it is timed.

In one process, the thread pools of torch and XLA would compete, and a failure of a peer would end everything; separate processes
also show how much memory each needs.
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
from zoo.errors import BadInput

REQUEST, BATCH = "request.json", "batch.npz"
PATIENCE = 600.0
"""Seconds that a peer may take to start, compilation included, and for each step."""
COLD = {"JAX_ENABLE_COMPILATION_CACHE": "0", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
"""Environment of a peer: its seconds of compilation are those of a first compilation, as ours are."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """The module, packages and options that build a peer."""

    module: str
    """Module with `build(folder, request, batch)`, which returns a function that takes a step and returns its loss. `packages`
    are imported after it and before the clock of the first step starts."""
    packages: tuple[str, ...]
    """Packages that must be installed."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reduced: bool = True
    """True if it is also measured in bfloat16, in its own way."""


TORCH = ("torch", "transformers")
PEERS: dict[str, Kind] = {
    "transformers": Kind("benchmarks.step.peer_torch", TORCH),
    "transformers, eager attention": Kind("benchmarks.step.peer_torch", TORCH, {"attention": "eager"}, reduced=False),
    "transformers, torch.compile": Kind("benchmarks.step.peer_torch", TORCH, {"compile": True}),
    "KerasHub on JAX": Kind("benchmarks.step.peer_keras", ("keras", "keras_hub"), reduced=False),
}
"""transformers: torch's eager mode, with the attention that `transformers` chooses (`scaled_dot_product_attention` if a model has
it)."""


def requested_peers(settings: Any) -> list[tuple[str, str]]:
    """Return the requested peers as (peer, precision)."""
    pairs = [(name, precision) for precision in settings.precision for name in PEERS] if settings.peers else []
    return [(name, precision) for name, precision in pairs if precision == "float32" or PEERS[name].reduced]


def missing_packages(name: str) -> str:
    """Return why a peer cannot run here; "" if it can."""
    absent = [package for package in PEERS[name].packages if importlib.util.find_spec(package) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


def export(folder: Path, case: Any, params: Any, optim: Any) -> None:
    """Write the request for the peers of a case: weights, batch, and numbers.

    Raises:
        BadInput: `transformers` has no such model.
    """
    from zoo import published_weights

    architecture = case.model.names.architecture
    if not architecture:
        raise BadInput(f"{case.size}: transformers has no model of this kind")
    published_weights.save(folder, case.config, params)
    batch = case.arrays()
    arrays = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name != "source"}
    if batch.source is not None:
        arrays |= {"source": batch.source.tokens}
    np.savez(folder / BATCH, **{name: array for name, array in arrays.items() if array is not None})
    numbers = {"family": case.model.family, "objective": case.objective, "mode": case.mode, "architecture": architecture}
    numbers["optim"] = {name: getattr(optim, name) for name in ("lr", "b1", "b2", "eps", "weight_decay", "clip")}
    (folder / REQUEST).write_text(json.dumps(numbers))


class Peer(Worker):
    """The process that runs another library (a peer), until `close`; `resident` is its peak resident memory in bytes."""

    def __init__(self, name: str, folder: Path, precision: str = "float32") -> None:
        """Start its process, which loads the weights and takes two steps: see `begin`."""
        super().__init__(serve, dataclasses.asdict(PEERS[name]), str(folder), precision, env=COLD)
        self.resident = 0

    def begin(self) -> dict[str, Any]:
        """Wait for its first two steps and return its answer.

        The keys are "losses", seconds ("build_s", "first_step_s", "second_step_s"), "rss", its peak memory in bytes, and
        "versions".

        Raises:
            WorkerFailed: it cannot take them.
        """
        return self.answer(PATIENCE)

    def run(self) -> float:
        """Take one step, to its end, and return its loss.

        Raises:
            WorkerFailed: its process ended.
        """
        answer = self.next_answer(PATIENCE)
        self.resident = answer["rss"]
        return float(answer["loss"])


# --- the peer's own process -----------------------------------------------------------------------------------------------------


def serve(kind_fields: Mapping[str, Any], folder: str, precision: str) -> tuple[Answer, Callable[[], Answer]]:
    """Build the peer and take two steps; return what `Peer.begin` returns, and a function that takes another step."""
    kind, files = Kind(**kind_fields), Path(folder)
    request = json.loads((files / REQUEST).read_text()) | {"precision": precision, **kind.options}
    build: Callable[..., Callable[[], float]] = importlib.import_module(kind.module).build
    for package in kind.packages:
        importlib.import_module(package)
    began = time.perf_counter()
    with np.load(files / BATCH) as arrays:
        step = build(files, request, dict(arrays))
    built = time.perf_counter()
    losses = [step()]
    first = time.perf_counter()
    losses.append(step())
    seconds = {"build_s": built - began, "first_step_s": first - built, "second_step_s": time.perf_counter() - first}
    versions = {package: importlib.metadata.version(package.replace("_", "-")) for package in kind.packages}
    answer = {"losses": losses, **seconds, "rss": peak_resident(), "versions": versions}
    return answer, lambda: {"loss": step(), "rss": peak_resident()}


def peak_resident() -> int:
    """Return the peak memory of this process in bytes."""
    # The peak of `getrusage` includes the parent process up to the start of this one.
    status = Path("/proc/self/status")
    if status.exists() and (match := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(match[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
