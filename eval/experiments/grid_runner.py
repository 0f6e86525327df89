"""Run the missing nodes of a grid, one after another, each in a process that ends when this one does.

Whether a node is done is read from the run's folder alone. After any kill the same command continues: finished runs are kept, and
an interrupted run continues from its last checkpoint.
"""

import contextlib
import graphlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eval.experiments import node_status
from eval.experiments.grid import RUNS, Grid, Node
from eval.experiments.run_progress import RunProgress
from train.run.run_dir import check_unlocked
from zoo.errors import BadInput, cannot_write
from zoo.file_access import LARGEST_JSON, open_to_append, read_regular, refuse_links_out

LOCK = "experiment.lock"
OWN = (LOCK, node_status.LOGS, RUNS, "files")
"""Names of an experiment's files and folders, of which none may be a link out of its folder."""
PROGRAM = (sys.executable, "-P", "-m", "eval.experiments.die_with_parent")
POLL = 0.25
"""Seconds between two looks at the running process."""
PATIENCE = 1.0
"""Seconds between two tries of a lock."""


class Stopped(BaseException):
    """A signal requested the engine to stop; the running node has ended."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def lock_folder(folder: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """Lock an experiment's folder, after waiting for another engine that holds the lock.

    Raises:
        BadInput: the folder cannot be written, or has links out of it.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK
    refuse_links_out(folder, OWN, levels=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock, waits = FileLock(path, fallback_to_soft=False), False
        while True:
            try:
                lock.acquire(timeout=PATIENCE if waits else 0)
                break
            except Timeout:
                if not waits:
                    holder = read_regular(path, LARGEST_JSON).decode(errors="replace").strip()[:200] or "another process"
                    notify(f"{folder} is in use by {holder}; this command waits for it")
                waits = True
    except OSError as error:
        raise cannot_write(folder, error) from None
    try:
        path.write_text(f"process {os.getpid()}\n")
        yield
    finally:
        lock.release()


def run_missing(grid: Grid, folder: Path) -> list[str]:
    """Run every node that is not done and return a line for each that failed.

    Raises:
        BadInput: a run's folder belongs to another configuration.
        Stopped: after a signal.
    """
    node_status.check_runs(grid, folder)
    (folder / node_status.LOGS).mkdir(parents=True, exist_ok=True)
    engine = _Engine(grid, folder)
    with RunProgress(grid, folder) as engine.progress, engine.signals():
        _run_nodes(grid, engine)
    lines = []
    for node in grid.nodes:
        if not node_status.is_done(node, folder) and (message := node_status.node_failure(node, folder)):
            lines.append(f"{node.name} failed: {message}; see {node_status.log_file(node, folder)}")
    return lines


def _run_nodes(grid: Grid, engine: "_Engine") -> None:
    """Run the nodes that are not done, in the order of the grid, except those that need one that failed."""
    nodes = {node.name: node for node in grid.nodes}
    order = {name: position for position, name in enumerate(nodes)}
    waiting = graphlib.TopologicalSorter({node.name: node.parents for node in grid.nodes})
    waiting.prepare()
    ready = {*waiting.get_ready()}
    while ready:
        name = min(ready, key=order.__getitem__)
        ready.remove(name)
        if node_status.is_done(nodes[name], engine.folder) or engine.run(nodes[name]):
            waiting.done(name)
            ready.update(waiting.get_ready())


class _Engine:
    """Starts the process of a node, shows its progress, and passes signals on."""

    def __init__(self, grid: Grid, folder: Path) -> None:
        self.folder = folder
        self.progress: Any = None
        self._received: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Pass the first SIGINT, SIGTERM or SIGHUP to the running node, which saves; a second one kills it."""
        hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
        with contextlib.ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM, *hangup):
                stack.callback(signal.signal, number, signal.signal(number, self._handle))
            stack.callback(self._kill)
            yield

    def run(self, node: Node) -> bool:
        """Run a node to its end and return whether it succeeded."""
        while True:
            self._wait_for_lock(node)
            self._stop_if_asked()
            code, message = self._run_once(node)
            self._stop_if_asked()
            # Another process may have locked the run between the check and the start.
            if not (code == 2 and " is in use by " in message):
                break
        done = code == 0 and node_status.is_done(node, self.folder)
        if not done:
            message = message if code else "it ended without results"
            node_status.note_failure(node, self.folder, f"exit code {code}: {message}" if code not in (0, 2) else message)
        self.progress.ended(node, done, message)
        return done

    def _run_once(self, node: Node) -> tuple[int, str]:
        node_status.note_failure(node, self.folder, "")
        path = node_status.log_file(node, self.folder)
        with open_to_append(path) as log:
            command = [*PROGRAM, str(os.getpid()), *node.argv]
            # A group of its own: Ctrl-C in the terminal reaches only this process, which passes it on once.
            self._child = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        self.progress.started(node)
        while True:
            try:
                code = self._child.wait(POLL)
                break
            except subprocess.TimeoutExpired:
                self.progress.update(node)
        self._child = None
        return 128 - code if code < 0 else code, node_status.last_line(path)

    def _wait_for_lock(self, node: Node) -> None:
        """Wait until no process has locked the node's run: a process of a killed engine may still be ending."""
        while not node.task:
            try:
                return check_unlocked(self.folder / node.run)
            except BadInput as held:
                self._stop_if_asked()
                self.progress.waiting(node, str(held).partition(";")[0])
                time.sleep(PATIENCE)

    def _handle(self, number: int, frame: Any) -> None:
        self._received.append(number)
        if self._child is not None:
            if len(self._received) == 1:
                self._child.send_signal(number)
            elif number != signal.SIGHUP:
                self._kill()

    def _stop_if_asked(self) -> None:
        if self._received:
            raise Stopped(self._received[0])

    def _kill(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
