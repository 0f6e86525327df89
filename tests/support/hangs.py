"""`zoo` in which one process gets stuck after a step: `python -m tests.support.hangs KIND PROCESS STEP ARGUMENTS`.

Nothing here imports `tests.support.environment`, see `tests.support.forked`.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Any

PROGRAM = (sys.executable, "-m", "tests.support.hangs")


def sleep() -> None:
    """Do nothing for an hour, without Python's lock."""
    time.sleep(3600)


def hold_lock() -> None:
    """Keep Python's lock for ever: no other thread runs Python any more, and no signal ends the call."""
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)  # zeros: an open pthread_mutex_t
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def die() -> None:
    """End as a process that the kernel kills because memory is used up."""
    os.kill(os.getpid(), 9)


KINDS: dict[str, Callable[[], None]] = {"sleep": sleep, "hold_lock": hold_lock, "die": die}


def get_stuck(kind: str, step: int) -> None:
    """Let this process get stuck after a step, at the first start of its run alone."""
    from train.run.metric_logger import MetricLogger

    original = MetricLogger.step

    def wrapped(self: MetricLogger, *arguments: Any) -> None:
        original(self, *arguments)
        if self._at == step and self._first == 0:
            KINDS[kind]()

    MetricLogger.step = wrapped


def main() -> None:
    """Run `zoo`."""
    kind, process, step, *arguments = sys.argv[1:]
    if os.environ.get("ZOO_PROCESS", "0") == process:
        get_stuck(kind, int(step))
    from zoo.cli import main
    from zoo.runtime import local_group

    local_group.PROGRAM = (*PROGRAM, kind, process, step)
    sys.argv = ["zoo", *arguments]
    main.run()


if __name__ == "__main__":
    main()
