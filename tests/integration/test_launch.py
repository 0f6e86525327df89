"""Real processes and real signals: several processes make one program, and none outlives the group."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.processes import Ended, clean_environment, run_python
from zoo import launch
from zoo.errors import BadInput

# What `zoo.cli` does with --processes, around a program that is not training.
CHILD = """
import os, pathlib, signal, subprocess, sys, time
from zoo import launch
from zoo.errors import BadInput
number, folder, mode = int(os.environ["ZOO_PROCESS"]), pathlib.Path(sys.argv[1]), sys.argv[2]
"""
REDUCE = (
    CHILD
    + """
launch.enter([], devices=2, processes=2, coordinator="", process=0, canary=False)
import jax, numpy as np
mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
rows = np.arange(8.0, dtype=np.float32)
x = jax.make_array_from_callback(rows.shape, jax.NamedSharding(mesh, jax.P("d")), lambda i: rows[i])
total = float(jax.jit(lambda x: (x * x).sum())(x))
(folder / f"{number}.total").write_text(f"{total} {jax.device_count()} {jax.local_device_count()}")
print("from", number)
if mode == "raise" and number == 1:
    raise OSError("disk gone")
if mode == "reader left" and number == 0:
    sys.exit(launch.abandon(launch.CLOSED_PIPE))
if mode == "wrong" and number == 1:
    print("zoo: --key 1: choose 2", file=sys.stderr)
    sys.exit(launch.leave(2))
if mode != "end":
    time.sleep(60)
"""
)
# No JAX: signals only. Each process has a child of its own, which must not be left behind either.
WAIT = (
    CHILD
    + """
launch._follow_launcher()
def save(got, frame):
    (folder / f"{number}.saved").write_text(str(got))
    time.sleep(0.5 * number)
    sys.exit(128 + got)
for got in (signal.SIGINT, signal.SIGTERM):
    signal.signal(got, save if mode == "save" else signal.SIG_IGN)
grandchild = subprocess.Popen(["sleep", "120"])
(folder / f"{number}.tmp").write_text(f"{os.getpid()} {grandchild.pid}")
os.rename(folder / f"{number}.tmp", folder / f"{number}.pids")
time.sleep(120)
"""
)


class Group:
    """A launcher in a process of its own."""

    def __init__(self, folder: Path, program: str, mode: str, processes: int = 2):
        self.folder, self.processes = folder, processes
        call = f"{[str(folder), mode]}, {processes}, {[sys.executable, '-c', program]}"
        launcher = f"import sys; from zoo import launch; sys.exit(launch.launch({call}))"
        self.launcher = subprocess.Popen(
            [sys.executable, "-c", launcher], env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def pids(self) -> list[list[int]]:
        """(process, its child) of every number, once all are there."""
        deadline = time.monotonic() + 30
        files = [self.folder / f"{number}.pids" for number in range(self.processes)]
        while not all(file.exists() for file in files):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return [list(map(int, file.read_text().split())) for file in files]

    def ended(self, timeout: float) -> Ended:
        start = time.monotonic()
        out, err = self.launcher.communicate(timeout=timeout)
        return Ended(self.launcher.returncode, out, err, time.monotonic() - start)


@pytest.fixture
def group(tmp_path: Path) -> Iterator:
    with contextlib.ExitStack() as stack:

        def start(program: str, mode: str = "", processes: int = 2) -> Group:
            made = Group(tmp_path, program, mode, processes)
            stack.enter_context(made.launcher)
            stack.callback(made.launcher.kill)
            return made

        yield start


def alive(pids: list[list[int]]) -> list[int]:
    """Which of these processes run still."""
    return [pid for family in pids for pid in family if runs.alive(pid)]


def gone(pids: list[list[int]], within: float) -> bool:
    deadline = time.monotonic() + within
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pids)


def test_two_processes_are_one_program(group, tmp_path: Path) -> None:
    done = group(REDUCE, "end").ended(timeout=60)
    assert (done.code, done.stdout) == (0, "from 0\n"), done.stderr
    for number in range(2):
        assert (tmp_path / f"{number}.total").read_text() == "140.0 4 2"


@pytest.mark.parametrize(("mode", "code", "said"), [("raise", 1, "OSError: disk gone"), ("wrong", 2, "zoo: --key 1: choose 2")])
def test_a_failed_process_does_not_wait_for_the_others(group, mode: str, code: int, said: str) -> None:
    """Process 0 sleeps a minute; without `leave` and `_fail` process 1 would wait for it at JAX's shutdown barrier."""
    done = group(REDUCE, mode).ended(timeout=40)
    assert done.code == code, done.stderr
    assert f"[process 1] {said}" in done.stderr


def test_a_reader_who_left_ends_the_group_as_a_success(group) -> None:
    """The others, in the midst of their work, were not asked."""
    done = group(REDUCE, "reader left").ended(timeout=40)
    assert (done.code, done.stdout) == (0, "from 0\n"), done.stderr


