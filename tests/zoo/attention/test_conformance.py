"""Every implementation against float64 on every case, planted mistakes that these cases must see, and what `blocked` stores."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Container, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.attention import conformance
from tests.support import compilation
from tests.support.processes import ROOT
from zoo.attention import attention as dispatch
from zoo.attention import masks
from zoo.attention.attention import attention
from zoo.attention.biases import ByDistance, Dense
from zoo.attention.kernels import blocked
from zoo.attention.masks import Mask
from zoo.ops import cpu_forms, reductions, tile_sizes

RUNNABLE = [name for name, row in dispatch.IMPLEMENTATIONS.items() if "cpu" in row.platforms and name != "reference"]
# Many programs that run once; what they compute is the same.
FAST = {"xla_backend_optimization_level": 0}
FEW = (
    "window",
    "packed segments",
    "positions",
    "explicit mask, rows of nothing",
    "dropout, grouped heads",
    "sinks, grouped heads, dropout",
    "dense bias of each example, causal",
    "bucket bias, one direction",
    "relative bias, memory and types",
    "relative bias, scattered queries",
)
"""Cases with every feature at least once: those of the fast tier."""
IN_HALF = (
    "causal",
    "packed segments",
    "bucket bias",
    "window",
    "sinks, grouped heads, dropout",
    "relative bias, memory and types",
)
"""Cases in bfloat16. In the full tier XLA's formula has the first three, and every other implementation the last three."""


def mark_full(names: Iterable[str], fast: Container[str]) -> list[Any]:
    """Return parameters of which only some are in the fast tier."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.full) for name in names]


def tier(impl: str, case: str) -> Any:
    """Return the marks of a case: beyond the fast tier, XLA's formula, which is the same for all cases, has it under `slow`."""
    return () if case in FEW else pytest.mark.slow if impl == "xla" else pytest.mark.full


