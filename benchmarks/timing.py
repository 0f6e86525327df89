"""Programs timed side by side in one run, and what they ran on. Only ratios of one run are compared."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from train.metrics import matrix_rate
from zoo import runtime


def begin() -> float:
    """Set this process up, print what it runs on, and return the rate of matrix products measured there, in FLOP/s."""
    runtime.prepare()
    runtime.canary()
    rate = matrix_rate("float32")
    print(f"{environment()}; matrix products {rate / 1e9:.0f} GFLOP/s\n", flush=True)
    return rate


def interleaved(programs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each call, [rounds]: one call of each program a round, in turn, after two to warm up.

    A program returns when its work is done.
    """
    for program in programs.values():
        program()
        program()
    found: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            began = time.perf_counter()
            program()
            found[name].append(time.perf_counter() - began)
    return {name: np.asarray(seconds) for name, seconds in found.items()}


def environment() -> str:
    """The machine, versions and flags in a line, and how busy the machine is."""
    device = jax.devices()[0].device_kind
    if (told := Path("/proc/cpuinfo")).exists() and jax.default_backend() == "cpu":
        models = [line.partition(": ")[2] for line in told.read_text().splitlines() if line.startswith("model name")]
        device = next(iter(models), device)
    versions = f"Python {platform.python_version()}, JAX {jax.__version__}"
    load = f"load average {os.getloadavg()[0]:.1f}"
    return f"{device}, {os.cpu_count()} processors; {versions}; XLA_FLAGS={os.environ.get('XLA_FLAGS', '')}; {load}"
