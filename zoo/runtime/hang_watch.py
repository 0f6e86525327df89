"""The watch of a process over itself, for a run that no local launcher supervises, and the stacks of a run that is stuck."""

import contextlib
import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from zoo.file_access import open_to_append
from zoo.runtime import progress, stdio
from zoo.runtime.progress import Watch, this_process

PATIENCE = 2.0
"""Seconds that a message or a file may take; a disk that does not answer may be the reason why the run is stuck."""


@contextlib.contextmanager
def watch_progress(allowance: float, stacks: Path, subject: str, close: Callable[[], None]) -> Iterator[None]:
    """End the process with `progress.HANG` if it is stuck, in the block; the launcher does it for processes that it has started.

    A thread looks at the record of this process. It cannot run while native code holds Python's lock.

    Args:
        allowance: seconds that the time between two steps may exceed `progress.MEDIANS` medians; 0 = there is no limit.
        stacks: file to which the stacks of all threads are appended.
        subject: what is stuck, for the message.
        close: restores the terminal; it is called in another thread.
    """
    this_process.start(allowance)
    ended = threading.Event()

    def run() -> None:
        watch = Watch([this_process.read])
        while not ended.wait(progress.TICK):
            if stuck := watch.look():
                _end(f"{subject}: {stuck.reason}", stacks, close)

    thread = threading.Thread(target=run, daemon=True, name="watch")
    if allowance and not this_process.is_shared:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.ident:
            thread.join()
        this_process.start(0.0)


def write_stacks(reason: str, stacks: list[str], path: Path | None) -> str:
    """Append the stacks of processes to a file, or write them to stderr without one, and return where they are.

    Args:
        reason: why they are written.
        stacks: a text for each process.
        path: the file. If it cannot be written, the stacks go to stderr too.
    """
    parts = [f"{time.strftime('%Y-%m-%d %H:%M:%S')} {reason}\n"]
    parts += [f"\nProcess {process}:\n{text}" for process, text in enumerate(stacks)]
    text = "".join(parts) + "\n"

    def append() -> None:
        assert path is not None
        with open_to_append(path) as file:
            file.write(text.encode())

    if path is not None and stdio.run_briefly(append, PATIENCE):
        return f"the stacks of all threads are in {path}"
    stdio.run_briefly(lambda: print(text, file=sys.stderr, flush=True), PATIENCE)
    return "the stacks of all threads are above"


def _end(reason: str, path: Path, close: Callable[[], None]) -> None:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read()
    stdio.run_briefly(close, PATIENCE)
    place = write_stacks(reason, [text], path)
    line = f"{reason}; {place}; the same command continues the run from its newest checkpoint"
    stdio.run_briefly(lambda: stdio.write_error(line), PATIENCE)
    os._exit(progress.HANG)
