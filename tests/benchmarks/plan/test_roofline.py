"""The roofs of `zoo plan`: the three times that bound a step, from published numbers, and the products they count."""

import dataclasses
import math
from collections.abc import Sequence
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks.plan import hlo, roofline, targets, work
from benchmarks.plan.collectives import Sent
from benchmarks.plan.hlo import Computation, Instruction
from benchmarks.plan.hlo import Run as Executed
from benchmarks.plan.work import Work
from zoo import attention
from zoo.masks import Mask


def devices(count: int, *torus: int) -> np.ndarray:
    """Devices of hosts of eight, or of a torus of that shape."""
    coords = list(np.ndindex(*torus)) if torus else [(0,)] * count
    each = [SimpleNamespace(id=n, coords=coords[n % len(coords)], platform="tpu" if torus else "gpu") for n in range(count)]
    return np.array(each, object)


def sending(kind: str, groups: Sequence[Sequence[int]], size: float = 1e9) -> Sent:
    """An exchange of 1 GB."""
    instruction, listed = Instruction("x", kind, (), (), "", "", False), tuple(map(tuple, groups))
    run = Executed(instruction, Computation("c", {}), 1.0, "")
    return Sent(run, kind, "data", max(map(len, listed)), size, (), listed)


def rows(*shape: int) -> list[list[int]]:
    """Groups along the last of some axes."""
    return np.arange(math.prod(shape)).reshape(-1, shape[-1]).tolist()


def columns(*shape: int) -> list[list[int]]:
    """Along the first of two."""
    return np.arange(math.prod(shape)).reshape(shape).T.tolist()


def seconds(target: str, sent: Sequence[Sent], *torus: int) -> float | None:
    count = math.prod(torus) if torus else int(target.partition(":")[2])
    nothing = Work(products=0.0, kernels=0.0, bytes=0.0, unknown=())
    return roofline.times(nothing, sent, devices(count, *torus), targets.parse(target), "bfloat16").interconnect


def test_time_between_hosts_is_the_networks() -> None:
    """A gather of 1 GB: of 8 H100 over NVLink, 7/8 GB at 450 GB/s; of 16 on two hosts, half of it over the 8 ports of each."""
    assert seconds("h100:8", [sending("all-gather", rows(8))]) == pytest.approx(7 / 8 / 450)
    assert seconds("h100:16", [sending("all-gather", rows(16))]) == pytest.approx(max(7 / 8 / 450, 1 / 2 / 8 / 50))
    # One device of each host: everything goes through its own port.
    assert seconds("h100:16", [sending("all-gather", columns(2, 8))]) == pytest.approx(1 / 2 / 50)


def test_a_sum_is_taken_in_the_switches_where_that_sends_less() -> None:
    """Of eight each sends its array once, and its part of the sum; of two half of the array twice. Of a host it goes out once."""
    assert seconds("h100:8", [sending("all-reduce", rows(8))]) == pytest.approx((1 + 1 / 8) / 450)
    assert seconds("h100:2", [sending("all-reduce", rows(2))]) == pytest.approx(1 / 450)
    assert seconds("h100:32", [sending("all-reduce", columns(4, 8))]) == pytest.approx(1 / 50)


def test_what_each_device_has_for_all_others_goes_out_from_each() -> None:
    """Of 16 parts of each device's 1 GB eight go to the other host, through its own port; a shift by eight sends all of it."""
    assert seconds("h100:16", [sending("all-to-all", rows(16))]) == pytest.approx(1 / 2 / 50)
    shift = [(place, (place + 8) % 16) for place in range(16)]
    assert seconds("h100:16", [sending("collective-permute", shift)]) == pytest.approx(1 / 50)


def test_every_group_is_looked_at_and_as_it_is() -> None:
    """Of threes on hosts of eight, {6, 7, 8} and {15, 16, 17} go over the network: the middle host needs two thirds of both
    arrays. Groups within hosts do not, though their axis leaves them."""
    threes = seconds("h100:24", [sending("all-gather", rows(8, 3))])
    assert threes == pytest.approx(max(2 / 3 / 450, 2 * 2 / 3 / 8 / 50))
    assert seconds("h100:16", [sending("all-gather", rows(4, 4))]) == pytest.approx(3 / 4 / 450)


def test_an_axis_has_the_links_of_the_dimensions_it_spans() -> None:
    """Of a v5e two of four links along one dimension of the torus, all four along both."""
    assert seconds("v5e:4x4", [sending("all-gather", rows(4, 4))], 4, 4) == pytest.approx(3 / 4 / 100)
    assert seconds("v5e:4x4", [sending("all-gather", rows(16))], 4, 4) == pytest.approx(15 / 16 / 200)


