"""`zoo bench compare`, on results made by hand: what is a change, what a spread, and what cannot be compared."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import compare
from benchmarks.compare import Spread
from benchmarks.records import Writer, read
from tests.support.commands import call

MACHINE = {"backend": "cpu", "device": "cpu", "devices": 1, "cpu": "A CPU", "cores": 2, "versions": {"jax": "1"}}
UNIT = {"implementation": "xla"}

Cells = dict[str, Sequence[Any]]
""""implementation length" -> of each process a ratio, or a state with its reason."""


def made(
    folder: Path, cells: Cells, *, what: str = "attention", machine: Any = MACHINE, unit: Any = UNIT, noise: float = 0.0
) -> str:
    """A folder of results. `noise` is how far the 20th and 80th percentile of the rounds lie from the median, relatively."""
    writer = Writer(folder / "cells.jsonl", what, machine, {}, False, unit)
    for name, processes in cells.items():
        implementation, length = name.split()
        for number, value in enumerate(processes):
            cell = {"key": {"implementation": implementation, "length": int(length)}, "process": number}
            if isinstance(value, tuple):
                columns = {"seconds": 99.0, "ratio": None} if value[0] == "timed" else {}
                writer.write({**cell, "state": value[0], "reason": value[1], **columns})
            else:
                ratios = {"ratio": value, "ratio_p20": value / (1 + noise), "ratio_p80": value * (1 + noise)}
                writer.write({**cell, "state": "timed", "reason": "", "seconds": value, **ratios})
    writer.close()
    return str(folder)


ALONE = ("timed", "its first call took 99 s")
"""What is too slow for rounds."""
XLA = {"xla 128": [1.0, 1.0, 1.0]}


def compared(
    tmp_path: Path, capsys: Any, before: Cells, after: Cells, *options: str, noise: float = 0.01
) -> tuple[int, dict[str, Any]]:
    """(exit code, what the command says as JSON) of two results with the unit."""
    a, b = made(tmp_path / "a", XLA | before, noise=noise), made(tmp_path / "b", XLA | after, noise=noise)
    ended = call(capsys, "bench", "compare", a, b, "--json", *options)
    return ended.code, json.loads(ended.stdout)


def kinds(found: dict[str, Any]) -> dict[str, str]:
    return {f"{cell['key']['implementation']} {cell['key']['length']}": cell["kind"] for cell in found["cells"]}


@pytest.mark.planted
def test_a_slow_one_is_caught(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice as slow in one of two cells, though its seconds say nothing."""
    calm = [0.50, 0.505, 0.495]
    before = {"blocked 128": calm, "blocked 512": calm}
    code, found = compared(tmp_path, capsys, before, {**before, "blocked 128": [1.0, 1.01, 0.99]})
    assert code == 1
    assert kinds(found) == {"blocked 128": "regression", "xla 128": "same", "blocked 512": "same"}
    assert found["cells"][0]["ratio"] == pytest.approx(2.0, rel=1e-3)
    assert (found["within_spread"], found["judged"]) == (1, 2)


