"""Checkpoints against a full disk, real kills and several processes."""

import gc
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, clean_environment, run_python
from tests.support.runs import PATIENCE, small_files
from tests.support.states import Log, abstract, bits, make, save_all
from train.checkpoints import orbax_io, slow_save
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.step_folders import StepFolders
from zoo.errors import BadInput
from zoo.fault_points import faults
from zoo.runtime import local_group


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


# Orbax abandons the writes that were running; in a run `train.checkpoints.orbax_io` ignores their errors, here pytest's hook
# replaces its own.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("largest", [20_000, 300, 0])
def test_a_full_disk_costs_a_checkpoint_and_two_end_the_run(largest: int, folder: Path) -> None:
    """No room for one shard, which is written in one piece; for the manifest; and for anything."""
    log = Log()

    def failing(step: int) -> None:
        with small_files(largest):
            checkpoints.save(make(step, width=32768), {})
            try:
                assert not checkpoints.wait()
            finally:
                assert os.listdir(folder) == [f"{checkpoints.latest():08d}"]

    with Checkpoints(folder, 1, notify=log) as checkpoints:
        checkpoints.save(make(1, width=32768), {})
        assert checkpoints.wait()
        failing(2)
        for part in ("FAILED and was removed", "File too large", "The run continues; the newest is of step 1"):
            assert part in log[0]
        # Space is back, so that the next failure is a first one.
        checkpoints.save(make(3, width=32768), {})
        assert checkpoints.wait()
        failing(4)
        with pytest.raises(BadInput) as refused:
            failing(5)
        assert checkpoints.latest() == 3
    for part in (str(folder), "two checkpoints in a row", "needs 6,", "free (", "make room"):
        assert part in str(refused.value)
    gc.collect()  # What the failed writes left is reported here, where it is ignored, and not in a later test.


@pytest.mark.planted(3)
@pytest.mark.parametrize(
    ("part", "name"), [(StepFolders, "remove_temporaries"), (orbax_io, "start_writing"), (orbax_io, "finish_writing")]
)
def test_a_save_that_hangs_is_reported_in_each_period(
    part: Any, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs where its folder is made, where its arrays are copied, or where its files are completed, until a second report."""
    log, twice = Log(), threading.Event()

    def notify(text: str) -> None:
        log(text)
        if len(log) == 2:
            twice.set()

    with Checkpoints(folder, 1, notify=notify) as checkpoints:
        checkpoints.save(make(1), {})
        assert checkpoints.wait() and not log
        monkeypatch.setattr(slow_save, "PERIOD", 0.05)
        original = getattr(part, name)

        def hang(*arguments: Any) -> Any:
            assert twice.wait(30)
            return original(*arguments)

        monkeypatch.setattr(part, name, hang)
        checkpoints.save(make(2), {})
        assert checkpoints.wait()
        monkeypatch.undo()
        checkpoints.save(make(3), {})
        assert checkpoints.wait() and checkpoints.latest() == 3
    assert all(re.match(r"the save of step 2 has taken \d+ s; the next save waits for it; ", line) for line in log), log


BURIED = ValueError(f"Failed to write: No space left on device [source locations='{'x' * 200}']")
"""As TensorStore may report it."""


@pytest.mark.parametrize(
    ("failure", "cause", "fix"),
    [
        (MemoryError(), "MemoryError", "free memory or raise the limit (ulimit -v)"),
        (OSError(5, os.strerror(5)), "Input/output error", "check the disk"),
        (BURIED, "No space left on device", "make room"),
    ],
)
def test_a_save_that_cannot_begin_fails_and_names_its_cause(
    failure: Exception, cause: str, fix: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise failure

    log = Log()
    with Checkpoints(folder, 1, notify=log) as checkpoints:
        checkpoints.save(make(1), {})
        assert checkpoints.wait()
        monkeypatch.setattr(orbax_io, "start_writing", fail)
        checkpoints.save(make(2), {})
        assert not checkpoints.wait()
        checkpoints.save(make(3), {})
        with pytest.raises(BadInput) as refused:
            checkpoints.wait()
    assert f"({cause}). The run continues" in log[0]
    assert f"({cause}); {fix}, or choose another --out" in str(refused.value)
    assert os.listdir(folder) == ["00000001"]


def test_a_save_for_which_there_is_no_memory_does_not_begin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orbax_io, "SAVE_MEMORY", 1 << 60)
    refused = r"step 1 cannot be saved, it needs [\d,]+ bytes of memory \(Cannot allocate memory\); free memory"
    with Checkpoints(folder, 1, notify=pytest.fail) as checkpoints, pytest.raises(BadInput, match=refused):
        checkpoints.save(make(1), {})
    assert os.listdir(folder) == []


@pytest.mark.full
@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_a_valid_checkpoint(folder: Path, kills: int) -> None:
    argv = ("-m", "tests.support.checkpoint_kills", str(folder), str(kills), "1", str(PATIENCE))
    ended = run_python("-W", "ignore", *argv, cwd=ROOT, timeout=1800)
    assert ended.code == 0, ended.stderr
    counts = json.loads(ended.stdout)
    assert sum(counts["kills"].values()) == kills and counts["committed"] > kills // 3
    # Kills that never strike during a save would prove nothing.
    assert counts["leftovers"] > 0


PROCESSES = """
import json, os, resource, signal, sys
import jax, numpy as np
from tests.support.states import abstract, make, mesh_of
from train.checkpoints.checkpoints import Checkpoints
from zoo.runtime import launch
from zoo.errors import BadInput

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def limit(bytes): resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))

