"""A whole `zoo bench attention`: what it leaves, what a kill and Ctrl-C leave of it, and what people see."""

import csv
import dataclasses
import functools
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import attention_page, attention_row, attention_tables, conformance, records
from benchmarks.attention_features import Shape
from benchmarks.attention_settings import Row
from benchmarks.progress import Progress
from tests.support.commands import call
from tests.support.processes import Ended, clean_environment, seen_on_terminal
from zoo import cli

TINY = Row("float32", "both", "causal", Shape(2, 16, 16, 2, 2, 8))
LINE = "bench attention --impl blocked cudnn --feature full t5 --direction both --shape 2,16,16,2,2,8 1,24,24,2,2,8 --rounds 2"


@pytest.fixture(autouse=True, scope="module")
def fast() -> Iterator[None]:
    """The gate's programs, compiled sooner: what they compute is the same."""
    options = {"xla_backend_optimization_level": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conformance, "check", functools.partial(conformance.check, options=options))
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results."""
    folder = tmp_path_factory.mktemp("bench") / "out"
    assert cli.main([*LINE.split(), "--out", str(folder)]) == 0
    return folder


def test_a_sweep_leaves_a_folder(swept: Path) -> None:
    assert sorted(path.name for path in swept.iterdir()) == ["cells.jsonl", "report.html", "table.csv", "table.md"]
    results = records.read(swept)
    assert len(results.cells) == 2 * 2 * 3 and results.unit == {"implementation": "xla"}
    assert {cell["state"] for cell in results.cells if cell["key"]["implementation"] != "cudnn"} == {"timed"}
    lines = (swept / "table.csv").read_text().splitlines()
    assert len(lines) == 1 + len(results.cells) and "of_matrix_rate" in lines[0]
    told = (swept / "table.md").read_text()
    assert "cudnn, skipped: it runs on gpu, and this is cpu (4 cells)" in told and "| t5 | 1 x 24 | 2 x 8 |" in told


def test_the_page_needs_nothing_else(swept: Path) -> None:
    page = (swept / "report.html").read_text()
    assert "<script" not in page and "//" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert 'title="skipped: it runs on gpu, and this is cpu"' in page
    assert page.count("<svg") >= 2 + 2
    assert "4 B T S N H" in page


def test_it_is_not_written_over_and_a_full_one_is_resumed(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (swept / "cells.jsonl").read_bytes()
    ended = call(capsys, *LINE.split(), "--out", str(swept))
    assert ended.code == 2 and "has results already; --resume completes them" in ended.stderr
    ended = call(capsys, *LINE.split(), "--rounds", "3", "--out", str(swept), "--resume")
    assert ended.code == 2 and "cannot be resumed: rounds: 2 before, 3 now" in ended.stderr
    assert ended.stdout == ""
    for other in ("step gpt-nano --repeats 3", "growth"):
        ended = call(capsys, "bench", *other.split(), "--out", str(swept), "--resume")
        assert (ended.code, ended.stdout) == (2, "") and "has results of zoo bench attention; choose another" in ended.stderr
    ended = call(capsys, *LINE.split(), "--out", str(swept), "--resume", "--json")
    assert ended.code == 0 and len(ended.stdout.splitlines()) == 12
    assert (swept / "cells.jsonl").read_bytes() == before


def test_stopped_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C in the second row: what is finished is kept and shown."""
    real, seen = attention_row.measure, []

    def stopping(row: Row, *rest: Any) -> Any:
        seen.append(row)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(row, *rest)

    monkeypatch.setattr(attention_row, "measure", stopping)
    ended = call(capsys, *LINE.split(), "--out", str(tmp_path / "out"))
    assert ended.code == 130 and "stopped; --resume completes it" in ended.stderr
    assert re.search(r"full +2 x 16 .*us", ended.stdout) and len(records.read(tmp_path / "out").cells) == 3


def test_progress_tells_what_is_left() -> None:
    out = io.StringIO()
    progress = Progress(4.0, out)
    for piece in ("one", "two"):
        progress.begin(piece)
        progress.doing("compiling")
        progress.done(2.0, "done")
    progress.close()
    assert re.fullmatch(r"one: done  \[50%, [\d:]+ left\]\ntwo: done  \[100%, 0:00 left\]\n", out.getvalue())
    shown = seen_on_terminal(lambda terminal: (Progress(4.0, terminal).begin("a" * 500), None)[1])
    assert shown.startswith("\r[0%] aaa") and len(shown) < 200


def test_killed_and_resumed(tmp_path: Path, zoo: Callable[..., Ended]) -> None:
    """Nothing that was finished is lost, and nothing is measured twice."""
    path, line = tmp_path / "out" / "cells.jsonl", [*LINE.replace("full t5", "full").split(), "--out", "out"]
    command = [sys.executable, "-P", "-m", "zoo.cli", *line]
    with subprocess.Popen(command, env=clean_environment(), cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not path.exists() or path.read_bytes().count(b'"state"') < 3):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    left = path.read_bytes()
    assert 3 <= left.count(b'"state"') < 6, "killed too late"
    path.write_bytes(left + b'{"key": {"implem')
    ended = zoo(*line, "--resume")
    assert ended.code == 0, ended.stderr
    assert path.read_bytes().startswith(left)
    cells = records.read(path).cells
    assert len({records.identity(cell["key"]) for cell in cells}) == len(cells) == 6


