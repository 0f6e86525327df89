"""`zoo` in forks of a process that has imported it, but not `tests.support.environment`, which would start JAX."""

import atexit
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest import mock

IMPORTED = [
    "zoo.cli.commands.train",
    "train.trainer",
    "eval.report.samples",
    "eval.tasks.held_out.scorers",
    "eval.report.report",
    "matplotlib.backends.backend_svg",
]
_context: list[ForkServerContext] = []
_environment: dict[str, str] = {}
_lock = threading.Lock()


def with_faults(faults: str, compiled: str = "", cache: str = "") -> None:
    """Set the faults of this process, see `zoo.fault_points`; `before` of `start`.

    Args:
        compiled: folder for compiled programs; "" = that of the environment.
        cache: folder for everything else that is cached; "" = that of the environment.
    """
    import jax

    from zoo import fault_points

    fault_points.set_faults(faults)
    if compiled:
        jax.config.update("jax_compilation_cache_dir", compiled)
    if cache:
        os.environ["ZOO_CACHE"] = cache


def start(
    argv: list[str],
    folder: Path,
    out: Path,
    err: Path,
    environment: Mapping[str, str],
    before: Callable[[], None] | None = None,
    act: Callable[[], None] | None = None,
) -> ForkServerProcess:
    """Start `zoo` with `argv` in a folder, its output going to two files. All starts must have the same environment.

    Args:
        before: called in the new process first; see `tests.support.limits`.
        act: called instead of the entry point of `zoo`.
    """
    # Two threads that changed the environment at once would leave it changed.
    with _lock:
        if not _context:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(IMPORTED)
            with mock.patch.dict(os.environ, environment, clear=True):
                forkserver.ensure_running()
            _context.append(context)
            _environment.update(environment)
    assert environment == _environment
    process = _context[0].Process(target=_command, args=(argv, folder, out, err, before, act))
    process.start()
    return process


def _command(
    argv: list[str],
    folder: Path,
    out: Path,
    err: Path,
    before: Callable[[], None] | None,
    act: Callable[[], None] | None,
) -> None:
    from train.run import matmul_rate
    from zoo.cli import main

    if before:
        before()
    # The rate with which MFU is computed is measured for half a second, which is as long as all steps of such a run.
    measure = matmul_rate.measure_matmul_rate
    matmul_rate.measure_matmul_rate = lambda dtype, seconds=0.0: measure(dtype, 0.02)
    os.chdir(folder)
    for descriptor, path in ((1, out), (2, err)):
        with path.open("w") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = ["zoo", *argv]
    try:
        (act or main.run)()
    finally:
        atexit._run_exitfuncs()  # as every interpreter does at its end, but for one that `multiprocessing` has forked
