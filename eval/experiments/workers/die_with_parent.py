"""A command of `zoo` that ends with its parent: `python -m eval.experiments.workers.die_with_parent PID CORES train ...`.

PID is the parent. CORES are the numbers of the CPU cores that this process may use, as 0,1, or "all". They are set before XLA
starts as many threads. On Linux the kernel kills the process. Elsewhere, and where that call fails, a thread watches for a new
parent and ends the process. Where it is not needed there is no thread: a thread that allocates before `zoo.runtime.jax_setup` has
set malloc's options makes malloc use two arenas, of which the second returns the memory of each step to the system.
"""

import contextlib
import ctypes
import os
import runpy
import signal
import sys
import threading
import time

SET_PARENT_DEATH_SIGNAL = 1
POLL = 0.5
"""Seconds between two looks at the parent."""


def die_with_parent(parent: int) -> None:
    """Make this process end when `parent`, which started it, ends."""
    killed_by_kernel = False
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            killed_by_kernel = ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0) == 0
    # The parent may have ended before this call.
    if os.getppid() != parent:
        os._exit(1)
    if not killed_by_kernel:
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="parent").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    # Not an exception: the main thread may be in a computation that takes minutes. Launched processes are in this group.
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    if sys.argv[2] != "all":
        os.sched_setaffinity(0, {int(core) for core in sys.argv[2].split(",")})
    sys.argv = ["zoo", *sys.argv[3:]]
    runpy.run_module("zoo.cli", run_name="__main__", alter_sys=True)
