"""Result files: what a kill leaves, what is refused, and how times become numbers."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.core import result_files, timing
from benchmarks.core.result_files import Writer, read_results
from zoo.errors import BadInput

MACHINE = {"backend": "cpu", "device": "cpu", "devices": 1, "cpu": "A (R) CPU", "cores": 2, "versions": {"jax": "1"}}
ASKED = {"lengths": (128, 512), "dtype": "float32"}
UNIT = {"implementation": "xla"}


def open_writer(folder: Path, **changes: Any) -> Writer:
    header = {"what": "attention", "environment": MACHINE, "asked": ASKED, "unit": UNIT} | changes
    return Writer(folder / "cells.jsonl", header["what"], header["environment"], header["asked"], header["unit"])


def cell(number: int, process: int = 0, **columns: Any) -> dict[str, Any]:
    timed = {"state": "timed", "reason": "", "seconds": 0.5}
    return {"key": {"length": number, "implementation": "xla"}, "process": process, **timed, **columns}


def write(folder: Path, *cells: Mapping[str, Any]) -> bytes:
    """Write cells, and return the file's content."""
    writer = open_writer(folder)
    for each in cells:
        writer.write(each)
    writer.close()
    return (folder / "cells.jsonl").read_bytes()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    cells = [cell(1, seconds=0.5, n=3), cell(1, process=1), cell(2, state="skipped", reason="too large")]
    write(tmp_path, cell(1, seconds=np.float32(0.5), n=np.int64(3)), *cells[1:])
    for path in (tmp_path, tmp_path / "cells.jsonl"):
        results = read_results(path)
        assert (results.what, results.unit, results.options) == ("attention", UNIT, {"lengths": [128, 512], "dtype": "float32"})
        assert results.environment == MACHINE
        assert results.cells == cells


@pytest.mark.planted(3)
def test_a_cell_is_written_once_and_whole(tmp_path: Path) -> None:
    """It is known by its key and process."""
    writer = open_writer(tmp_path)
    writer.write(cell(1))
    assert writer.has({"implementation": "xla", "length": 1}, 0)
    assert not writer.has(cell(1)["key"], 1) and not writer.has(cell(2)["key"], 0)
    with pytest.raises(ValueError, match="measured already"):
        writer.write(cell(1, seconds=2.0))
    for wrong in ({"state": "done"}, {"state": "skipped"}):
        with pytest.raises(ValueError, match="state"):
            writer.write(cell(3, **wrong))
    writer.close()
    assert read_results(tmp_path).cells == [cell(1)]


CUTS = range(1, 100, 7)
"""Percent of a file that a kill leaves: it is cut in the header, in a cell, between the two."""


