"""Limits of the kernel that a process sets for itself at a certain moment of a run. They are called in a forked `zoo`.

Each replaces a function of the project by one that sets a limit and then calls it: every error comes from the kernel. Nothing
here imports `tests.support.environment`, see `tests.support.forked`.
"""

import resource
from typing import Any


def file_size(name: str, row: int) -> None:
    """Let no file grow beyond the size, and a few bytes, that a file of rows has before its `row`-th row is written."""
    from train.run.metrics_file import Metrics

    write, written = Metrics.write, 0

    def limited(self: Metrics, values: Any) -> None:
        nonlocal written
        written += self._path.name == name
        if written == row:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._path.stat().st_size + 9, resource.RLIM_INFINITY))
        write(self, values)

    Metrics.write = limited


def memory(step: int, spare: int) -> None:
    """Let the process take only `spare` bytes more than it has when the save of a step begins."""
    import jax

    from train.checkpoints.checkpoints import Checkpoints

    save = Checkpoints.save

    def limited(self: Checkpoints, state: Any, meta: dict[str, Any]) -> None:
        if int(jax.device_get(state.step)) == step:
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))
        save(self, state, meta)

    Checkpoints.save = limited
