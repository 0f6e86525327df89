"""Several processes for one run: start and supervise local processes, or join processes on other machines by address.

When one local process ends, the launcher ends all of them, because the others would wait for it in a collective. JAX's
coordination service aborts a process (SIGABRT, a C++ stack trace) when a peer does not connect. So the processes first do a short
handshake, which can report in one line which process is missing.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import IO

from zoo.errors import BadInput, require
from zoo.runtime import jax_setup

# -P keeps the current folder out of the import path, where a user's train.py would hide the package `train`.
PROGRAM = (sys.executable, "-P", "-m", "zoo.cli")
GRACE = 1.0
HEARTBEAT = 10
POLL = 0.02
SOON = 0.05
TAIL = 4000
CLOSED_PIPE = 128 + signal.SIGPIPE


def prepare(
    argv: Sequence[str], *, devices: int, processes: int, coordinator: str, process: int, canary: bool = True
) -> int | None:
    """Make this process ready for JAX, alone or as one of several.

    Args:
        argv: the command's arguments after `zoo`, to be run by each local process.
        devices: CPU devices to simulate in each process; 0 = the real ones.
        processes: number of processes that share the run; without `coordinator` this call starts them here.
        coordinator: host:port of process 0; every process is then started separately with its `process` number.
        canary: raise an error if XLA computes wrong numbers.

    Returns:
        The exit code of the local processes that this call started and waited for; None if this process does the work.

    Raises:
        BadInput: see `jax_setup.prepare`, `jax_setup.canary` and `join`.
    """
    child = is_child()
    require(child or coordinator != "" or process == 0, "process", process, "a process number needs --coordinator HOST:PORT")
    require(coordinator == "" or processes > 1, "processes", processes, "--coordinator needs the number of processes, 2 or more")
    if processes > 1 and not coordinator and not child:
        return launch(argv, processes)
    jax_setup.prepare(devices)
    if child:
        _follow_launcher()
        join(os.environ.pop("ZOO_COORDINATOR"), processes, int(os.environ.pop("ZOO_PROCESS")), simulated=devices > 0, local=True)
    elif coordinator:
        join(coordinator, processes, process, simulated=devices > 0)
    if canary:
        jax_setup.canary()
    return None


def is_child() -> bool:
    """Return True if this process was started by `launch`, which has already checked the input."""
    return "ZOO_PROCESS" in os.environ


def launch(argv: Sequence[str], processes: int, program: Sequence[str] = PROGRAM) -> int:
    """Run `program argv` in local processes and return the exit code of the first that failed, or 0.

    Process 0 writes to the terminal. The others are silent; if one of them fails first, the end of its stderr is printed. The
    first SIGINT, SIGTERM or SIGHUP is passed to all processes; a second one, unless it is SIGHUP, kills them, and the exit code
    is 128 + the number of the first. If a process dies for any other reason, the others get SIGTERM, and SIGKILL a second later.
    On Linux they are also killed when this process is killed.
    """
    port = _free_port()
    with contextlib.ExitStack() as stack:
        errors = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in range(processes - 1))]
        received: list[int] = []
        # Under nohup SIGHUP is ignored, and stays so here and in the processes.
        hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
        for number in (signal.SIGINT, signal.SIGTERM, *hangup):
            stack.callback(signal.signal, number, signal.signal(number, lambda signum, _: received.append(signum)))
        children: list[subprocess.Popen[bytes]] = []
        stack.callback(_kill, children)
        for process in range(processes):
            children.append(_start([*program, *argv], port, process, errors[process]))
        first = _watch(children, received)
        if any(number != signal.SIGHUP for number in received[1:]):
            return 128 + received[0]
        if first is None:
            return 0
        _end(children)
        code = children[first].returncode
        stderr = errors[first]
        # An error of all processes has already been printed by process 0.
        if stderr is not None and children[0].returncode != code:
            _show_tail(first, stderr)
        return 0 if code == CLOSED_PIPE else 128 - code if code < 0 else code


def join(coordinator: str, processes: int, process: int, *, simulated: bool, local: bool = False, timeout: float = 60.0) -> None:
    """Join `processes` processes into one JAX program, after `jax_setup.prepare` and before the first use of a device.

    Args:
        coordinator: host:port where process 0 listens. JAX's service has no authentication: it is bound only to this address, and
            should be used on a trusted network.
        simulated: the devices are simulated. Otherwise each local process uses the accelerator with its own number.
        local: all processes run on this machine.
        timeout: seconds to wait for the others.

    Raises:
        BadInput: the address is wrong or in use, or a process did not connect in time.
    """
    import jax

    host, port = _address(coordinator)
    if not local and sys.stderr.isatty():
        print(f"process {process} of {processes}: waiting for the others at {coordinator}", file=sys.stderr, flush=True)
    if process == 0:
        _gather(coordinator, host, port, processes, timeout)
    else:
        _report(coordinator, host, port, processes, process, timeout)
    _keep_stdout_for_python()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        local_device_ids=[process] if local and not simulated else None,
        cluster_detection_method="deactivate",
        initialization_timeout=max(1, int(timeout)),
        heartbeat_timeout_seconds=HEARTBEAT,
        coordinator_bind_address=coordinator,
    )
    sys.excepthook = _fail


def handle_interrupts() -> None:
    """Make every Ctrl-C end the program, also in code where KeyboardInterrupt is ignored or does damage.

    Python ignores an exception in a callback of its garbage collector. JAX has such a callback, and collects so often during
    import and compilation that one Ctrl-C in four had no effect; so it is raised again shortly afterwards. An extension module
    that is interrupted during initialization raises ImportError or crashes; so during an import the program exits immediately.
    """
    previous_hook = sys.unraisablehook

    def raise_again(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # Not immediately: that would be inside this hook or inside the callback.
            signal.setitimer(signal.ITIMER_REAL, SOON)
        else:
            previous_hook(unraisable)

    # The parent process may have set the signal to be ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGALRM, _interrupt)
        sys.unraisablehook = raise_again


def end_interrupts() -> None:
    """Undo `handle_interrupts` after the work of the program, when there is nothing to clean up: Ctrl-C then ends it silently."""
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


def is_importing(frame: FrameType | None) -> bool:
    """Return True if a frame is inside an import, where a signal handler must not raise."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _interrupt(number: int, frame: FrameType | None) -> None:
    if is_importing(frame):
        os._exit(128 + signal.SIGINT)
    raise KeyboardInterrupt


