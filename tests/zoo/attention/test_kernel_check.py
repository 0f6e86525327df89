"""The check of kernels before their first use: right kernels pass, and planted wrong ones are refused in one line."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from benchmarks.attention.conformance_cases import CASES
from tests.support import compilation
from train.config.run_config import Machine
from zoo.attention import attention, kernel_check
from zoo.attention.biases import Buckets
from zoo.attention.kernel_check import FirstUses, measure_error, require_correct
from zoo.attention.kernels.blocked import blocked
from zoo.attention.kernels.dense_xla import xla
from zoo.attention.masks import Mask
from zoo.attention.request import RING, Request
from zoo.cli.command_setup import set_attention_check
from zoo.errors import BadInput

CORRECT = 0.012
"""Largest error of a correct kernel, of which `kernel_check.TOLERANCE` is four times."""
FAST = [
    ("xla", "sinks, grouped heads, dropout"),
    ("blocked", "relative bias, scattered queries"),
    ("flash_tpu", "packed segments"),
    ("flash_gpu", "causal"),
]
FULL = [
    *((impl, case) for impl in ("xla", "blocked") for case in CASES if (impl, case) not in FAST),
    *(("flash_tpu", case) for case in ("bucket bias", "dropout, grouped heads", "window to both sides", "content ranks")),
    *(("flash_tpu", case) for case in ("relative bias, memory and types", "relative bias, scattered queries")),
    *(("flash_gpu", case) for case in ("bucket bias", "packed segments", "dropout, grouped heads", "window")),
]


def measure(
    kernel: Any, case: str, dtype: str = "bfloat16", head: int = 64, *, in_ring: bool = False
) -> kernel_check.KernelError:
    call = CASES[case]
    request = call.request()
    features = request.features | ({RING} if in_ring else set())
    request = dataclasses.replace(request, features=features, dtype=dtype, shape=(*request.shape[:5], head))
    with compilation.quick():
        return measure_error(kernel, request, call.mask(call), None if call.bias is None else call.bias(call))


@pytest.mark.parametrize(("impl", "case"), [*FAST, *(pytest.param(*pair, marks=pytest.mark.full) for pair in FULL)])
def test_a_right_kernel_passes(impl: str, case: str) -> None:
    """Kernels of the CPU, and those of accelerators in Pallas's interpreter."""
    result = measure(attention.IMPLEMENTATIONS[impl].load(), case)
    assert 0 < result.error <= CORRECT and result.seconds > 0, result
    require_correct(impl, CASES[case].request(), "here", result)


RINGS = [
    ("blocked", "sinks, grouped heads, dropout"),
    *(("blocked", case) for case in ("bucket bias", "relative bias, scattered queries", "content ranks")),
    *(("flash_tpu", case) for case in ("dropout, grouped heads", "bucket bias", "window to both sides")),
    *(("flash_gpu", case) for case in ("dropout, grouped heads", "bucket bias")),
]


@pytest.mark.parametrize(("impl", "case"), [RINGS[0], *(pytest.param(*pair, marks=pytest.mark.full) for pair in RINGS[1:])])
def test_a_right_kernel_of_chunks_passes(impl: str, case: str) -> None:
    result = measure(attention.IMPLEMENTATIONS[impl].load(), case, in_ring=True)
    assert 0 < result.error <= CORRECT, result


@pytest.mark.planted(2)
def test_a_wrong_kernel_of_chunks_is_caught() -> None:
    """The mistakes: a log-sum-exp that is too large by one, and dropout by the indices in the chunk."""

    def wrong_totals(*arrays: Any, return_totals: bool = False, **options: Any) -> Any:
        result: Any = blocked(*arrays, return_totals=return_totals, **options)
        return result._replace(lse=result.lse + arrays[5][:, 3].max()) if return_totals else result

    def local_indices(*arrays: Any, **options: Any) -> Any:
        return blocked(*arrays[:5], arrays[5][:, :2], *arrays[6:], **options)

    for wrong in (wrong_totals, local_indices):
        assert measure(wrong, "dropout, grouped heads", in_ring=True).error > kernel_check.TOLERANCE


def wrong_scale(q: Any, *arrays: Any, scale: float, rate: float) -> Any:
    return xla(q, *arrays, scale=1.1 * scale, rate=rate)


def late_mask(q: Any, k: Any, v: Any, mask: Mask, *arrays: Any, scale: float, rate: float) -> Any:
    """Let every query see one key that it should not."""
    positions = jnp.broadcast_to(jnp.arange(q.shape[1]), q.shape[:2])
    return xla(q, k, v, dataclasses.replace(mask, query_positions=positions + 1), *arrays, scale=scale, rate=rate)


def lost_gradient(q: Any, k: Any, v: Any, *arrays: Any, scale: float, rate: float) -> Any:
    """Compute the gradient of the keys from half of the queries."""
    half = q.shape[1] // 2
    upper = xla(q, k, v, *arrays, scale=scale, rate=rate)[:, :half]
    lower = xla(q, jax.lax.stop_gradient(k), v, *arrays, scale=scale, rate=rate)[:, half:]
    return jnp.concatenate([upper, lower], 1)


def not_a_number(*arrays: Any, scale: float, rate: float) -> Any:
    return xla(*arrays, scale=scale, rate=rate).at[1, 3].multiply(jnp.nan)


def other_dropout(q: Any, k: Any, v: Any, mask: Any, bias: Any, seed: Any, heads: Any, *, scale: float, rate: float) -> Any:
    """Drop other entries than those that follow from the seeds and the heads."""
    return xla(q, k, v, mask, bias, seed, heads + 1, scale=scale, rate=rate)