@pytest.fixture(autouse=True)
def quick_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "UNOPTIMIZED", FAST | compilation.OPTIONS)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that every case has several of them each way."""
    monkeypatch.setitem(tile_sizes.forced, "blocked", {"queries": 128, "keys": 256})
    monkeypatch.setattr(masks, "NARROW_WINDOW", 64)


@pytest.mark.parametrize(
    ("impl", "case"), [pytest.param(impl, case, marks=tier(impl, case)) for impl in RUNNABLE for case in conformance.CASES]
)
@pytest.mark.usefixtures("small_tiles")
def test_the_kernel_agrees_with_the_definition(impl: str, case: str) -> None:
    # The cases of the full tier alone, and bfloat16, are compiled with the fusions that a user's programs have.
    with compilation.quick() if case in FEW else contextlib.nullcontext():
        result = conformance.check_implementation(impl, case, options=FAST)
    assert result.ok, result


@pytest.mark.parametrize(
    ("impl", "case"),
    [
        pytest.param(impl, case, marks=pytest.mark.full if (case in IN_HALF[:3]) == (impl == "xla") else pytest.mark.slow)
        for impl in RUNNABLE
        for case in IN_HALF
    ],
)
def test_the_kernel_agrees_with_the_definition_in_bfloat16(impl: str, case: str) -> None:
    result = conformance.check_implementation(impl, case, "bfloat16", options=FAST)
    assert result.ok, result


def features(cases: Iterable[str]) -> set[str]:
    """Return what some cases ask of attention."""
    return set().union(*(conformance.CASES[case].request().features for case in cases))


def test_every_feature_has_a_case() -> None:
    assert features(conformance.CASES) == features(FEW) == dispatch.ALL_FEATURES


def test_the_page_of_support_is_of_these_cases() -> None:
    """`python -m benchmarks.attention.conformance` writes it; a new case or implementation needs a new page."""
    page = (ROOT / "benchmarks/SUPPORT.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert rows[1:] == list(conformance.CASES)
    assert all(f"`{name}`" in page for name in dispatch.IMPLEMENTATIONS)
    assert "wrong" not in page


def _wrong(
    change: str, q: Any, k: Any, v: Any, mask: Any, bias: Any, seed: Any, heads: Any, sinks: Any = None, **options: float
) -> Any:
    """`blocked` with one mistake."""
    scale, rate = options["scale"], options["rate"]
    right = functools.partial(blocked.blocked, scale=scale, rate=rate)
    match change:
        case "scale":
            scale *= 1.001
        case "causal by one":
            mask = dataclasses.replace(mask, query_positions=jnp.arange(1, q.shape[1] + 1)[None].repeat(q.shape[0], 0))
        case "window by one":
            mask = dataclasses.replace(mask, window=mask.window + 1)
        case "bias without gradient":
            bias = jax.lax.stop_gradient(bias)
        case "leaking segments":
            mask = dataclasses.replace(mask, query_segments=None, key_segments=None)
        case "padding seen":
            mask = dataclasses.replace(mask, key_lengths=mask.key_lengths + 1)
        case "another dropout":
            seed = seed + jnp.uint32(1)
        case "dropout without scale":
            return right(q, k, v, mask, bias, seed, heads) * (1 - rate)
        case "the same dropout in every head":
            heads = jnp.zeros_like(heads)
        case "groups in the wrong order":
            k, v = k[:, :, ::-1], v[:, :, ::-1]
        case "ranks not strict":
            mask = dataclasses.replace(mask, strict=False)
        case "distances by one":
            bias = dataclasses.replace(bias, first=bias.first + 1)
        case "no types":
            bias = dataclasses.replace(bias, q_s=None)
        case "sink with a value":
            weight_of_keys = right(q, k, jnp.ones_like(v), mask, bias, seed, heads, sinks)
            return right(q, k, v, mask, bias, seed, heads, sinks) + (1 - weight_of_keys) * v.mean(1, keepdims=True)
        case "sink without gradient":
            sinks = jax.lax.stop_gradient(sinks)
        case "sink added after the softmax":
            return right(q, k, v, mask, bias, seed, heads) / (1 + jnp.exp(sinks))[:, None]
        case "sink scaled":
            sinks = sinks * scale
        case "sinks in the wrong order":
            sinks = sinks[::-1]
    return blocked.blocked(q, k, v, mask, bias, seed, heads, sinks, scale=scale, rate=rate)


MISTAKES = {
    "scale": "full",
    "causal by one": "causal",
    "window by one": "window",
    "bias without gradient": "dense bias",
    "leaking segments": "packed segments",
    "padding seen": "key lengths",
    "another dropout": "dropout",
    "dropout without scale": "dropout",
    "the same dropout in every head": "dropout, grouped heads",
    "groups in the wrong order": "grouped heads",
    "ranks not strict": "query ranks",
    "distances by one": "relative bias, memory and types",
    "no types": "relative bias, memory and types",
    "sink with a value": "sinks",
    "sink without gradient": "sinks",
    "sink added after the softmax": "sinks",
    "sink scaled": "sinks",
    "sinks in the wrong order": "sinks",
}


@pytest.mark.planted
@pytest.mark.parametrize("mistake", mark_full(MISTAKES, ("window by one", "no types", "sink without gradient")))
def test_a_planted_mistake_is_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(mistake, monkeypatch)
    with compilation.quick():
        assert not conformance.check_implementation("planted", MISTAKES[mistake], options=FAST).ok


@pytest.mark.full
def test_the_planted_kernel_without_a_mistake_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    plant("", monkeypatch)
    assert conformance.check_implementation("planted", "full", options=FAST).ok


def plant(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add an implementation with a mistake to the table."""
    row = dataclasses.replace(dispatch.IMPLEMENTATIONS["blocked"], module=__name__, function="planted")
    monkeypatch.setitem(dispatch.IMPLEMENTATIONS, "planted", row)
    monkeypatch.setattr(sys.modules[__name__], "planted", functools.partial(_wrong, mistake), raising=False)