def exit_if_failed(code: int) -> int:
    """Return `code`, unless this is a joined process that failed: it exits here.

    At a normal exit JAX waits for all processes (minutes), and they would wait for this one in a collective. After success or a
    signal (129, 130, 143) all processes exit, so waiting is fine.
    """
    if code not in (0, *(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))) and sys.excepthook is _fail:
        _exit(code)
    return code


def exit_if_joined(code: int) -> int:
    """Return `code`, unless this is a joined process: it exits here, because the others wait for it in a collective.

    Used for an interrupt that the other processes have not agreed on, and for a closed pipe (`CLOSED_PIPE` counts as success).
    """
    if sys.excepthook is _fail:
        _exit(code)
    return 0 if code == CLOSED_PIPE else code


def _fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    _exit(1)


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _start(command: Sequence[str], port: int, process: int, errors: IO[bytes] | None) -> subprocess.Popen[bytes]:
    variables = {"ZOO_PROCESS": str(process), "ZOO_COORDINATOR": f"127.0.0.1:{port}", "ZOO_LAUNCHER": str(os.getpid())}
    # A separate process group: Ctrl-C in the terminal reaches only the launcher, and a kill reaches all subprocesses.
    return subprocess.Popen(
        command,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=None if process == 0 else subprocess.DEVNULL,
        stderr=errors,
        process_group=0,
    )


