"""Arrays to files and back: all that is Orbax, with what it takes to bear a disk that fills up while it writes."""

import asyncio
import functools
import logging
import pathlib
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

PEER_TIMEOUT = 600
"""Seconds that a process which has written its part waits for the others."""


def start_writing(folder: pathlib.Path, leaves: dict[str, jax.Array]) -> Callable[[], None]:
    """Begin to write arrays into an empty folder; called by every process, for its shards.

    Returns once the arrays are on the host. (On CPU they already are, and their buffers are only held: JAX then copies where it
    would have donated them.) To be called in a thread without an event loop, which the main thread of a notebook has.

    Returns:
        A function that waits until this process's part is written, and raises what went wrong.
    """
    _spare_the_tracebacks()
    futures = asyncio.run(_handler().async_save(epath.Path(folder), args=ocp.args.StandardSave(leaves)))

    def wait() -> None:
        for future in futures or []:
            future.result()

    return wait


def finish_writing(folder: pathlib.Path) -> None:
    """Join what the processes have written; called by process 0 after all of them are done."""
    _handler().finalize(epath.Path(folder))


def read(folder: pathlib.Path, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Read arrays with the shapes, dtypes and shardings wanted. Called by every process.

    Leaves of the folder that are not wanted are not read. A leaf is cut to fit another shape and cast to another dtype, so both
    must have been compared before.
    """
    how = ocp.checkpoint_utils.construct_restore_args(wanted)
    with jax.transfer_guard("allow"):
        handler = ocp.PyTreeCheckpointHandler()
        return handler.restore(epath.Path(folder), args=ocp.args.PyTreeRestore(wanted, how, partial_restore=True))


def barrier(name: str) -> None:
    """Wait until every process is here, or raise after `PEER_TIMEOUT`; `name` must be new.

    For other threads than the main one: the devices take no part in it, so it keeps out of the order of the collectives.
    """
    ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=PEER_TIMEOUT * 1000)


def remove_abandoned(folder: pathlib.Path, settled: float = 0.3, patience: float = 30) -> None:
    """Remove a folder whose writing failed.

    The writes that did not fail go on for a moment, and TensorStore makes a missing parent folder anew: it has to stay away
    for `settled` seconds.
    """
    deadline = time.monotonic() + patience
    gone_since = time.monotonic()
    while time.monotonic() < min(deadline, gone_since + settled):
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
            gone_since = time.monotonic()
        time.sleep(0.02)


@functools.cache
def _handler() -> ocp.StandardCheckpointHandler:
    """Made at first use: it starts JAX's backend, and processes must have joined before."""
    return ocp.StandardCheckpointHandler()


@functools.cache
def _spare_the_tracebacks() -> None:
    """Keep a full disk to the one line that the run says about it.

    Orbax logs the traceback of each write that fails before it raises it; asyncio logs those that were abandoned, when they
    are collected; TensorStore reports the others to an event loop that is closed by then; and some were never begun.
    """
    package = str(pathlib.Path(ocp.__file__).parent)
    hook = sys.unraisablehook

    def is_not_ours(record: logging.LogRecord) -> bool:
        if not record.exc_info:
            return True
        files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(record.exc_info[2])]
        # An exception without any frame comes from TensorStore's own threads.
        return bool(files) and not any(file.startswith(package) for file in files)

    def report(raised: Any) -> None:
        if not (isinstance(raised.exc_value, RuntimeError) and str(raised.exc_value) == "Event loop is closed"):
            hook(raised)

    logging.getLogger("absl").addFilter(is_not_ours)
    logging.getLogger("asyncio").addFilter(is_not_ours)
    sys.unraisablehook = report
    warnings.filterwarnings("ignore", "coroutine 'async_serialize_from_host", RuntimeWarning)
