"""`zoo bench attention`: what is counted, what is asked, what is checked before it is timed, and what becomes of what fails."""

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
from jax.profiler import ProfileData

from benchmarks import (
    attention_cost,
    attention_row,
    conformance,
    device_time,
    peers_attention,
    records,
    trials,
)
from benchmarks.attention_features import FEATURES, Problem, Shape
from benchmarks.attention_settings import Row, Settings, resolved, rows
from tests.commands import call
from zoo import attention as door
from zoo.errors import BadInput
from zoo.kernels import blocked

SMALL = Shape(3, 24, 24, 8, 8, 16)
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


# --- what is counted ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SMALL, Shape(1, 7, 7, 2, 2, 8), Shape(4, 30, 30, 12, 12, 8), Shape(2, 1, 1, 1, 1, 8)])
@pytest.mark.parametrize("name", FEATURES)
def test_pairs_are_those_that_the_mask_allows(name: str, shape: Shape) -> None:
    """By counting every entry of the dense mask."""
    for asked in FEATURES[name].make(shape, np.random.default_rng(1)):
        mask = jax.tree.map(jnp.asarray, asked.mask)
        allowed = mask.dense(asked.queries, shape.keys)
        dense = np.broadcast_to(True if allowed is None else allowed, (shape.batch, 1, asked.queries, shape.keys))
        assert asked.pairs == dense.sum()


def test_flops_and_bytes() -> None:
    """Of B = 3, T = S = 24, N = 8, H = 16, by hand."""

    def of(name: str, direction: str = "forward", count: Callable[..., int] = attention_cost.flops) -> int:
        return count(Problem.of(FEATURES[name], SMALL, "float32"), direction)

    whole = 4 * 3 * 24 * 24 * 8 * 16
    assert of("full") == whole
    assert of("full", "both") == 3.5 * whole
    assert of("causal") == whole * (24 * 25 / 2) / 24**2
    assert of("xlnet") == 6 * 16 * 8 * 3 * ((20 * 20 + 20 * 4 + 10) + (20 * 4 + 6))
    array = 4 * 3 * 24 * 8 * 16
    assert of("full", count=attention_cost.traffic) == 4 * array
    # q, k, v, cotangent; out, dq, dk, dv.
    assert of("full", "both", attention_cost.traffic) == 8 * array
    assert of("t5", "both", attention_cost.traffic) == 8 * array + 2 * 4 * 32 * 8
    assert of("grouped", count=attention_cost.traffic) == 2.5 * array


def test_rates_follow() -> None:
    problem = Problem.of(FEATURES["full"], SMALL, "float32")
    found = attention_cost.rates(problem, "forward", 1e-3, ENVIRONMENT, peak=1e12)
    assert found["tokens_per_s"] == 3 * 24 / 1e-3
    assert found["of_matrix_rate"] == pytest.approx(10 * found["of_peak"])
    # 12 FLOPs a byte and 10 GB/s: below the matrix rate.
    assert found["attainable"] == pytest.approx(found["intensity"] * 1e10)
    assert found["of_attainable"] == pytest.approx(found["bytes_per_s"] / 1e10)


def test_the_predicted_scores_are_a_part_of_what_is_needed() -> None:
    """Never too large, so that no cell is left out that would have fitted; and most of it, for long rows."""
    problem = Problem.of(FEATURES["full"], Shape(1, 1024, 1024, 4, 4, 16), "float32")
    for direction in ("forward", "both"):
        function, arguments = problem.program("xla", direction)
        required = attention_cost.required(jax.jit(function).lower(*arguments).compile())
        assert required and required / 3 < attention_cost.predicted("xla", problem, direction) <= required
    assert attention_cost.predicted("blocked", problem, "both") == 0


def test_kernels_are_read_from_the_program() -> None:
    problem = Problem.of(FEATURES["full"], Shape(1, 128, 128, 2, 2, 64), "float32")
    function, arguments = problem.program("xla", "forward")
    text = jax.jit(function).lower(*arguments).compile().as_text()
    assert text and "__ynn_fusion" in attention_cost.kernels(text)
    told = """
  %a = (bf16[1]{0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$fmhaSoftmax", backend_config={}
  %b = f32[8,8]{1,0} fusion(%x), kind=kCustom, backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}
  %c = f32[8,8]{1,0} dot(%x, %y), lhs_contracting_dims={1}
  %d = f32[8,8]{1,0} dot(%x, %y), lhs_contracting_dims={1}"""
    assert attention_cost.kernels(told) == "2 dot, 1 __cudnn$fmhaSoftmax, 1 __triton_gemm"
    assert attention_cost.kernels("%c = f32[8] fusion(%x), kind=kLoop") == "fusion"


def test_device_time_is_the_union_of_what_the_streams_do() -> None:
    profile = ProfileData.from_text_proto("""
planes { name: "/host:CPU" lines { name: "python" events { duration_ps: 9000000 } } }
planes { name: "/device:GPU:0"
  lines { name: "Stream #1" events { metadata_id: 1 offset_ps: 0 duration_ps: 3000000 }
                            events { metadata_id: 1 offset_ps: 9000000 duration_ps: 1000000 } }
  lines { name: "Stream #2" events { metadata_id: 1 offset_ps: 2000000 duration_ps: 2000000 } }
  lines { name: "XLA Modules" events { metadata_id: 1 offset_ps: 0 duration_ps: 50000000 } }
  event_metadata { key: 1 value { id: 1 name: "kernel" } } }""")
    assert device_time.seconds(profile) == pytest.approx(5e-6)
    assert device_time.seconds(ProfileData.from_text_proto('planes { name: "/host:CPU" }')) == 0
    assert device_time.measured({"a": lambda: None}) == {}


