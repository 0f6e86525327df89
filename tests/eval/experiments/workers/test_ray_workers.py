"""A real Ray cluster of two nodes on this machine, and kills of its workers and of the command that uses it."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import compilation
from tests.support.engine_kills import results_of
from tests.support.processes import ROOT, clean_environment
from tests.support.runs import gone

pytestmark = pytest.mark.ray
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
size = {"num_cpus": 1, "object_store_memory": 80 << 20, "memory": 4 << 30}
cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
cluster.add_node(**size)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
COMMAND = (sys.executable, "-m", "zoo.cli", "experiment", "masks", "grid", "--tier", "smoke")
RAY = ("--on", "ray", "--memory", "1")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return the address of a cluster of two nodes with a CPU each."""
    environment = clean_environment() | compilation.FLAGS | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cluster:
        assert cluster.stdout is not None and cluster.stdin is not None
        yield cluster.stdout.readline().strip()
        cluster.stdin.close()
        cluster.wait(120)


def start(folder: Path, address: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    with (folder / "printed").open("ab") as log:
        environment = clean_environment() | {"RAY_ADDRESS": address}
        return subprocess.Popen([*COMMAND, *RAY], cwd=folder, env=environment, stdout=log, stderr=log)


def runs_of(folder: Path) -> list[int]:
    """Return the processes that train or score a node of a folder."""
    processes = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            is_node = b"train" in words or b"eval" in words
            if is_node and Path(os.readlink(path / "cwd")) == folder / "grid":
                processes.append(int(path.name))
    return processes


def wait_for_run(engine: subprocess.Popen[bytes], folder: Path) -> list[int]:
    while not (runs := runs_of(folder)):
        assert engine.poll() is None, (folder / "printed").read_text()
        time.sleep(0.1)
    return runs


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_kills_of_workers_and_of_the_command_change_nothing(tmp_path: Path, address: str) -> None:
    complete, killed = tmp_path / "complete", tmp_path / "killed"
    complete.mkdir()
    environment = clean_environment() | compilation.FLAGS | {"NPROC": "1"}
    assert subprocess.run([*COMMAND], cwd=complete, env=environment, capture_output=True, check=False).returncode == 0
    # A worker of Ray: the task is started again elsewhere, and its run ended with it.
    engine = start(killed, address)
    (run, *_) = wait_for_run(engine, killed)
    worker = parent(parent(run))
    os.kill(worker, signal.SIGKILL)
    assert gone([run, worker])
    # The process of a node, and one that is told to save.
    for number in (signal.SIGKILL, signal.SIGTERM):
        (run, *_) = wait_for_run(engine, killed)
        os.kill(run, number)
        assert gone([run])
    # The command: all of its runs end with it.
    runs = wait_for_run(engine, killed)
    engine.kill()
    engine.wait(60)
    assert gone(runs)
    # Ctrl-C: the run saves and ends.
    engine = start(killed, address)
    runs = wait_for_run(engine, killed)
    time.sleep(random.Random(0).uniform(0, 5))
    engine.send_signal(signal.SIGINT)
    assert engine.wait(200) == 130 and "the same command continues" in (killed / "printed").read_text()
    assert gone(runs)
    assert start(killed, address).wait(900) == 0, (killed / "printed").read_text()
    for log in (killed / "grid/logs").glob("*.log"):
        assert sum(line.startswith("held-out ") for line in log.read_text().splitlines()) <= 1
    assert results_of(killed) == results_of(complete)


def test_two_commands_share_the_cluster_and_the_nodes(tmp_path: Path, address: str) -> None:
    engines = [start(tmp_path, address) for _ in range(2)]
    assert [engine.wait(900) for engine in engines] == [0, 0], (tmp_path / "printed").read_text()
    for log in (tmp_path / "grid/logs").glob("*.log"):
        assert sum(line.startswith("held-out ") for line in log.read_text().splitlines()) == 1


def test_a_run_that_needs_more_than_the_cluster_has_is_refused(tmp_path: Path, address: str) -> None:
    shutil.rmtree(tmp_path / "grid", ignore_errors=True)
    argv = [*COMMAND, *RAY, "--cpus", "9"]
    environment = clean_environment() | {"RAY_ADDRESS": address}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    line = (
        "--on ray: the cluster has 2 CPUs, 0 GPUs and 8 GiB of memory; choose at most that for --cpus 9, --gpus 0 and --memory 1"
    )
    assert done.returncode == 2 and line in done.stderr
