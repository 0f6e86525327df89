"""A whole `zoo bench attention`: the folder that it leaves, how it is resumed, and what its tables and pages say."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attention import attention_report, measure_row, sweep
from benchmarks.attention.problems import Shape
from benchmarks.attention.sweep_rows import SweepRow
from benchmarks.core import result_files
from benchmarks.core import result_tables as core_tables
from tests.support import benchmark_steps as steps
from tests.support.commands import call
from tests.support.processes import Ended
from zoo.cli import main

TINY = SweepRow("float32", "both", "causal", Shape(2, 16, 16, 2, 2, 8))
LINE = "bench attention --impl blocked cudnn --feature full t5 --direction both --shape 2,16,16,2,2,8 --rounds 2"


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        steps.hurry(patch)
        # `test_measure_row` has the comparison with float64.
        patch.setattr(measure_row, "_check_cases", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of results: a sweep whose seconds were over after its first row, completed."""
    folder = tmp_path_factory.mktemp("bench") / "out"
    line = [*LINE.split(), "--out", str(folder)]
    with contextlib.redirect_stderr(io.StringIO()) as told:
        assert main.main([*line, "--seconds", "1e-9"]) == 0
    assert "after the 1e-09 s of --seconds: t5 both 2 x 16 float32; --resume measures them" in told.getvalue()
    assert [(cell["key"]["feature"], cell.get("n", 2)) for cell in result_files.read_results(folder).cells] == [("full", 2)] * 3
    assert main.main([*line, "--resume"]) == 0
    return folder


def test_a_sweep_leaves_a_folder(swept: Path) -> None:
    assert sorted(path.name for path in swept.iterdir()) == ["cells.jsonl", "report.html", "table.csv", "table.md"]
    results = result_files.read_results(swept)
    assert len(results.cells) == 2 * 3 and results.unit == {"implementation": "xla"}
    assert {cell["state"] for cell in results.cells if cell["key"]["implementation"] != "cudnn"} == {"timed"}
    lines = (swept / "table.csv").read_text().splitlines()
    assert len(lines) == 1 + len(results.cells) and "of_matrix_rate" in lines[0]
    table = (swept / "table.md").read_text()
    page = (swept / "report.html").read_text()
    assert "<svg" in page and "<script" not in page and "//" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "cudnn, skipped: it runs on gpu, and this is cpu (2 cells)" in table and "| t5 | 2 x 16 | 2 x 8 |" in table


def test_results_are_resumed_only_with_the_same_request(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (swept / "cells.jsonl").read_bytes()
    for line, reason in {
        LINE: "has results already; --resume completes them",
        f"{LINE} --rounds 3 --resume": "cannot be resumed: rounds: 2 before, 3 now",
        "bench step gpt-nano --resume": "has results of zoo bench attention; choose another",
        "bench growth --resume": "has results of zoo bench attention; choose another",
    }.items():
        ended = call(capsys, *line.split(), "--out", str(swept))
        assert (ended.code, ended.stdout) == (2, "") and reason in ended.stderr
    ended = call(capsys, *LINE.split(), "--out", str(swept), "--resume", "--json")
    assert ended.code == 0 and len(ended.stdout.splitlines()) == 6
    assert (swept / "cells.jsonl").read_bytes() == before


@pytest.mark.slow
def test_repeats_are_fresh_processes(tmp_path: Path, zoo: Callable[..., Ended]) -> None:
    line = "bench attention --impl blocked --feature full --direction forward --shape 2,16,16,2,2,8 --rounds 2"
    ended = zoo(*line.split(), "--repeats", "3", "--out", "out")
    assert ended.code == 0, ended.stderr
    assert sorted(cell["process"] for cell in result_files.read_results(tmp_path / "out").cells) == [0, 0, 1, 1, 2, 2]
    assert zoo("bench", "compare", "out", "out").code == 0


def cell_of(name: str, **columns: Any) -> dict[str, Any]:
    """Return a timed cell of one row."""
    timed = {"state": "timed", "reason": "", "process": 0, "seconds": 0.01234, "ratio": 0.5, "of_matrix_rate": 0.25}
    return {"key": TINY.key(name), **timed, **columns}


def test_cells_of_several_processes_are_merged() -> None:
    """The median of their numbers, or the worst of their states."""
    one, two, three = (cell_of("xla", seconds=seconds, process=number) for number, seconds in enumerate((3.0, 1.0, 2.0)))
    (merged,) = core_tables.merge_processes([one, two, three])
    assert (merged["seconds"], merged["processes"]) == (2.0, 3)
    (merged,) = core_tables.merge_processes([one, {**two, "state": "wrong", "reason": "off"}, three])
    assert (merged["state"], merged["reason"]) == ("wrong", "off")


def test_tables_and_notes_show_wrong_cells(swept: Path) -> None:
    wrong = {"key": TINY.key("planted"), "state": "wrong", "reason": "it is <off>", "process": 0}
    assert attention_report.attention_cell_text(wrong) == "WRONG"
    results = dataclasses.replace(result_files.read_results(swept), cells=[wrong])
    assert "planted, wrong: it is <off> (1 cell)" in sweep.BENCHMARK.markdown(results)
    assert "it is &lt;off&gt;" in sweep.BENCHMARK.page(results)
