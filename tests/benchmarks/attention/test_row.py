"""A row of `zoo bench attention`: what is checked before it is timed, and what breaks, alone."""

import dataclasses
import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import attention_cost as cost
from benchmarks import (
    attention_row,
    conformance,
    peers_attention,
    records,
    trials,
)
from benchmarks.attention_features import FEATURES, Problem, Shape
from benchmarks.attention_settings import Row, Settings
from tests.support.benchmark_steps import UNWATCHED
from zoo import attention as door
from zoo.kernels import blocked

ENVIRONMENT = {
    "backend": "cpu",
    "devices": 8,
    "device": "cpu",
    "matrix_rate": {"float32": 1e11, "bfloat16": 1e11},
    "copy_rate": 1e10,
}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate's programs, compiled sooner: what they compute is the same."""
    monkeypatch.setattr(conformance, "check", functools.partial(conformance.check, options={"xla_backend_optimization_level": 0}))


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[..., Any]], None]]:
    """Put a function into the table, as "planted"."""

    def put(function: Callable[..., Any]) -> None:
        row = dataclasses.replace(door.IMPLEMENTATIONS["blocked"], module=__name__, function="planted")
        monkeypatch.setitem(door.IMPLEMENTATIONS, "planted", row)
        monkeypatch.setattr(sys.modules[__name__], "planted", function, raising=False)
        attention_row._checked.cache_clear()

    yield put
    attention_row._checked.cache_clear()


TINY = Row("float32", "both", "causal", Shape(2, 16, 16, 2, 2, 8))
ASKED = Settings(rounds=3)


def measured(
    row: Row = TINY, names: Any = ("xla", "planted"), asked: Settings = ASKED, peer: Any = peers_attention.made
) -> dict[str, Any]:
    cells = attention_row.measure(row, names, asked, ENVIRONMENT, UNWATCHED, peer)
    assert all(cell["key"].keys() == row.key("xla").keys() for cell in cells)
    return {cell["key"]["implementation"]: cell for cell in cells}


def test_a_right_one_is_timed(plant: Any) -> None:
    plant(blocked.blocked)
    found = measured()
    assert [cell["state"] for cell in found.values()] == ["timed", "timed"]
    cell = found["planted"]
    assert cell["n"] == 3 and cell["clock"] == "wall" and cell["compared"] == "xla"
    assert 0 < cell["error"] < 2e-6 and cell["difference"] < 1e-5
    assert cell["ratio_p20"] <= cell["ratio"] <= cell["ratio_p80"] and found["xla"]["ratio"] == 1
    assert min(cell[name] for name in ("lower_seconds", "compile_seconds", "memory", "flops_per_s", "of_matrix_rate")) > 0
    json.dumps(list(found.values()), allow_nan=False)


def test_the_time_is_the_devices_where_the_profiler_gives_it(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates follow from it, and the clock says so; the ratio is of wall times."""
    monkeypatch.setattr(attention_row.device_time, "measured", lambda programs: {"planted": 1e-9})
    plant(blocked.blocked)
    found = measured()
    assert [(cell["clock"], cost.time_of(cell)) for cell in found.values()] == [
        ("wall", found["xla"]["seconds"]),
        ("device", 1e-9),
    ]
    for cell in found.values():
        assert cell["tokens_per_s"] == pytest.approx(2 * 16 / cost.time_of(cell))
    assert found["planted"]["ratio"] > 1e-3


def test_a_profiler_that_fails_costs_nobody_the_wall_time(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(programs: Any) -> dict[str, float]:
        raise RuntimeError("no counters")

    monkeypatch.setattr(attention_row.device_time, "measured", broken)
    cell = measured(names=("xla",))["xla"]
    assert (cell["state"], cell["clock"]) == ("timed", "wall")
    assert cell["reason"] == "wall time, for the profiler failed: RuntimeError: no counters"


@pytest.mark.planted
def test_a_wrong_one_is_never_timed(plant: Any) -> None:
    """One that forgets the scale."""
    plant(lambda *arrays, scale, rate: blocked.blocked(*arrays, scale=1.0, rate=rate))
    found = measured()
    assert (found["xla"]["state"], found["planted"]["state"]) == ("timed", "wrong")
    assert re.match(r"it disagrees with float64: \w+ is off by .* on the case 'causal', and 2e-06", found["planted"]["reason"])
    assert found["planted"].keys() == {"key", "state", "reason", "error"}


@pytest.mark.planted
@pytest.mark.parametrize("short", [lambda out: out * jnp.nan, lambda out: out * jnp.inf], ids=["nan", "infinity"])
def test_what_is_no_number_is_wrong_and_can_be_written(plant: Any, short: Any, tmp_path: Path) -> None:
    """At the timed length alone: files of results have no NaN and no infinity."""

    def planted(q: Any, k: Any, v: Any, *rest: Any, scale: float, rate: float) -> Any:
        out = blocked.blocked(q, k, v, *rest, scale=scale, rate=rate)
        return short(out) if q.shape[1] < 100 else out

    plant(planted)
    cell = measured(TINY._replace(direction="forward"))["planted"]
    assert cell["state"] == "wrong" and not {"difference", "distance"} & cell.keys()
    writer = records.Writer(tmp_path / records.CELLS, "attention", {}, {}, False)
    writer.write({**cell, "process": 0})
    writer.close()


@pytest.mark.planted(2)
def test_zeros_are_no_attention_over_long_rows() -> None:
    """Full attention over many keys averages: its entries are small beside 1, and all but the first of a causal one's are."""
    long = np.full((1, 16384, 1, 8), 0.01, np.float32)
    causal = long.copy()
    causal[:, 0] = 5
    bound = attention_row.LIKE["bfloat16"]
    first_only = np.where(np.arange(16384)[None, :, None, None] < 1, causal, 0)
    for ours, theirs in ((0 * long, long), (first_only, causal)):
        assert attention_row._distance([ours], [theirs]) > bound
    assert attention_row._distance([1.004 * causal], [causal]) < bound


@pytest.mark.planted
def test_one_that_is_wrong_only_where_it_is_timed(plant: Any) -> None:
    """Right at the case's 577 tokens, wrong at 16."""

    def short(q: Any, k: Any, v: Any, mask: Any, *rest: Any, scale: float, rate: float) -> Any:
        return blocked.blocked(q, k, v, mask, *rest, scale=scale * (1.01 if q.shape[1] < 100 else 1), rate=rate)

    plant(short)
    cell = measured()["planted"]
    assert cell["state"] == "wrong" and "seconds" not in cell
    assert re.match(r"its results differ from those of xla by \S+ of the largest", cell["reason"])


def test_a_failing_one_stops_no_other(plant: Any) -> None:
    def broken(*arrays: Any, scale: float, rate: float) -> Any:
        if arrays[0].shape[1] < 100:
            raise RuntimeError("\n  RESOURCE_EXHAUSTED: out of memory\nand much more\n")
        return blocked.blocked(*arrays, scale=scale, rate=rate)

    plant(broken)
    found = measured()
    assert found["xla"]["state"] == "timed"
    assert (found["planted"]["state"], found["planted"]["reason"]) == (
        "failed",
        "RuntimeError: RESOURCE_EXHAUSTED: out of memory",
    )


def test_one_that_breaks_during_the_rounds(plant: Any) -> None:
    """It leaves, and the others begin anew."""
    calls = []

    def program() -> None:
        calls.append(None)
        if len(calls) > 4:
            raise MemoryError("no more")

    found = measured(names=("xla", "torch"), peer=lambda name, problem, direction: (program, lambda _: same(problem)))
    assert (found["torch"]["state"], found["torch"]["reason"]) == ("failed", "MemoryError: no more")
    assert (found["xla"]["state"], found["xla"]["n"]) == ("timed", 3)


def same(problem: Problem) -> list[np.ndarray]:
    """What is right, from xla."""
    function, arguments = problem.program("xla", "both")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(function)(*arguments))]


