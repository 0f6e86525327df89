"""Where the time of a run goes: categories that sum to the wall clock, in one start and over kills."""

import contextlib
import dataclasses
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.report import report
from eval.tasks.held_out import scorers
from tests.hostile.content_cases import SPENT, STARTED
from tests.support import tiny
from tests.support.runs import Training, home, text
from train import trainer
from train.config import run_config
from train.config.batch_sizes import batch_sizes
from train.config.data_options import CausalData
from train.run import metrics_file, time_account
from train.run.costs import read_costs
from train.run.run_dir import RunDir
from train.run.time_account import TITLES, TimeAccount, describe_goodput, goodput, run_seconds, settle_killed
from zoo.errors import BadInput


def check_wall_clock(starts: list[dict[str, Any]]) -> None:
    """Check that the categories of a run, which has ended, sum to the time between its first and its last second, to 1 %."""
    elapsed = starts[-1]["began"] + starts[-1]["seconds"] - starts[0]["began"]
    assert sum(run_seconds(starts).values()) == pytest.approx(elapsed, rel=0.01)
    assert sum(starts[-1]["spent"].values()) == pytest.approx(starts[-1]["seconds"], rel=0.01)


def train_run(folder: Path) -> RunDir:
    """Train a run of eight steps in this process."""
    (folder / "text.txt").write_text(text())
    run = tiny.run(
        out=str(folder),
        steps=8,
        model=dataclasses.replace(tiny.run().model, dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0),
        data=CausalData(paths=(str(folder / "text.txt"),), length=32, batch=8),
        checkpoint=run_config.Checkpoint(every=4),
        log=run_config.Log(every=2, validate_every=4, validate_rows=4, samples=0),
    )
    assert trainer.run(run, evaluate=scorers.scorer, on_end=report.write_report) == 0
    return RunDir.of(run)


def test_the_seconds_of_a_run_are_its_wall_clock_and_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train_run(tmp_path)
    [start] = starts = metrics_file.read_starts(folder)
    check_wall_clock(starts)
    assert start["spent"].keys() == set(TITLES) - {"rollouts", "lost_steps", "restart"}
    assert (start["restart"], start["finished"], start["spent_step"]) == (0.0, True, 8)
    assert describe_goodput(starts) in " ".join(capsys.readouterr().out.split())
    page = folder.report.read_text()
    assert "Where time went" in page and "Goodput" in page
    rows = [row["time"] for row in metrics_file.read_metrics(folder) if row["kind"] == "train"]
    assert {"start_up_seconds", "compilation_seconds", "data_wait_seconds", "steps_seconds"} < rows[0].keys()
    assert all(0 < row["goodput"] < 1 for row in rows)
    costs = read_costs(folder, 8, {}, batch_sizes(16))
    assert costs["wall_seconds"] == sum(start["spent"].values()) and costs["step_seconds"] == start["spent"]["steps"]


