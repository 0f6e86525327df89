"""Runs whose disk or memory is used up, and one that is killed before its report: one line, and the same bits in the end."""

import functools
import os
import re
from pathlib import Path

import pytest

from tests.support import limits
from tests.support.runs import EVERY, STEPS, Training, assert_same, home, reference

FULL = "(No space left on device); make room, and run the same command again"
LARGE = "(File too large); make room, or raise the limit on the size of files (ulimit -f), and run the same command again"


@pytest.mark.full
def test_rows_that_cannot_be_written_and_a_save_without_memory_end_the_run() -> None:
    """Before this was checked, the first of these saves ended in an abort of TensorStore, and the second one never."""
    run = Training(home(), "exhausted")

    def without_memory(step: int, spare: int) -> None:
        line = run.refused(limit=functools.partial(limits.memory, step, spare))
        expected = rf"zoo: \S+/{run.name}/checkpoints: step {step} cannot be saved, it needs [\d,]+ bytes of memory "
        fix = r"\(Cannot allocate memory\); free memory or raise the limit \(ulimit -v\), and run the same command again"
        assert re.fullmatch(expected + fix, line)
        assert run.latest() == (step - EVERY or None) and not run.left_over()

    without_memory(EVERY, 20 << 20)
    # The row of step 6, before which the save of step 3 has ended. Half of it is in its file.
    line = run.refused(limit=functools.partial(limits.file_size, "ledger.jsonl", 2 * EVERY))
    assert line == f"zoo: runs/{run.name}/ledger.jsonl cannot be written {LARGE}"
    assert not (run.folder / "ledger.jsonl").read_bytes().endswith(b"\n")
    assert run.latest() == EVERY and not run.left_over()
    without_memory(2 * EVERY, 0)
    run.finish()
    assert run.resumed_at() == [0, 0, EVERY, EVERY]
    assert_same(run, reference())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "row"), [("ledger.jsonl", 2 * EVERY), ("metrics.jsonl", EVERY)])
def test_rows_of_each_file_that_cannot_be_written_end_the_run(name: str, row: int) -> None:
    run = Training(home(), f"full-{name}")
    line = run.refused(limit=functools.partial(limits.file_size, name, row))
    assert line == f"zoo: runs/{run.name}/{name} cannot be written {LARGE}"
    assert not (run.folder / name).read_bytes().endswith(b"\n")
    assert run.latest() == EVERY and not run.left_over()
    run.finish()
    assert run.resumed_at() == [0, EVERY]
    assert_same(run, reference())


def partial(run: Training, name: str, pid: int) -> Path:
    """Return the path at which a process writes a file of a run before the file takes its name."""
    return run.folder / f".{name}.{pid}.partial"


@pytest.mark.full
def test_a_full_disk_and_a_kill_after_the_last_step_cost_nothing() -> None:
    """The files are written to /dev/full; the report to a pipe that nobody reads, which keeps it from being written."""
    run = reference().copied("full-end", STEPS, "--log.samples", "1")

    def refuse(name: str) -> None:
        with run.start() as started:
            os.symlink("/dev/full", partial(run, name, started.process.pid))
            done = started.ended()
        assert (done.code, done.stderr) == (2, f"zoo: runs/{run.name}/{name} cannot be written {FULL}\n")
        assert not (run.folder / name).exists()

    refuse("scores.json")
    refuse("samples.json")
    assert not list(run.folder.glob(".*.partial"))
    with run.start() as started:
        os.mkfifo(partial(run, "report.html", started.process.pid))
        started.wait((run.folder / "samples.json").exists)
        started.killed()
    refuse("report.html")
    run.finish()
    assert (run.folder / "report.html").exists() and run.resumed_at() == [0, *[STEPS] * 3]
    assert_same(run, reference())