@pytest.mark.parametrize(
    ("after", "options", "kind"),
    [
        ([0.54, 0.54, 0.54], (), "regression"),
        ([0.52, 0.52, 0.52], (), "same"),  # beyond the spread, below the threshold
        ([0.52, 0.52, 0.52], ("--threshold", "0.03"), "regression"),
        ([0.46, 0.46, 0.46], (), "improvement"),
        ([0.40, 0.55, 0.70], (), "same"),  # beyond the threshold, within the spread
    ],
)
def test_a_change_is_beyond_spread_and_threshold(
    after: list[float], options: tuple[str, ...], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = compared(tmp_path, capsys, {"blocked 128": [0.5, 0.5, 0.5]}, {"blocked 128": after}, *options)
    assert kinds(found)["blocked 128"] == kind
    assert code == (kind == "regression")


@pytest.mark.parametrize(
    ("before", "after", "kind", "told"),
    [
        ([0.5] * 3, [("wrong", "it is off")] * 3, "regression", "timed before, wrong now: it is off"),
        ([0.5] * 3, [0.5, ("failed", "no more"), 0.5], "regression", "timed before, failed now: no more"),
        ([("skipped", "no")] * 3, [("failed", "no more")] * 3, "regression", "skipped before, failed now: no more"),
        ([0.5] * 3, [("skipped", "too large")] * 3, "missing", "timed before, skipped now: too large"),
        ([("wrong", "off")] * 3, [0.5] * 3, "improvement", "wrong before, timed now"),
        ([("wrong", "off")] * 3, [("wrong", "off")] * 3, "same", "wrong before, wrong now"),
        ([("skipped", "no")] * 3, [0.5] * 3, "same", "skipped before, timed now"),
        ([0.5] * 3, [0.9, 0.9], "unknown", "its spread is unknown: fewer than 3"),
        ([0.5] * 3, [ALONE] * 3, "regression", "had a ratio before, and none now: its first call took 99 s"),
        ([ALONE] * 3, [0.5] * 3, "unknown", "its spread is unknown"),
    ],
)
def test_what_became_of_a_cell(
    before: list[Any], after: list[Any], kind: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = compared(tmp_path, capsys, {"blocked 128": before}, {"blocked 128": after})
    (cell,) = (cell for cell in found["cells"] if cell["key"]["implementation"] == "blocked")
    assert cell["kind"] == kind and cell["told"].startswith(told)
    assert code == (kind == "regression")


def test_what_is_on_one_side_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = {"blocked 64": [0.5] * 3}
    code, found = compared(tmp_path, capsys, {"blocked 128": [0.5] * 3} | both, {"blocked 512": [0.5] * 3} | both)
    expected = {"blocked 128": "missing", "blocked 512": "new", "xla 128": "same", "blocked 64": "same"}
    assert (code, kinds(found)) == (0, expected)


def test_what_else_changed_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = made(tmp_path / "a", XLA | {"blocked 128": [0.5] * 3})
    b = made(tmp_path / "b", XLA | {"blocked 128": [0.5] * 3}, machine=MACHINE | {"versions": {"jax": "2"}})
    assert "jax: 1 before, 2 now" in call(capsys, "bench", "compare", a, b).stdout


def test_the_spread_is_students_or_that_of_the_rounds(tmp_path: Path) -> None:
    ratios = [0.5, 0.52, 0.51]
    logs = np.log(ratios)
    made(tmp_path / "calm", {"blocked 128": ratios})
    made(tmp_path / "noisy", {"blocked 128": ratios}, noise=0.5)
    calm, noisy = (Spread.of(read(tmp_path / name).cells) for name in ("calm", "noisy"))
    assert calm and noisy
    # Student's t for 2 degrees of freedom, 97.5 %: 4.3027, from a table.
    assert calm.half == pytest.approx(4.3027 * logs.std(ddof=1) * math.sqrt(2 / 3), rel=1e-4)
    assert noisy.half == pytest.approx(math.log(1.5))
    assert calm.mean == pytest.approx(logs.mean())
    made(tmp_path / "two", {"blocked 128": [0.5, 0.5, ("failed", "x")]})
    assert Spread.of(read(tmp_path / "two").cells) is None


def test_95_of_100_lie_within_the_spread(tmp_path: Path, rng: np.random.Generator) -> None:
    """Where processes differ by chance alone, and rounds say nothing of it."""
    names = [f"blocked {length}" for length in range(1, 501)]
    a, b = ({name: np.exp(rng.normal(-1, 0.03, 3)).tolist() for name in names} for _ in range(2))
    agree, known = compare.agreement(read(made(tmp_path / "a", a)), read(made(tmp_path / "b", b)))
    assert known == 500 and abs(agree / known - 0.95) < 0.03


def test_the_unit_is_the_headers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another benchmark has another one."""
    unit = {"implementation": "scanned"}
    cells = {"scanned 1": [1.0] * 3, "unrolled 1": [0.8] * 3}
    a = made(tmp_path / "a", cells, what="step", unit=unit)
    b = made(tmp_path / "b", {**cells, "unrolled 1": [1.6] * 3}, what="step", unit=unit)
    ended = call(capsys, "bench", "compare", a, b)
    assert ended.code == 1 and "ratios to scanned in the same rounds" in ended.stdout
    assert re.search(r"regression \(1\)\n\+100\.0% +unrolled +0\.800 before, 1\.600 now", ended.stdout)
    other = made(tmp_path / "c", cells, what="step", unit={"implementation": "unrolled"})
    ended = call(capsys, "bench", "compare", a, other)
    assert ended.code == 2 and "has ratios over scanned" in ended.stderr


def test_two_machines_are_shown_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even of one process, and however much slower."""
    a = made(tmp_path / "a", {"blocked 128": [0.5]})
    b = made(tmp_path / "b", {"blocked 128": [5.0], "blocked 512": [1.0]}, machine=MACHINE | {"cpu": "Another CPU"})
    ended = call(capsys, "bench", "compare", a, b)
    assert ended.code == 0
    assert "two machines (A CPU and Another CPU): times are shown side by side, and not compared" in ended.stdout
    assert re.search(r"500\.00 ms +5,000\.00 ms", ended.stdout)


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = made(tmp_path / "full", {"blocked 128": [0.5] * 3})
    one = made(tmp_path / "one", {"blocked 128": [0.5]})
    other = made(tmp_path / "other", {"blocked 512": [0.5] * 3})
    unit = made(tmp_path / "unit", XLA | {"blocked 512": [0.5] * 3})
    full_too = made(tmp_path / "full_too", XLA | {"blocked 128": [0.5] * 3})
    step = made(tmp_path / "step", {"blocked 128": [0.5] * 3}, what="step")
    (tmp_path / "schema").mkdir()
    (tmp_path / "schema" / "cells.jsonl").write_text('{"schema": 7}\n')
    for b, told in {
        one: "is of 1 process, and a spread needs 3: measure with --repeats 3",
        other: "have no cell in common: nothing to compare",
        step: "is of zoo bench attention, .* of step: compare two results of one benchmark",
        str(tmp_path / "schema"): "has schema 7, and this version reads 1",
        str(tmp_path / "nowhere"): "cannot be read",
    }.items():
        ended = call(capsys, "bench", "compare", full, b)
        assert (ended.code, ended.stdout) == (2, "") and ended.stderr.count("\n") == 1
        assert re.search(told, ended.stderr), ended.stderr
    ended = call(capsys, "bench", "compare", full_too, unit)
    assert ended.code == 2 and "have no cell in common but xla, the unit: nothing to compare" in ended.stderr
    ended = call(capsys, "bench", "compare", full, full, "--threshold", "nan")
    assert ended.code == 2 and "--threshold nan: choose a share" in ended.stderr
