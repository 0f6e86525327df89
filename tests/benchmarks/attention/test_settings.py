"""`zoo bench attention`: what is counted, what is asked, what is checked before it is timed, and what becomes of what fails."""

import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.profiler import ProfileData

from benchmarks import attention_cost, device_time
from benchmarks.attention_features import FEATURES, Problem, Shape
from benchmarks.attention_settings import Settings, resolved, rows
from tests.support.commands import call
from zoo import attention as door
from zoo.errors import BadInput

SMALL = Shape(3, 24, 24, 8, 8, 16)


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
    environment = {"backend": "cpu", "devices": 8, "matrix_rate": {"float32": 1e11}, "copy_rate": 1e10}
    found = attention_cost.rates(problem, "forward", 1e-3, environment, peak=1e12)
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


def test_a_single_row_has_padding_too() -> None:
    call = Problem.of(FEATURES["padding"], Shape(1, 16, 16, 1, 1, 8), "float32").calls[0]
    assert call.pairs == 16 * 12


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
