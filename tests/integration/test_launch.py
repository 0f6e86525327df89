"""Real processes and real signals: several processes make one program, and none outlives the group."""

import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.network import host_address, in_own_network, listening_addresses
from tests.support.processes import children, clean_environment, run_python
from tests.support.runs import PATIENCE, alive, gone
from zoo.errors import BadInput
from zoo.runtime import launch, local_group

# What `zoo.cli.main` does with --processes, around a program that is not training. A process that sleeps for an hour must be
# ended.
CHILD = """
import os, pathlib, signal, subprocess, sys, time
from zoo.runtime import launch
from zoo.errors import BadInput
number, folder, mode = int(os.environ["ZOO_PROCESS"]), pathlib.Path(sys.argv[1]), sys.argv[2]
"""
REDUCE = (
    CHILD
    + """
if mode == "unbound":
    launch._bind_collectives = lambda address: None
if mode == "other address":
    bind = launch._bind_collectives
    launch._bind_collectives = lambda address: bind("127.0.0.2")
launch.prepare_launch([], devices=2, processes=2, coordinator="", process=0, canary=False)
import jax, numpy as np
mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
rows = np.arange(8.0, dtype=np.float32)
x = jax.make_array_from_callback(rows.shape, jax.NamedSharding(mesh, jax.P("d")), lambda i: rows[i])
total = float(jax.jit(lambda x: (x * x).sum())(x))
print("from", number)
if mode == "raise" and number == 1:
    raise OSError("disk gone")
if mode == "reader left" and number == 0:
    sys.exit(launch.exit_if_joined(launch.CLOSED_PIPE))
if mode == "wrong" and number == 1:
    print("zoo: --key 1: choose 2", file=sys.stderr)
    sys.exit(launch.exit_if_failed(2))
while not (folder / "may end").exists():
    if mode in ("end", "unbound", "other address"):
        (folder / f"{number}.new").write_text(f"{total} {jax.device_count()} {jax.local_device_count()}")
        os.rename(folder / f"{number}.new", folder / f"{number}.total")
    time.sleep(0.1)
"""
)
# No JAX: signals only. Each process has a child of its own, which must not be left behind either.
WAIT = (
    CHILD
    + """
launch._follow_launcher()
def save(got, frame):
    (folder / f"{number}.received").write_text(str(got))
    if mode == "save":
        time.sleep(0.5 * number)
        (folder / f"{number}.saved").write_text(str(got))
        sys.exit(128 + got)
for got in (signal.SIGINT, signal.SIGTERM):
    signal.signal(got, save)
grandchild = subprocess.Popen(["sleep", "3600"])
(folder / f"{number}.tmp").write_text(f"{os.getpid()} {grandchild.pid}")
os.rename(folder / f"{number}.tmp", folder / f"{number}.pids")
time.sleep(3600)
"""
)


class Group:
    def __init__(self, folder: Path, program: str, mode: str, processes: int, own_network: bool):
        self.folder, self.processes = folder, processes
        call = f"{[str(folder), mode]}, {processes}, {[sys.executable, '-c', program]}"
        launcher = f"import sys; from zoo.runtime import launch; sys.exit(launch.launch_group({call}))"
        command = [sys.executable, "-c", launcher]
        self.launcher = subprocess.Popen(
            in_own_network(command) if own_network else command,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def written(self, kind: str) -> list[str]:
        deadline = time.monotonic() + PATIENCE
        files = [self.folder / f"{number}.{kind}" for number in range(self.processes)]
        while not all(file.exists() for file in files):
            assert time.monotonic() < deadline and self.launcher.poll() is None
            time.sleep(0.01)
        return [file.read_text() for file in files]

    def pids(self) -> tuple[list[int], list[int]]:
        own, children = zip(*(map(int, line.split()) for line in self.written("pids")), strict=True)
        return list(own), list(children)

    def ended(self) -> tuple[int, str, str]:
        out, err = self.launcher.communicate(timeout=PATIENCE)
        return self.launcher.returncode, out, err


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Callable[..., Group]]:
    with contextlib.ExitStack() as stack:

        def start(program: str, mode: str = "", processes: int = 2, own_network: bool = False) -> Group:
            made = Group(tmp_path, program, mode, processes, own_network)
            stack.enter_context(made.launcher)
            stack.callback(made.launcher.kill)
            return made

        yield start


