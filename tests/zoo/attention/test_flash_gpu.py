"""The kernels of `flash_gpu`, run by the interpreter of Pallas, against float64; planted mistakes that these cases must see."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.attention import conformance
from tests.support import compilation
from zoo.attention import attention, query_chunks
from zoo.attention.biases import Buckets, ByDistance
from zoo.attention.kernels import _flash_gpu_bodies as bodies
from zoo.attention.kernels import flash_gpu
from zoo.attention.masks import NO_PAIR, Mask
from zoo.attention.request import Request
from zoo.ops import counter_rng

OPTIONS = {"xla_backend_optimization_level": 0, **compilation.OPTIONS}
NEAR = "packed segments, near bias, dropout, grouped heads, sinks"
"""A bias that is constant from a short distance on, so that five blocks have tiles far from the diagonal."""
THREE = "three examples"
"""A bias whose gradient is summed over a group of two examples and over one of a single example: see `check_groups`."""
CHUNKS = "relative bias in chunks, memory, types, dropout, sinks"
"""Three chunks of a block of queries, the last of which is padded: see `small_chunks`."""


def _segments(case: conformance.Case) -> Any:
    """Return three documents, and padding at the end of the first row, whose queries see nothing."""
    ends = np.array([[0.3, 0.5, 0.9], [0.1, 0.8, 1.0]])[:, None] * case.keys
    ids = (np.arange(case.keys)[:, None] >= ends).sum(-1) + 1
    return jnp.asarray(np.where(ids > 3, 0, ids), jnp.int32)


def near_mask(case: conformance.Case) -> Mask:
    segments = _segments(case)
    return Mask(window=180, query_segments=segments, key_segments=segments)


OWN = {
    NEAR: conformance.Case(
        queries=310,
        keys=310,
        heads=2,
        groups=1,
        mask=near_mask,
        bias=lambda case: Buckets(table=case.arrays(8, case.heads), max_distance=10),
        rate=0.2,
        sinks=True,
    ),
    THREE: conformance.Case(
        batch=3,
        queries=130,
        keys=130,
        mask=lambda case: Mask(key_lengths=jnp.asarray([50, 130, 90], jnp.int32)),
        bias=lambda case: Buckets(table=case.arrays(8, case.heads), max_distance=10),
    ),
    CHUNKS: dataclasses.replace(conformance.CASES["relative bias, memory and types"], rate=0.2, sinks=True),
}
"""A short case with most features at once, and one of several examples; the others are `conformance.CASES`."""


def supported() -> list[str]:
    """Return the cases of the kernels' features."""
    row = attention.IMPLEMENTATIONS["flash_gpu"]
    return [name for name, case in conformance.CASES.items() if case.request().features <= row.features]


def check(case: str, dtype: str = "float32") -> conformance.CaseResult:
    with attention.interpreted("flash_gpu"):
        return conformance.check_implementation("flash_gpu", case, dtype, options=OPTIONS)


@pytest.fixture(autouse=True)
def quick_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "UNOPTIMIZED", OPTIONS)
    monkeypatch.setattr(conformance, "CASES", {**conformance.CASES, **OWN})


