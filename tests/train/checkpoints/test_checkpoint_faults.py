"""Checkpoints against a full disk, real kills and several processes."""

import inspect
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes import ROOT, clean_environment, run_python
from tests.support.states import META, abstract, bits, make, mesh_of
from train import arrays
from train.checkpoint import Checkpoints
from train.marker import by_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


# What they need to make the same states: the content is a function of the step.
COMMON = """
import json, math, os, random, resource, signal, sys, time
from collections.abc import Callable
import jax, jax.numpy as jnp, numpy as np, optax
from train.checkpoint import Checkpoints
from train.state import State
from zoo.errors import BadInput
from zoo import runtime
Spec = jax.sharding.PartitionSpec
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def limit(bytes): resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))
""" + "\n".join(inspect.getsource(function) for function in (mesh_of, make, abstract, bits))


FULL_DISK = (
    COMMON
    + """
runtime.prepare(devices=8)
folder, report = sys.argv[1], []
told = []
with Checkpoints(folder, 2, notify=told.append) as checkpoints:
    checkpoints.save(make(1, width=32768), {})
    assert checkpoints.wait()
    # Below the size of one shard, which is written in one piece.
    for step, bytes in enumerate((200_000, 20_000, 3000, 300, 0), start=2):
        limit(bytes)
        checkpoints.save(make(step, width=32768), {})
        while checkpoints._pending is not None:
            checkpoints.poll()
            assert checkpoints.latest() == 1
        left = os.listdir(folder)
        limit(resource.RLIM_INFINITY)
        report.append([bytes, left, checkpoints.latest(), told[:]])
        told.clear()
        # Space is back: the next save works, and is taken back so that the next failure is again a first one.
        checkpoints.save(make(step, width=32768), {})
        assert checkpoints.wait() and checkpoints.latest() == step
        os.rename(f"{folder}/{step:08d}", f"{folder}/../{step}")
    limit(1000)
    checkpoints.save(make(10, width=32768), {})
    assert not checkpoints.wait()
    checkpoints.save(make(11, width=32768), {})
    try:
        while True:
            checkpoints.poll()
            time.sleep(0.01)
    except BadInput as error:
        report.append([str(error), os.listdir(folder)])
limit(resource.RLIM_INFINITY)
print(json.dumps(report))
"""
)


def test_a_full_disk_costs_a_checkpoint_and_two_end_the_run(folder: Path) -> None:
    ended = run_python("-c", FULL_DISK, str(folder), cwd=ROOT)
    assert ended.code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    *failures, (error, left) = json.loads(ended.stdout)
    for _, remaining, latest, told in failures:
        assert remaining == ["00000001"]
        assert latest == 1
        assert len(told) == 1
        assert "FAILED and was removed" in told[0]
        assert "File too large" in told[0]
        assert "The run goes on; the newest is of step 1" in told[0]
    assert left == ["00000001"]
    for part in (str(folder), "two checkpoints in a row", "needs 6,", "free (", "make room"):
        assert part in error


# Forked after the imports and before JAX starts: a second per kill. Each child checks what the killed one left.
KILLS = (
    COMMON
    + """
runtime.prepare(devices=8)
folder, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)

def train(say):
    with Checkpoints(folder, 1, notify=lambda message: say(f"told {message}")) as checkpoints:
        result = checkpoints.restore(abstract(make(0, width=2048)))
        step = 0
        if result is not None:
            step = int(result[0].step)
            assert bits(result[0]) == bits(make(step, width=2048)), f"step {step} came back changed"
        say(f"restored {step}")
        while True:
            step += 1
            checkpoints.save(make(step, width=2048), {"step": step})
            say(f"saving {step}")
            if step % 3 == 0:
                checkpoints.wait()
                say(f"committed {step}")

def spawn():
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            train(lambda line: os.write(write, line.encode() + b"\\n"))
        except BaseException as error:
            os.write(write, f"failed {type(error).__name__} {error}\\n".encode())
        os._exit(1)
    os.close(write)
    return pid, os.fdopen(read)

committed, leftovers, lost = 0, 0, []
for kill in range(kills + 1):
    pid, lines = spawn()
    saves = 1 + chance.randrange(4)
    dispatched = 0
    for line in lines:
        what, _, rest = line.strip().partition(" ")
        assert what not in ("failed", "told"), line
        if what == "restored":
            assert int(rest) >= committed, f"step {committed} was committed, {rest} came back"
        if what == "committed":
            committed = int(rest)
        if what == "saving":
            dispatched += 1
            if dispatched == saves:
                break
    time.sleep(chance.random() * 0.12)
    os.kill(pid, signal.SIGKILL)
    for line in lines:
        assert line.split()[0] not in ("failed", "told"), line
        if line.startswith("committed "):
            committed = int(line.split()[1])
    os.waitpid(pid, 0)
    assert dispatched == saves
    leftovers += any(name.endswith(".tmp") for name in os.listdir(folder))
print(json.dumps({"kills": kills + 1, "committed": committed, "leftovers": leftovers}))
"""
)


