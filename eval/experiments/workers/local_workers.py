"""Workers on this machine: one process a node, each with its own part of the CPU cores, or with a GPU of its own."""

import importlib.util
import itertools
import os
from collections.abc import Mapping
from pathlib import Path

from eval.experiments.grid import Node
from eval.experiments.workers.node_process import NodeProcess
from zoo.errors import BadInput, require
from zoo.runtime.jax_setup import ACCELERATORS

GPUS = Path("/proc/driver/nvidia/gpus")
VISIBLE = "CUDA_VISIBLE_DEVICES"


class LocalWorkers:
    """Processes of this machine that run nodes."""

    def __init__(self, folder: Path, count: int = 1, cwd: Path | None = None) -> None:
        """Divide the cores and GPUs of this machine among `count` workers. One worker uses all of them.

        Args:
            cwd: the folder in which the processes run; None = `folder`.

        Raises:
            BadInput: there are fewer cores or GPUs than workers, or another accelerator, which cannot be divided.
        """
        self.count, self._folder, self._cwd = count, folder, cwd
        self._cores, self._environments = [()] if count == 1 else divide_cores(count), divide_gpus(count)

    def start(self, node: Node, slot: int) -> NodeProcess:
        """Start a node with the cores of a slot."""
        return NodeProcess(node, self._folder, self._cores[slot], self._environments[slot], self._cwd)


def divide_cores(count: int) -> list[tuple[int, ...]]:
    """Return the numbers of the cores of each of `count` workers, consecutive ones, among those that this process may use.

    Raises:
        BadInput: there are more workers than cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise BadInput(f"--workers {count}: this system cannot divide its cores among processes; choose 1")
    cores = sorted(os.sched_getaffinity(0))
    require(count <= len(cores), "workers", count, f"this process may use {len(cores)} cores; choose at most as many")
    bounds = [len(cores) * worker // count for worker in range(count + 1)]
    return [tuple(cores[begin:end]) for begin, end in itertools.pairwise(bounds)]


def divide_gpus(count: int) -> list[Mapping[str, str]]:
    """Return the environment of each of `count` workers, in which it sees one GPU, if there are GPUs and several workers.

    Raises:
        BadInput: there are fewer GPUs than workers, or another accelerator.
    """
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(importlib.util.find_spec, ACCELERATORS))
    if count == 1 or on_cpu:
        return [{} for _ in range(count)]
    if VISIBLE in os.environ:
        gpus = [name for name in os.environ[VISIBLE].split(",") if name.strip()]
    else:
        gpus = [str(number) for number in range(len(list(GPUS.glob("*"))))]
    if not gpus and any(Path("/dev").glob("accel[0-9]*")):
        raise BadInput(f"--workers {count}: one process uses all TPU chips of this machine; choose 1, or set JAX_PLATFORMS=cpu")
    if gpus:
        fix = f"this machine has {len(gpus)} GPUs, and a worker needs one; choose at most as many, or set JAX_PLATFORMS=cpu"
        require(count <= len(gpus), "workers", count, fix)
    return [{VISIBLE: gpus[worker]} if gpus else {} for worker in range(count)]