def test_the_kernels_agree_with_the_definition_in_a_case_of_most_features() -> None:
    result = check(NEAR)
    assert result.ok, result


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that each has one block of queries, of two examples and two heads."""
    monkeypatch.setattr(flash_gpu, "PROGRAMS", 4)


@pytest.mark.usefixtures("small_chunks")
def test_the_kernels_agree_with_the_definition_in_chunks_of_a_dense_bias() -> None:
    result = check(CHUNKS)
    assert result.ok, result


def without_loops(name: str) -> Callable[..., Any]:
    def loop(first: Any, last: Any, body: Any, start: Any) -> Any:
        return fori_loop(first, first if getattr(body, "__name__", "") == name else last, body, start)

    return loop


fori_loop, fused, tile = bodies.lax.fori_loop, flash_gpu._fused, query_chunks.Tile
CHUNK_MISTAKES: dict[str, tuple[Any, str, Callable[..., Any], set[str]]] = {
    "rows of dropout counted in their chunk": (
        flash_gpu,
        "_fused",
        lambda *args, **options: fused(*args[:5], args[5][:, :2], **options),
        {"out", "d_q", "d_k", "d_v", "d_q_r", "d_q_s", "d_r", "d_sinks"},
    ),
    "gradients of skipped tiles not cleared": (bodies.lax, "fori_loop", without_loops("clear"), {"d_q_r", "d_r", "d_q_s"}),
    "the bias and mask of the first chunk": (
        query_chunks,
        "Tile",
        lambda start, size: tile({"T": 0, "S": 0}, size),
        {"out", "d_q", "d_k", "d_v", "d_q_r", "d_q_s", "d_r", "d_sinks"},
    ),
}


@pytest.mark.full
@pytest.mark.planted
@pytest.mark.parametrize("mistake", CHUNK_MISTAKES)
@pytest.mark.usefixtures("small_chunks")
def test_a_mistake_in_the_chunks_is_noticed(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong, arrays = CHUNK_MISTAKES[mistake]
    monkeypatch.setattr(owner, name, wrong)
    errors = check(CHUNKS).errors
    assert {name for name, (error, bound) in errors.items() if not error <= bound} == arrays


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if index % 4 else pytest.mark.full) for index, case in enumerate(supported())],
)
def test_the_kernels_agree_with_the_definition(case: str) -> None:
    result = check(case)
    assert result.ok, result


def check_groups(monkeypatch: pytest.MonkeyPatch) -> conformance.CaseResult:
    """Check a bias whose gradient has so few programs that they sum several examples."""
    plans = []

    def record_plan(plan: Any, *args: Any) -> None:
        plans.append(plan)
        bodies_bias(plan, *args)

    monkeypatch.setattr(bodies, "backward_bias_body", record_plan)
    monkeypatch.setattr(flash_gpu, "PROGRAMS", 2 * 2 * 5)  # 2 groups, 2 heads, 5 tiles that differ
    result = check(THREE)
    assert {(plan.examples, plan.bias_groups, plan.num_tiles) for plan in plans} == {(3, (2, 1), 5)}
    return result


@pytest.mark.full
def test_the_gradient_of_a_bias_is_summed_over_uneven_groups_of_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    result = check_groups(monkeypatch)
    assert result.ok, result


@pytest.mark.full
@pytest.mark.planted
@pytest.mark.parametrize(
    "wrong_stop",
    [
        pytest.param(lambda start, stop: jnp.minimum(start + 1, stop), id="only the first example of a group is added"),
        pytest.param(lambda start, stop: start + 2, id="the last group goes on after the last example"),
    ],
)
def test_a_mistake_in_the_groups_of_examples_is_noticed(wrong_stop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def loop(start: Any, stop: Any, body: Any, acc: Any) -> Any:
        is_over_examples = getattr(body, "__name__", "") == "example"
        return fori_loop(start, wrong_stop(start, stop) if is_over_examples else stop, body, acc)

    fori_loop = bodies.lax.fori_loop
    monkeypatch.setattr(bodies.lax, "fori_loop", loop)
    errors = check_groups(monkeypatch).errors
    assert [name for name, (error, bound) in errors.items() if not error <= bound] == ["d_table"]


@pytest.mark.full
def test_the_kernels_agree_with_the_definition_in_bfloat16() -> None:
    result = check(NEAR, "bfloat16")
    assert result.ok, result


def beside_the_diagonal_nothing(states: Any) -> Any:
    return jnp.where(jnp.eye(*states.shape[1:], dtype=bool), states, NO_PAIR)


def with_rate_of_the_first_rows(self: Any, plan: Any, queries: Any) -> Any:
    return row_hash(self, plan, queries - queries[0])


def without_far_sums(plan: Any, bias: Any, operands: Any, inputs: Any, arrays: Any, d_far: Any) -> Any:
    return bias_gradient(plan, bias, operands, inputs, arrays, None)


def two_tiles_less(self: ByDistance, *sizes: int) -> Any:
    before, after = tile_offsets(self, *sizes)
    return before - 2, after


def first_group_alone(plan: Any, *args: Any) -> Any:
    return bodies_bias(dataclasses.replace(plan, examples=1), *args)


def of_the_opposite_distance(self: Any, distance: Any) -> Any:
    return index_of_distance(self, -distance)


def without_sinks_backward(plan: Any, q: Any, k: Any, v: Any, bias: Any, sinks: Any, operands: Any, totals: Any) -> Any:
    """Return the output, whose gradients are those of attention without sinks."""
    without, out = (jnp.asarray(attend(plan, q, k, v, bias, logits, operands, totals)) for logits in (None, sinks))
    return without + jax.lax.stop_gradient(out - without)


def ignored_by_the_softmax(sinks: Any, lse: Any, delta: Any) -> Any:
    """The gradient of a factor of the output, which is not in the log-sum-exp."""
    return sink_gradient(sinks, jnp.logaddexp(lse, sinks[:, None]), delta)


def first_of_all_heads(numbers: Any) -> Any:
    return None if numbers is None else flash_gpu.pl.BlockSpec((1,), lambda i, n, b: (0,))


def one_block_short(is_active: Any) -> Any:
    return jnp.maximum(active_ranges(is_active) - jnp.array([0, 1]), 0)


row_hash, index_of_distance = bodies.Inputs.row_hash, bodies.Plan.index_of_distance
bias_gradient, active_ranges, bodies_bias = flash_gpu._bias_gradient, flash_gpu._active_ranges, bodies.backward_bias_body
attend, sink_gradient, sink_logits = flash_gpu._attend, flash_gpu.common.sink_gradient, flash_gpu.common.sink_logits
tile_offsets, block_states, is_kept, rule = ByDistance.tile_offsets, Mask.block_states, counter_rng.is_kept, Mask.rule
MISTAKES: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "tiles skipped": (Mask, "block_states", lambda *args: beside_the_diagonal_nothing(block_states(*args))),
    "the last block left out": (flash_gpu, "_active_ranges", one_block_short),
    "rows of dropout counted in their block": (bodies.Inputs, "row_hash", with_rate_of_the_first_rows),
    "the bias of the opposite distance": (bodies.Plan, "index_of_distance", of_the_opposite_distance),
    "no gradient of the bias far from the diagonal": (flash_gpu, "_bias_gradient", without_far_sums),
    "the gradient of the bias of one example": (bodies, "backward_bias_body", first_group_alone),
    "the bias constant too near": (ByDistance, "tile_offsets", two_tiles_less),
    "the sinks ignored in the backward pass": (flash_gpu, "_attend", without_sinks_backward),
    "no gradient of the sinks": (flash_gpu.common, "sink_gradient", lambda sinks, lse, delta: jnp.zeros_like(sinks)),
    "the sink counted twice in its gradient": (flash_gpu.common, "sink_gradient", ignored_by_the_softmax),
    "the sinks of other heads": (flash_gpu.common, "sink_logits", lambda sinks: sink_logits(sinks)[::-1]),
    "the first sink for all heads": (flash_gpu, "head_block", first_of_all_heads),
    "keys of other segments seen": (
        Mask,
        "rule",
        lambda self, query, key, length: rule(self, query._replace(segment=None), key, length),
    ),
}
FAST_MISTAKES = ("no gradient of the bias far from the diagonal", "no gradient of the sinks")


@pytest.mark.planted
@pytest.mark.parametrize(
    "mistake", [pytest.param(name, marks=() if name in FAST_MISTAKES else pytest.mark.slow) for name in MISTAKES]
)
def test_a_planted_mistake_is_noticed(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conformance._reference(NEAR, "float32")  # the mistakes are those of code that the reference uses too
    owner, name, wrong = MISTAKES[mistake]
    monkeypatch.setattr(owner, name, wrong)
    assert not check(NEAR).ok


def request(*, h: int = 64, dtype: Any = jnp.float32, bias: Any = None, sinks: Any = None) -> Request:
    q = jax.ShapeDtypeStruct((1, 128, 2, h), dtype)
    return Request.of(q, q, q, Mask(), bias, None, sinks)


def test_what_is_not_supported_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flash_gpu.unsupported_reason(request()) is None
    assert flash_gpu.unsupported_reason(request(h=256)) is None
    assert flash_gpu.unsupported_reason(request(h=264)) == "it takes heads of up to 256, and these are 264"
    relative = dataclasses.replace(request(h=136), features=frozenset({"relative bias"}))
    assert flash_gpu.unsupported_reason(relative) == "it takes heads of up to 128 with a relative bias, and these are 136"
    for capability, reason in ((9, None), (8, "it takes heads of up to 128 on this GPU, and these are 136")):
        monkeypatch.setattr(flash_gpu, "target_platform", lambda: "gpu")
        monkeypatch.setattr(flash_gpu, "capability", lambda capability=capability: capability)
        assert flash_gpu.unsupported_reason(request(h=136)) == reason
    reason = "it takes bfloat16, float16 and float32, and this is float64"
    with jax.enable_x64(True):
        assert flash_gpu.unsupported_reason(request(dtype=jnp.float64)) == reason
    row = attention.IMPLEMENTATIONS["flash_gpu"]
    for name in ("explicit mask", "dense bias"):
        refused = dataclasses.replace(request(), features=frozenset({name}))
        assert row.unsupported_reason(refused, "gpu") == f"it has no {name}"


def test_a_jax_without_what_the_kernels_need_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flash_gpu.PALLAS, flash_gpu.plt, ("load", "an_absent_operation"))
    reason = f"Pallas of JAX {jax.__version__} has no an_absent_operation; install the version of constraints.txt"
    assert flash_gpu.unsupported_reason(request()) == reason


def test_the_ranges_of_blocks_contain_every_tile_with_a_pair() -> None:
    is_active = jnp.asarray([[[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]]], bool)
    assert np.asarray(flash_gpu._active_ranges(is_active))[0].tolist() == [[1, 4], [0, 0], [0, 4], [3, 4]]
