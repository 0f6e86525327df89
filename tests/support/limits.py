"""Limits that a process sets for itself at a certain moment of a run, called in a forked `zoo`: `before` of `forked.start`.

Each replaces a function of the project by one that sets a limit and then calls it: every error comes from the kernel. Nothing
here imports `tests.support.environment`, see `tests.support.forked`: the run would have other devices and threads, so that
its bits would differ from those of the others.
"""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

FILLER = "filler"
"""Name of the file that takes the space of a file system."""


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


def write_to(name: str, device: str) -> None:
    """Let the content of a file that is replaced atomically go to another path: a full device, or a pipe without a reader."""
    from train.run import run_dir

    open_new = run_dir.open_new

    @contextlib.contextmanager
    def limited(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
        with open_new(path) as (partial, file):
            if path.name != name:
                yield partial, file
                return
            with open(device, "wb", buffering=0) as other:
                yield partial, other

    run_dir.open_new = limited


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


def fill(folder: Path, free: int) -> None:
    """Let a file take all space of a file system but `free` bytes."""
    filler = folder / FILLER
    filler.unlink(missing_ok=True)
    status = os.statvfs(folder)
    size = status.f_bavail * status.f_frsize - free
    with filler.open("wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(1, size))


def fill_before(folder: str, free: int) -> None:
    """Fill a file system in the process that will write to it, once its run has begun."""
    from train.rows.batches import Batches

    begin = Batches.read

    def full(self: Batches, first_step: int) -> object:
        fill(Path(folder), free)
        return begin(self, first_step)

    Batches.read = full