INTERRUPTED = """
import gc, signal, sys, time
from zoo import launch
launch.heed_interrupts()
def interrupt(*_):
    gc.callbacks.clear()
    signal.raise_signal(signal.SIGINT)
try:
    if sys.argv[1] == "collector":
        gc.callbacks.append(interrupt)
        gc.collect()
    else:
        import interrupted
    time.sleep(30)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize(("where", "code", "told"), [("collector", 0, "interrupted\n"), ("import", 130, "")])
def test_an_interrupt_is_heeded(where: str, code: int, told: str, tmp_path: Path) -> None:
    """In a callback of the garbage collector Python drops it, and a module in C makes ImportError or worse of it."""
    module = """
        import __main__
        try: __main__.interrupt()
        except KeyboardInterrupt: raise ImportError
    """
    (tmp_path / "interrupted.py").write_text(textwrap.dedent(module))
    done = run_python("-c", INTERRUPTED, where, env={"PYTHONPATH": str(tmp_path)})
    assert (done.code, done.stdout, done.stderr) == (code, told, "")
    assert done.seconds < 10


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_process_ends_the_group(group, victim: int) -> None:
    started = group(WAIT, processes=3)
    pids = started.pids()
    os.kill(pids[(victim + 1) % 3][0], signal.SIGSTOP)
    os.kill(pids[victim][0], signal.SIGKILL)
    done = started.ended(timeout=10)
    assert done.code == 128 + signal.SIGKILL
    assert done.seconds < 2
    assert gone(pids, within=0.2), alive(pids)


def test_no_process_outlives_a_killed_launcher(group) -> None:
    started = group(WAIT)
    pids = started.pids()
    started.launcher.kill()
    try:
        assert gone([[own] for own, _ in pids], within=2)
    finally:
        for _, grandchild in pids:
            os.kill(grandchild, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_once_and_is_waited_for(group, tmp_path: Path, number: int) -> None:
    """The slower process finishes its work, though the faster one has left with a code that is not 0."""
    started = group(WAIT, "save", processes=3)
    pids = started.pids()
    started.launcher.send_signal(number)
    done = started.ended(timeout=10)
    assert done.code == 128 + number
    assert done.seconds >= 1
    assert [(tmp_path / f"{process}.saved").read_text() for process in range(3)] == [str(int(number))] * 3
    assert gone(pids, within=0.2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_kills(group, number: int) -> None:
    started = group(WAIT)
    pids = started.pids()
    started.launcher.send_signal(number)
    time.sleep(0.3)
    assert len(alive(pids)) == 4, "the first is only passed on, and these processes ignore it"
    started.launcher.send_signal(number)
    assert started.ended(timeout=10).seconds < 2
    assert gone(pids, within=0.2)


def joining(coordinator: str, processes: int, process: int, timeout: float) -> None:
    launch.join(coordinator, processes, process, simulated=True, timeout=timeout)


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BadInput, match=r"--coordinator 127.0.0.1:\d+: .*in use"):
        joining(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0, timeout=5.0)


def test_nobody_there() -> None:
    free = launch._free_port()
    with pytest.raises(BadInput, match=r"refused for 0\.3 s; start process 0"):
        joining(f"127.0.0.1:{free}", 2, 1, timeout=0.3)
    with pytest.raises(BadInput, match=r"no word from process 1, 2 after 0\.3 s"):
        joining(f"127.0.0.1:{free}", 3, 0, timeout=0.3)


def test_processes_that_disagree_are_told() -> None:
    port = launch._free_port()
    program = f"""
from zoo import launch; from zoo.errors import BadInput
try: launch.join("127.0.0.1:{port}", 3, 1, simulated=True, timeout=20.0)
except BadInput as wrong: print(wrong)
"""
    with (
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other,
    ):
        with pytest.raises(BadInput, match="process 1 was started with --processes 3"):
            joining(f"127.0.0.1:{port}", 2, 0, timeout=20.0)
        assert "process 0 gave up" in other.communicate(timeout=20)[0]


@pytest.mark.parametrize(
    ("coordinator", "processes", "process", "said"),
    [
        ("10.0.0.1", 2, 0, "write HOST:PORT"),
        (":80", 2, 0, "write HOST:PORT"),
        ("10.0.0.1:70000", 2, 0, "write HOST:PORT"),
        ("192.0.2.1:1234", 2, 0, "an address of this machine"),
        ("10.0.0.1:1234", 1, 0, "--processes 1: "),
        ("", 2, 1, "--process 1: "),
    ],
)
def test_wrong_addresses(coordinator: str, processes: int, process: int, said: str) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        launch.enter([], devices=8, processes=processes, coordinator=coordinator, process=process)
    assert "\n" not in str(refused.value)


def test_processes_started_by_hand_meet() -> None:
    """As on several machines: explicit addresses, no launcher."""
    address = f"127.0.0.1:{launch._free_port()}"
    program = """
import sys
from zoo import launch
launch.enter([], devices=1, processes=2, coordinator=sys.argv[1], process=int(sys.argv[2]), canary=False)
import jax
print(jax.process_index(), jax.process_count(), jax.device_count())
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, address, "1"], env=clean_environment(), stdout=subprocess.PIPE, text=True
    ) as other:
        done = run_python("-c", program, address, "0")
        assert (done.code, done.stdout) == (0, "0 2 2\n"), done.stderr
        assert other.communicate(timeout=30)[0] == "1 2 2\n"


def test_the_service_listens_on_this_machine_only(group, tmp_path: Path) -> None:
    """JAX's own default is every address of the machine, without authentication."""
    started = group(REDUCE, "sleep")
    deadline = time.monotonic() + 40
    while not (tmp_path / "0.total").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{started.launcher.pid}/task/{started.launcher.pid}/children").read_text().split()
    [port] = {
        line.partition("=")[2].rpartition(":")[2]
        for line in Path(f"/proc/{children[0]}/environ").read_text().split("\0")
        if line.startswith("ZOO_COORDINATOR=")
    }
    listening = "0A"
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    bound = {row[1].partition(":")[0] for row in rows if row[3] == listening and row[1].endswith(f":{int(port):04X}")}
    assert bound
    assert bound <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, also as IPv6 writes it