def test_two_processes_are_one_program_that_listens_on_loopback_only(group, tmp_path: Path) -> None:
    """By their defaults JAX's service listens on every address, and gloo where the host name resolves, without authentication.

    In a network of their own with no other interface than loopback, the processes also have nothing else to connect by.
    """
    started = group(REDUCE, "end", own_network=True)
    assert started.written("total") == ["140.0 4 2"] * 2
    service, gloo = map(listening_addresses, children(started.launcher.pid))
    assert service == ["127.0.0.1", "127.0.0.1"] and gloo == ["127.0.0.1"]
    for pid in children(started.launcher.pid):
        assert b"NCCL_SOCKET_IFNAME==lo" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (tmp_path / "may end").touch()
    code, out, err = started.ended()
    assert (code, out) == (0, "from 0\n"), err


@pytest.mark.full
@pytest.mark.planted
@pytest.mark.parametrize("mode", ["unbound", "other address"])
def test_a_group_that_listens_on_another_address_is_caught(group, mode: str) -> None:
    started = group(REDUCE, mode, own_network=True)
    started.written("total")
    service, gloo = children(started.launcher.pid)
    address = host_address(gloo) if mode == "unbound" else "127.0.0.2"
    assert listening_addresses(gloo) == [address]
    assert listening_addresses(service) == sorted(["127.0.0.1", address])


@pytest.mark.full
def test_processes_joined_by_address_listen_where_they_reach_the_coordinator(tmp_path: Path) -> None:
    """The address to which the host name resolves does not matter."""
    program = REDUCE.replace('os.environ["ZOO_PROCESS"]', "sys.argv[3]").replace(
        'coordinator="", process=0', "coordinator=sys.argv[4], process=number"
    )
    address = f"127.0.0.3:{local_group.free_port()}"
    with contextlib.ExitStack() as stack:
        processes = []
        for number in ("0", "1"):
            command = [sys.executable, "-c", program, str(tmp_path), "end", number, address]
            processes.append(stack.enter_context(subprocess.Popen(command, env=clean_environment(), stdout=subprocess.DEVNULL)))
            stack.callback(processes[-1].kill)
        deadline = time.monotonic() + PATIENCE
        while not all((tmp_path / f"{number}.total").exists() for number in range(2)):
            assert time.monotonic() < deadline and [process.poll() for process in processes] == [None, None]
            time.sleep(0.05)
        assert [listening_addresses(process.pid) for process in processes] == [["127.0.0.3", "127.0.0.3"], ["127.0.0.1"]]
        (tmp_path / "may end").touch()


@pytest.mark.full
@pytest.mark.parametrize(
    ("mode", "code", "line"),
    [
        ("raise", 1, "[process 1] OSError: disk gone"),
        ("wrong", 2, "[process 1] zoo: --key 1: choose 2"),
        # The others, in the midst of their work, are not asked, and it is a success.
        ("reader left", 0, ""),
    ],
)
def test_a_process_that_exits_does_not_wait_for_the_others(group, mode: str, code: int, line: str) -> None:
    """They never end; without `exit_if_failed`, `exit_if_joined` and `_fail` it would wait for them at JAX's shutdown barrier."""
    ended, _, err = group(REDUCE, mode).ended()
    assert ended == code, err
    assert line in err


