"""Runs whose disk or memory is used up, and one that is killed before its report: one line, and the same bits in the end."""

import functools
import os
import re

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


@pytest.mark.full
def test_a_full_disk_and_a_kill_after_the_last_step_cost_nothing() -> None:
    """The files are written to /dev/full; the report to a pipe that nobody reads, which keeps it from being written."""
    run = reference().copied("full-end", STEPS, "--log.samples", "1")

    def refuse(name: str) -> None:
        line = run.refused(limit=functools.partial(limits.write_to, name, "/dev/full"))
        assert line == f"zoo: runs/{run.name}/{name} cannot be written {FULL}"
        assert not (run.folder / name).exists()

    refuse("scores.json")
    refuse("samples.json")
    assert not list(run.folder.glob(".*.partial"))
    os.mkfifo(pipe := home() / "pipe")
    with run.start(limit=functools.partial(limits.write_to, "report.html", str(pipe))) as started:
        started.wait(lambda: [*run.folder.glob(".report.html.*.partial")])
        started.killed()
    # What a kill leaves has another name than what the next start writes.
    assert len([*run.folder.glob(".*.partial")]) == 1
    refuse("report.html")
    run.finish()
    assert (run.folder / "report.html").exists() and run.resumed_at() == [0, *[STEPS] * 3]
    assert_same(run, reference())