def lost_bias(q: Any, k: Any, v: Any, mask: Any, bias: Any, *arrays: Any, scale: float, rate: float) -> Any:
    """Leave out the gradient of a table."""
    return xla(q, k, v, mask, jax.tree.map(jax.lax.stop_gradient, bias), *arrays, scale=scale, rate=rate)


WRONG: dict[Callable[..., Any], tuple[str, str]] = {
    wrong_scale: ("causal", ""),
    late_mask: ("causal", ""),
    lost_gradient: ("causal", "d_k"),
    not_a_number: ("causal", ""),
    other_dropout: ("dropout", ""),
    lost_bias: ("bucket bias", "d_table"),
}
"""Wrong kernel -> case that sees it, and the array whose error is the largest; "": several have errors."""


@pytest.mark.planted
@pytest.mark.parametrize("wrong", WRONG, ids=lambda kernel: kernel.__name__)
def test_a_wrong_kernel_is_caught(wrong: Callable[..., Any]) -> None:
    case, array = WRONG[wrong]
    result = measure(wrong, case)
    assert not result.error <= 3 * kernel_check.TOLERANCE and array in ("", result.array), result
    request = dataclasses.replace(CASES[case].request(), dtype="bfloat16")
    with pytest.raises(BadInput, match=r"attention 'splash' computes wrong numbers on TPU v6e in bfloat16 with ") as refusal:
        require_correct("splash", request, "TPU v6e", result)
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith("and report this")


@pytest.fixture
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> FirstUses:
    """Check the kernels of the CPU as if it were an accelerator, in a process that has checked none."""
    uses = FirstUses()
    monkeypatch.setattr(attention, "first_uses", uses)
    monkeypatch.setattr(kernel_check, "_is_accelerator_here", lambda: True)
    return uses


def total(q: Any, impl: str, mask: Mask, bias: Any = None) -> Any:
    return attention.attention(q, q, q, mask=mask, bias=bias, impl=impl).astype(jnp.float32).sum()


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_a_kernel_is_checked_once_for_its_features_inside_a_traced_program(capsys: pytest.CaptureFixture[str]) -> None:
    """The call is traced under a mesh, in a loop and by a gradient, none of which the check may become a part of."""
    q = jnp.ones((8, 16, 2, 8), jnp.bfloat16)
    segments = jnp.ones((8, 16), jnp.int32)

    def loss(q: Any, segments: Any) -> Any:
        packed = Mask(causal=True, query_segments=segments, key_segments=segments)
        step = jax.checkpoint(lambda carry, _: (carry + total(q, "blocked", packed), None))
        return jax.lax.scan(step, jnp.float32(0), None, length=2)[0] + total(q, "blocked", packed)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), compilation.quick():
        gradient = jax.jit(jax.grad(loss))(q, segments)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("attention blocked checked on cpu: largest error ") and line.endswith(" s)")
    with compilation.quick():
        jax.jit(lambda q: total(q, "blocked", Mask(causal=True)))(q)
        jax.jit(lambda q: total(q, "blocked", Mask(causal=True)))(2 * q[:2])
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.planted
def test_a_wrong_kernel_does_not_run(as_on_an_accelerator: FirstUses, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataclasses.replace(attention.IMPLEMENTATIONS["xla"], module=__name__, function="late_mask")
    monkeypatch.setitem(attention.IMPLEMENTATIONS, "xla", row)
    monkeypatch.setattr(attention, "implementation_status", lambda: [("xla", True, ""), ("splash", False, "it runs on tpu")])
    q = jnp.ones((2, 16, 2, 8), jnp.float32)
    with pytest.raises(BadInput, match="attention 'xla' computes wrong numbers on cpu in float32 with causal: "):
        jax.jit(lambda q: total(q, "xla", Mask(causal=True)))(q)
    # It stays refused, and --attention-check off lets it run.
    with pytest.raises(BadInput, match="wrong numbers"):
        total(q, "xla", Mask(causal=True))
    (line,) = attention.wrong_kernels()
    assert "'xla' computes wrong numbers on cpu in bfloat16 with causal" in line
    as_on_an_accelerator.enabled = False
    assert total(q, "xla", Mask(causal=True)) == q.size and attention.wrong_kernels() == []


def test_nothing_is_checked_on_a_cpu_or_for_absent_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: Any) -> Any:
        raise AssertionError("it was checked")

    monkeypatch.setattr(kernel_check, "measure_error", measured)
    q = jnp.ones((2, 16, 2, 8), jnp.bfloat16)
    assert total(q, "blocked", Mask()) == q.size
    device = AbstractDevice("TPU v6 lite", 1, "tpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        row = attention.IMPLEMENTATIONS["splash"]
        FirstUses().check("splash", row.load(), Request.of(q, q, q, Mask(), None, None), Mask(), None)
    assert attention.wrong_kernels() == []


def test_the_option_switches_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_check, "first_uses", FirstUses())
    set_attention_check(Machine(attention_check="off"))
    assert not kernel_check.first_uses.enabled
    set_attention_check(Machine())
    assert kernel_check.first_uses.enabled


def test_traced_arrays_of_a_bias_are_replaced() -> None:
    """The arrays of the program that is traced have no values yet."""
    errors = []

    def trace(table: Any) -> Any:
        request = Request(features=frozenset({"bucket bias"}), shape=(1, 512, 512, 4, 4, 16), dtype="float32")
        with jax.ensure_compile_time_eval(), compilation.quick():
            errors.append(measure_error(xla, request, Mask(), Buckets(table=table)).error)
        return table

    jax.eval_shape(trace, jnp.ones((32, 4)))
    assert errors[0] < 1e-5