def test_a_slow_one_is_timed_by_its_first_call() -> None:
    found = measured(names=("xla", "blocked"), asked=dataclasses.replace(ASKED, cell_seconds=1e-9))
    for cell in found.values():
        assert (cell["state"], cell["n"], cell["ratio"], cell["clock"]) == ("timed", 1, None, "wall")
        assert re.match(r"its first call took \S+ s, over --cell-seconds 1e-09: timed by that alone", cell["reason"])


@pytest.mark.parametrize(
    ("free", "told"), [(2**10, "its inputs and outputs alone"), (2**14, "its scores alone"), (2**15, "compiled, it")]
)
def test_what_does_not_fit_is_not_run(free: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "free", lambda: free)
    row = TINY._replace(shape=Shape(1, 64, 64, 1, 1, 4))
    reasons = {name: cell["reason"] for name, cell in measured(row, ("xla", "blocked")).items() if cell["state"] == "skipped"}
    assert any(re.match(rf"{told} needs? [\d.]+ MB, and [\d.]+ MB are free", why) for why in reasons.values()), reasons


def test_far_beyond_memory() -> None:
    """At once, with the numbers."""
    began = time.monotonic()
    found = measured(TINY._replace(shape=Shape(64, 10**6, 10**6, 96, 96, 128)), ("xla", "blocked", "cudnn"))
    assert {cell["state"] for cell in found.values()} == {"skipped"}
    assert all(
        re.match(r"its inputs and outputs alone need [\d.]+ GB, and [\d.]+ GB are free", each["reason"])
        for each in found.values()
    )
    assert time.monotonic() - began < 5


def test_a_reason_is_the_doors() -> None:
    found = measured(names=("xla", "cudnn", "splash"))
    assert found["cudnn"]["reason"] == "it runs on gpu, and this is cpu"
    row = TINY._replace(shape=Shape(2, 16, 24, 2, 2, 8))
    assert {cell["reason"] for cell in measured(row, ("xla",)).values()} == {
        "causal needs as many keys as queries, and these are 24 and 16"
    }


@pytest.mark.parametrize("name", [name for name in FEATURES if name != "causal"])
def test_every_feature_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with xla at its shape; that it is right at the conformance cases is tested there."""
    monkeypatch.setattr(attention_row, "_checked", lambda *_: ("", "", 0.0))
    row = Row("float32", "both", name, FEATURES[name].shaped(Shape(2, 26, 26, 4, 4, 8)))
    cell = measured(row, ("xla", "blocked"), dataclasses.replace(ASKED, rounds=1))["blocked"]
    assert cell["state"] == "timed" and 0 < cell["difference"] < 4e-6


def test_without_torch_a_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_attention.importlib.util, "find_spec", lambda name: None)
    found = measured(names=("xla", *peers_attention.NAMES))
    assert {found[name]["state"] for name in peers_attention.NAMES} == {"skipped"}
    assert found["torch"]["reason"].startswith("torch is not installed; it comes with the group parity")


@pytest.mark.parity
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("name", FEATURES)
def test_torch_computes_the_same(name: str, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_row, "_checked", lambda *_: ("", "", 0.0))
    row = Row("float32", direction, name, FEATURES[name].shaped(Shape(2, 26, 26, 4, 4, 8)))
    cell = measured(row, ("xla", "torch"), dataclasses.replace(ASKED, rounds=1))["torch"]
    if FEATURES[name].rate:
        assert cell["reason"] == "torch drops other weights than ours, so that outputs cannot be compared"
    else:
        assert cell["state"] == "timed", cell["reason"]
