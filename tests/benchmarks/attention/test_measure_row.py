"""A row of `zoo bench attention`: what is checked before it is timed, and that a failure ends its own cell alone."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.attention import cost_model, measure_row, torch_attention
from benchmarks.attention.problems import FEATURES, Problem, Shape
from benchmarks.attention.sweep_rows import SweepRow
from benchmarks.core import guarded_trials
from benchmarks.core.options import AttentionOptions
from benchmarks.core.result_files import cell_identity
from tests.support import benchmark_steps as steps
from zoo.attention import attention
from zoo.attention.kernels import blocked

ENVIRONMENT = {"backend": "cpu", "devices": 8, "device": "cpu", "matrix_rate": {"float32": 1e11}, "copy_rate": 1e10}
TINY = SweepRow("float32", "both", "causal", Shape(2, 16, 16, 2, 2, 8))
THREE_ROUNDS = AttentionOptions(rounds=3)

Plant = Callable[[Callable[..., Any]], None]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    steps.hurry(monkeypatch)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Put a function into the table of implementations, as "planted"; its agreement with float64 is not cached."""
    check = measure_row._check

    def put(function: Callable[..., Any]) -> None:
        row = dataclasses.replace(attention.IMPLEMENTATIONS["blocked"], module=__name__, function="planted")
        monkeypatch.setitem(attention.IMPLEMENTATIONS, "planted", row)
        monkeypatch.setattr(sys.modules[__name__], "planted", function, raising=False)
        anew = {"planted": check.__wrapped__}
        monkeypatch.setattr(measure_row, "_check", lambda name, *rest: anew.get(name, check)(name, *rest))

    return put


def unchecked(patch: pytest.MonkeyPatch) -> None:
    """Leave out the comparison with float64."""
    patch.setattr(measure_row, "_check_cases", lambda *_: None)


def measured(
    row: SweepRow = TINY,
    names: Any = ("xla", "planted"),
    options: AttentionOptions = THREE_ROUNDS,
    peer: Any = torch_attention.make_peer,
) -> dict[str, dict[str, Any]]:
    """Measure a row and return its cells by implementation."""
    cells = measure_row.measure_row(row, names, options, ENVIRONMENT, steps.UNWATCHED, peer)
    assert all(cell["key"].keys() == row.key("xla").keys() for cell in cells)
    json.dumps(cells, allow_nan=False)
    return {cell["key"]["implementation"]: cell for cell in cells}


