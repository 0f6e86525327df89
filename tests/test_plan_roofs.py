"""The roofs of `zoo plan`: the three times that bound a step, from published numbers, and the products they count."""

import dataclasses
import math
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
from zoo.errors import BadInput
from zoo.masks import Mask


def test_every_target_has_published_numbers() -> None:
    for name in ("v4:2x2x1", "v5e:2x2", "v5p:8x8x8", "v6e:2x2", "tpu7x:2x2x1", "a100:8", "h100:64", "h200:8", "b200:8"):
        device = targets.parse(name).published
        assert device is not None and device.memory and device.bandwidth and device.links and "bfloat16" in device.peak, name
    assert targets.parse("cpu:8").published is None
    assert "device_memory_size: 80000000000" in targets.config(targets.parse("h100:8"))


def test_a_missing_compiler_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    for name, extra in (("v5e:2x2", "tpu"), ("h100:8", "cuda13")):
        with pytest.raises(
            BadInput, match=rf"--target {name}: compiling for \w+ needs the extra {extra}: pip install 'jax-zoo\["
        ):
            targets.prepare(targets.parse(name))


def devices(count: int, *torus: int) -> np.ndarray:
    """Devices of hosts of eight, or of a torus of that shape."""
    coords = list(np.ndindex(*torus)) if torus else [(0,)] * count
    each = [SimpleNamespace(id=n, coords=coords[n % len(coords)], platform="tpu" if torus else "gpu") for n in range(count)]
    return np.array(each, object)


def sending(kind: str, axes: str, members: int, size: float) -> Sent:
    instruction = Instruction("x", kind, (), (), "", "", False)
    return Sent(Executed(instruction, Computation("c", {}), 1.0, ""), kind, axes, members, size, ())


def seconds(target: str, shape: dict[str, int], sent: Sent, *torus: int) -> float | None:
    mesh = roofline.Grid(tuple(shape), devices(math.prod(shape.values()), *torus).reshape(tuple(shape.values())))
    nothing = Work(products=0.0, kernels=0.0, bytes=0.0, unknown=())
    return roofline.times(nothing, [sent], mesh, targets.parse(target), "bfloat16").interconnect


def test_time_between_hosts_is_the_networks() -> None:
    """An all-reduce of 1 GB: of 8 H100 over NVLink, 2 x 7/8 GB at 450 GB/s; of 16 on two hosts, half of it twice over 8 ports."""
    inside = seconds("h100:8", {"data": 8}, sending("all-reduce", "data", 8, 1e9))
    assert inside == pytest.approx(2 * 7 / 8 / 450)
    across = seconds("h100:16", {"data": 16}, sending("all-reduce", "data", 16, 1e9))
    assert across == pytest.approx(max(2 * 15 / 16 / 450, 2 * 1 / 2 / 8 / 50))
    # One device of each host: everything goes through its own port.
    alone = seconds("h100:16", {"data": 2, "tensor": 8}, sending("all-reduce", "data", 2, 1e9))
    assert alone == pytest.approx(2 * 1 / 2 / 50)


def test_an_axis_has_the_links_of_the_dimensions_it_spans() -> None:
    """Of a v5e two of four links along one dimension of the torus, all four along both."""
    one = seconds("v5e:4x4", {"data": 4, "fsdp": 4}, sending("all-gather", "fsdp", 4, 1e9), 4, 4)
    both = seconds("v5e:4x4", {"data": 1, "fsdp": 16}, sending("all-gather", "fsdp", 16, 1e9), 4, 4)
    assert one == pytest.approx(3 / 4 / 100)
    assert both == pytest.approx(15 / 16 / 200)


def test_the_bound_is_the_slowest_of_three() -> None:
    mesh = roofline.Grid(("data",), devices(4))
    target = targets.parse("h100:4")
    times = roofline.Times(compute=1.0, memory=2.0, interconnect=0.5)
    assert roofline.bound(4 * 989.4e12, times, mesh, target, "bfloat16") == pytest.approx(0.5)
    assert roofline.bound(1.0, dataclasses.replace(times, memory=None), mesh, target, "bfloat16") is None


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