@pytest.mark.full
@pytest.mark.planted
def test_a_block_that_is_charged_twice_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the time of validations and saves were in the steps too."""

    @contextlib.contextmanager
    def charge_twice(account: TimeAccount, category: time_account.Category) -> Iterator[None]:
        before, first = account.switch(category), account.sum_of(category)
        yield
        account.switch(before)
        account.seconds["steps"] = account.sum_of("steps") + account.sum_of(category) - first

    monkeypatch.setattr(TimeAccount, "during", charge_twice)
    with pytest.raises(AssertionError, match="comparison failed"):
        check_wall_clock(metrics_file.read_starts(train_run(tmp_path)))


def test_every_second_has_one_category(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the test moves; a block within a block interrupts its category."""
    now = [5.0]
    monkeypatch.setattr(time_account, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    account = TimeAccount(2.0)
    assert account.switch("compilation") == "start_up"
    with account.during("validation"):
        now[0] += 1.0
        with account.during("data_wait"):
            now[0] += 4.0
        now[0] += 2.0
    now[0] += 8.0
    expected = {"start_up": 3.0, "compilation": 8.0, "validation": 3.0, "data_wait": 4.0}
    assert account.mean() == expected and account.elapsed() == 18.0
    now[0] += 1.0
    assert account.final_mean() == expected | {"other": 1.0} and sum(account.final_mean().values()) == account.elapsed()


def rows(*seconds: tuple[int, float]) -> list[dict[str, Any]]:
    """Return rows of metrics of a start, (step, seconds of its steps so far)."""
    return [
        {"kind": "train", "step": step, "time": {"start_up_seconds": 3.0, "compilation_seconds": 2.0, "steps_seconds": spent}}
        for step, spent in seconds
    ]


def start(spent: dict[str, float], **more: Any) -> dict[str, Any]:
    return {"step": 4, "spent": {"start_up": 3.0} | spent, "spent_step": 4, "began": 100.0, "restart": 1.0} | more


SAVED = {"compilation": 2.0, "steps": 4.0}


@pytest.mark.parametrize(
    ("last", "steps", "resumed", "spent", "gap"),
    [
        # Before its first row nothing but the start-up is known.
        (start({}), (), 4, {"start_up": 3.0}, 97.0),
        # Without a checkpoint of its own, all of its steps are lost, but not what was kept before.
        (start({}), ((2, 1.0), (6, 2.0), (8, 4.0)), 4, {"steps": 0.0, "lost_steps": 4.0}, 91.0),
        # It was killed during a step after its checkpoint of step 8.
        (start(SAVED, spent_step=8), ((6, 2.0), (8, 4.0), (10, 7.0)), 8, {"steps": 4.0, "lost_steps": 3.0}, 88.0),
        # The checkpoint of step 8 was not complete, so that it resumes from step 6.
        (start(SAVED, spent_step=8), ((6, 2.0), (8, 4.0)), 6, {"steps": 2.0, "lost_steps": 2.0}, 91.0),
        # It ended by a signal, with all steps saved.
        (start(SAVED, spent_step=8, finished=False), ((6, 2.0), (8, 4.0)), 8, {"steps": 4.0, "lost_steps": 0.0}, 91.0),
        # It was finished, and is extended later.
        (start(SAVED, spent_step=8, finished=True), ((8, 4.0),), 8, {"steps": 4.0, "lost_steps": 0.0}, 0.0),
    ],
)
def test_what_a_killed_start_did_is_taken_from_its_last_record(
    last: dict[str, Any], steps: tuple[tuple[int, float], ...], resumed: int, spent: dict[str, float], gap: float
) -> None:
    assert settle_killed([{}, last], rows(*steps), resumed, 200.0) == gap
    assert last["spent"] == {"start_up": 3.0, **({"compilation": 2.0} if steps else {}), "lost_steps": 0.0} | spent
    assert sum(last["spent"].values()) + gap == 100.0 or last.get("finished")


def test_a_run_with_starts_that_recorded_nothing_has_no_goodput() -> None:
    assert settle_killed([{"step": 0}], rows((2, 1.0)), 0, 200.0) == 0.0
    assert run_seconds([{"step": 0}, start({})]) == {} and describe_goodput([{"step": 0}]) == ""
    assert goodput(run_seconds([start({"steps": 4.0}), start({"steps": 1.0})])) == 5 / 13


@pytest.mark.parametrize("what", SPENT)
def test_seconds_that_no_run_records_are_refused_by_name(what: str, tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    folder.starts.write_text(json.dumps(STARTED | {"spent": SPENT[what]}) + "\n")
    with pytest.raises(
        BadInput, match=r"starts\.jsonl:1 is not a row of a run: spent is missing or of another kind; remove the line"
    ):
        metrics_file.read_starts(folder)
    # Categories of a newer version, or fewer of them, are none of these.
    folder.starts.write_text(json.dumps(STARTED | {"spent": {"steps": 1.0, "later": 2.0}}) + "\n")
    assert run_seconds(metrics_file.read_starts(folder)) == {"steps": 1.0}


@pytest.mark.slow
def test_the_time_of_a_run_that_was_killed_twice_is_complete() -> None:
    run = Training(home(), "killed-twice", ("--steps", "28", "--checkpoint.every", "7"))
    lost = []
    for saved, reached in ((0, 5), (14, 18)):
        with run.start() as started:
            started.committed(saved)
            started.reach(reached)
            started.killed()
        resumed = run.latest() or 0
        lost.append(any(row["step"] > resumed for row in run.rows() if row["kind"] == "train"))
    done = run.finish()
    starts = metrics_file.read_starts(RunDir(run.folder))
    check_wall_clock(starts)
    assert [start["spent"].get("lost_steps", 0.0) > 0 for start in starts] == [*lost, False]
    assert [start["restart"] > 0 for start in starts] == [False, True, True]
    assert describe_goodput(starts) in done.stdout and "in 3 starts" in done.stdout
    assert "lost steps" in (run.folder / "report.html").read_text() or not any(lost)
