"""Several processes for one run: join the processes that the local launcher starts, or processes on other machines by address.

JAX's coordination service aborts a process (SIGABRT, a C++ stack trace) when a peer does not connect. So the processes first do a
short handshake, which can report in one line which process is missing.
"""

import contextlib
import ctypes
import faulthandler
import ipaddress
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from types import FrameType, TracebackType

from zoo.errors import BadInput, require
from zoo.runtime import jax_setup, stdio
from zoo.runtime.local_group import CLOSED_PIPE, DUMP, Supervision, launch_group
from zoo.runtime.progress import this_process

HEARTBEAT = 10
LOCAL_HEARTBEAT = 24 * 3600
"""Seconds after which the service aborts processes with a C++ stack. Local processes are supervised by the launcher instead."""
SOON = 0.05


def prepare_launch(
    argv: Sequence[str],
    *,
    devices: int,
    processes: int,
    coordinator: str,
    process: int,
    canary: bool = True,
    supervision: Supervision | None = None,
) -> int | None:
    """Make this process ready for JAX, alone or as one of several.

    Args:
        argv: the command's arguments after `zoo`, to be run by each local process.
        devices: CPU devices to simulate in each process; 0 = the real ones.
        processes: number of processes that share the run; without `coordinator` this call starts them here. They may later be
            fewer, as `supervision` says.
        coordinator: host:port of process 0; every process is then started separately with its `process` number.
        canary: raise an error if XLA computes wrong numbers.
        supervision: what to do about local processes that are stuck or die.

    Returns:
        The exit code of the local processes that this call started and waited for; None if this process does the work.

    Raises:
        BadInput: see `jax_setup.prepare_jax`, `jax_setup.check_cpu_compiler` and `join_processes`.
    """
    child = is_child()
    require(child or coordinator != "" or process == 0, "process", process, "a process number needs --coordinator HOST:PORT")
    require(coordinator == "" or processes > 1, "processes", processes, "--coordinator needs the number of processes, 2 or more")
    if processes > 1 and not coordinator and not child:
        return launch_group(argv, processes, supervision=supervision)
    if child:
        _follow_launcher()
        _report_to_launcher()
    jax_setup.prepare_jax(devices)
    if child:
        # The launcher may have started fewer than the command line says.
        processes, process, device = (int(os.environ.pop(f"ZOO_{name}")) for name in ("PROCESSES", "PROCESS", "DEVICE"))
        join_processes(os.environ.pop("ZOO_COORDINATOR"), processes, process, simulated=devices > 0, device=device)
    elif coordinator:
        join_processes(coordinator, processes, process, simulated=devices > 0)
    if canary:
        jax_setup.check_cpu_compiler()
    return None


def is_child() -> bool:
    """Return True if this process was started by `launch`, which has already checked the input."""
    return "ZOO_PROCESS" in os.environ


def join_processes(
    coordinator: str, processes: int, process: int, *, simulated: bool, device: int | None = None, timeout: float = 60.0
) -> None:
    """Join `processes` processes into one JAX program, after `jax_setup.prepare_jax` and before the first use of a device.

    Args:
        coordinator: host:port where process 0 listens. Neither JAX's service nor gloo has authentication. The service is bound
            only to this address, and gloo in each process only to the local address of its connection with it: loopback for
            local processes, and for others a network that must be trusted.
        simulated: the devices are simulated. Otherwise each local process uses the accelerator with the number `device`.
        device: number of an accelerator, if all processes run on this machine; None = they do not, and this one uses all here.
        timeout: seconds to wait for the others.

    Raises:
        BadInput: the address is wrong or in use, or a process did not connect in time.
    """
    import jax

    host, port = _address(coordinator)
    local = device is not None
    if not local and sys.stderr.isatty():
        print(f"process {process} of {processes}: waiting for the others at {coordinator}", file=sys.stderr, flush=True)
    if process == 0:
        address = _gather(coordinator, host, port, processes, timeout)
    else:
        address = _report(coordinator, host, port, processes, process, timeout)
    _keep_stdout_for_python()
    _bind_collectives(address)
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        local_device_ids=[device] if device is not None and not simulated else None,
        cluster_detection_method="deactivate",
        initialization_timeout=max(1, int(timeout)),
        heartbeat_timeout_seconds=LOCAL_HEARTBEAT if local else HEARTBEAT,
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
    stdio.write_traceback(kind, error, trace)
    _exit(1)


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _follow_launcher() -> None:
    """Kill this process when the launcher dies, even by SIGKILL (only on Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    # The launcher may have ended before this process could ask for its signal.
    if os.getppid() != int(os.environ.pop("ZOO_LAUNCHER")):
        os._exit(1)


def _report_to_launcher() -> None:
    """Let the launcher read what this process is doing, and the stacks of its threads: C code writes them at once."""
    record, stacks = map(int, os.environ.pop("ZOO_WATCH").split())
    for descriptor in (record, stacks):
        os.set_inheritable(descriptor, False)
    this_process.share(record)
    faulthandler.register(DUMP, stacks, all_threads=True)


def _keep_stdout_for_python() -> None:
    """Give Python's stdout another file descriptor: Gloo (C++) prints a line to descriptor 1 for every group of devices."""
    old = sys.stdout
    old.flush()
    sys.stdout = open(os.dup(1), "w", buffering=1, encoding=old.encoding, errors=old.errors)  # noqa: SIM115 - lives as long as the process
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)


def _bind_collectives(address: str) -> None:
    """Make gloo listen on an address of this machine, in place of the one to which the name of the host resolves.

    JAX has no option for this address, only a factory of its CPU client that takes the collectives as an argument.
    """
    import jax
    from jax._src import distributed, xla_bridge
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    def make_client():
        client = distributed.global_state.client
        return xla_bridge.make_cpu_client(_jax.make_gloo_tcp_collectives(distributed_client=client, hostname=address))

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    xla_bridge.register_backend_factory("cpu", make_client, priority=0, fail_quietly=False)


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise BadInput(f"--coordinator {coordinator}: write HOST:PORT, for example 10.0.0.1:1234")
    return host.strip("[]"), int(port)


def _gather(coordinator: str, host: str, port: int, processes: int, timeout: float) -> str:
    """Run process 0's side of the handshake: receive the index of every other process once, then let all continue.

    Returns:
        The address on which this process listened.
    """
    deadline = time.monotonic() + timeout
    missing = set(range(1, processes))
    with contextlib.ExitStack() as stack:
        try:
            family, _, _, _, (address, *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            address = str(address)
            if ipaddress.ip_address(address).is_unspecified:
                fix = "name the one by which the other processes reach it"
                raise BadInput(f"--coordinator {coordinator}: this is every address of the machine; {fix}")
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
    return address


def _report(coordinator: str, host: str, port: int, processes: int, process: int, timeout: float) -> str:
    """Run the handshake's side of a process other than 0: send its index to process 0, then wait until all may continue.

    Returns:
        The address of this machine from which it reached process 0.
    """
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
        address = peer.getsockname()[0]
        peer.sendall(f"{process} {processes}".encode())
        peer.settimeout(max(1.0, deadline + 1 - time.monotonic()))
        try:
            reply = peer.recv(16)
        except OSError:
            reply = b""
    if reply != b"go":
        raise BadInput(f"--coordinator {coordinator}: process 0 has stopped; see its error message")
    return address