@pytest.mark.planted
def test_a_nan_error_is_not_an_agreement() -> None:
    assert not conformance.CaseResult({"out": (float("nan"), 1.0)}).ok


BODIES = {
    "one tile for many heads and examples": (4, 24, 24, 4, 2),
    "several tiles of queries and keys": (1, 1100, 1300, 2, 2),
    "one query": (3, 1, 700, 4, 1),
    "one key": (2, 300, 1, 2, 2),
}


@pytest.mark.full
@pytest.mark.parametrize("shape", BODIES)
def test_any_tile_sizes_give_the_same_attention(shape: str) -> None:
    b, t, s, n, groups = BODIES[shape]
    rng = np.random.default_rng(0)
    q, k, v = (jnp.float32(rng.standard_normal(size)) for size in ((b, t, n, 8), (b, s, groups, 8), (b, s, groups, 8)))
    mask = Mask(key_lengths=jnp.asarray(rng.integers(0, s + 1, b), jnp.int32))
    bias = Dense(values=jnp.float32(rng.standard_normal((1, n, 1, s))))

    def value(impl: str, *arrays: Any) -> Any:
        *qkv, values = arrays
        dropout = (0.1, jnp.ones((b, 2), jnp.uint32))
        return jnp.sin(attention(*qkv, mask=mask, bias=Dense(values=values), dropout=dropout, impl=impl)).sum()

    ours, theirs = (
        jax.jit(jax.grad(functools.partial(value, impl), argnums=(0, 1, 2, 3)))(q, k, v, bias.values)
        for impl in ("blocked", "xla")
    )
    for one, other in zip(ours, theirs, strict=True):
        # A bias is summed over all queries, and so is what is rounded off.
        np.testing.assert_allclose(one, other, atol=max(1e-5, t * 2.0**-22), rtol=1e-5)


DOCUMENTS = np.array([[1] * 8 + [2] * 16 + [0] * 8, [1] * 3 + [2] * 13 + [3] * 16])
SKIPPED = {
    "full": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=12),
    "window to both sides": Mask(window=2),
    "key lengths": Mask(key_lengths=np.array([3, 9])),
    "causal key lengths": Mask(causal=True, window=9, key_lengths=np.array([30, 25])),
    "segments": Mask(query_segments=DOCUMENTS, key_segments=DOCUMENTS),
    "positions": Mask(causal=True, query_positions=DOCUMENTS, key_positions=np.arange(32)[None].repeat(2, 0)),
    "ranks": Mask(strict=True, query_ranks=np.arange(32)[None] // 5, key_ranks=np.arange(32)[None] // 5),
}


def test_fully_masked_blocks_are_skipped() -> None:
    """Of 32 queries and keys in blocks of 8 exactly those with an allowed pair are computed."""
    plan = blocked.Plan(block_q=8, block_k=8, num_q_blocks=4, num_k_blocks=4, examples=2, heads=1, scale=1.0, rate=0.0)
    group = plan.group_tile(jnp.zeros((2, 1, 1, 32, 8)), jnp.int32(0))
    for name, mask in SKIPPED.items():
        mask = jax.tree.map(jnp.asarray, mask)
        allowed = mask.dense(32, 32)
        key_blocks, query_blocks = plan.block_ranges(mask)
        dense = np.broadcast_to(True if allowed is None else np.asarray(allowed).any((0, 1)), (32, 32))
        blocks = dense.reshape(4, 8, 4, 8).any((1, 3))
        for i in range(4):
            for (start, stop), computed in (
                (plan.k_block_range(key_blocks, group, jnp.int32(i)), blocks[i]),
                (plan.q_block_range(query_blocks, group, jnp.int32(i)), blocks[:, i]),
            ):
                assert [start <= j < stop for j in range(4)] == list(computed), name