def _watch(children: Sequence[subprocess.Popen[bytes]], received: Sequence[int]) -> int | None:
    """Wait until all children have exited or one has failed, and pass signals on.

    Returns:
        The number of the first child that failed, or None.
    """
    delivered = 0
    first = None
    while any([child.poll() is None for child in children]):  # a list: every child is polled
        if delivered < len(received):
            number = received[delivered]
            if delivered == 0:
                for child in children:
                    child.send_signal(number)
            elif number != signal.SIGHUP:  # a closed terminal sends it twice: the kernel and the shell do
                _kill(children)
            delivered += 1
        failed = [k for k, child in enumerate(children) if child.returncode]
        if failed and first is None:
            first = failed[0]
        # After a signal the others may still be saving; they exit by themselves.
        expected = {-received[0], 128 + received[0]} if delivered else set()
        if any(children[k].returncode not in expected for k in failed):
            return first
        time.sleep(POLL)
    return next((k for k, child in enumerate(children) if child.returncode), None) if first is None else first


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    # An error of all processes ends them all within moments; give process 0 the time to print it.
    _wait_for_exit(children, 0.3)
    for child in children:
        if child.poll() is None:
            child.terminate()
    _wait_for_exit(children, GRACE)
    _kill(children)


def _wait_for_exit(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any([child.poll() is None for child in children]) and time.monotonic() < deadline:
        time.sleep(POLL)


def _kill(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _show_tail(process: int, errors: IO[bytes]) -> None:
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - TAIL))
    for line in errors.read().decode(errors="replace").splitlines():
        print(f"[process {process}] {line}", file=sys.stderr)


def _follow_launcher() -> None:
    """Kill this process when the launcher dies, even by SIGKILL (only on Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    # The launcher may have ended before this process could ask for its signal.
    if os.getppid() != int(os.environ.pop("ZOO_LAUNCHER")):
        os._exit(1)


def _keep_stdout_for_python() -> None:
    """Give Python's stdout another file descriptor: Gloo (C++) prints a line to descriptor 1 for every group of devices."""
    old = sys.stdout
    old.flush()
    sys.stdout = open(os.dup(1), "w", buffering=1, encoding=old.encoding, errors=old.errors)  # noqa: SIM115 - lives as long as the process
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise BadInput(f"--coordinator {coordinator}: write HOST:PORT, for example 10.0.0.1:1234")
    return host.strip("[]"), int(port)


def _gather(coordinator: str, host: str, port: int, processes: int, timeout: float) -> None:
    """Run process 0's side of the handshake: receive the index of every other process once, then let all continue."""
    deadline = time.monotonic() + timeout
    missing = set(range(1, processes))
    with contextlib.ExitStack() as stack:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            server = stack.enter_context(socket.create_server((host, port), family=family))
        except OSError as error:
            raise BadInput(
                f"--coordinator {coordinator}: {error.strerror}; choose a free port on an address of this machine"
            ) from None
        peers = []
        while missing:
            server.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                peer = stack.enter_context(server.accept()[0])
            except TimeoutError:
                names = ", ".join(map(str, sorted(missing)))
                raise BadInput(
                    f"--coordinator {coordinator}: process {names} did not connect within {timeout:g} s; start it"
                ) from None
            peer.settimeout(5)
            with contextlib.suppress(OSError, ValueError):
                number, count = map(int, peer.recv(64).split())
                require(count == processes, "processes", processes, f"process {number} was started with --processes {count}")
                require(number in missing, "process", number, "two processes have this number")
                missing.remove(number)
                peers.append(peer)
        for peer in peers:
            peer.sendall(b"go")


def _report(coordinator: str, host: str, port: int, processes: int, process: int, timeout: float) -> None:
    """Run the handshake's side of a process other than 0: send its index to process 0, then wait until all may continue."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            peer = socket.create_connection((host, port), timeout=max(0.001, deadline - time.monotonic()))
            break
        except OSError as error:
            if isinstance(error, socket.gaierror):
                fix = "the name of the host is not known here; correct it, or give its address"
                raise BadInput(f"--coordinator {coordinator}: {error.strerror}; {fix}") from None
            if time.monotonic() >= deadline:
                why = error.strerror or "no answer"
                raise BadInput(f"--coordinator {coordinator}: {why} for {timeout:g} s; start process 0 there") from None
            time.sleep(0.05)
    with peer:
        peer.sendall(f"{process} {processes}".encode())
        peer.settimeout(max(1.0, deadline + 1 - time.monotonic()))
        try:
            reply = peer.recv(16)
        except OSError:
            reply = b""
    if reply != b"go":
        raise BadInput(f"--coordinator {coordinator}: process 0 has stopped; see its error message")