@pytest.mark.slow
def test_repeats_are_fresh_processes(tmp_path: Path, zoo: Callable[..., Ended]) -> None:
    line = (
        "bench attention --impl blocked --feature full --direction forward --shape 2,16,16,2,2,8 --rounds 2 --repeats 3 --out out"
    )
    ended = zoo(*line.split())
    assert ended.code == 0, ended.stderr
    assert sorted(cell["process"] for cell in records.read(tmp_path / "out").cells) == [0, 0, 1, 1, 2, 2]
    assert zoo("bench", "compare", "out", "out").code == 0


# --- tables ---------------------------------------------------------------------------------------------------------------------


def cells_of(*names: str, **more: Any) -> list[dict[str, Any]]:
    """Timed ones of one row, in one process."""
    timed = {"state": "timed", "reason": "", "process": 0, "seconds": 0.01234, "ratio": 0.5, "of_matrix_rate": 0.25, **more}
    return [{"key": TINY.key(name), **timed} for name in names]


def test_several_processes_are_one_cell() -> None:
    one, two, three = (cells_of("xla", seconds=seconds, process=number)[0] for number, seconds in enumerate((3.0, 1.0, 2.0)))
    (found,) = attention_tables.merged([one, two, three])
    assert (found["seconds"], found["processes"]) == (2.0, 3)
    (found,) = attention_tables.merged([one, {**two, "state": "wrong", "reason": "off"}, three])
    assert (found["state"], found["reason"]) == ("wrong", "off")


def test_the_table_fits_100_columns(swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    results = records.read(swept)
    extra = [
        *cells_of("torch", "reference"),
        {"key": TINY.key("planted"), "state": "wrong", "reason": "it is off", "process": 0},
    ]
    attention_tables.show(dataclasses.replace(results, cells=[*results.cells, *extra]))
    out = capsys.readouterr().out
    heads = [line for line in out.splitlines() if line.startswith("feature")]
    assert [head.split()[7:] for head in heads] == [["xla", "blocked", "torch"], ["reference", "planted"]]
    assert max(map(len, (line for line in out.splitlines() if " x " in line))) <= 100
    assert "12.3 ms  0.50  25%" in out and "WRONG" in out and "planted, wrong: it is off (1 cell)" in out
    assert "float32, forward and backward" in out


def test_every_output_says_whose_time_it_is(swept: Path) -> None:
    """A device's is marked in the table, and wall time is not; page, CSV and JSONL have a column."""
    results = records.read(swept)
    first = next(cell for cell in results.cells if cell["state"] == "timed")
    timed = [{**first, "seconds": 2.0}, {**first, "seconds": 3.0, "device_seconds": 0.5, "clock": "device"}]
    for cell, name in zip(timed, ("wall", "device"), strict=True):
        cell["key"] = {**first["key"], "implementation": name}
    mixed = dataclasses.replace(results, cells=timed)
    table, page = attention_tables.markdown(mixed), attention_page.render(mixed)
    assert re.search(r"\| 2.00 s [^|]*\| 500 ms\* ", table) and "(* the device's by its profiler, else wall)" in table
    assert re.search(r"<td>wall</td><td\b[^>]*>2.00 s</td>", page) and re.search(r"<td>device</td><td\b[^>]*>500 ms</td>", page)
    assert all("a mean of several calls; else wall time" in each for each in (table, page))
    lines = csv.DictReader(io.StringIO(attention_tables.csv(mixed)))
    assert [(line["clock"], line["seconds"], line["device_seconds"]) for line in lines] == [
        ("wall", "2.0", ""),
        ("device", "3.0", "0.5"),
    ]


@pytest.mark.parametrize(
    ("seconds", "told"), [(1.234, "1.23 s"), (0.01234, "12.3 ms"), (0.1234, "123 ms"), (4.5e-6, "4.50 us"), (12e-9, "12 ns")]
)
def test_times_have_three_digits(seconds: float, told: str) -> None:
    assert attention_tables.seconds_text(seconds) == told


def test_the_page_of_nothing_timed() -> None:
    """Such as one that was stopped at once, or whose every cell was skipped."""
    where = {"device": "cpu", "cpu": "A CPU", "cores": 2, "backend": "cpu", "date": "today", "load": 0.0, "clock_mhz": None}
    rates = {"matrix_rate": {"float32": 1e11}, "copy_rate": 1e10}
    environment = {**where, **rates, "versions": {"jax": "1", "python": "3", "XLA_FLAGS": ""}}
    skipped = [{"key": TINY.key("cudnn"), "state": "skipped", "reason": "no <gpu>", "process": 0}]
    for cells in ([], skipped):
        results = records.Results(Path("x"), "attention", environment, {}, {}, cells)
        assert "<h1>Attention</h1>" in attention_page.render(results)
        assert attention_tables.markdown(results)
    assert "no &lt;gpu&gt;" in attention_page.render(results)
