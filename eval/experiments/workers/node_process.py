"""The process of a node: claimed by a lock in the folder of its run, started, watched, and its failure noted.

The process inherits the lock, so a node stays claimed until its process has ended, even if the engine was killed.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from eval.experiments import node_status
from eval.experiments.grid import Node
from train.run.run_dir import check_unlocked
from zoo.errors import BadInput, cannot_write
from zoo.file_access import LARGEST_JSON, open_to_append, read_regular

PROGRAM = (sys.executable, "-P", "-m", "eval.experiments.workers.die_with_parent")
STUCK = 75
"""Exit code of a run that was stuck."""
RESTARTED = (STUCK, 128 + signal.SIGHUP, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes after which a node is started again, as after a kill: its run has saved, and continues."""
STARTS = 4
"""Starts of a node whose process is killed or stuck, until it counts as failed."""


class ClaimedElsewhere(BadInput):
    """Another process runs the node."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of a node's process: its kind, and the last line that it printed."""

    status: Literal["done", "failed", "stopped", "claimed"]
    """claimed: by another process, between the check and the start."""
    message: str


class NodeProcess:
    """A node that this process has claimed and started."""

    def __init__(
        self,
        node: Node,
        folder: Path,
        cores: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Claim a node and start its process.

        Args:
            cores: numbers of the CPU cores that it may use; none = those of this process.
            environment: variables in addition to those of this process.
            cwd: the folder in which the process runs; None = `folder`.

        Raises:
            ClaimedElsewhere: another process runs the node; the message names it.
            BadInput: the folder of the run cannot be written or locked.
        """
        self.node, self._folder = node, folder
        self._cores, self._environment, self._cwd = cores, dict(environment or {}), cwd or folder
        self._starts, self._stopped = 0, False
        self._claim = claim_node(node, folder)
        try:
            if node_status.is_done(node, folder):
                raise ClaimedElsewhere(f"{node.name} was finished by another process")
            self._start()
        except BaseException:
            os.close(self._claim)
            raise

    def _start(self) -> None:
        self._starts += 1
        node_status.clear_failure(self.node, self._folder)
        cores = ",".join(map(str, self._cores)) or "all"
        with open_to_append(node_status.log_file(self.node, self._folder)) as log:
            # A group of its own: Ctrl-C in the terminal reaches only this process, which passes it on once.
            self._process = subprocess.Popen(
                [*PROGRAM, str(os.getpid()), cores, *self.node.argv],
                cwd=self._cwd,
                env=os.environ | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                pass_fds=[self._claim],
            )

    def poll(self) -> Outcome | None:
        """Return how the process ended; None if it runs. One that was killed or stuck is started again, up to `STARTS` times."""
        code = self._process.poll()
        if code is None:
            return None
        message = node_status.last_line(node_status.log_file(self.node, self._folder))
        if code <= 0 and node_status.is_done(self.node, self._folder):
            return self._end("done", message)
        if self._stopped:
            return self._end("stopped", message)
        # Another process may have locked the run between the check and the start.
        if code == 2 and " is in use by " in message:
            return self._end("claimed", message)
        if (code < 0 or code in RESTARTED) and self._starts < STARTS:
            self._start()
            return None
        if code == 0:
            message = "it ended without results"
        elif code != 2:
            message = f"exit code {128 - code if code < 0 else code}: {message}"
        node_status.note_failure(self.node, self._folder, message)
        return self._end("failed", message)

    def stop(self, number: int) -> None:
        """Send a signal to the process, which saves and ends, and is not started again."""
        self._stopped = True
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the process and those that it has started, and wait for it."""
        self._stopped = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _end(self, status: Literal["done", "failed", "stopped", "claimed"], message: str) -> Outcome:
        os.close(self._claim)
        return Outcome(status, message)


def claim_node(node: Node, folder: Path) -> int:
    """Lock a node, and return the descriptor of its lock, which is released when all processes that have it have closed it.

    The lock is of the same kind as that of a training run (flock). On NFS the server keeps it, so that it holds for all machines,
    unless the folder is mounted with `nolock` or `local_lock`. It is on a file NODE.lock in the folder of the run, because a run
    can have several evaluations at the same time.

    Raises:
        ClaimedElsewhere: another process has locked the node, or trains its run; the message names it.
        BadInput: the folder cannot be written or locked.
    """
    from filelock import lock_descriptor

    run = folder / node.run
    path = run / f"{node.name}.lock"
    try:
        run.mkdir(parents=True, exist_ok=True)
        with open_to_append(path) as file:
            if not lock_descriptor(file.fileno(), blocking=False):
                holder = read_regular(path, LARGEST_JSON).decode(errors="replace").strip()[:200] or "another process"
                raise ClaimedElsewhere(f"{node.name} is run by {holder}")
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            file.flush()
            claim = os.dup(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from None
    if not node.task:
        try:
            check_unlocked(run)
        except BadInput as locked:
            os.close(claim)
            raise ClaimedElsewhere(str(locked).partition(";")[0]) from None
    return claim