@pytest.mark.planted(len(CUTS))
def test_an_incomplete_line_is_ignored_and_written_again(tmp_path: Path) -> None:
    content = write(tmp_path, cell(1), cell(2))
    path = tmp_path / "cells.jsonl"
    for cut in CUTS:
        rest = content[: len(content) * cut // 100]
        path.write_bytes(rest)
        count = max(0, rest.count(b"\n") - 1)
        if b"\n" in rest:
            assert read_results(path).cells == [cell(1), cell(2)][:count]
        else:
            with pytest.raises(BadInput, match="no header"):
                read_results(path)
        writer = open_writer(tmp_path)
        assert [writer.has(cell(number)["key"], 0) for number in (1, 2)] == [count > 0, count > 1]
        writer.close()
        assert write(tmp_path, *(cell(number) for number in (1, 2) if number > count)) == content


def test_cells_are_in_the_file_before_it_is_closed(tmp_path: Path) -> None:
    """A kill loses neither cells nor what is worked on."""
    writer = open_writer(tmp_path)
    for number in range(3):
        writer.begin([cell(number)["key"]], 0)
        if number < 2:
            writer.write(cell(number))
    results = read_results(tmp_path)
    abandon(writer)
    assert results.cells == [cell(0), cell(1)]
    assert results.begun == {(result_files.cell_identity(cell(2)["key"]), 0)}


ONE, TWO = ({"length": number, "implementation": "xla"} for number in (1, 2))


def abandon(writer: Writer) -> None:
    """Do what a kill does to a writer."""
    writer._file.close()


def died(folder: Path, *places: tuple[dict[str, Any], int]) -> list[bool]:
    """Return whether a new writer takes processes to have died of these too often."""
    writer = open_writer(folder)
    result = [writer.died(key, process) for key, process in places]
    abandon(writer)
    return result


def test_a_cell_during_which_a_process_died_twice_is_failed(tmp_path: Path) -> None:
    """It is what was begun last and had not ended, of the process of the same number. What was begun before is measured again."""
    for _ in range(2):
        assert died(tmp_path, (ONE, 0)) == [False]
        writer = open_writer(tmp_path)
        writer.begin([ONE, TWO], 0)
        writer.begin([TWO], 0)
        writer.begin([ONE], 0)
        abandon(writer)
    writer = open_writer(tmp_path)
    assert writer.has(ONE, 0) and not writer.has(TWO, 0) and not writer.has(ONE, 1)
    assert [writer.died(*place) for place in ((ONE, 0), (TWO, 0), (ONE, 1))] == [True, False, False]
    writer.begin([TWO], 0)
    writer.write(cell(2))
    abandon(writer)
    assert died(tmp_path, (ONE, 0), (TWO, 0)) == [True, False]
    assert read_results(tmp_path).cells == [{"key": ONE, "process": 0, "state": "failed", "reason": result_files.DIED}, cell(2)]


def test_a_crash_in_a_cell_that_is_already_stored_counts(tmp_path: Path) -> None:
    """A unit is measured again for those of its row that are missing. A kill after its end is none of its deaths."""
    writer = open_writer(tmp_path)
    writer.begin([ONE], 0)
    writer.write(cell(1))
    abandon(writer)
    for _ in range(2):
        assert died(tmp_path, (ONE, 0)) == [False]
        writer = open_writer(tmp_path)
        writer.begin([ONE], 0)
        abandon(writer)
    assert died(tmp_path, (ONE, 0)) == [True]
    assert read_results(tmp_path).cells == [cell(1)]


def test_a_file_is_written_by_one_process(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    with pytest.raises(BadInput, match="being written by another process"):
        open_writer(tmp_path)
    writer.close()
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        open_writer(tmp_path / "file")


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"asked": {"lengths": [128], "dtype": "float32"}}, "lengths: [128, 512] before, [128] now"),
    ({"what": "step"}, "what: attention before, step now"),
    ({"unit": {}}, "unit: {'implementation': 'xla'} before, {} now"),
    ({"environment": MACHINE | {"cores": 4}}, "cores: 2 before, 4 now"),
    ({"environment": MACHINE | {"versions": {"jax": "2"}}}, "jax: 1 before, 2 now"),
]


def test_results_of_another_request_machine_version_or_schema_are_not_resumed(tmp_path: Path) -> None:
    content = write(tmp_path, cell(1))
    for changes, difference in OTHERS:
        with pytest.raises(BadInput, match=f"cannot be resumed: {re.escape(difference)}; choose another --out"):
            open_writer(tmp_path, **changes)
        assert (tmp_path / "cells.jsonl").read_bytes() == content
    open_writer(tmp_path, environment=MACHINE | {"load": 5.0}).close()
    # Schema 1 had no attempts, and its readers take none.
    (tmp_path / "cells.jsonl").write_bytes(content.replace(b'"schema":2', b'"schema":1'))
    assert read_results(tmp_path).cells == [cell(1)]
    with pytest.raises(BadInput, match="cannot be resumed: schema: 1 before, 2 now; choose another --out"):
        open_writer(tmp_path)


HEADER = {"schema": 2, "what": "attention", "environment": {}, "asked": {}, "unit": {}}
DAMAGED: list[tuple[list[Any], str]] = [
    ([], "it has no header"),
    (["hello"], ":1 is not a line of a result file: it is not a JSON object"),
    ([[1]], ":1 is not a line"),
    ([{"step": 1}], "is not a result file of zoo bench: its first line has no schema"),
    ([HEADER | {"schema": 3}], "has schema 3, and this version reads 1 and 2; measure again"),
    ([HEADER | {"what": "tea"}], ":1 is not a header of zoo bench: what is missing"),
    ([HEADER | {"asked": 1}], ":1 is not a header of zoo bench: asked is missing"),
    ([HEADER, {}], ":2 is not a cell: it needs a key, a process, and a state of timed,"),
    ([HEADER, cell(1), "{"], ":3 is not a line"),
    ([HEADER, cell(1, state="ok")], ":2 is not a cell"),
    ([HEADER, {"attempt": [1], "process": 0}], ":2 is not a valid attempt: it needs a list of keys, and a process"),
    ([HEADER, {"death": [{}]}], ":2 is not a valid death: it needs a list of keys, and a process"),
    ([HEADER, cell(1, seconds=None)], ":2 is not a timed cell: it has no number above 0 as seconds"),
    ([HEADER, cell(1, ratio=1.0)], ":2 is not a timed cell: .* as ratio_p20 and ratio_p80"),
]


