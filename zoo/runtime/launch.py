"""Several processes, one run: start and guard local ones, or join others on other machines by address.

The launcher owns the processes' lives: whatever ends one of them ends all, since the others would wait for it in a
collective. JAX's coordination service aborts a process (SIGABRT, a C++ stack) when a peer does not come; so the processes
meet by a short handshake of our own first, which can say in one line who is missing.
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

# -P keeps the current folder out of the import path, where a user's own train.py would hide ours.
PROGRAM = (sys.executable, "-P", "-m", "zoo.cli")
GRACE = 1.0
HEARTBEAT = 10
POLL = 0.02
SOON = 0.05
TAIL = 4000
CLOSED_PIPE = 128 + signal.SIGPIPE


def enter(
    argv: Sequence[str], *, devices: int, processes: int, coordinator: str, process: int, canary: bool = True
) -> int | None:
    """Make this process ready for JAX, alone or as one of several.

    Args:
        argv: the command's arguments after `zoo`, to be run by each local process.
        devices: CPU devices to simulate in each process; 0 = the real ones.
        processes: how many processes share the run; without `coordinator` this call starts them here.
        coordinator: host:port of process 0; every process is then started by hand with its `process` number.
        canary: refuse to go on where XLA computes wrong numbers.

    Returns:
        The exit code of the local processes this call started and waited for, or None: this process does the work.

    Raises:
        BadInput: see `runtime.prepare`, `runtime.canary` and `join`.
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
    """Return whether this process was started by `launch`, which has refused what can be refused."""
    return "ZOO_PROCESS" in os.environ


def launch(argv: Sequence[str], processes: int, program: Sequence[str] = PROGRAM) -> int:
    """Run `program argv` in local processes and return the exit code of the first that failed, or 0.

    Process 0 owns the terminal. The others are silent; if one of them is the first to fail, the end of what it wrote to stderr
    is shown. The first SIGINT, SIGTERM or SIGHUP is passed to all; a second one, unless it is SIGHUP, kills them. A process that
    dies for any other reason ends the group: SIGTERM, and SIGKILL a second later. On Linux the group also ends when this process
    is killed.
    """
    port = _free_port()
    with contextlib.ExitStack() as stack:
        errors = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in range(processes - 1))]
        received: list[int] = []
        # nohup has SIGHUP ignored, and so it stays, here and in the processes.
        heeded = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
        for number in (signal.SIGINT, signal.SIGTERM, *heeded):
            stack.callback(signal.signal, number, signal.signal(number, lambda got, _: received.append(got)))
        children: list[subprocess.Popen[bytes]] = []
        stack.callback(_kill, children)
        for process in range(processes):
            children.append(_start([*program, *argv], port, process, errors[process]))
        first = _watch(children, received)
        if first is None:
            return 0
        _end(children)
        code = children[first].returncode
        told = errors[first]
        # A mistake common to all has been printed by process 0.
        if told is not None and children[0].returncode != code:
            _show_tail(first, told)
        return 0 if code == CLOSED_PIPE else 128 - code if code < 0 else code


def join(coordinator: str, processes: int, process: int, *, simulated: bool, local: bool = False, timeout: float = 60.0) -> None:
    """Join `processes` processes into one JAX program; after `runtime.prepare`, before JAX's first device.

    Args:
        coordinator: host:port where process 0 listens. JAX's service has no authentication: it is bound to this host's address
            alone, and belongs on a trusted network.
        simulated: the devices are simulated. Otherwise each local process takes the one accelerator of its own number.
        local: all processes run on this machine.
        timeout: seconds to wait for the others.

    Raises:
        BadInput: the address is wrong or in use, or somebody did not come in time.
    """
    import jax

    host, port = _address(coordinator)
    if not local and sys.stderr.isatty():
        print(f"process {process} of {processes}: meeting the others at {coordinator}", file=sys.stderr, flush=True)
    if process == 0:
        _gather(coordinator, host, port, processes, timeout)
    else:
        _attend(coordinator, host, port, processes, process, timeout)
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


