"""The kernels of `flash_tpu`, run by the interpreter of Pallas, against float64; planted mistakes that these cases must see; and
what `Mask.block_states`, which the kernels and `blocked` use, says of every tile."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.attention import conformance
from tests.support import compilation
from tests.zoo.attention.test_accelerator_kernels import masks
from zoo.attention import attention
from zoo.attention.biases import ByDistance, Relative
from zoo.attention.kernels import _flash_tpu_bodies, _flash_tpu_calls, _flash_tpu_plan, flash_tpu
from zoo.attention.kernels import _flash_tpu_xlnet_bias as relative
from zoo.attention.masks import ALL_PAIRS, NO_PAIR, SOME_PAIRS, Mask
from zoo.attention.request import Request
from zoo.ops import tile_sizes

OPTIONS = {"xla_backend_optimization_level": 0, **compilation.OPTIONS}
SINKS = "sinks, grouped heads, dropout"
FAST = ("packed segments", "bucket bias, one direction", "positions", "relative bias, scattered queries", SINKS)
SLOW = ("full", "window", "content ranks", "grouped heads", "head 152", "key lengths", "length 1", "dropout", "relative bias")
"""Cases that others contain."""


def supported() -> list[str]:
    """Return the cases of the kernels' features."""
    row = attention.IMPLEMENTATIONS["flash_tpu"]
    return [name for name, case in conformance.CASES.items() if case.request().features <= row.features]


def tier(case: str) -> Any:
    return () if case in FAST else pytest.mark.slow if case in SLOW else pytest.mark.full