def test_every_feature_of_the_door_that_models_ask_for_is_swept() -> None:
    """A new one belongs into `FEATURES`, or here with the reason why nobody trains with it."""
    asked = {
        name
        for feature in FEATURES.values()
        for each in Problem.of(feature, SMALL, "float32").requests()
        for name in each.features
    }
    cached_decoding = {"positions"}
    only_tests = {"explicit mask", "dense bias"}
    # XLNet's query stream has positions of its own, in its bias.
    assert asked | cached_decoding | only_tests == door.ALL_FEATURES
    assert not asked & only_tests


# --- what is asked --------------------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_filled_in() -> None:
    cpu, gpu = (resolved(Settings(), backend, quick=False) for backend in ("cpu", "gpu"))
    assert (cpu.dtype, cpu.lengths, cpu.tokens) == (("float32",), (128, 512, 2048), 2048)
    assert (gpu.dtype, gpu.impl, gpu.feature) == (("bfloat16",), tuple(door.IMPLEMENTATIONS), tuple(FEATURES))
    assert len(rows(cpu)) == 6 * 2 * 3
    assert {row.shape.batch * row.shape.queries for row in rows(cpu)} == {2048}
    chosen = resolved(Settings(impl=("blocked",), model=("turing-nlg", "t5-small"), lengths=(64,), batch=2), "cpu", quick=True)
    assert chosen.impl == ("xla", "blocked")
    assert {row.shape for row in rows(chosen)} == {Shape(2, 64, 64, 28, 28, 152), Shape(2, 64, 64, 8, 8, 64)}
    # bert-base and gpt2 have the same heads.
    same = Settings(model=("gpt2", "bert-base-cased"), feature=("full",), lengths=(64,), direction=("both",))
    assert len(rows(resolved(same, "cpu", quick=True))) == 1
    grouped = resolved(
        Settings(shape=("1,8,8,12,12,16", "1,8,8,12,4,16"), feature=("grouped",), direction=("both",)), "cpu", quick=True
    )
    assert [row.shape.groups for row in rows(grouped)] == [3, 4]


BAD = {
    "--impl blokced": "--impl blokced: choose from reference, xla, blocked, .*; the nearest is blocked",
    "--dtype float16": "--dtype float16: choose from float32, bfloat16",
    "--direction backward": "--direction backward: choose from forward, both",
    "--feature casual": "--feature casual: choose from full, causal, .*; the nearest is causal",
    "--model gpt2-lrage": "no model is called 'gpt2-lrage'; the nearest is 'gpt2-large'",
    "--model gpt-4": "the architecture of gpt-4 is unpublished",
    "--shape 1,2,3": "--shape 1,2,3: write six whole numbers, --shape B,T,S,N,K,H",
    "--shape 1,8,8,2,2,x": "--shape 1,8,8,2,2,x: write six whole numbers",
    "--shape 1,8,8,2,2,0": "--shape 1,8,8,2,2,0: every number is 1 or more",
    "--shape 1,8,8,4,3,8": "--shape 1,8,8,4,3,8: 3 key/value heads do not divide 4 heads",
    "--shape 1,8,8,2,2,8 --lengths 8": "--shape with --lengths: the one decides what the other would",
    "--batch 2 --tokens 64": "--batch with --tokens",
    "--rounds 3 --budget 1": "--rounds with --budget",
    "--lengths 0": "--lengths 0: choose 1 or more tokens",
    "--lengths -5": "--lengths -5: choose 1 or more tokens",
    "--tokens 0": "--tokens 0: choose a number above 0",
    "--batch -1": "--batch -1: choose a number above 0",
    "--rounds 0": "--rounds 0: choose a number above 0",
    "--budget nan": "--budget nan: choose a number above 0",
    "--cell-seconds 0": "--cell-seconds 0.0: choose a number above 0",
    "--repeats 0": "--repeats 0: choose a number above 0",
}


@pytest.mark.parametrize("line", BAD)
def test_what_is_wrong_is_said_in_a_line(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = call(capsys, "bench", "attention", *line.split())
    assert (ended.code, ended.stdout) == (2, "")
    assert re.match(f"zoo: {BAD[line]}", ended.stderr) and ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_shape_syntax() -> None:
    assert Shape.parse("1, 2,3,4,2,6") == Shape(1, 2, 3, 4, 2, 6)
    with pytest.raises(BadInput):
        Shape.parse("1,2,3,4,2,-6")


# --- what is checked before it is timed -----------------------------------------------------------------------------------------


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
    cells = attention_row.measure(row, names, asked, ENVIRONMENT, lambda told: None, peer)
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


def test_a_wrong_one_is_never_timed(plant: Any) -> None:
    """One that forgets the scale."""
    plant(lambda *arrays, scale, rate: blocked.blocked(*arrays, scale=1.0, rate=rate))
    found = measured()
    assert (found["xla"]["state"], found["planted"]["state"]) == ("timed", "wrong")
    assert re.match(r"it disagrees with float64: \w+ is off by .* on the case 'causal', and 2e-06", found["planted"]["reason"])
    assert found["planted"].keys() == {"key", "state", "reason", "error"}


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


def test_a_single_row_has_padding_too() -> None:
    call = Problem.of(FEATURES["padding"], Shape(1, 16, 16, 1, 1, 8), "float32").calls[0]
    assert call.pairs == 16 * 12


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
        assert (cell["state"], cell["n"], cell["ratio"]) == ("timed", 1, None)
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
