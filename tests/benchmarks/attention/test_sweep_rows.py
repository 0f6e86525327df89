"""`zoo bench attention`: what is counted, and what is asked of it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.profiler import ProfileData

from benchmarks.attention import cost_model
from benchmarks.attention.problems import FEATURES, Problem, Shape
from benchmarks.attention.sweep_rows import resolve_sweep_options, sweep_rows
from benchmarks.core import device_time
from benchmarks.core.memory import planned_memory
from benchmarks.core.options import AttentionOptions
from zoo.attention import attention

SMALL = Shape(3, 24, 24, 8, 8, 16)


@pytest.mark.parametrize("name", FEATURES)
def test_the_number_of_pairs_is_that_of_the_mask(name: str) -> None:
    """Every entry of the dense mask is counted; a single row has padding too."""
    for shape in (SMALL, Shape(1, 7, 7, 2, 2, 8), Shape(2, 1, 1, 1, 1, 8)):
        for problem in FEATURES[name].make(shape, np.random.default_rng(1)):
            mask = jax.tree.map(jnp.asarray, problem.mask)
            allowed = mask.dense(problem.queries, shape.keys)
            dense = np.broadcast_to(True if allowed is None else allowed, (shape.batch, 1, problem.queries, shape.keys))
            assert problem.pairs == dense.sum()
    assert Problem.of(FEATURES["padding"], Shape(1, 16, 16, 1, 1, 8), "float32").calls[0].pairs == 16 * 12


def test_flops_and_bytes() -> None:
    """Of B = 3, T = S = 24, N = 8, H = 16, by hand."""

    def of(name: str, direction: str = "forward", count: Callable[..., int] = cost_model.attention_flops) -> int:
        return count(Problem.of(FEATURES[name], SMALL, "float32"), direction)

    flops = 4 * 3 * 24 * 24 * 8 * 16
    assert of("full") == flops
    assert of("full", "both") == 3.5 * flops
    assert of("causal") == flops * (24 * 25 / 2) / 24**2
    assert of("xlnet") == 6 * 16 * 8 * 3 * ((20 * 20 + 20 * 4 + 10) + (20 * 4 + 6))
    array = 4 * 3 * 24 * 8 * 16
    assert of("full", count=cost_model.minimal_traffic) == 4 * array
    # q, k, v, cotangent; out, dq, dk, dv.
    assert of("full", "both", cost_model.minimal_traffic) == 8 * array
    assert of("t5", "both", cost_model.minimal_traffic) == 8 * array + 2 * 4 * 32 * 8
    assert of("grouped", count=cost_model.minimal_traffic) == 2.5 * array


def test_rates_are_computed_from_the_time() -> None:
    problem = Problem.of(FEATURES["full"], SMALL, "float32")
    environment = {"backend": "cpu", "devices": 8, "matrix_rate": {"float32": 1e11}, "copy_rate": 1e10}
    rates = cost_model.attention_rate_columns(problem, "forward", 1e-3, environment, peak=1e12)
    assert rates["tokens_per_s"] == 3 * 24 / 1e-3
    assert rates["of_matrix_rate"] == pytest.approx(10 * rates["of_peak"])
    # 12 FLOPs a byte and 10 GB/s: below the matrix rate.
    assert rates["attainable"] == pytest.approx(rates["intensity"] * 1e10)
    assert rates["of_attainable"] == pytest.approx(rates["bytes_per_s"] / 1e10)


@pytest.mark.full
def test_the_predicted_scores_are_a_part_of_what_is_needed() -> None:
    """Never too large, so that no cell is left out that would have fitted; and most of it, for long rows."""
    problem = Problem.of(FEATURES["full"], Shape(1, 1024, 1024, 4, 4, 16), "float32")
    for direction in ("forward", "both"):
        function, arguments = problem.program("xla", direction)
        memory = planned_memory(jax.jit(function).lower(*arguments).compile())["memory"]
        assert memory / 3 < cost_model.predicted_score_bytes("xla", problem, direction) <= memory
    assert cost_model.predicted_score_bytes("blocked", problem, "both") == 0


def test_device_time_is_the_union_of_what_the_streams_do() -> None:
    profile = ProfileData.from_text_proto("""
planes { name: "/host:CPU" lines { name: "python" events { duration_ps: 9000000 } } }
planes { name: "/device:GPU:0"
  lines { name: "Stream #1" events { metadata_id: 1 offset_ps: 0 duration_ps: 3000000 }
                            events { metadata_id: 1 offset_ps: 9000000 duration_ps: 1000000 } }
  lines { name: "Stream #2" events { metadata_id: 1 offset_ps: 2000000 duration_ps: 2000000 } }
  lines { name: "XLA Modules" events { metadata_id: 1 offset_ps: 0 duration_ps: 50000000 } }
  event_metadata { key: 1 value { id: 1 name: "kernel" } } }""")
    assert device_time.device_busy_seconds(profile) == pytest.approx(5e-6)
    assert device_time.device_busy_seconds(ProfileData.from_text_proto('planes { name: "/host:CPU" }')) == 0
    assert device_time.device_seconds({"a": lambda: None}) == {}


def test_every_feature_of_attention_that_models_ask_for_is_swept() -> None:
    """A new one belongs into `FEATURES`, or here with the reason why nobody trains with it."""
    swept = {
        name
        for feature in FEATURES.values()
        for request in Problem.of(feature, SMALL, "float32").requests()
        for name in request.features
    }
    cached_decoding = {"positions"}
    only_tests = {"explicit mask", "dense bias"}
    # XLNet's query stream has positions of its own, in its bias.
    assert swept | cached_decoding | only_tests == attention.ALL_FEATURES
    assert not swept & only_tests


def test_omitted_options_get_defaults() -> None:
    cpu, gpu = (resolve_sweep_options(AttentionOptions(), backend) for backend in ("cpu", "gpu"))
    assert (cpu.dtype, cpu.lengths, cpu.tokens) == (("float32",), (128, 512, 2048), 2048)
    assert (gpu.dtype, gpu.impl, gpu.feature) == (("bfloat16",), tuple(attention.IMPLEMENTATIONS), tuple(FEATURES))
    assert len(sweep_rows(cpu)) == 6 * 2 * 3
    assert {row.shape.batch * row.shape.queries for row in sweep_rows(cpu)} == {2048}
    chosen = resolve_sweep_options(
        AttentionOptions(impl=("blocked",), model=("t5-small",), lengths=(64,), batch=2, quick=True), "cpu"
    )
    assert (cpu.seconds, chosen.seconds) == (None, 60)
    assert chosen.impl == ("xla", "blocked") and {row.shape for row in sweep_rows(chosen)} == {Shape(2, 64, 64, 8, 8, 64)}
    same = AttentionOptions(model=("gpt2", "bert-base-cased"), feature=("full",), lengths=(64,), direction=("both",), quick=True)
    assert len(sweep_rows(resolve_sweep_options(same, "cpu"))) == 1