@pytest.mark.planted(len(DAMAGED))
def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    for lines, reason in DAMAGED:
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        with pytest.raises(BadInput, match=reason):
            read_results(path)


@pytest.mark.planted(3)
def test_a_file_of_something_else_is_not_touched(tmp_path: Path) -> None:
    """However short; a header that a kill cut is begun anew."""
    path = tmp_path / "cells.jsonl"
    path.write_text("my notes")
    with pytest.raises(BadInput, match="is not a result file of zoo bench; choose another --out"):
        open_writer(tmp_path)
    assert path.read_text() == "my notes"
    for torn in ("", "{", '{"schema":1,"what'):
        path.write_text(torn)
        open_writer(tmp_path).close()
        assert read_results(tmp_path).cells == []


def test_the_environment_is_measured_and_names_a_folder() -> None:
    environment = result_files.describe_environment()
    assert environment["backend"] == "cpu" and environment["devices"] == 8
    assert environment["matrix_rate"]["float32"] > 0 and environment["copy_rate"] > 0
    assert environment["versions"]["jax"] and "XLA_FLAGS" in environment["versions"]
    json.dumps(environment, allow_nan=False)
    gpu = {"backend": "gpu", "device": "NVIDIA H100 80GB HBM3", "devices": 8, "cpu": "", "cores": 2}
    assert result_files.hardware_name(gpu) == "nvidia-h100-80gb-hbm3-x8"
    assert result_files.default_folder("step", MACHINE).name.startswith("step_a-r-cpu-2-cores_2")


class Clock:
    """A clock that programs advance."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, ""

    def program(self, name: str, *seconds: float) -> timing.Program:
        """Return a program that takes each of these seconds in turn, the last one from then on."""
        rest = list(seconds)

        def run() -> None:
            self.calls += name
            self.now += rest.pop(0) if len(rest) > 1 else rest[0]

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_ratios_are_of_the_same_rounds() -> None:
    """A round that is slow for both says nothing of either."""
    columns = timing.time_columns([1.0, 20.0, 3.0], [2.0, 40.0, 1.5])
    assert (columns["ratio"], columns["ratio_p20"], columns["ratio_p80"]) == pytest.approx((0.5, 0.5, 1.4))
    assert (columns["seconds"], columns["seconds_least"], columns["n"]) == (3.0, 1.0, 3)
    assert timing.time_columns([1.0])["ratio"] is None
    assert timing.median_uncertainty(1 + np.linspace(-1, 1, 25) / 6) == pytest.approx(0.02)  # 0.9 to 1.1, of 25


def test_a_program_is_warm_when_two_calls_agree(clock: Clock) -> None:
    restless = (0.1, 0.2) * 5 + (0.1,)
    for seconds, calls in (((1.0, 0.1, 0.1), 3), ((0.1,), 2), (restless, 10), ((4.0, 1.0), 1)):
        assert len(timing.warm_up(clock.program("a", *seconds))) == calls


def test_no_program_always_follows_the_same_one(clock: Clock) -> None:
    programs = {name: clock.program(name, 1.0) for name in "abc"}
    seconds = timing.time_interleaved(programs, 6)
    assert clock.calls == "aabbcc" + "abc" + "cba" + "bca" + "acb" + "cab" + "bac"
    assert all(list(each) == [1.0] * 6 for each in seconds.values())


def test_rounds_end_when_medians_are_known_or_the_budget_is_used(clock: Clock) -> None:
    for seconds, budget, rounds in (
        ((0.1,), 100.0, 5),  # calm: the fewest
        ((0.1, 0.1, 3.0), 0.0, 5),  # no budget: the fewest
        ((2.5,), 100.0, 3),  # slow and calm
        ((0.1, 0.3) * 500, 2.05, 11),  # restless: until the budget is used up
        ((0.1, 0.3) * 500, 1e6, 200),  # bounded
    ):
        assert len(timing.time_within_budget({"a": clock.program("a", *seconds)}, budget=budget)["a"]) == rounds
    assert len(timing.time_within_budget({"a": clock.program("a", 1.0)}, rounds=2)["a"]) == 2


def test_the_copy_rate_counts_what_is_read_and_what_is_written(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of 0.25 s a call: 512 MiB in and 512 MiB out."""

    def add(x: Any) -> Any:
        clock.now += 0.25
        return x

    monkeypatch.setattr(timing.jax, "jit", lambda *_, **__: add)
    assert timing.copy_rate() == 2 * 2**29 / 0.25