INTERRUPTED = """
import gc, signal, sys, time
from zoo.runtime import launch
launch.handle_interrupts()
def interrupt(*_):
    gc.callbacks.clear()
    signal.raise_signal(signal.SIGINT)
try:
    if sys.argv[1] == "collector":
        gc.callbacks.append(interrupt)
        gc.collect()
    else:
        import interrupted
    time.sleep(3600)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize(("where", "code", "printed"), [("collector", 0, "interrupted\n"), ("import", 130, "")])
def test_an_interrupt_always_ends_the_program(where: str, code: int, printed: str, tmp_path: Path) -> None:
    """In a callback of the garbage collector Python drops it, and a module in C makes ImportError or worse of it."""
    module = "import __main__\ntry: __main__.interrupt()\nexcept KeyboardInterrupt: raise ImportError\n"
    (tmp_path / "interrupted.py").write_text(module)
    done = run_python("-c", INTERRUPTED, where, env={"PYTHONPATH": str(tmp_path)})
    assert (done.code, done.stdout, done.stderr) == (code, printed, "")


@pytest.mark.parametrize("victim", [0, pytest.param(2, marks=pytest.mark.full)])
def test_a_killed_process_ends_the_group(group, victim: int) -> None:
    started = group(WAIT, processes=3)
    own, children = started.pids()
    os.kill(own[(victim + 1) % 3], signal.SIGSTOP)
    os.kill(own[victim], signal.SIGKILL)
    assert started.ended()[0] == 128 + signal.SIGKILL
    assert gone(own + children)


def test_no_process_outlives_a_killed_launcher(group) -> None:
    started = group(WAIT)
    own, children = started.pids()
    started.launcher.kill()
    try:
        assert gone(own)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_a_signal_is_passed_on_once_and_all_processes_are_waited_for(group, number: int) -> None:
    """The slower process finishes its work, though the faster one has left with a code that is not 0."""
    started = group(WAIT, "save", processes=3)
    own, children = started.pids()
    started.launcher.send_signal(number)
    assert started.ended()[0] == 128 + number
    assert started.written("saved") == [str(int(number))] * 3
    assert gone(own + children)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_a_second_signal_kills_the_processes(group, number: int) -> None:
    started = group(WAIT)
    own, children = started.pids()
    started.launcher.send_signal(number)
    started.written("received")
    assert all(map(alive, own + children)), "the first is only passed on, and these processes ignore it"
    started.launcher.send_signal(number)
    assert started.ended()[0] == 128 + number
    assert gone(own + children)


# The first start of process 1 ends as its argument says.
ENDING = (
    CHILD
    + """
with open(folder / f"{number}.starts", "a") as file:
    file.write("x")
first = (folder / f"{number}.starts").read_text() == "x"
if number == 1 and (first or mode == "always"):
    os.kill(os.getpid(), signal.SIGKILL) if mode == "kill" else sys.exit(1 if mode == "always" else int(mode))
time.sleep(0 if not first else 3600)
"""
)


@pytest.mark.planted(2)
@pytest.mark.parametrize(
    ("mode", "code", "starts", "line"),
    [
        ("kill", 0, 2, "process 1 was killed by SIGKILL; restart 1 of 1 continues the run from its newest checkpoint"),
        pytest.param("1", 0, 2, "process 1 failed; restart 1 of 1", marks=pytest.mark.full),
        pytest.param("always", 1, 2, "process 1 failed; the same command continues", marks=pytest.mark.full),
        ("2", 2, 1, ""),
        pytest.param("143", 143, 1, "", marks=pytest.mark.full),
    ],
)
def test_a_group_starts_again_after_a_process_died_and_not_after_wrong_input(
    mode: str, code: int, starts: int, line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    supervision = local_group.Supervision(restarts=1)
    program = [sys.executable, "-c", ENDING]
    assert local_group.launch_group([str(tmp_path), mode], 2, program, supervision) == code
    assert (tmp_path / "1.starts").read_text() == "x" * starts
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("zoo: ")]
    assert len(lines) == (2 if mode == "always" else starts - 1)
    assert not line or lines[-1].startswith(f"zoo: {line}")


# As long as there are more processes than the argument says, process 1 of four and process 0 of fewer are killed.
SHRINKING = (
    CHILD
    + """
processes, device = int(os.environ["ZOO_PROCESSES"]), os.environ["ZOO_DEVICE"]
with open(folder / "starts", "a") as file:
    file.write(f"{processes}:{number}:{device} ")
def starts(process):
    return (folder / "starts").read_text().count(f"{processes}:{process}:")
if processes > int(mode) and number == (processes == 4):
    while len({starts(process) for process in range(processes)}) > 1:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0 if processes == int(mode) else 3600)