def test_what_goes_over_different_links_goes_at_once() -> None:
    """NVLink and the network; a dimension of the torus and another one. What spans both has what the others leave."""
    within, across = sending("all-gather", rows(2, 8)), sending("all-gather", columns(2, 8))
    assert seconds("h100:16", [within, across]) == pytest.approx(1 / 2 / 50)
    along, down, over = (sending("all-gather", groups) for groups in (rows(4, 4), columns(4, 4), rows(16)))
    assert seconds("v5e:4x4", [along, down], 4, 4) == pytest.approx(3 / 4 / 100)
    assert seconds("v5e:4x4", [along, along], 4, 4) == pytest.approx(2 * 3 / 4 / 100)
    assert seconds("v5e:4x4", [along, over], 4, 4) == pytest.approx((3 / 4 + 15 / 16) / 200)


def test_the_bound_is_the_slowest_of_three() -> None:
    target = targets.parse("h100:4")
    times = roofline.Times(compute=1.0, memory=2.0, interconnect=0.5)
    assert times.slowest == "memory"
    assert roofline.bound(4 * 989.4e12, times, 4, target, "bfloat16") == pytest.approx(0.5)
    assert roofline.bound(1.0, dataclasses.replace(times, memory=None), 4, target, "bfloat16") is None


@pytest.mark.parametrize(
    "mask",
    [Mask(), Mask(causal=True), Mask(causal=True, window=3), Mask(window=3), Mask(window=50)],
    ids=["full", "causal", "window", "band", "wide band"],
)
def test_a_kernels_products_are_those_of_the_pairs_that_its_mask_leaves(mask: Mask) -> None:
    """Two products of heads of 16, by counting the pairs; each is a multiplication and an addition."""
    shape = jax.ShapeDtypeStruct((2, 9, 4, 16), np.float32)
    request = attention.Request.of(shape, shape, shape, mask, None, None)
    dense = mask.dense(9, 9)
    pairs = 81 if dense is None else int(np.broadcast_to(dense, (1, 1, 9, 9)).sum())
    call = attention.Call(name="xla", request=request, mask=mask, scope="door0")
    assert call.flops == 2 * 2 * 2 * 4 * 16 * pairs


def calling() -> attention.Call:
    shape = jax.ShapeDtypeStruct((2, 8, 4, 16), np.float32)
    request = attention.Request.of(shape, shape, shape, Mask(), None, None)
    return attention.Call(name="xla", request=request, mask=Mask(), scope="door0")


def test_kernels_are_counted_by_direction_and_loop() -> None:
    """A forward pass that is computed again is one more; all kernels of a backward pass together are two and a half."""
    text = """
%body (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  %again = f32[2]{0} custom-call(%p), custom_call_target="mosaic", metadata={op_name="transpose(j)/rematted_computation/door0/f"}
  %dq = f32[2]{0} custom-call(%again), custom_call_target="mosaic", metadata={op_name="transpose(jvp())/door0/dq"}
  ROOT %dkv = f32[2]{0} custom-call(%dq), custom_call_target="mosaic", metadata={op_name="transpose(jvp())/door0/dkv"}
}

%more (q: f32[2]) -> pred[] {
  %q = f32[2]{0} parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %check = f32[2]{0} custom-call(%x), custom_call_target="AssumeGatherIndicesInBound", metadata={op_name="jvp()/door0/f"}
  %other = f32[2]{0} custom-call(%check), custom_call_target="__cudnn$conv"
  %first = f32[2]{0} custom-call(%other), custom_call_target="mosaic", metadata={op_name="jit(s)/jvp()/door0/f"}
  ROOT %loop = f32[2]{0} while(%first), condition=%more, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""
    call = calling()
    found = work.work(hlo.parse(text), [call], 2)
    assert found.kernels == (1 + 3 * (1 + 2.5)) * call.flops / 2
    assert found.unknown == ("__cudnn$conv",)


def test_unrolled_layers_have_a_backward_pass_each() -> None:
    """Two copies of a call that was traced once, each with two kernels for its gradients."""
    text = """
ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %dq = f32[2]{0} custom-call(%x), custom_call_target="mosaic", metadata={op_name="transpose(jvp())/door0/dq"}
  %dkv = f32[2]{0} custom-call(%dq), custom_call_target="mosaic", metadata={op_name="transpose(jvp())/door0/dkv"}
  %dq.1 = f32[2]{0} custom-call(%dkv), custom_call_target="mosaic", metadata={op_name="transpose(jvp())/door0/dq"}
  ROOT %dkv.1 = f32[2]{0} custom-call(%dq.1), custom_call_target="mosaic", metadata={op_name="transpose(jvp())/door0/dkv"}
}
"""
    call = calling()
    assert work.work(hlo.parse(text), [call], 2).kernels == 2 * 2.5 * call.flops / 2
