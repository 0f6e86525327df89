"""Rows of a run in which any field is missing or of another kind: one line, or a report and a comparison without them."""

import contextlib
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.comparison import comparison_table
from eval.report import report
from tests.support.finished_runs import make
from train.run.metrics_file import read_metrics, read_starts
from train.run.run_dir import RunDir
from zoo.errors import BadInput

VALUES: tuple[Any, ...] = ("x", None, [], {}, -1, float("inf"), True, 10**400, {"a": "x"})
FILES = ("metrics.jsonl", "starts.jsonl")


def mutants(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (name of a mutant, text) of a file of rows with one field changed or removed."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for number, row in enumerate(rows):
        for key in row:
            for other in [{name: value for name, value in row.items() if name != key}, *({**row, key: v} for v in VALUES)]:
                changed = [*rows[:number], other, *rows[number + 1 :]]
                yield f"{number}.{key} {other.get(key, 'removed')!r}", "".join(json.dumps(line) + "\n" for line in changed)


def act_on(file: Path, text: str, *acts: Any) -> int:
    """Return how many acts refuse a file; each refuses it, or succeeds."""
    file.write_text(text)
    refused = 0
    for act in acts:
        with contextlib.suppress(BadInput):
            act()
            continue
        refused += 1
    return refused


@pytest.mark.planted(90)
def test_rows_of_other_kinds_are_refused_by_line_and_field(tmp_path: Path) -> None:
    folder = RunDir(make(tmp_path / "a"))
    assert read_metrics(folder) and read_starts(folder)
    refused = 0
    for name, read in zip(FILES, (read_metrics, read_starts), strict=True):
        content = (folder.path / name).read_text()
        refused += sum(act_on(folder.path / name, text, lambda: read(folder)) for _, text in mutants(folder.path / name))  # noqa: B023
        (folder.path / name).write_text(content)
    assert refused >= 90
    folder.metrics.write_text('{"step": 1, "kind": "valid", "time": {"at": 1e30, "seconds": 1}}\n')
    with pytest.raises(BadInput, match=r"metrics\.jsonl:1 is not a row of a run: time is missing or of another kind; remove"):
        read_metrics(folder)


@pytest.mark.planted(9)
def test_other_values_within_a_row_are_refused_before_a_report_uses_them(tmp_path: Path) -> None:
    folder = RunDir(make(tmp_path / "a"))
    first, *_ = content = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    changes: list[tuple[str, Any]] = [
        ("rollout", 3),
        ("rollout", {"reward": "x"}),
        ("terms", [1]),
        ("spikes", None),
        ("loss", {}),
    ]
    changes += [("tokens", 10**400), ("step", 10**400), ("step", 0), ("spikes", None), ("time", {**first["time"], "mfu": {}})]
    for key, value in changes:
        folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in [{**first, key: value}, *content[1:]]))
        with pytest.raises(BadInput, match=rf"metrics\.jsonl:1 is not a row of a run: {key} is missing or of another kind"):
            report.write_report(folder.path)
    valid = {**content[-1], "step": 0}
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in [valid, *content]))
    report.write_report(folder.path)
    folder.metrics.write_text(json.dumps(valid) + "\n")
    report.write_report(folder.path)


@pytest.mark.full
@pytest.mark.planted(90)
def test_no_mutant_of_the_rows_ends_in_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(make(tmp_path / "a"))
    for name in FILES:
        for mutant, text in mutants(folder / name):
            other = tmp_path / "b"
            shutil.copytree(folder, other)
            compare = functools.partial(comparison_table.run_compare, [str(other)], unequal=False, as_json=False)
            try:
                act_on(other / name, text, compare, functools.partial(report.write_report, other))
            except Exception as error:
                raise AssertionError(f"{name}: {mutant}") from error
            shutil.rmtree(other)
    capsys.readouterr()