"""
)


@pytest.mark.planted
@pytest.mark.parametrize(("least", "code"), [(1, 0), pytest.param(0, 128 + signal.SIGKILL, marks=pytest.mark.full)])
def test_a_group_continues_in_fewer_processes(least: int, code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each number of processes has its restarts, and the accelerators of processes that died are left out."""
    supervision = local_group.Supervision(restarts=1, smaller_group_sizes=(2, 1))
    program = [sys.executable, "-c", SHRINKING]
    assert local_group.launch_group([str(tmp_path), str(least)], 4, program, supervision) == code
    starts = collections.Counter((tmp_path / "starts").read_text().split())
    assert starts == {f"4:{n}:{n}": 2 for n in range(4)} | {"2:0:0": 2, "2:1:2": 2, "1:0:2": 1 if least else 2}
    then = ["restart 1 of 1", "a start in 2 instead of 4 processes", "restart 1 of 1", "a start in 1 instead of 2 processes"]
    then += [] if least else ["restart 1 of 1", "the same command"]
    assert [line for line in capfd.readouterr().err.splitlines() if line.startswith("zoo: ")] == [
        f"zoo: process {int(index < 2)} was killed by SIGKILL; {start} continues the run from its newest checkpoint"
        for index, start in enumerate(then)
    ]


@pytest.mark.planted
def test_an_abort_is_taken_for_a_consequence_of_other_failures() -> None:
    """The process that refused its input, failed or was killed is named where several are seen to have failed at once."""

    def cause(*codes: int) -> int:
        return min(codes, key=local_group._severity)

    aborted, killed = -signal.SIGABRT, -signal.SIGKILL
    assert [cause(aborted, code) for code in (1, 2, 75, killed)] == [1, 2, 75, killed]
    assert (cause(1, 2), cause(2, killed), cause(aborted, aborted)) == (2, killed, aborted)
    # The mistake: signals come first, whatever they are.
    assert min((aborted, 1), key=lambda code: code if code < 0 else 1000 - code) == aborted


def joining(coordinator: str, processes: int, process: int, timeout: float) -> None:
    launch.join_processes(coordinator, processes, process, simulated=True, timeout=timeout)


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BadInput, match=r"--coordinator 127.0.0.1:\d+: .*in use"):
        joining(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0, timeout=PATIENCE)


def test_missing_processes_are_reported() -> None:
    free = local_group.free_port()
    with pytest.raises(BadInput, match=r"refused for 0\.3 s; start process 0"):
        joining(f"127.0.0.1:{free}", 2, 1, timeout=0.3)
    with pytest.raises(BadInput, match=r"process 1, 2 did not connect within 0\.3 s"):
        joining(f"127.0.0.1:{free}", 3, 0, timeout=0.3)


@pytest.mark.full
def test_processes_with_contradicting_options_are_refused() -> None:
    port = local_group.free_port()
    program = f"""
from zoo.runtime import launch; from zoo.errors import BadInput
try: launch.join_processes("127.0.0.1:{port}", 3, 1, simulated=True, timeout={PATIENCE})
except BadInput as wrong: print(wrong)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        with pytest.raises(BadInput, match="process 1 was started with --processes 3"):
            joining(f"127.0.0.1:{port}", 2, 0, timeout=PATIENCE)
        assert "process 0 has stopped" in other.communicate(timeout=PATIENCE)[0]


@pytest.mark.parametrize(
    ("coordinator", "processes", "process", "message"),
    [
        (":80", 2, 0, "write HOST:PORT"),
        ("10.0.0.1:70000", 2, 0, "write HOST:PORT"),
        ("192.0.2.1:1234", 2, 0, "an address of this machine"),
        ("0.0.0.0:1234", 2, 0, "this is every address of the machine; name the one"),
        ("[::]:1234", 2, 0, "this is every address of the machine; name the one"),
        ("10.0.0.1:1234", 1, 0, "--processes 1: "),
        ("", 2, 1, "--process 1: "),
    ],
)
def test_wrong_addresses_are_refused(coordinator: str, processes: int, process: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        launch.prepare_launch([], devices=8, processes=processes, coordinator=coordinator, process=process)
