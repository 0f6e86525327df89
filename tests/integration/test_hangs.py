"""Runs with a process that is stuck, stopped or killed: found in time, reported in one line, and continued with the same bits."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.support import compilation, hangs
from tests.support.processes import ROOT, Ended, children, clean_environment
from tests.support.runs import (
    EVERY,
    PATIENCE,
    Training,
    assert_close,
    assert_every_sample_once_per_epoch,
    assert_same,
    gone,
    home,
    reference,
)
from zoo.runtime import progress

TWO = {"processes": 2, "devices": 2}
HANG_AFTER = "2"


@contextlib.contextmanager
def started(run: Training, kind: str, process: int, step: int, *flags: str, **machine: int) -> Iterator[subprocess.Popen[str]]:
    """Start a run, one process of which gets stuck or dies after a step."""
    command = [*hangs.PROGRAM, kind, str(process), str(step), *run.argv("--hang-after", HANG_AFTER, *flags, **machine)]
    environment = clean_environment() | compilation.FLAGS | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=run.home, env=environment, text=True, stdout=pipe, stderr=pipe) as launcher:
        try:
            yield launcher
        finally:
            launcher.kill()


def ended(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=PATIENCE)
    return Ended(process.returncode, out, err)


@pytest.mark.slow
@pytest.mark.planted
def test_a_worker_that_holds_the_lock_of_python_is_found_and_the_group_continues_with_the_same_bits() -> None:
    """No thread of it runs any more."""
    run = Training(home(), "stuck")
    with started(run, "hold_lock", 1, EVERY + 2, "--restart", "1", **TWO) as launcher:
        done = ended(launcher)
    assert done.code == 0, done
    [line] = done.stderr.splitlines()
    assert line.startswith("zoo: process 1 is stuck: no step for ") and f" after step {EVERY + 2}, while " in line
    assert line.endswith("restart 1 of 1 continues the run from its newest checkpoint")
    stacks = (run.folder / "stacks.txt").read_text()
    assert "in hold_lock" in stacks.partition("\nProcess 1:\n")[2]
    assert "train/trainer.py" in stacks.partition("\nProcess 0:\n")[2].partition("\nProcess 1:\n")[0]
    assert run.resumed_at() == [0, EVERY]
    assert_same(run, reference(**TWO))


@pytest.mark.full
@pytest.mark.planted
def test_a_stopped_worker_ends_the_group_with_one_line() -> None:
    """By SIGSTOP: JAX's coordination service would abort the other one with a C++ stack."""
    run = Training(home(), "stopped")
    with started(run, "sleep", 1, 0, "--steps", "100000", **TWO) as launcher:
        while not run.checkpoints():
            assert launcher.poll() is None
        pids = children(launcher.pid)
        os.kill(pids[1], signal.SIGSTOP)
        done = ended(launcher)
    assert done.code == progress.HANG, done
    [line] = done.stderr.splitlines()
    assert line.startswith("zoo: process 1 is stuck: stopped by a signal (SIGSTOP) for ")
    assert "Process 1:\n" in (run.folder / "stacks.txt").read_text()
    assert gone(pids)


@pytest.mark.slow
@pytest.mark.planted
def test_a_run_of_one_process_that_is_stuck_ends_itself_and_continues() -> None:
    run = Training(home(), "alone")
    with started(run, "sleep", 0, EVERY + 2) as process:
        done = ended(process)
    assert done.code == progress.HANG, done
    [line] = done.stderr.splitlines()
    assert line.startswith("zoo: the run is stuck: no step for ") and line.endswith("from its newest checkpoint")
    assert "in sleep" in (run.folder / "stacks.txt").read_text()
    run.finish()
    assert run.resumed_at() == [0, EVERY]
    assert_same(run, reference())


@pytest.mark.full
@pytest.mark.planted(2)
def test_a_group_whose_worker_died_continues_in_one_process() -> None:
    """On half as many devices: the losses differ by rounding, and no sample is lost or repeated."""
    run = Training(home(), "shrunk")
    with started(run, "die", 1, EVERY + 2, "--restart", "0:fewer", **TWO) as launcher:
        done = ended(launcher)
    assert done.code == 0, done
    # Process 0 may report the lost connection in words of its own.
    [line] = [line for line in done.stderr.splitlines() if line.startswith("zoo: ")]
    start = "a start in 1 instead of 2 processes continues the run from its newest checkpoint"
    assert line == f"zoo: process 1 was killed by SIGKILL; {start}"
    assert run.resumed_at() == [0, EVERY]
    assert_every_sample_once_per_epoch(run)
    assert_close(run, reference(**TWO))
    # The mistake: the samples of a step are used again.
    rows = (run.folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    rows[EVERY] = rows[EVERY - 1].replace(f'"step":{EVERY}', f'"step":{EVERY + 1}')
    (run.folder / "ledger.jsonl").write_text("".join(rows))
    with pytest.raises(AssertionError):
        assert_every_sample_once_per_epoch(run)
