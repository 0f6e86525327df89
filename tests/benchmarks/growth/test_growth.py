"""`zoo bench growth`: known exponents are found again."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.core import result_files
from benchmarks.growth import growth_report
from tests.support import benchmark_steps as steps

EXPONENTS = {"length": 1.7, "layers": 1.0, "width": 2.0, "devices": -0.4}


def made_results() -> result_files.Results:
    """Make cells whose time grows along each axis with a known exponent."""
    cells = []
    for axis, exponent in EXPONENTS.items():
        for value in (1, 2, 4, 8, 16):
            columns = dict.fromkeys(("seconds", "seconds_p20", "seconds_p80"), 3e-3 * value**exponent)
            columns |= {"memory": 7 * value, "compile_seconds": 2.0}
            cells.append({"key": {"axis": axis, "value": value}, "process": 0, "state": "timed", "reason": "", **columns})
    return result_files.Results(Path(), "growth", steps.environment(), {"model": "gpt-nano", "batch": 4}, {}, cells)


def test_known_exponents_are_recovered() -> None:
    cells_by_axis = growth_report.by_axis(made_results())
    assert list(cells_by_axis) == list(growth_report.UNITS)
    for axis, cells in cells_by_axis.items():
        fitted = growth_report.fit_exponents(cells)
        assert fitted["time"] is not None and fitted["memory"] is not None and fitted["compilation"] is not None
        assert fitted["time"].value == pytest.approx(EXPONENTS[axis]) and fitted["time"].factor == pytest.approx(3e-3)
        assert fitted["memory"].value == pytest.approx(1.0) and fitted["compilation"].value == pytest.approx(0.0)
        assert fitted["time"].error == pytest.approx(0.0, abs=1e-9)
    x, y = [1, 2, 4, 8, 16], [2.0, 5.0, 11.0, 30.0, 50.0]
    noisy, (fit, covariance) = growth_report.fit_power_law(x, y), np.polyfit(np.log(x), np.log(y), 1, cov=True)
    assert noisy is not None and (noisy.value, noisy.error) == pytest.approx((fit[0], covariance[0, 0] ** 0.5))
    two = growth_report.fit_power_law([1, 4], [2, 8])
    assert two is not None and two.value == pytest.approx(1.0) and two.error is None
    assert growth_report.fit_power_law([4, 4], [2, 8]) is None and growth_report.fit_power_law([1, 2], [0, 1]) is None
