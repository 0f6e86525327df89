"""Writing and reading the arrays of a checkpoint: all uses of Orbax, and the handling of a disk that fills up during a write."""

import asyncio
import functools
import logging
import mmap
import os
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

from zoo.fault_points import fault_point

PEER_TIMEOUT = 600
"""Seconds that a process waits for the others after it has written its part."""
SAVE_MEMORY = (128 << 20) + (8 << 20) * (os.cpu_count() or 1)
"""Bytes of address space that a save needs besides its arrays. The first one took 117 MiB on two cores, most of it stacks of
threads; each core adds a thread."""
SMALLEST_PART = 1 << 20
"""Smallest size in bytes of the part of an array that one of the devices with a copy of it writes; the copies of a smaller array
are not divided. By default Orbax divides every array, and compiles a program for each part of each shape: 96 of the 111 programs
of a small run on eight devices."""


def check_save_memory(size: int) -> None:
    """Raise an error if this process does not have the address space for a save of `size` bytes.

    TensorStore and XLA, which are C++, abort the process or hang if they cannot start a thread or allocate memory. So the address
    space is reserved and released before they begin; a mapping without access rights uses no memory.

    Raises:
        OSError: there is less than `size` + `SAVE_MEMORY`.
    """
    mmap.mmap(-1, size + SAVE_MEMORY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0).close()


def start_writing(folder: pathlib.Path, leaves: dict[str, jax.Array]) -> Callable[[], None]:
    """Begin to write arrays into an empty folder; called by every process, for its shards.

    Returns once the arrays are on the host. (On CPU they already are; the references to them keep JAX from reusing their buffers
    when a step donates them.) Call it in a thread without an event loop; the main thread of a notebook has one.

    Returns:
        A function that waits until this process's part is written, and raises the error if that failed.
    """
    _silence_tracebacks()
    fault_point("checkpoint.arrays")
    futures = asyncio.run(_handler().async_save(epath.Path(folder), args=ocp.args.PyTreeSave(leaves)))

    def wait() -> None:
        for future in futures or []:
            future.result()

    return wait


def finish_writing(folder: pathlib.Path) -> None:
    """Merge the files that the processes have written; process 0 calls this after all of them are done."""
    _handler().finalize(epath.Path(folder))


def read_arrays(folder: pathlib.Path, leaves: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Read the arrays of a folder by path, with the shapes, dtypes and shardings of `leaves`; called by every process.

    Other leaves of the folder are not read. Orbax cuts a leaf to fit another shape and casts it to another dtype, so the caller
    must have compared both.
    """
    fault_point("checkpoint.restore")
    restore_args = ocp.checkpoint_utils.construct_restore_args(leaves)
    with jax.transfer_guard("allow"):
        handler = ocp.PyTreeCheckpointHandler()
        return handler.restore(epath.Path(folder), args=ocp.args.PyTreeRestore(leaves, restore_args, partial_restore=True))


def wait_for_processes(name: str) -> None:
    """Wait until every process has called this with the same unused `name`; raise after `PEER_TIMEOUT`.

    It may run outside the main thread: it does not use the devices, so it does not disturb the order of collectives.
    """
    ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=PEER_TIMEOUT * 1000)


def remove_abandoned(folder: pathlib.Path, absent_for: float = 0.3, patience: float = 30) -> None:
    """Remove a folder whose writing failed.

    Other writes of the save continue for a moment, and TensorStore recreates a missing parent folder: so delete it until it
    has been absent for `absent_for` seconds, for at most `patience` seconds.
    """
    deadline = time.monotonic() + patience
    gone_since = time.monotonic()
    while time.monotonic() < min(deadline, gone_since + absent_for):
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
            gone_since = time.monotonic()
        time.sleep(0.02)


@functools.cache
def _handler() -> ocp.PyTreeCheckpointHandler:
    """Return Orbax's handler, created at its first use. It starts JAX's backend, so the processes must have joined before."""
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SMALLEST_PART)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


@functools.cache
def _silence_tracebacks() -> None:
    """Reduce the reports of a full disk to the one line that the run prints about it.

    Orbax logs the traceback of each failing write before it raises the error; asyncio logs abandoned writes when they are
    garbage-collected; TensorStore reports the others to an event loop that is closed by then; and some were never started.
    """
    package = str(pathlib.Path(ocp.__file__).parent)
    hook = sys.unraisablehook

    def is_from_elsewhere(record: logging.LogRecord) -> bool:
        if not record.exc_info:
            return True
        files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(record.exc_info[2])]
        # An exception without any frame comes from TensorStore's own threads.
        return bool(files) and not any(file.startswith(package) for file in files)

    def report(raised: Any) -> None:
        if not (isinstance(raised.exc_value, RuntimeError) and str(raised.exc_value) == "Event loop is closed"):
            hook(raised)

    logging.getLogger("absl").addFilter(is_from_elsewhere)
    logging.getLogger("asyncio").addFilter(is_from_elsewhere)
    sys.unraisablehook = report
    warnings.filterwarnings("ignore", "coroutine 'async_serialize_from_host", RuntimeWarning)