def sliced_maxima(monkeypatch: pytest.MonkeyPatch, platform: str) -> int:
    """Return the slices in a forward pass for a platform, in which the form for a CPU takes the maxima of halves."""
    monkeypatch.setattr(cpu_forms, "target_platform", lambda: platform)
    q = jnp.ones((1, 64, 1, 8))
    program = str(jax.make_jaxpr(lambda q: attention(q, q, q, mask=Mask(), impl="blocked"))(q))
    assert ("reduce_sum" in program) == (platform != "cpu")
    return program.count(" slice[")


def test_an_accelerator_takes_maxima_and_sums_of_rows_in_their_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sliced_maxima(monkeypatch, "gpu") == sliced_maxima(monkeypatch, "tpu") < sliced_maxima(monkeypatch, "cpu")


@pytest.mark.planted
def test_the_form_for_a_cpu_on_an_accelerator_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked.row_max, "plain", reductions._row_max_by_halves)
    with pytest.raises(AssertionError):
        test_an_accelerator_takes_maxima_and_sums_of_rows_in_their_plain_form(monkeypatch)


@pytest.mark.parametrize("case", [pytest.param("causal", marks=pytest.mark.full), "key lengths"])
def test_the_plain_form_agrees_with_the_definition(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_forms, "target_platform", lambda: "gpu")
    with compilation.quick():
        result = conformance.check_implementation("blocked", case, options=FAST)
    assert result.ok, result


def temporaries(impl: str, length: int, bias: bool) -> int:
    """Return the bytes that the compiled forward and backward pass needs beside its arguments and results."""
    q = jax.ShapeDtypeStruct((1, length, 2, 64), jnp.float32)
    table = jax.ShapeDtypeStruct((2 * length, 2), jnp.float32)

    def pull(q: Any, k: Any, v: Any, values: Any, cotangent: Any) -> Any:
        def value(q: Any, k: Any, v: Any, values: Any) -> Any:
            by_distance = ByDistance(values=values, first=length - 1) if bias else None
            return attention(q, k, v, mask=Mask(causal=True), bias=by_distance, impl=impl)

        return jax.vjp(value, q, k, v, values)[1](cotangent)

    return jax.jit(pull).lower(q, q, q, table, q).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("bias", [pytest.param(False, marks=pytest.mark.slow), pytest.param(True, marks=pytest.mark.full)])
def test_memory_is_linear_in_length(bias: bool) -> None:
    short, long = (temporaries("blocked", length, bias) for length in (2048, 8192))
    assert long < 4.5 * short
    assert long < temporaries("xla", 8192, bias) / 20
    assert temporaries("xla", 8192, bias) > 10 * temporaries("xla", 2048, bias), "the check sees what is not linear"


@pytest.mark.full
def test_no_gradient_is_computed_for_a_dense_bias_that_is_not_trained() -> None:
    """The compiler drops the sums of a gradient that is not used."""
    q = jax.ShapeDtypeStruct((1, 2048, 1, 64), jnp.float32)
    values = jax.ShapeDtypeStruct((1, 1, 2048, 2048), jnp.float32)

    def value(q: Any, values: Any) -> Any:
        return attention(q, q, q, mask=Mask(), bias=Dense(values=values), impl="blocked").sum()

    def size(argnums: Any) -> int:
        memory = jax.jit(jax.grad(value, argnums=argnums)).lower(q, values).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    assert size(0) < size((0, 1)) - 2048 * 2048 * 4 / 2


def test_remat_keeps_the_output_and_the_sums() -> None:
    """With the names saved, the gradient runs the backward loops alone: the forward one is not there a second time."""
    q = jnp.ones((1, 1100, 2, 8))

    def loops(policy: Any) -> int:
        def value(q: Any) -> Any:
            return jnp.sin(attention(jnp.sin(q), q, q, mask=Mask(causal=True), impl="blocked")).sum()

        program = jax.make_jaxpr(jax.grad(jax.checkpoint(value, policy=policy)))(q)
        return str(program).count("while[")

    saved = jax.checkpoint_policies.save_only_these_names("attention", "attention_lse")
    assert loops(jax.checkpoint_policies.everything_saveable) == loops(saved) < loops(jax.checkpoint_policies.nothing_saveable)
