"""`zoo bench growth`: exponents that are known are found again, and every axis is measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import growth, growth_page, growth_tables, records
from benchmarks.command import Request
from benchmarks.growth import Settings
from tests.support.commands import call


def results(exponents: dict[str, float], noise: float = 0.0) -> records.Results:
    """Made-up cells whose time grows along each axis with a known exponent."""
    rng, cells = np.random.default_rng(0), []
    for axis, known in exponents.items():
        for value in (1, 2, 4, 8, 16):
            seconds = 3e-3 * value**known * float(np.exp(noise * rng.standard_normal()))
            columns = {
                "seconds": seconds,
                "seconds_p20": seconds,
                "seconds_p80": seconds,
                "memory": 7 * value,
                "compile_seconds": 2.0,
            }
            cells.append({"key": {"axis": axis, "value": value}, "process": 0, "state": "timed", "reason": "", **columns})
    environment = {
        "backend": "cpu",
        "cpu": "a",
        "cores": 2,
        "load": 0.0,
        "date": "",
        "matrix_rate": {"float32": 1e9},
        "copy_rate": 1e9,
    }
    environment["versions"] = {"jax": "", "python": "", "XLA_FLAGS": ""}
    return records.Results(Path(), "growth", environment, {"model": "gpt-nano", "batch": 4}, {}, cells)


def test_known_exponents_are_found_again() -> None:
    known = {"length": 1.7, "layers": 1.0, "width": 2.0, "devices": -0.4}
    found = growth_tables.by_axis(results(known))
    assert list(found) == list(growth_tables.AXES)
    for axis, cells in found.items():
        fitted = growth_tables.exponents(cells)
        assert fitted["time"] is not None and fitted["memory"] is not None and fitted["compilation"] is not None
        assert fitted["time"].value == pytest.approx(known[axis]) and fitted["time"].factor == pytest.approx(3e-3)
        assert fitted["memory"].value == pytest.approx(1.0) and fitted["compilation"].value == pytest.approx(0.0)
        assert fitted["time"].error == pytest.approx(0.0, abs=1e-9)


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    """Against the spread of the exponents of many noisy sets."""
    x, rng = np.array([1.0, 2, 4, 8, 16]), np.random.default_rng(1)
    drawn = [growth_tables.exponent(list(x), list(x**1.5 * np.exp(0.1 * rng.standard_normal(5)))) for _ in range(400)]
    values, errors = np.array([(each.value, each.error) for each in drawn if each is not None]).T
    assert values.mean() == pytest.approx(1.5, abs=0.01)
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.15)


def test_two_points_have_an_exponent_and_no_error() -> None:
    fitted = growth_tables.exponent([1, 4], [2, 8])
    assert fitted is not None and fitted.value == pytest.approx(1.0) and fitted.error is None and str(fitted) == "1.00"
    assert growth_tables.exponent([4, 4], [2, 8]) is None
    assert growth_tables.exponent([1, 2], [0, 1]) is None


def test_the_page_has_a_plot_for_each_axis() -> None:
    page = growth_page.render(results({"length": 1.7, "layers": 1.0, "width": 2.0, "devices": -0.4}, noise=0.05))
    assert page.count("<svg") == 4 and page.count("<figcaption>") == 4
    for axis in ("Length", "Layers", "Width", "Devices"):
        assert f"<b>{axis}</b>" in page


@pytest.mark.slow
def test_every_axis_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "BASE", {"length": 8, "layers": 1, "width": 32, "devices": 1})
    told = ["--length", "8", "16", "--layers", "1", "2", "--width", "32", "64", "--device-counts", "1", "2", "--rounds", "2"]
    done = call(capsys, "bench", "growth", "gpt-nano", "--batch", "2", *told, "--out", str(tmp_path / "out"))
    assert done.code == 0, done.stderr
    cells = records.read(tmp_path / "out").cells
    assert [(cell["key"]["axis"], cell["state"]) for cell in cells] == [
        (axis, "timed") for axis in growth_tables.AXES for _ in range(2)
    ]
    done = call(capsys, "bench", "growth", "gpt-nano", "--batch", "2", *told, "--out", str(tmp_path / "out"), "--resume")
    assert done.code == 0 and records.read(tmp_path / "out").cells == cells


def test_resuming_measures_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Settings(length=(8, 16), layers=(1, 2), width=(32, 64), device_counts=(1, 2), batch=2, rounds=1)
    made: list[Any] = []

    def columns(settings: Settings, axis: str, values: Any, progress: Any) -> Any:
        made.extend((axis, value) for value in values)
        if axis == "width":
            raise KeyboardInterrupt
        numbers = {"seconds": 1.0, "seconds_p20": 1.0, "seconds_p80": 1.0, "memory": 1, "compile_seconds": 1.0}
        return {value: {"state": "timed", "reason": "", **numbers} for value in values}

    monkeypatch.setattr(growth, "_axis", columns)
    monkeypatch.setattr(growth, "_devices", lambda settings, values, progress: columns(settings, "devices", values, progress))
    with pytest.raises(KeyboardInterrupt):
        growth.main(asked, Request([], str(tmp_path), resume=False, json=True), quick=False)
    assert len(records.read(tmp_path).cells) == 4
    measured: list[tuple[str, int]] = []

    def again(settings: Settings, axis: str, values: Any, progress: Any) -> Any:
        measured.extend((axis, value) for value in values)
        return {value: {"state": "failed", "reason": "not now"} for value in values}

    monkeypatch.setattr(growth, "_axis", again)
    monkeypatch.setattr(growth, "_devices", lambda settings, values, progress: again(settings, "devices", values, progress))
    growth.main(asked, Request([], str(tmp_path), resume=True, json=True), quick=False)
    assert measured == [("width", 32), ("width", 64), ("devices", 1), ("devices", 2)]


BAD = {
    "gpt-nona": "no model is called 'gpt-nona'; the nearest is 'gpt-nano' (all: zoo models)",
    "gpt-nano --batch 0": "--batch 0: choose 1 or more, or leave it out",
    "gpt-nano --length 0 64": "--length 0 64: choose numbers of 1 or more",
    "gpt-nano --layers 3": "--layers 3: growth needs two different values or more",
    "gpt-nano --width 32 50": "--width 50: choose multiples of 32, the size of a head",
    "gpt-nano --batch 4 --device-counts 1 3": "--device-counts 3: it does not divide the 4 rows of --batch",
}


@pytest.mark.parametrize("line", BAD)
def test_wrong_input_is_refused_in_a_line(
    line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(capsys, "bench", "growth", *line.split())
    assert done.code == 2 and done.stderr == f"zoo: {BAD[line]}\n"
    assert not list(tmp_path.iterdir())