def test_a_right_implementation_is_timed(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is the device's where the profiler gives it; rates follow from it, and the ratio is of wall times."""
    monkeypatch.setattr(measure_row.device_time, "device_seconds", lambda programs: {cell_identity(TINY.key("planted")): 1e-9})
    plant(blocked.blocked)
    cells = measured()
    xla, cell = cells["xla"], cells["planted"]
    assert xla["state"] == cell["state"] == "timed"
    assert cell["n"] == 3 and cell["compared"] == "xla"
    assert 0 < cell["error"] < cell["allowed"] < 2e-6
    assert cell["ratio_p20"] <= cell["ratio"] <= cell["ratio_p80"] and xla["ratio"] == 1
    assert min(cell[name] for name in ("lower_seconds", "compile_seconds", "memory", "flops_per_s", "of_matrix_rate")) > 0
    assert (xla["clock"], cell["clock"]) == ("wall", "device")
    assert (cost_model.time_of(xla), cost_model.time_of(cell)) == (xla["seconds"], 1e-9)
    for one in cells.values():
        assert one["tokens_per_s"] == pytest.approx(2 * 16 / cost_model.time_of(one))
    # That of the device's time would be 1e-5 or less.
    assert cell["ratio"] > 1e-3


@pytest.mark.full
def test_a_profiler_that_fails_leaves_the_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(programs: Any) -> dict[str, float]:
        raise RuntimeError("no counters")

    unchecked(monkeypatch)
    monkeypatch.setattr(measure_row.device_time, "device_seconds", broken)
    cell = measured(names=("xla",))["xla"]
    assert (cell["state"], cell["clock"]) == ("timed", "wall")
    assert "RuntimeError: no counters" in cell["reason"]


@pytest.mark.planted
def test_a_wrong_implementation_is_not_timed(plant: Plant) -> None:
    """One that leaves out the scale, found by the comparison with float64."""
    plant(lambda *arrays, scale, rate: blocked.blocked(*arrays, scale=1.0, rate=rate))
    cells = measured()
    assert (cells["xla"]["state"], cells["planted"]["state"]) == ("timed", "wrong")
    assert re.match(r"it disagrees with float64: \w+ is off by .* on the case 'causal', and \S+ is", cells["planted"]["reason"])
    assert cells["planted"].keys() == {"key", "state", "reason", "error", "allowed"}


@pytest.mark.planted
def test_a_forward_row_is_judged_by_its_output(plant: Plant) -> None:
    """A gradient of the queries that is 1 % too large is wrong in rows of both directions alone."""

    def planted(q: Any, *rest: Any, scale: float, rate: float) -> Any:
        return blocked.blocked(1.01 * q - 0.01 * jax.lax.stop_gradient(q), *rest, scale=scale, rate=rate)

    plant(planted)
    both, forward = (measured(TINY._replace(direction=direction))["planted"] for direction in ("both", "forward"))
    assert (both["state"], forward["state"]) == ("wrong", "timed") and ": d_q is off by" in both["reason"]


@pytest.mark.planted
@pytest.mark.parametrize("factor", [1.01, *(pytest.param(float(each), marks=pytest.mark.full) for each in ("nan", "inf"))])
def test_an_implementation_that_is_wrong_only_at_the_timed_length_is_not_timed(factor: float, plant: Plant) -> None:
    """Right at the case's 577 tokens; found by the comparison with xla."""

    def planted(q: Any, *rest: Any, scale: float, rate: float) -> Any:
        short = q.shape[1] < 100
        out = blocked.blocked(q, *rest, scale=scale * (1.01 if short else 1), rate=rate)
        return out if factor == 1.01 or not short else out * factor

    plant(planted)
    cell = measured(TINY._replace(direction="forward"))["planted"]
    assert cell["state"] == "wrong" and "seconds" not in cell
    assert re.match(r"its results differ from those of xla by \S+ of the largest", cell["reason"])
    # A file of results has neither NaN nor infinity.
    assert ("difference" in cell) == ("distance" in cell) == (factor == 1.01)


@pytest.mark.planted(2)
def test_zeros_do_not_pass_as_attention_over_long_rows() -> None:
    """Full attention over many keys averages: its entries are small beside 1, and all but the first of a causal one's are."""
    long = np.full((1, 16384, 1, 8), 0.01, np.float32)
    causal = long.copy()
    causal[:, 0] = 5
    bound = measure_row.DISTANCE_BOUNDS["bfloat16"]
    first_only = np.where(np.arange(16384)[None, :, None, None] < 1, causal, 0)
    for ours, theirs in ((0 * long, long), (first_only, causal)):
        assert measure_row._distance(ours, theirs) > bound
    assert measure_row._distance(1.004 * causal, causal) < bound


def test_a_failure_ends_one_cell(plant: Plant) -> None:
    def broken(*arrays: Any, scale: float, rate: float) -> Any:
        if arrays[0].shape[1] < 100:
            raise RuntimeError("\n  RESOURCE_EXHAUSTED: out of memory\nand much more\n")
        return blocked.blocked(*arrays, scale=scale, rate=rate)

    plant(broken)
    cells = measured()
    assert cells["xla"]["state"] == "timed"
    assert cells["planted"]["state"] == "failed"
    assert cells["planted"]["reason"] == "RuntimeError: RESOURCE_EXHAUSTED: out of memory"


@pytest.mark.full
def test_a_failure_during_the_rounds_ends_one_cell_and_the_others_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def program() -> None:
        calls.append(None)
        if len(calls) > 4:
            raise MemoryError("no more")

    def right(problem: Problem) -> list[np.ndarray]:
        function, arguments = problem.program("xla", "both")
        return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(function)(*arguments))]

    unchecked(monkeypatch)
    cells = measured(names=("xla", "torch"), peer=lambda name, problem, direction: (program, lambda _: right(problem)))
    assert (cells["torch"]["state"], cells["torch"]["reason"]) == ("failed", "MemoryError: no more")
    assert (cells["xla"]["state"], cells["xla"]["n"]) == ("timed", 3)