def check(case: str, dtype: str = "float32") -> conformance.CaseResult:
    with attention.interpreted("flash_tpu"):
        return conformance.check_implementation("flash_tpu", case, dtype, options=OPTIONS)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that every case has several of them."""
    monkeypatch.setitem(tile_sizes.forced, "flash_tpu", {"block": 128})


@pytest.fixture(autouse=True)
def quick_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "UNOPTIMIZED", OPTIONS)


@pytest.mark.parametrize("case", [pytest.param(case, marks=tier(case)) for case in supported()])
@pytest.mark.usefixtures("small_blocks")
def test_the_kernels_agree_with_the_definition(case: str) -> None:
    result = check(case)
    assert result.ok, result


@pytest.mark.full
def test_the_kernels_agree_with_the_definition_in_blocks_of_the_largest_size() -> None:
    result = check("dropout, grouped heads")
    assert result.ok, result


@pytest.mark.full
@pytest.mark.usefixtures("small_blocks")
def test_the_kernels_agree_with_the_definition_in_bfloat16() -> None:
    result = check("bucket bias, one direction", "bfloat16")
    assert result.ok, result


def no_rules(self: Mask, *sizes: int) -> Any:
    states = block_states(self, *sizes)
    return jnp.where(states == SOME_PAIRS, ALL_PAIRS, states)


def nothing_beside_the_diagonal(self: Mask, *sizes: int) -> Any:
    states = block_states(self, *sizes)
    return jnp.where(jnp.eye(*states.shape[1:], dtype=bool), states, NO_PAIR)


def constant_beside_the_diagonal(self: ByDistance, *sizes: int) -> Any:
    return square_tiles(dataclasses.replace(self, constant_from=1), *sizes)


def of_the_next_block(plan: Any, i: Any, j: Any) -> Any:
    return tile_of_bias(plan, i, j + 1)


def distances_of_the_next_block(plan: Any, i: Any, j: Any) -> Any:
    return jnp.minimum(distances_of_tile(plan, i, j) + 1, plan.num_q + plan.num_k - 2)


def rolled_by_one_more(plan: Any, rows: Any, amount: Callable[[Any], Any], *args: Any) -> None:
    roll_rows(plan, rows, lambda position: amount(position) + 1, *args)


def reversed_differently(self: Any, plan: Any, sums: Any) -> Any:
    gradient = positions_gradient(self, plan, sums)
    return dataclasses.replace(gradient, q_r=relative.reverse_blocks(gradient.q_r, plan.block_q))


def without_sinks_backward(plan: Any, q: Any, k: Any, v: Any, bias: Any, sinks: Any, operands: Any, totals: Any) -> Any:
    """Return the output, whose gradients are those of attention without sinks."""
    without, out = (jnp.asarray(attend(plan, q, k, v, bias, logits, operands, totals)) for logits in (None, sinks))
    return without + jax.lax.stop_gradient(out - without)


def of_the_heads_beside(sinks: Any, lse: Any, delta: Any) -> Any:
    return sink_gradient(sinks, lse[:, ::-1], delta)


attend, sink_gradient, sink_logits = flash_tpu.attend, _flash_tpu_calls.sink_gradient, flash_tpu.sink_logits
distances_of_tile, roll_rows, types_differ = _flash_tpu_plan.Plan.distances_of_tile, relative._roll_rows, relative._types_differ
by_key, positions_gradient = relative._by_key, relative.Positions.gradient
MEMORY, SCATTERED = "relative bias, memory and types", "relative bias, scattered queries"
block_states, square_tiles, tile_of_bias = Mask.block_states, ByDistance.square_tiles, _flash_tpu_plan.Plan.tile_of_bias
MISTAKES: dict[str, tuple[Any, str, Any, str]] = {
    "tiles of the mask taken for full ones": (Mask, "block_states", no_rules, "packed segments"),
    "tiles skipped": (Mask, "block_states", nothing_beside_the_diagonal, "packed segments"),
    "the first block fetched again": (_flash_tpu_calls, "_block_to_fetch", jnp.zeros_like, "packed segments"),
    "the bias constant too near": (ByDistance, "square_tiles", constant_beside_the_diagonal, "bucket bias"),
    "the bias of the next block": (_flash_tpu_plan.Plan, "tile_of_bias", of_the_next_block, "bucket bias, one direction"),
    "indices within the block": (_flash_tpu_bodies, "iota", lambda shape, axis, _: iota(shape, axis, 0), "dropout"),
    "the distances of the next block": (_flash_tpu_plan.Plan, "distances_of_tile", distances_of_the_next_block, MEMORY),
    "the distance one too small": (relative, "_by_key", lambda x: jnp.roll(by_key(x), 1, 1), MEMORY),
    "rows of the gradient in their order": (relative, "_reverse_rows", lambda x: x, MEMORY),
    "gradients of queries reversed": (relative.Positions, "gradient", reversed_differently, MEMORY),
    "equal types taken for different ones": (relative, "_types_differ", lambda *args: ~types_differ(*args), MEMORY),
    "scattered rows rolled by one more": (relative, "_roll_rows", rolled_by_one_more, SCATTERED),
    "the sinks ignored in the backward pass": (flash_tpu, "attend", without_sinks_backward, SINKS),
    "no gradient of the sinks": (_flash_tpu_calls, "sink_gradient", lambda sinks, *_: jnp.zeros_like(sinks), SINKS),
    "gradients of the sinks by other heads": (_flash_tpu_calls, "sink_gradient", of_the_heads_beside, SINKS),
    "the sinks of other heads": (flash_tpu, "sink_logits", lambda sinks: sink_logits(sinks)[::-1], SINKS),
    "the sink in the sum of each lane": (_flash_tpu_bodies, "LANES", 1, SINKS),
}
FAST_MISTAKES = ("the bias of the next block", "no gradient of the sinks", "scattered rows rolled by one more")
iota = _flash_tpu_bodies.iota


@pytest.mark.planted
@pytest.mark.parametrize(
    "mistake", [pytest.param(name, marks=() if name in FAST_MISTAKES else pytest.mark.slow) for name in MISTAKES]
)
@pytest.mark.usefixtures("small_blocks")
def test_a_planted_mistake_is_noticed(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong, case = MISTAKES[mistake]
    monkeypatch.setattr(owner, name, wrong)
    assert not check(case).ok


def check_states(states: Callable[..., Any] = block_states) -> None:
    """Compare with the dense mask, tile by tile, of blocks of different sizes."""
    for name, mask in masks(24).items():
        dense = mask.dense(24, 24)
        pairs = np.broadcast_to(True if dense is None else np.asarray(dense), (2, 1, 24, 24))[:, 0]
        tiles = pairs.reshape(2, 4, 6, 3, 8).transpose(0, 1, 3, 2, 4).reshape(2, 4, 3, 48)
        computed = np.broadcast_to(np.asarray(states(mask, 6, 8, 24, 24)), (2, 4, 3))
        assert not tiles[computed == NO_PAIR].any(), name
        assert tiles[computed == ALL_PAIRS].all(), name
        if name in ("full", "causal", "window", "band", "key lengths"):
            # With indices alone nothing is missed.
            exact = np.where(tiles.all(-1), ALL_PAIRS, np.where(tiles.any(-1), SOME_PAIRS, NO_PAIR))
            assert (computed == exact).all(), name


def test_the_states_of_tiles_are_those_of_the_dense_mask() -> None:
    check_states()


@pytest.mark.planted(2)
def test_wrong_states_are_noticed() -> None:
    for wrong in (no_rules, nothing_beside_the_diagonal):
        with pytest.raises(AssertionError):
            check_states(wrong)


def test_sorted_segments_are_skipped() -> None:
    segments = jnp.asarray([[1] * 8 + [2] * 8 + [0] * 8])
    states = Mask(causal=True, query_segments=segments, key_segments=segments).block_states(8, 8, 24, 24)
    assert np.asarray(states)[0].tolist() == [[SOME_PAIRS, 0, 0], [0, SOME_PAIRS, 0], [0, 0, 0]]


def request(*, t: int = 128, s: int = 128, h: int = 64, bias: Any = None, dropout: Any = None) -> Request:
    q, k = (jax.ShapeDtypeStruct((1, length, 2, h), jnp.float32) for length in (t, s))
    return Request.of(q, k, k, Mask(), bias, dropout)


def relative_bias(length: int, missing: int = 0) -> Relative:
    q_r = jax.ShapeDtypeStruct((1, length, 2, 64), jnp.float32)
    return Relative(q_r=q_r, r=jax.ShapeDtypeStruct((2, 64, 2 * length - missing), jnp.float32), first=length)


def test_what_does_not_fit_is_refused_with_the_limit() -> None:
    assert flash_tpu.unsupported_reason(request()) is None
    assert flash_tpu.unsupported_reason(request(h=512)) == "it takes heads of up to 256, and these are 512"
    reason = "its backward pass takes up to 16384 queries of heads of 64, and these are 16512"
    assert flash_tpu.unsupported_reason(request(t=16512)) == reason
    reason = "with a relative bias it takes up to 4096 queries and keys of heads of 64, and these are 8192 and 8192"
    assert flash_tpu.unsupported_reason(request(t=8192, s=8192, bias=relative_bias(8192))) == reason
    assert flash_tpu.unsupported_reason(request(t=4096, s=4096, bias=relative_bias(4096))) is None


def scattered_reason(keys: int, first: int) -> str | None:
    """Return why scattered queries among so many keys, with distances from `first` on, are refused."""
    q_r, at = jax.ShapeDtypeStruct((1, 64, 2, 64), jnp.float32), jax.ShapeDtypeStruct((1, 64), jnp.int32)
    r = jax.ShapeDtypeStruct((2, 64, 2 * keys), jnp.float32)
    return flash_tpu.unsupported_reason(request(t=64, s=keys, bias=Relative(q_r=q_r, r=r, first=first, query_positions=at)))


@pytest.mark.planted
def test_too_many_distances_of_scattered_queries_are_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels keep those of padded keys, 2,560 in place of 2,100; a limit of those without padding is noticed."""
    assert scattered_reason(2048, 2047) is None and scattered_reason(2100, 1536) is None
    reason = "with scattered queries it takes up to 4096 distances of padded keys, and these are 4608"
    assert scattered_reason(2049, 2048) == reason and scattered_reason(2100, 1990) == reason
    monkeypatch.setattr(flash_tpu, "_padded_distances", lambda first, s, largest: first + s)
    with pytest.raises(AssertionError):
        assert scattered_reason(2100, 1990) == reason


