"""`zoo bench compare`, on results made by hand: what is a change, what a spread, and what cannot be compared."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.core import compare_results
from benchmarks.core.compare_results import Spread
from benchmarks.core.result_files import Results, Writer
from tests.support.commands import call

MACHINE = {"backend": "cpu", "device": "cpu", "devices": 1, "cpu": "A CPU", "cores": 2, "versions": {"jax": "1"}}
UNIT = {"implementation": "xla"}
XLA = {"xla 128": [1.0, 1.0, 1.0]}
ALONE = ("timed", "its first call took 99 s")
"""A cell that is too slow for rounds."""

Cells = dict[str, Sequence[Any]]
""""implementation length" -> of each process a ratio, or a state with its reason."""


def made_results(cells: Cells, noise: float = 0.0, **header: Any) -> Results:
    """Make results. `noise`: how far the 20th and 80th percentile of the rounds lie from the median, relatively."""
    rows = []
    for name, processes in cells.items():
        implementation, length = name.split()
        for number, value in enumerate(processes):
            cell = {"key": {"implementation": implementation, "length": int(length)}, "process": number}
            if isinstance(value, tuple):
                columns = {"seconds": 99.0, "ratio": None} if value[0] == "timed" else {}
                rows.append({**cell, "state": value[0], "reason": value[1], **columns})
            else:
                ratios = {"ratio": value, "ratio_p20": value / (1 + noise), "ratio_p80": value * (1 + noise)}
                rows.append({**cell, "state": "timed", "reason": "", "seconds": value, **ratios})
    return Results(Path(), **{"what": "attention", "environment": MACHINE, "options": {}, "unit": UNIT, "cells": rows, **header})


def write(folder: Path, results: Results) -> str:
    """Write results and return their folder."""
    header = (results.what, results.environment, results.options, results.unit)
    writer = Writer(folder / "cells.jsonl", *header)
    for cell in results.cells:
        writer.write(cell)
    writer.close()
    return str(folder)


@pytest.mark.planted
def test_a_slower_cell_is_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice as slow in one of two cells; what is on one side only is no regression, nor is what a threshold of 150 % allows."""
    calm = [0.50, 0.505, 0.495]
    before = XLA | {"blocked 128": calm, "blocked 512": calm, "blocked 64": calm}
    after = XLA | {"blocked 128": [1.0, 1.01, 0.99], "blocked 512": calm, "blocked 32": calm}
    a, b = (write(tmp_path / name, made_results(cells, 0.01)) for name, cells in (("a", before), ("b", after)))
    assert call(capsys, "bench", "compare", a, b, "--threshold", "1.5").code == 0
    ended = call(capsys, "bench", "compare", a, b, "--json")
    output = json.loads(ended.stdout)
    assert ended.code == 1
    assert {f"{cell['key']['implementation']} {cell['key']['length']}": cell["kind"] for cell in output["cells"]} == {
        "blocked 128": "regression",
        "xla 128": "same",
        "blocked 512": "same",
        "blocked 64": "missing",
        "blocked 32": "new",
    }
    assert output["cells"][0]["ratio"] == pytest.approx(2.0, rel=1e-3)
    assert (output["within_spread"], output["judged"]) == (1, 2)


CHANGES = [
    ([0.5] * 3, [0.54] * 3, "regression", "0.500 before, 0.540 now"),
    ([0.5] * 3, [0.52] * 3, "same", ""),  # beyond the spread, below the threshold of 5 %
    ([0.5] * 3, [0.46] * 3, "improvement", ""),
    ([0.5] * 3, [0.40, 0.55, 0.70], "same", ""),  # beyond the threshold, within the spread
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
]


def test_the_kind_of_a_change_follows_from_the_cells() -> None:
    for before, after, kind, reason in CHANGES:
        (change,) = compare_results.cell_changes(
            *(made_results({"blocked 128": each}, 0.01) for each in (before, after)), threshold=0.05
        )
        assert change.kind == kind and change.detail.startswith(reason), (before, after, change)


def test_the_spread_is_students_or_that_of_the_rounds() -> None:
    ratios = [0.5, 0.52, 0.51]
    logs = np.log(ratios)
    calm, noisy = (Spread.of(made_results({"blocked 128": ratios}, noise).cells) for noise in (0.0, 0.5))
    assert calm and noisy
    # Student's t for 2 degrees of freedom, 97.5 %: 4.3027, from a table.
    assert calm.half == pytest.approx(4.3027 * logs.std(ddof=1) * math.sqrt(2 / 3), rel=1e-4)
    assert noisy.half == pytest.approx(math.log(1.5))
    assert calm.mean == pytest.approx(logs.mean())
    assert Spread.of(made_results({"blocked 128": [0.5, 0.5, ("failed", "x")]}).cells) is None


def test_times_of_two_machines_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even of one process, and however much slower; they are shown side by side."""
    other = MACHINE | {"cpu": "Another CPU"}
    a = write(tmp_path / "a", made_results({"blocked 128": [0.5]}))
    b = write(tmp_path / "b", made_results({"blocked 128": [5.0], "blocked 512": [1.0]}, environment=other))
    ended = call(capsys, "bench", "compare", a, b)
    assert ended.code == 0
    assert "two machines (A CPU and Another CPU): times are shown side by side, and not compared" in ended.stdout
    assert "500.00 ms" in ended.stdout and "5,000.00 ms" in ended.stdout


def test_results_that_cannot_be_compared_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = {"blocked 128": [0.5] * 3}
    full = write(tmp_path / "full", made_results(XLA | three))
    for name, results, reason in (
        ("one", made_results({"blocked 128": [0.5]}), "has 1 process, and a spread needs 3: measure with --repeats 3"),
        ("other", made_results({"blocked 512": [0.5] * 3}), "have no cell in common; compare"),
        ("alone", made_results(XLA), "have no cell in common but xla, their unit; compare"),
        ("unit", made_results(XLA | three, unit={"implementation": "blocked"}), "has ratios over xla"),
        ("step", made_results(three, what="step"), "of step: compare two results of one benchmark"),
    ):
        ended = call(capsys, "bench", "compare", full, write(tmp_path / name, results))
        assert (ended.code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1) and reason in ended.stderr, ended
    for arguments, reason in (
        ((str(tmp_path / "nowhere"),), "no such file; "),
        ((full, "--threshold", "nan"), "must not be negative"),
    ):
        ended = call(capsys, "bench", "compare", full, *arguments)
        assert (ended.code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1) and reason in ended.stderr, ended