@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_a_valid_checkpoint(folder: Path, kills: int) -> None:
    ended = run_python("-W", "ignore", "-c", KILLS, str(folder), str(kills), "1", cwd=ROOT, timeout=900)
    assert ended.code == 0, ended.stderr
    counts = json.loads(ended.stdout)
    print(counts, f"{ended.seconds:.1f} s")
    assert counts["committed"] > kills // 2
    # Kills that never strike during a save would prove nothing.
    assert counts["leftovers"] > 0


PROCESSES = (
    COMMON
    + """
runtime.prepare(devices=2)
folder, number, port = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number, coordinator_bind_address=f"127.0.0.1:{port}")
mesh = mesh_of(4)
told, report = [], {}
with Checkpoints(folder, 2, notify=told.append) as checkpoints:
    assert checkpoints.restore(abstract(make(0, mesh))) is None
    for step in (1, 2, 3):
        checkpoints.save(make(step, mesh), {"step": step})
        for _ in range(10):
            checkpoints.poll()
    assert checkpoints.wait()
    if number == 0:
        marker = f"{folder}/00000003/COMMIT.json"
        open(marker, "a").write(" ")
    state, meta = checkpoints.restore(abstract(make(0, mesh)))
    same = [np.asarray(a.addressable_shards[0].data).tobytes() == np.asarray(b.addressable_shards[0].data).tobytes()
            for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(make(2, mesh)))]
    report["restored"] = [meta, all(same), told[:]]
    told.clear()
    # The disk of one process is full.
    if number == 1:
        limit(100)
    checkpoints.save(make(4, mesh), {})
    report["failed"] = [checkpoints.wait(), told[:], checkpoints.latest(), sorted(os.listdir(folder))]
    checkpoints.save(make(5, mesh), {})
    try:
        checkpoints.wait()
    except BadInput as error:
        report["refused"] = str(error)
    limit(resource.RLIM_INFINITY)
    checkpoints._failed.clear()
    checkpoints.save(make(6, mesh), {"step": 6})
print(json.dumps(report))
jax.distributed.shutdown()
"""
)


@pytest.mark.planted
def test_two_processes_agree_and_one_restores(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESSES, str(folder), str(number), str(port)],
            env=clean_environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        ended = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ended
    first, second = (json.loads(stdout.splitlines()[-1]) for stdout, _ in ended)
    assert first["restored"][:2] == second["restored"][:2] == [{"step": 2}, True]
    assert "00000003 IS DAMAGED" in first["restored"][2][0]
    assert second["restored"][2] == []
    for report in (first, second):
        assert report["failed"][0] is False
        assert report["failed"][2:] == [2, ["00000002", "00000003.corrupt-1"]]
        assert "two checkpoints in a row failed" in report["refused"]
    assert "process 1 could not write its part" in first["failed"][1][0]
    assert "File too large" in second["failed"][1][0]

    with Checkpoints(folder, 2, notify=pytest.fail) as checkpoints:
        result = checkpoints.restore(abstract(make(0)))
    assert result is not None
    assert bits(result[0]) == bits(make(6))


def test_orbax_alone_does_not_notice(folder: Path) -> None:
    """Why there are digests. Should this fail, Orbax has learnt to check its data, and they could go."""
    state = make(1, width=4096)
    with Checkpoints(folder, 1, notify=pytest.fail) as checkpoints:
        checkpoints.save(state, META)
    data = max(folder.rglob("d/*"), key=lambda file: file.stat().st_size)
    middle = data.stat().st_size // 2
    with data.open("r+b") as file:
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))
    read = arrays.read(folder / "00000001", by_path(abstract(state)))
    assert {path: np.asarray(leaf).tobytes() for path, leaf in read.items()} != {
        path: np.asarray(leaf).tobytes() for path, leaf in by_path(state).items()
    }