folder, number, address = sys.argv[1], int(sys.argv[2]), sys.argv[3]
# As on several machines: by an explicit address, without a launcher.
launch.prepare_launch([], devices=2, processes=2, coordinator=address, process=number, canary=False)
assert (jax.process_index(), jax.process_count(), jax.device_count()) == (number, 2, 4)
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
    checkpoints._saver._failed.clear()
    checkpoints.save(make(6, mesh), {"step": 6})
print(json.dumps(report))
jax.distributed.shutdown()
"""


@pytest.mark.full
@pytest.mark.planted
def test_two_processes_agree_and_one_restores(folder: Path) -> None:
    address = f"127.0.0.1:{local_group.free_port()}"
    options: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment(), cwd=ROOT)
    commands = [[sys.executable, "-c", PROCESSES, str(folder), str(number), address] for number in range(2)]
    processes = [subprocess.Popen(command, **options) for command in commands]
    try:
        ended = [process.communicate(timeout=PATIENCE) for process in processes]
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
    assert bits(result[0]) == bits(make(6))


ERRORS_IN_A_SAVE = [
    "checkpoint.mkdir:ENOSPC",
    "checkpoint.arrays:ENOSPC",
    "checkpoint.written:EIO",
    "checkpoint.merge:ESTALE",
    "checkpoint.manifest:ENOSPC",
    "checkpoint.rename:EIO",
    "checkpoint.committed:EIO",
    "file.digest:EIO:2",
    *(f"file.fsync:EIO:{number}" for number in (1, 3, 5, 7)),
]


@pytest.mark.planted(len(ERRORS_IN_A_SAVE))
def test_an_error_anywhere_in_a_save_costs_that_checkpoint_alone(folder: Path) -> None:
    """Also after the folder has its final name: if that name may not be on the disk, the checkpoint does not count."""
    log = Log()
    with Checkpoints(folder, 1, notify=log) as checkpoints:
        for number, fault in enumerate(ERRORS_IN_A_SAVE):
            good, failing = 2 * number + 1, 2 * number + 2
            checkpoints.save(make(good), {})
            assert checkpoints.wait() and not log, (fault, log)
            with faults(fault):
                checkpoints.save(make(failing), {})
                assert not checkpoints.wait(), fault
            [line] = log
            assert line.startswith(f"CHECKPOINT of step {failing} FAILED and was removed: "), fault
            assert os.listdir(folder) == [f"{good:08d}"], fault
            log.clear()


@pytest.mark.planted(2)
@pytest.mark.parametrize(("point", "name"), [("checkpoint.delete", "00000001"), ("checkpoint.deleting", "00000001.tmp")])
def test_an_old_step_that_cannot_be_deleted_is_deleted_after_a_later_save(point: str, name: str, folder: Path) -> None:
    """It used to end the run with a traceback, though the save had succeeded."""
    log = Log()
    with Checkpoints(folder, 1, notify=log) as checkpoints:
        checkpoints.save(make(1), {})
        assert checkpoints.wait()
        with faults(f"{point}:EACCES"):
            checkpoints.save(make(2), {})
            assert checkpoints.wait() and checkpoints.latest() == 2
        assert log == [
            f"{folder}/00000001 cannot be deleted (Permission denied); the run continues, and the next save tries again"
        ]
        assert {*os.listdir(folder)} == {name, "00000002"}
        checkpoints.save(make(3), {})
        assert checkpoints.wait()
        assert os.listdir(folder) == ["00000003"] and len(log) == 1


@pytest.mark.planted
def test_a_damaged_step_that_cannot_be_renamed_is_refused(folder: Path) -> None:
    """It used to be a traceback."""
    save_all(folder, 1, 2)
    (folder / "00000002" / "COMMIT.json").unlink()
    refused = rf"{folder}/00000002 is damaged \(COMMIT.json is missing\) and cannot be renamed \(Read-only file system\); "
    with (
        Checkpoints(folder, 9, notify=pytest.fail) as checkpoints,
        faults("checkpoint.set_aside:EROFS"),
        pytest.raises(BadInput, match=refused),
    ):
        checkpoints.restore(abstract(make(0)))


@pytest.mark.planted(2)
@pytest.mark.parametrize("fault", ["checkpoint.read:EIO", "file.digest:ESTALE"])
def test_a_step_that_cannot_be_read_is_set_aside(fault: str, folder: Path) -> None:
    save_all(folder, 1, 2)
    log = Log()
    with Checkpoints(folder, 9, notify=log) as checkpoints, faults(fault):
        result = checkpoints.restore(abstract(make(0)))
    assert result is not None and int(result[0].step) == 1 and bits(result[0]) == bits(make(1))
    assert len(log) == 1 and "00000002 IS DAMAGED: " in log[0]