def heed_interrupts() -> None:
    """Let every Ctrl-C end the program, also one that arrives in code where KeyboardInterrupt is dropped or does harm.

    Python drops what a callback of its garbage collector raises. JAX has one, and collects so often while it is imported and
    compiles that one Ctrl-C in four had no effect: it is raised again soon after. An extension module that is interrupted while
    it is set up raises ImportError or crashes: in an import the program ends on the spot.
    """
    dropped = sys.unraisablehook

    def again(lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            # Not at once, which would be here or in the callback.
            signal.setitimer(signal.ITIMER_REAL, SOON)
        else:
            dropped(lost)

    # Who started this program may have had it ignore the signal.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGALRM, _interrupt)
        sys.unraisablehook = again


def importing(frame: FrameType | None) -> bool:
    """Whether a signal that came in this frame came in an import: raise nothing there."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _interrupt(number: int, frame: FrameType | None) -> None:
    if importing(frame):
        os._exit(128 + signal.SIGINT)
    raise KeyboardInterrupt


def leave(code: int) -> int:
    """Return `code`; but a joined process that failed exits here.

    At a normal exit JAX waits for all processes (minutes), and they would wait for this one in a collective. Success and
    signals (129, 130, 143) are common to all, and may wait.
    """
    if code not in (0, *(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))) and sys.excepthook is _fail:
        _exit(code)
    return code


def abandon(code: int) -> int:
    """Return `code`; but a joined process exits here: the others, who were not asked, wait for it in a collective.

    For an interrupt between two steps that all agree on, and for a reader who left (`CLOSED_PIPE`, which ends as a success).
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
    told = {"ZOO_PROCESS": str(process), "ZOO_COORDINATOR": f"127.0.0.1:{port}", "ZOO_LAUNCHER": str(os.getpid())}
    # Its own process group: a terminal's Ctrl-C reaches the launcher alone, and a kill reaches what the process started.
    return subprocess.Popen(
        command,
        env=os.environ | told,
        stdin=subprocess.DEVNULL,
        stdout=None if process == 0 else subprocess.DEVNULL,
        stderr=errors,
        process_group=0,
    )


def _watch(children: Sequence[subprocess.Popen[bytes]], received: Sequence[int]) -> int | None:
    """Wait until all have left, or one has failed; pass signals on. Returns the number of the first that failed, or None."""
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
        # After a signal the others may still be saving: they leave by themselves.
        asked = {-received[0], 128 + received[0]} if delivered else set()
        if any(children[k].returncode not in asked for k in failed):
            return first
        time.sleep(POLL)
    return next((k for k, child in enumerate(children) if child.returncode), None) if first is None else first


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    # A mistake common to all ends all within moments, and process 0 should come to print it.
    _settle(children, 0.3)
    for child in children:
        if child.poll() is None:
            child.terminate()
    _settle(children, GRACE)
    _kill(children)


def _settle(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
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
    """Die when the launcher dies, even by SIGKILL (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    # It may have died before.
    if os.getppid() != int(os.environ.pop("ZOO_LAUNCHER")):
        os._exit(1)


def _keep_stdout_for_python() -> None:
    """Gloo, in C++, prints a line of its own to stdout for every group of devices; Python's stdout gets another descriptor."""
    old = sys.stdout
    old.flush()
    sys.stdout = open(os.dup(1), "w", buffering=1, encoding=old.encoding, errors=old.errors)  # noqa: SIM115 - lives as long as we
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise BadInput(f"--coordinator {coordinator}: write HOST:PORT, for example 10.0.0.1:1234")
    return host.strip("[]"), int(port)


def _gather(coordinator: str, host: str, port: int, processes: int, timeout: float) -> None:
    """Process 0 of the handshake: hear every number once, then tell all to go on."""
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
        heard = []
        while missing:
            server.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                peer = stack.enter_context(server.accept()[0])
            except TimeoutError:
                names = ", ".join(map(str, sorted(missing)))
                raise BadInput(f"--coordinator {coordinator}: no word from process {names} after {timeout:g} s") from None
            peer.settimeout(5)
            with contextlib.suppress(OSError, ValueError):
                number, count = map(int, peer.recv(64).split())
                require(count == processes, "processes", processes, f"process {number} was started with --processes {count}")
                require(number in missing, "process", number, "two processes have this number")
                missing.remove(number)
                heard.append(peer)
        for peer in heard:
            peer.sendall(b"go")


def _attend(coordinator: str, host: str, port: int, processes: int, process: int, timeout: float) -> None:
    """Any other process's side: say the number, wait for the word to go on."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            peer = socket.create_connection((host, port), timeout=max(0.001, deadline - time.monotonic()))
            break
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() >= deadline:
                why = error.strerror or "no answer"
                raise BadInput(f"--coordinator {coordinator}: {why} for {timeout:g} s; start process 0 there") from None
            time.sleep(0.05)
    with peer:
        peer.sendall(f"{process} {processes}".encode())
        peer.settimeout(max(1.0, deadline + 1 - time.monotonic()))
        try:
            word = peer.recv(16)
        except OSError:
            word = b""
    if word != b"go":
        raise BadInput(f"--coordinator {coordinator}: process 0 gave up; see what it says")
