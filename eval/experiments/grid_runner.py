"""Run the missing nodes of a grid, as many at a time as there are workers.

Whether a node is done is read from the run's folder alone. After any kill the same command continues: finished runs are kept, and
an interrupted run continues from its last checkpoint. Several engines may run on one folder, also on several machines that share
it: a node is claimed by a lock (`node_process.claim_node`), and each engine waits for the nodes of the others.
"""

import contextlib
import graphlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol, runtime_checkable

from eval.experiments import node_status, pilot
from eval.experiments.grid import RUNS, Grid, Node
from eval.experiments.run_progress import RunProgress
from eval.experiments.workers.node_process import ClaimedElsewhere, Outcome
from zoo.errors import cannot_write
from zoo.file_access import LARGEST_JSON, read_regular, refuse_links_out

LOCK = "experiment.lock"
OWN = (pilot.FOLDER, LOCK, node_status.LOGS, RUNS, "files")
"""Names of an experiment's files and folders, of which none may be a link out of its folder."""
POLL = 0.25
"""Seconds between two looks at the running processes."""
PATIENCE = 1.0
"""Seconds between two tries of a lock."""


class Stopped(BaseException):
    """A signal requested the engine to stop; the running nodes have ended."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@runtime_checkable
class RunningNode(Protocol):
    """A node that was started, such as `NodeProcess`."""

    def poll(self) -> Outcome | None:
        """Return how it ended; None if it runs."""
        ...

    def stop(self, number: int) -> None:
        """Make it save and end, by a signal."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


@runtime_checkable
class Workers(Protocol):
    """A place that runs nodes: this machine, or a cluster."""

    count: int
    """Number of nodes that run at a time."""

    def start(self, node: Node, slot: int) -> RunningNode:
        """Start a node in a slot (0 to `count` - 1) that no running node has.

        Raises:
            ClaimedElsewhere: another process runs it.
        """
        ...


@contextlib.contextmanager
def lock_folder(folder: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """Lock an experiment's folder, after waiting for another process that holds the lock.

    The lock is for what all engines on the folder write: the registration, the files and the page. No run needs it.

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
                lock.acquire(timeout=PATIENCE)
                break
            except Timeout:
                if not waits:
                    holder = read_regular(path, LARGEST_JSON).decode(errors="replace").strip()[:200] or "another process"
                    notify(f"{folder} is in use by {holder}; this command waits for it")
                waits = True
    except OSError as error:
        raise cannot_write(folder, error) from None
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        lock.release()


def run_missing(grid: Grid, folder: Path, workers: Workers) -> list[str]:
    """Run every node that is not done and return a line for each that failed.

    Raises:
        BadInput: a run's folder belongs to another configuration.
        Stopped: after a signal.
    """
    node_status.check_runs(grid, folder)
    (folder / node_status.LOGS).mkdir(parents=True, exist_ok=True)
    with RunProgress(grid, folder, workers.count) as progress:
        _Engine(grid, folder, workers, progress).run()
    lines = []
    for node in grid.nodes:
        if not node_status.is_done(node, folder) and (message := node_status.node_failure(node, folder)):
            lines.append(f"{node.name} failed: {message}; see {node_status.log_file(node, folder)}")
    return lines


class PassedSignals:
    """The signals SIGINT, SIGTERM and SIGHUP that this process got, which it passes on to the nodes that it runs."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._passed_on = 0

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Collect the signals in this context, where they have no other effect."""
        hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
        with contextlib.ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM, *hangup):
                stack.callback(signal.signal, number, signal.signal(number, self._handle))
            yield

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def pass_on(self, running: Iterable[RunningNode]) -> None:
        """Pass the first signal on to the running nodes, which save; a second SIGINT or SIGTERM kills them."""
        for number in self.received[self._passed_on :]:
            self._passed_on += 1
            for node in running:
                if self._passed_on == 1:
                    node.stop(number)
                elif number != signal.SIGHUP:
                    node.kill()


class _Engine:
    """Starts nodes whose parents are done, in the order of the grid, and passes signals on to them."""

    def __init__(self, grid: Grid, folder: Path, workers: Workers, progress: RunProgress) -> None:
        self._folder, self._workers, self._progress = folder, workers, progress
        self._nodes = {node.name: node for node in grid.nodes}
        parents = {node.name: [name for name in node.parents if name in self._nodes] for node in grid.nodes}
        self._waiting = graphlib.TopologicalSorter(parents)
        self._ready: set[str] = set()
        self._claimed: dict[str, float] = {}
        """Nodes that others run -> when to try the lock again."""
        self._running: dict[str, RunningNode] = {}
        self._slots: dict[str, int] = {}
        self._earlier = {name: self._attempt(name) for name in self._nodes}
        """Failures before this engine began, which is a reason to try again."""
        self._signals = PassedSignals()

    def run(self) -> None:
        """Run all nodes, except those that need one that failed.

        Raises:
            Stopped: after a signal.
        """
        self._waiting.prepare()
        self._ready.update(self._waiting.get_ready())
        received = self._signals.received
        with self._signals.collect(), contextlib.ExitStack() as stack:
            stack.callback(self._kill_all)
            while self._ready or self._running or self._claimed:
                self._signals.pass_on(self._running.values())
                if received and not self._running:
                    raise Stopped(received[0])
                if not received:
                    self._start_ready()
                if not self._collect():
                    self._progress.update(self._running)
                    time.sleep(POLL)
        if received:
            raise Stopped(received[0])

    def _start_ready(self) -> None:
        """Start nodes while there are free workers; first those of others that may have ended."""
        now = time.monotonic()
        for name in [name for name, when in self._claimed.items() if when <= now]:
            del self._claimed[name]
            if self._attempt(name) not in (None, self._earlier[name]):
                self._progress.ended(self._nodes[name], False, node_status.node_failure(self._nodes[name], self._folder))
            else:
                self._ready.add(name)
        for name in sorted(self._ready, key=list(self._nodes).index):
            node = self._nodes[name]
            if node_status.is_done(node, self._folder):
                self._ready.remove(name)
                self._finish(name)
            elif len(self._running) < self._workers.count:
                self._ready.remove(name)
                self._start(node)

    def _start(self, node: Node) -> None:
        slot = min(set(range(self._workers.count)) - set(self._slots.values()))
        try:
            self._running[node.name] = self._workers.start(node, slot)
        except ClaimedElsewhere as claimed:
            self._wait_for(node, str(claimed))
            return
        self._slots[node.name] = slot
        self._progress.started(node)

    def _collect(self) -> bool:
        """Take the nodes that ended off the running ones, and return whether there was one."""
        ended = [(name, outcome) for name, running in self._running.items() if (outcome := running.poll()) is not None]
        for name, outcome in ended:
            del self._running[name], self._slots[name]
            if outcome.status == "claimed":
                self._wait_for(self._nodes[name], outcome.message)
            elif outcome.status != "stopped":
                self._progress.ended(self._nodes[name], outcome.status == "done", outcome.message)
            if outcome.status == "done":
                self._finish(name)
        return bool(ended)

    def _finish(self, name: str) -> None:
        self._waiting.done(name)
        self._ready.update(self._waiting.get_ready())

    def _wait_for(self, node: Node, reason: str) -> None:
        self._progress.waiting(node, reason)
        self._claimed[node.name] = time.monotonic() + PATIENCE

    def _attempt(self, name: str) -> int | None:
        """Return which failed attempt of a node is the last one; None if the last one did not fail."""
        return node_status.failed_attempt(self._nodes[name], self._folder)

    def _kill_all(self) -> None:
        for running in self._running.values():
            running.kill()