def test_distances_beyond_the_table_are_refused() -> None:
    with pytest.raises(attention.BadInput, match=r"needs the distances 127 \.\. -127, and has 128 \.\. -126"):
        request(bias=relative_bias(128, missing=1))


SHORT = 20
"""Keys of the check of missing distances."""


def check_missing_distances() -> None:
    """Compare with `xla`: of the distances 17 .. -16 the second query lacks the largest, the last one the smallest ones."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((1, length, 1, 16)), jnp.float32) for length in (4, SHORT, SHORT))
    r = jnp.asarray(rng.standard_normal((1, 16, SHORT + 14)), jnp.float32)
    bias = Relative(q_r=q, r=r, first=SHORT - 3, query_positions=jnp.asarray([[3, SHORT - 1, 12, 0]]))

    def attend(impl: str) -> Any:
        return jax.jit(lambda q: attention.attention(q, k, v, mask=Mask(), bias=bias, impl=impl), compiler_options=OPTIONS)(q)

    with attention.interpreted("flash_tpu"):
        outputs = [np.asarray(attend(impl))[0] for impl in ("xla", "flash_tpu")]
    assert np.isnan(outputs[0]).all((1, 2)).tolist() == [False, True, False, True]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)


@pytest.mark.full
def test_scattered_queries_beyond_the_table_are_nan() -> None:
    check_missing_distances()


@pytest.mark.full
@pytest.mark.planted
def test_distances_that_wrap_around_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_tpu, "_with_existing_distances", lambda bias, s: bias)
    with pytest.raises(AssertionError):
        check_missing_distances()


def test_dropout_without_seeds_is_refused() -> None:
    with pytest.raises(attention.BadInput, match=r"dropout needs seeds uint32\[1, 2\], \[B, 2\], and these are None"):
        request(dropout=(0.1, None))


def test_a_jax_without_what_the_kernels_need_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flash_tpu.PALLAS, flash_tpu.pltpu, ("roll", "an_absent_operation"))
    reason = f"Pallas of JAX {jax.__version__} has no an_absent_operation; install the version of constraints.txt"
    assert flash_tpu.unsupported_reason(request()) == reason
