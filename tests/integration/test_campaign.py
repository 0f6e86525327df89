"""The fault campaign itself: cheap rows pass, and each of them notices a mistake that is planted in the project."""

import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.pages.markdown_page import block_markdown
from tests.campaign import __main__ as campaign
from tests.campaign import campaign_page, damaged_files, fuzz_readers, sample_ledger, stored_runs
from tests.campaign.row_types import CannotRun, Outcome, Row, Task, verdict
from tests.campaign.suite_rows import SUITE_ROWS, SuiteRow, count
from tests.support import object_server
from tests.support.processes import ROOT
from train.checkpoints.manifest import Manifest
from train.rows import token_cache
from train.rows.batches import Batches, RowUse
from zoo.errors import BadInput
from zoo.object_store import ObjectStore

CHEAP = [
    *("killed saves", "damaged checkpoints", "damaged token stores", "failing stores", "damaged objects"),
    *("ledger", "damaged inputs"),
]


@pytest.mark.slow
def test_cheap_rows_pass_and_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half a minute of the campaign; `python -m tests.campaign` runs all rows."""
    assert campaign.main(["--minutes", "0.5", "--out", str(tmp_path / "out"), "--rows", *CHEAP]) == 0
    result = json.loads((tmp_path / "out" / campaign.JSON).read_text())
    assert [row["name"] for row in result["rows"]] == CHEAP
    for row in result["rows"]:
        assert row["count"] > 0 and row["failed"] == 0 and row["verdict"].startswith("passed"), row
    page = (tmp_path / "out" / campaign.MARKDOWN).read_text()
    assert all(f"| {name} |" in page for name in CHEAP) and "<html" in (tmp_path / "out" / campaign.HTML).read_text()
    assert capsys.readouterr().out.splitlines()[-1].startswith("7 rows: ")


def task(folder: Path, goal: int) -> Task:
    return Task(goal, 1, time.monotonic() + 20, folder, 1)


def broken(self: Manifest, folder: Path) -> None:
    """Do not compare the digests of a checkpoint."""


digest, use = token_cache.sha256, Batches.use


def last_digest(file: Path, *, sync: bool = False) -> str:
    """Return the digest that the header has, if there is one, whatever the content of a file is."""
    header = file.parent / token_cache.HEADER
    return json.loads(header.read_text())["files"][file.name]["sha256"] if header.exists() else digest(file, sync=sync)


def attempt_once(self: ObjectStore, key: str, operation: Callable[[], Any], file: Path | None = None) -> Any:
    """Do not repeat an operation that fails."""
    return operation()


def repeated(self: Batches, example: int) -> RowUse:
    """Use a row again after many others."""
    return use(self, example - (example % 3000 == 2999))


# Orbax abandons the reads that were running beside one that failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.planted(5)
@pytest.mark.parametrize(
    ("owner", "name", "mistake", "row", "goal", "failure"),
    [
        (Manifest, "check_content", broken, damaged_files.checkpoints, 60, ""),
        (token_cache, "sha256", last_digest, damaged_files.token_stores, 60, "other tokens"),
        (Batches, "use", repeated, sample_ledger.ledger, 10_000, "a row is repeated within an epoch"),
        (Manifest, "check_content", broken, stored_runs.damaged_objects, 20, ""),
        (ObjectStore, "_attempt", attempt_once, stored_runs.failing_stores, 10, "UPLOAD of step 2 FAILED"),
    ],
)
def test_a_row_notices_a_mistake_in_the_project(
    owner: Any,
    name: str,
    mistake: Callable[..., Any],
    row: Callable[[Task, Outcome], None],
    goal: int,
    failure: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, mistake)
    monkeypatch.setattr(object_server, "missing_parts", lambda: "the server")
    outcome = Outcome()
    row(task(tmp_path, goal), outcome)
    gc.collect()  # What these reads left is reported here, where it is ignored, and not in a later test.
    assert outcome.failed > 0 and any(failure in text for text in outcome.failures), outcome


@pytest.mark.full
@pytest.mark.planted
def test_an_exception_of_a_reader_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.run import metrics_file

    read = metrics_file.read_rows
    calls = iter(range(1 << 30))

    def crash(path: Path) -> Any:
        # Readers of other files read rows too, and write some before.
        if path.parent.name == "run" and next(calls):
            raise KeyError("step")
        return read(path)

    monkeypatch.setattr(metrics_file, "read_rows", crash)
    result = fuzz_readers.main(tmp_path / "inputs", 60, 1, 20)
    assert result["count"] == 60
    assert {failure.partition(",")[0] for failure in result["failures"]} == {"metrics.jsonl"}


def passing(task: Task, outcome: Outcome) -> None:
    outcome.add("trials", task.goal)
    outcome.measure("seconds, s", 1.5)


def failing(task: Task, outcome: Outcome) -> None:
    outcome.add("trials")
    with outcome.check("a trial"):
        raise AssertionError("wrong | bits")


def raising(task: Task, outcome: Outcome) -> None:
    raise ValueError("a mistake in the row")


def impossible(task: Task, outcome: Outcome) -> None:
    raise CannotRun("no file system can be mounted")


@pytest.mark.planted(2)
def test_each_verdict_is_stored_and_shown(tmp_path: Path) -> None:
    rows = [Row(run.__name__, (1,), 3, "the same", 1, run) for run in (passing, failing, raising, impossible)]
    result = campaign.run_campaign(rows, (), minutes=0.01, seed=1, out=tmp_path, jobs=1)
    assert json.loads((tmp_path / campaign.JSON).read_text())["rows"] == json.loads(json.dumps(result["rows"]))
    assert [row["verdict"] for row in result["rows"]] == ["passed", "failed", "failed", "not run"]
    page = (tmp_path / campaign.MARKDOWN).read_text()
    for text in ("seconds, s: median 1.5", "FAILED: a trial: AssertionError: wrong", "a mistake in the row", "no file system"):
        assert text in page
    assert campaign_page.totals(result) == "4 rows: 2 failed, 1 not run, 1 passed. 2 trials failed."
    assert verdict({"reason": "", "failed": 0, "count": 2, "goal": 3}) == "passed, fewer trials"


def test_every_row_of_the_matrix_is_in_the_campaign_and_every_test_exists() -> None:
    rows, suite = campaign.select([])
    assert {number for row in rows for number in row.matrix} | {row.matrix for row in suite} == {*range(1, 57)}
    for test in (test for row in SUITE_ROWS for test in row.tests):
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text() if name else (ROOT / file).exists(), test
    with pytest.raises(BadInput, match="there is no such row; choose killed runs, "):
        campaign.select(["killed run"])


@pytest.mark.planted
def test_the_documentation_has_the_table_of_the_newest_results() -> None:
    newest = max((ROOT / "tests" / "campaign" / "results").iterdir(), key=lambda folder: folder.name.rpartition("_")[2])
    result, page = json.loads((newest / campaign.JSON).read_text()), (ROOT / "docs" / "faults.md").read_text()
    assert block_markdown(campaign_page.table(result)) in page
    assert campaign_page.render_markdown(result) == (newest / campaign.MARKDOWN).read_text()
    result["rows"][0]["count"] += 1
    assert block_markdown(campaign_page.table(result)) not in page


@pytest.mark.planted
def test_a_row_of_the_suite_counts_tests_that_did_not_end() -> None:
    row, outcome = SuiteRow(1, "a fault", "nothing", ("tests/a.py::test_a", "tests/b.py::test_b")), Outcome()
    assert count(row, {"tests/a.py::test_a[1]": "PASSED", "tests/a.py::test_ab": "FAILED"}, outcome) == 1
    assert (outcome.count, outcome.failed) == (1, 0)
    assert count(row, {"tests/a.py::test_a": "FAILED", "tests/b.py::test_b": "PASSED"}, outcome) == 0 and outcome.failed == 1