def test_a_slow_program_is_timed_by_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    unchecked(monkeypatch)
    cell = measured(names=("xla",), options=dataclasses.replace(THREE_ROUNDS, cell_seconds=1e-9))["xla"]
    assert (cell["state"], cell["n"], cell["ratio"], cell["clock"]) == ("timed", 1, None, "wall")
    assert "over --cell-seconds 1e-09: timed by that alone" in cell["reason"]


def test_programs_that_do_not_fit_into_memory_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before arrays are made, by the scores alone, or from the compiled program; with the numbers."""
    huge = measured(TINY._replace(shape=Shape(64, 10**6, 10**6, 96, 96, 128)), ("xla", "blocked", "cudnn"))
    assert all("its inputs and outputs alone need" in cell["reason"] for cell in huge.values())
    unchecked(monkeypatch)
    row = TINY._replace(shape=Shape(1, 64, 64, 1, 1, 4))
    for free, expected in ((2**10, "its inputs and outputs alone"), (2**14, "its scores alone"), (2**15, "compiled, it")):
        monkeypatch.setattr(guarded_trials, "free_bytes", lambda free=free: free)
        cells = measured(row, ("xla", "blocked"))
        reasons = [cell["reason"] for cell in cells.values() if cell["state"] == "skipped"]
        assert any(re.match(rf"{expected} needs? [\d.]+ MB, and [\d.]+ MB are free", reason) for reason in reasons), reasons


def test_programs_that_cannot_run_have_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    unchecked(monkeypatch)
    monkeypatch.setattr(torch_attention.importlib.util, "find_spec", lambda name: None)
    cells = measured(names=("cudnn", *torch_attention.NAMES))
    assert {cell["state"] for cell in cells.values()} == {"skipped"}
    assert cells["cudnn"]["reason"] == "it runs on gpu, and this is cpu"
    assert cells["torch"]["reason"].startswith("torch is not installed; it comes with the group parity")
    oblong = measured(TINY._replace(shape=Shape(2, 16, 24, 2, 2, 8)), ("xla",))["xla"]
    assert oblong["reason"] == "causal needs as many keys as queries, and these are 24 and 16"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "grouped" else pytest.mark.full) for name in FEATURES if name != "causal"]
)
def test_every_feature_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with xla at its shape; the conformance tests compare it with float64."""
    unchecked(monkeypatch)
    row = SweepRow("float32", "both", name, FEATURES[name].shaped(Shape(2, 26, 26, 4, 4, 8)))
    cell = measured(row, ("xla", "blocked"), dataclasses.replace(THREE_ROUNDS, rounds=1))["blocked"]
    assert cell["state"] == "timed" and cell["difference"] > 0


@pytest.mark.parity
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("name", FEATURES)
def test_torch_computes_the_same(name: str, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unchecked(monkeypatch)
    row = SweepRow("float32", direction, name, FEATURES[name].shaped(Shape(2, 26, 26, 4, 4, 8)))
    cell = measured(row, ("xla", "torch"), dataclasses.replace(THREE_ROUNDS, rounds=1))["torch"]
    if FEATURES[name].rate:
        assert cell["reason"] == "torch drops other weights than jax-zoo, so that outputs cannot be compared"
    elif FEATURES[name].sinks:
        assert cell["reason"] == "torch's attention takes no sinks"
    else:
        assert cell["state"] == "timed", cell["reason"]
