"""The local launcher: start several processes on this machine, supervise them, and start them again after a failure.

When one process ends, the launcher ends all of them, because the others would wait for it in a collective. It also reads what
each process is doing (`zoo.runtime.progress`), and ends the group when one of them is stuck or stopped.
"""

import contextlib
import dataclasses
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from zoo.runtime import hang_watch, progress, stdio
from zoo.runtime.progress import Stuck, Watch

# -P keeps the current folder out of the import path, where a user's train.py would hide the package `train`.
PROGRAM = (sys.executable, "-P", "-m", "zoo.cli")
GRACE = 1.0
POLL = 0.02
TAIL = 4000
CLOSED_PIPE = 128 + signal.SIGPIPE
LOOPBACK = {"NCCL_SOCKET_IFNAME": "=lo"}
"""Environment variables that keep connections between local processes inside this machine; a value that the user has set stays.
NCCL otherwise listens on the first interface that other machines can reach. Gloo is bound in `zoo.runtime.launch`."""
DUMP = signal.SIGUSR1
"""Signal on which a process writes the stacks of all its threads into a file of the launcher."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals after which a run saves and ends: nothing has failed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervision:
    """The reaction of a launcher to processes that are stuck or die."""

    hang_after: float = progress.ALLOWANCE
    """Seconds for which a process may be stopped by a signal; 0 = any time."""
    restarts: int = 0
    """How many times the processes are started again after one of them died or was stuck."""
    smaller_group_sizes: tuple[int, ...] = ()
    """Smaller numbers of processes in which the group continues, in this order, each after `restarts` of the number before."""
    stacks: Path | None = None
    """File to which the stacks of processes that are stuck are appended; None = they are written to stderr."""


@dataclasses.dataclass(frozen=True)
class _Ending:
    """The end of a group of processes."""

    code: int
    reason: str = ""
    """A message about why another start may succeed; "" = it would not."""
    failed: tuple[int, ...] = ()
    """Numbers of the processes that died first or were stuck; if all of them are, none is known to be at fault."""


def launch_group(
    argv: Sequence[str], processes: int, program: Sequence[str] | None = None, supervision: Supervision | None = None
) -> int:
    """Run `program argv` (None: `PROGRAM`) in local processes and return the exit code of the first that failed, or 0.

    Process 0 writes to the terminal. The others are silent; if one of them fails first, the end of its stderr is printed. The
    first SIGINT, SIGTERM or SIGHUP is passed to all processes; a second one, unless it is SIGHUP, kills them, and the exit code
    is 128 + the number of the first. If a process dies for any other reason, the others get SIGTERM, and SIGKILL a second later.
    On Linux they are also killed when this process is killed.

    If one is stuck, the stacks of all threads of all processes are written, all processes are killed, a line says which process
    it is and what it was doing, and the exit code is `progress.HANG`.

    The group is started again, as often and in as many processes as `supervision` says, after it was stuck, a process was killed
    by a signal that did not ask it to end, or a process failed with 1. Wrong input, and numbers that are not finite, are 2 and
    fail again. A smaller group leaves out the accelerators of the processes that failed, if they can be known: if
    all wait in the same collective, it leaves out the last ones.
    """
    supervision = supervision or Supervision()
    with contextlib.ExitStack() as stack:
        received: list[int] = []
        # Under nohup SIGHUP is ignored, and stays so here and in the processes.
        hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
        for number in (signal.SIGINT, signal.SIGTERM, *hangup):
            stack.callback(signal.signal, number, signal.signal(number, lambda signum, _: received.append(signum)))
        ending, restart, numbers, devices = _Ending(0), 0, [processes, *supervision.smaller_group_sizes], [*range(processes)]
        while numbers:
            with _Group([*(program or PROGRAM), *argv], devices, supervision) as group:
                ending = group.run(received)
            then = "the same command continues"
            if not ending.reason or received:
                numbers = []
            elif restart < supervision.restarts:
                restart += 1
                then = f"restart {restart} of {supervision.restarts} continues"
            else:
                restart, numbers = 0, numbers[1:]
                if numbers:
                    then = f"a start in {numbers[0]} instead of {len(devices)} processes continues"
                    devices = sorted(devices, key=lambda device: devices.index(device) in ending.failed)[: numbers[0]]
            if ending.reason:
                stdio.write_error(f"{ending.reason}; {then} the run from its newest checkpoint")
    return ending.code


def free_port() -> int:
    """Return a port of this machine on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class _Group:
    """The processes of one start. Leaving the context kills those that are left."""

    def __init__(self, command: Sequence[str], devices: Sequence[int], supervision: Supervision) -> None:
        """Describe a group of one process for each of some accelerators, which are not used where devices are simulated."""
        self._command, self._devices, self._supervision = command, devices, supervision
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "_Group":
        with contextlib.ExitStack() as stack:

            def temporary() -> IO[bytes]:
                return stack.enter_context(tempfile.TemporaryFile())

            self._errors = [None, *(temporary() for _ in self._devices[1:])]
            self._stacks = [temporary() for _ in self._devices]
            records = [temporary() for _ in self._devices]
            for record in records:
                record.truncate(progress.LAYOUT.size)
            memory = [stack.enter_context(mmap.mmap(record.fileno(), progress.LAYOUT.size)) for record in records]
            self._watch = Watch(
                [lambda shared=shared: progress.read_record(shared) for shared in memory],
                allowance=self._supervision.hang_after,
                is_stopped=lambda process: _is_stopped(self._children[process].pid),
            )
            port = free_port()
            stack.callback(self._kill)
            for process, record in enumerate(records):
                self._start(port, process, record.fileno())
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def run(self, received: Sequence[int]) -> _Ending:
        """Wait until all processes have exited, one has failed or is stuck, and pass the signals on that are `received`."""
        first = self._wait(received)
        if isinstance(first, Stuck):
            return self._end_stuck(first)
        if any(number != signal.SIGHUP for number in received[1:]):
            return _Ending(128 + received[0])
        if first is None:
            return _Ending(0)
        self._end()
        code = self._children[first].returncode
        stderr = self._errors[first]
        # An error of all processes has already been printed by process 0.
        if stderr is not None and self._children[0].returncode != code:
            _show_tail(first, stderr)
        if code == CLOSED_PIPE:
            return _Ending(0)
        died = code == 1 or (code < 0 and -code not in STOPS)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "failed"
        return _Ending(128 - code if code < 0 else code, f"process {first} {how}" if died else "", (first,))

    def _start(self, port: int, process: int, record: int) -> None:
        stacks = self._stacks[process].fileno()
        variables = {
            "ZOO_PROCESS": str(process),
            "ZOO_PROCESSES": str(len(self._devices)),
            "ZOO_DEVICE": str(self._devices[process]),
            "ZOO_COORDINATOR": f"127.0.0.1:{port}",
            "ZOO_LAUNCHER": str(os.getpid()),
            "ZOO_WATCH": f"{record} {stacks}",
        }
        # A separate process group: Ctrl-C in the terminal reaches only the launcher, and a kill reaches all subprocesses.
        self._children.append(
            subprocess.Popen(
                self._command,
                env=LOOPBACK | os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=None if process == 0 else subprocess.DEVNULL,
                stderr=self._errors[process],
                process_group=0,
                pass_fds=(record, stacks),
            )
        )

    def _wait(self, received: Sequence[int]) -> Stuck | int | None:
        """Wait until all processes have exited, one has failed or is stuck, and pass signals on.

        Returns:
            The processes that are stuck, the number of the first that failed, or None.
        """
        children, delivered, first, looked = self._children, 0, None, time.monotonic()
        while any([child.poll() is None for child in children]):  # a list: every child is polled
            if delivered < len(received):
                number = received[delivered]
                if delivered == 0:
                    for child in children:
                        child.send_signal(number)
                elif number != signal.SIGHUP:  # a closed terminal sends it twice: the kernel and the shell do
                    self._kill()
                delivered += 1
            failed = [process for process, child in enumerate(children) if child.returncode]
            if failed and first is None:
                first = min(failed, key=lambda process: _severity(children[process].returncode))
            # After a signal the others may still be saving; they exit by themselves.
            expected = {-received[0], 128 + received[0]} if delivered else set()
            if any(children[process].returncode not in expected for process in failed):
                return first
            if not failed and time.monotonic() - looked >= progress.TICK:
                looked = time.monotonic()
                if stuck := self._watch.look():
                    return stuck
            time.sleep(POLL)
        return next((process for process, child in enumerate(children) if child.returncode), None) if first is None else first

    def _end_stuck(self, stuck: Stuck) -> _Ending:
        for child in self._children:
            child.send_signal(DUMP)
        for child in self._children:
            # Before it continues, a process that was stopped handles the signal that is pending.
            child.send_signal(signal.SIGCONT)
        sizes, deadline = [-1], time.monotonic() + 10 * GRACE
        while time.monotonic() < deadline and (0 in sizes or sizes != self._stack_sizes()):
            sizes = self._stack_sizes()
            time.sleep(progress.TICK)
        self._kill()
        names = " and ".join(map(str, stuck.processes))
        subject = f"process {names} is stuck" if len(stuck.processes) == 1 else f"processes {names} are stuck"
        reason = f"{subject}: {stuck.reason}"
        return _Ending(progress.HANG, f"{reason}; {self._write_stacks(reason)}", stuck.processes)

    def _stack_sizes(self) -> list[int]:
        return [os.fstat(file.fileno()).st_size for file in self._stacks]

    def _write_stacks(self, reason: str) -> str:
        """Write the stacks of all processes, and return where they are."""
        texts = []
        for file in self._stacks:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return hang_watch.write_stacks(reason, texts, self._supervision.stacks)

    def _end(self) -> None:
        # An error of all processes ends them all within moments; give process 0 the time to print it.
        self._wait_for_exit(0.3)
        for child in self._children:
            if child.poll() is None:
                child.terminate()
        self._wait_for_exit(GRACE)
        self._kill()

    def _wait_for_exit(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while any([child.poll() is None for child in self._children]) and time.monotonic() < deadline:
            time.sleep(POLL)

    def _kill(self) -> None:
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        for child in self._children:
            child.wait()


def _severity(code: int) -> int:
    """Return a number by which exit codes are compared: the cause of several has the smallest.

    When a process is killed or refuses its input, the others fail at the same moment, with 1. They abort if the coordination
    service of JAX notices it, so that SIGABRT counts as the cause only where no process ended in another way.
    """
    if code == -signal.SIGABRT:
        return 1000
    return code if code < 0 else 1000 - code


def _is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal; False on systems without /proc."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def _show_tail(process: int, errors: IO[bytes]) -> None:
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - TAIL))
    for line in errors.read().decode(errors="replace").splitlines():
        print(f"[process {process}] {line}", file=sys.stderr)
