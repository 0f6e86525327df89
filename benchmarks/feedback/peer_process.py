"""Another implementation of the same iteration, in a process of its own, which works only while ours waits.

It gets the same weights, as a published folder, and the prompts and responses of our first iteration. Importing this module does
not import JAX.
"""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.core.worker_process import Answer, Worker
from benchmarks.step.peer_libraries import COLD, PATIENCE, peak_resident

REQUEST, ARRAYS = "request.json", "iteration.npz"


@dataclasses.dataclass(frozen=True)
class Kind:
    """The module and the packages of a peer."""

    module: str
    """Module with `build(folder, request, arrays)`, which returns a `PeerIteration`."""
    packages: tuple[str, ...]
    """Packages that must be installed."""


PEERS = {"TRL": Kind("benchmarks.feedback.peer_trl", ("torch", "transformers", "trl"))}


class PeerIteration(Protocol):
    """An iteration of another library."""

    def greedy(self) -> list[list[int]]:
        """Return the likeliest tokens after the prompts, under the weights of the folder."""
        ...

    def losses(self) -> list[float]:
        """Return the losses of two steps on the given responses, which begin at the weights of the folder."""
        ...

    def run(self) -> dict[str, float]:
        """Compute an iteration to its end, and return the seconds of its parts and of the whole."""
        ...


def missing_packages(name: str) -> str:
    """Return why a peer cannot run here; "" if it can."""
    absent = [package for package in PEERS[name].packages if importlib.util.find_spec(package) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


class Peer(Worker):
    """The process of a peer, until `close`; `resident` is its peak resident memory in bytes."""

    def __init__(self, name: str, folder: Path) -> None:
        """Start its process, which loads the weights: see `begin`."""
        super().__init__(serve, dataclasses.asdict(PEERS[name]), str(folder), env=COLD)
        self.resident = 0

    def begin(self) -> dict[str, Any]:
        """Wait for its first answer: "greedy" tokens, "losses", and "versions" of its packages.

        Raises:
            WorkerFailed: there is none.
        """
        return self.answer(PATIENCE)

    def run(self) -> dict[str, float]:
        """Compute one iteration, and return the seconds of its parts and of the whole.

        Raises:
            WorkerFailed: its process ended.
        """
        answer = self.next_answer(PATIENCE)
        self.resident = answer["rss"]
        return answer["seconds"]


# --- the peer's own process -----------------------------------------------------------------------------------------------------


def serve(kind_fields: Mapping[str, Any], folder: str) -> tuple[Answer, Callable[[], Answer]]:
    """Build the peer; return what `Peer.begin` returns, and a function that computes an iteration."""
    kind, files = Kind(**kind_fields), Path(folder)
    build: Callable[..., PeerIteration] = importlib.import_module(kind.module).build
    with np.load(files / ARRAYS) as arrays:
        iteration = build(files, json.loads((files / REQUEST).read_text()), dict(arrays))
    # The tokens come first: they are those of the first weights.
    answer = {"greedy": iteration.greedy(), "losses": iteration.losses()}
    versions = {package: importlib.metadata.version(package) for package in kind.packages}
    return {**answer, "versions": versions}, lambda: {"seconds": iteration.run(), "rss": peak_resident()}
