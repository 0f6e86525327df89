"""The roofs of `zoo plan`: the three times that bound a step, from published numbers, and the products they count."""

import dataclasses
import math
from collections.abc import Sequence
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks.flops import flops_and_bytes
from benchmarks.flops.flops_and_bytes import Work
from benchmarks.hlo import hlo_parser
from benchmarks.hlo.hlo_parser import ExecutedInstruction as Executed
from benchmarks.hlo.instructions import Instruction
from benchmarks.plan import roofline, target_devices
from benchmarks.plan.collectives import Collective
from zoo.attention.masks import Mask
from zoo.attention.recorded_calls import Call
from zoo.attention.request import Request
from zoo.ops import ragged_product


def devices(count: int, *torus: int) -> np.ndarray:
    """Make devices of hosts of eight, or of a torus of that shape."""
    coords = list(np.ndindex(*torus)) if torus else [(0,)] * count
    each = [SimpleNamespace(id=n, coords=coords[n % len(coords)], platform="tpu" if torus else "gpu") for n in range(count)]
    return np.array(each, object)


Groups = Sequence[Sequence[int]]


def sending(kind: str, groups: Groups) -> Collective:
    """Make an exchange of 1 GB."""
    instruction, listed = Instruction("x", kind, "", (), "", ""), tuple(map(tuple, groups))
    run = Executed(instruction, "c", 1.0, "")
    return Collective(run, kind, "data", max(map(len, listed)), 1e9, (), listed)


def rows(*shape: int) -> Groups:
    """Return groups along the last of some axes."""
    return np.arange(math.prod(shape)).reshape(-1, shape[-1]).tolist()


def columns(*shape: int) -> Groups:
    """Return groups along the first of two axes."""
    return np.arange(math.prod(shape)).reshape(shape).T.tolist()


GATHER, SUM = "all-gather", "all-reduce"
SHIFT = [(place, (place + 8) % 16) for place in range(16)]
EXCHANGES: list[tuple[str, list[tuple[str, Groups]], float]] = [
    # A gather of 8 H100 over NVLink: 7/8 GB at 450 GB/s. Of 16 on two hosts: half of it over the 8 ports of each.
    ("h100:8", [(GATHER, rows(8))], 7 / 8 / 450),
    ("h100:16", [(GATHER, rows(16))], max(7 / 8 / 450, 1 / 2 / 8 / 50)),
    # One device of each host: everything goes through its own port.
    ("h100:16", [(GATHER, columns(2, 8))], 1 / 2 / 50),
    # Sums are taken in the switches where that sends less: of eight each sends its array once, and its part of the sum; of two
    # half of the array twice. Of a host it goes out once.
    ("h100:8", [(SUM, rows(8))], (1 + 1 / 8) / 450),
    ("h100:2", [(SUM, rows(2))], 1 / 450),
    ("h100:32", [(SUM, columns(4, 8))], 1 / 50),
    # Of 16 parts of each device's 1 GB eight go to the other host, through its own port; a shift by eight sends all of it.
    ("h100:16", [("all-to-all", rows(16))], 1 / 2 / 50),
    ("h100:16", [("collective-permute", SHIFT)], 1 / 50),
    # Every group counts: of threes on hosts of eight, {6, 7, 8} and {15, 16, 17} go over the network, and the middle host needs
    # two thirds of both arrays. Groups within hosts do not, though their axis leaves them.
    ("h100:24", [(GATHER, rows(8, 3))], max(2 / 3 / 450, 2 * 2 / 3 / 8 / 50)),
    ("h100:16", [(GATHER, rows(4, 4))], 3 / 4 / 450),
    # An axis has the links of the dimensions that it spans: of a v5e two of four links along one, all four along both.
    ("v5e:4x4", [(GATHER, rows(4, 4))], 3 / 4 / 100),
    ("v5e:4x4", [(GATHER, rows(16))], 15 / 16 / 200),
    # What goes over different links goes at once: NVLink and the network, a dimension of the torus and another one. What spans
    # both has what the others leave.
    ("h100:16", [(GATHER, rows(2, 8)), (GATHER, columns(2, 8))], 1 / 2 / 50),
    ("v5e:4x4", [(GATHER, rows(4, 4)), (GATHER, columns(4, 4))], 3 / 4 / 100),
    ("v5e:4x4", [(GATHER, rows(4, 4))] * 2, 2 * 3 / 4 / 100),
    ("v5e:4x4", [(GATHER, rows(4, 4)), (GATHER, rows(16))], (3 / 4 + 15 / 16) / 200),
]
"""(target, exchanges of 1 GB, seconds)."""


def test_the_time_of_exchanges_is_that_of_the_busiest_links() -> None:
    nothing = Work(products=0.0, kernels=0.0, bytes=0.0, unknown=())
    for name, exchanges, seconds in EXCHANGES:
        torus = tuple(map(int, name.partition(":")[2].split("x"))) if "x" in name else ()
        there = devices(math.prod(torus), *torus) if torus else devices(int(name.partition(":")[2]))
        sent = [sending(*exchange) for exchange in exchanges]
        times = roofline.times_of_step(nothing, sent, there, target_devices.parse_target(name), "bfloat16")
        assert times.interconnect == pytest.approx(seconds), (name, exchanges)


def test_the_bound_is_the_slowest_of_three() -> None:
    target = target_devices.parse_target("h100:4")
    times = roofline.Times(compute=1.0, memory=2.0, interconnect=0.5)
    assert times.slowest == "memory"
    assert roofline.mfu_bound(4 * 989.4e12, times.longest, 4, target, "bfloat16") == pytest.approx(0.5)
    assert roofline.mfu_bound(1.0, dataclasses.replace(times, memory=None).longest, 4, target, "bfloat16") is None


def test_memory_has_a_lower_bound() -> None:
    """An argument and the result once, and twice the temporaries that no cache has room for; the bound is never above it."""
    text = """
ENTRY %main (x: f32[8,16], y: bf16[16]) -> (f32[8,16], f32[]) {
  %x = f32[8,16]{1,0} parameter(0)
  %y = bf16[16]{0} parameter(1)
  %z = f32[8,16]{1,0} negate(%x)
  %s = f32[] constant(0)
  ROOT %t = (f32[8,16]{1,0}, f32[]) tuple(%z, %s)
}
"""
    module, outside = hlo_parser.parse_program(text), 2 * 8 * 16 * 4 + 16 * 2 + 4
    assert flops_and_bytes.least_bytes(module, 0) == outside
    assert flops_and_bytes.least_bytes(module, 1000, 400.0) == outside + 2 * 600
    assert flops_and_bytes.least_bytes(module, 1000, 4000.0) == outside
    times = roofline.Times(compute=1.0, memory=4.0, interconnect=0.5, memory_least=2.0)
    assert (times.longest, times.least, times.slowest) == (4.0, 2.0, "memory")
    assert dataclasses.replace(times, memory_least=0.1).least == 1.0


def test_a_step_is_estimated_as_its_operations_one_after_another() -> None:
    """Two operations, one bound by its products and one by its bytes; sums of tensor parallelism are waited for, others not."""
    target = target_devices.parse_target("h100:8")
    products, moved = 0.6 * 989.4e12, 3350e9
    work = Work(products=products, kernels=0.0, bytes=moved, unknown=(), operations=((products, moved / 2), (0.0, moved)))
    sent = sending("all-reduce", [range(8)])
    seconds = {
        axis: roofline.times_of_step(work, [dataclasses.replace(sent, axes=axis)], devices(8), target, "bfloat16").estimate
        for axis in ("data", "tensor")
    }
    link = roofline.times_of_step(work, [sent], devices(8), target, "bfloat16").interconnect
    assert seconds["data"] == pytest.approx(2.0) and seconds["tensor"] == pytest.approx(2.0 + (link or 0.0)) and link
    assert roofline.compute_times(work, target, "bfloat16").estimate == pytest.approx(1.0)
    # A step is not shorter than the transfers to the host.
    for host, estimate in ((None, 2.0), (1.5, 2.0), (3.0, 3.0)):
        times = roofline.times_of_step(work, [], devices(8), target, "bfloat16", host=host)
        assert (times.host, times.estimate) == (host, pytest.approx(estimate))


def test_a_kernels_products_are_those_of_the_pairs_that_its_mask_leaves() -> None:
    """Two products of heads of 16, by counting the pairs; each is a multiplication and an addition."""
    for mask in (Mask(), Mask(causal=True), Mask(causal=True, window=3), Mask(window=3), Mask(window=50)):
        dense = mask.dense(9, 9)
        pairs = 81 if dense is None else int(np.broadcast_to(dense, (1, 1, 9, 9)).sum())
        assert attention_call(9, mask).flops == 2 * 2 * 2 * 4 * 16 * pairs, mask


def attention_call(length: int, mask: Mask) -> Call:
    shape = jax.ShapeDtypeStruct((2, length, 4, 16), np.float32)
    request = Request.of(shape, shape, shape, mask, None, None)
    return Call(name="xla", request=request, mask=mask, scope="attention0")


def test_kernels_are_counted_by_direction_and_loop() -> None:
    """A forward pass that is computed again is one more; all kernels of a backward pass together are two and a half."""
    text = """
%body (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  %redo = f32[2]{0} custom-call(%p), custom_call_target="mosaic", metadata={op_name="transpose()/rematted_computation/attention0"}
  %dq = f32[2]{0} custom-call(%redo), custom_call_target="mosaic", metadata={op_name="transpose(jvp())/attention0/dq"}
  ROOT %dkv = f32[2]{0} custom-call(%dq), custom_call_target="mosaic", metadata={op_name="transpose(jvp())/attention0/dkv"}
}

%more (q: f32[2]) -> pred[] {
  %q = f32[2]{0} parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %check = f32[2]{0} custom-call(%x), custom_call_target="AssumeGatherIndicesInBound", metadata={op_name="jvp()/attention0/f"}
  %other = f32[2]{0} custom-call(%check), custom_call_target="__cudnn$conv"
  %first = f32[2]{0} custom-call(%other), custom_call_target="mosaic", metadata={op_name="jit(s)/jvp()/attention0/f"}
  ROOT %loop = f32[2]{0} while(%first), condition=%more, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""
    call = attention_call(8, Mask())
    result = flops_and_bytes.device_work(hlo_parser.parse_program(text), [call], 2)
    assert result.kernels == (1 + 3 * (1 + 2.5)) * call.flops / 2
    assert result.unknown == ("__cudnn$conv",)


def test_each_kernel_of_a_product_of_groups_is_counted_once() -> None:
    """A product, the same computed again, and its two gradients have the same FLOPs, which are those of one device."""
    text = """
ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %y = f32[2]{0} custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="jvp()/ragged_product0/rows"}
  %redo = f32[2]{0} custom-call(%y), custom_call_target="tpu_custom_call", metadata={op_name="rematted/ragged_product0/rows"}
  %dx = f32[2]{0} custom-call(%redo), custom_call_target="tpu_custom_call", metadata={op_name="transpose()/ragged_product0/rows"}
  ROOT %dw = f32[2]{0} custom-call(%dx), custom_call_target="tpu_custom_call", metadata={op_name="transpose()/ragged_product0/dw"}
}
"""
    product = ragged_product.Product(form="grouped_tpu", scope="ragged_product0", flops=7.0)
    result = flops_and_bytes.device_work(hlo_parser.parse_program(text), [], 2, products=[product])
    assert (result.kernels, result.unknown) == (4 * product.flops, ())
    assert flops_and_bytes.device_work(hlo_parser.parse_program(text), [], 2).unknown == ("tpu_custom_call",)


def test_unrolled_layers_have_a_backward_pass_each() -> None:
    """Two copies of a call that was traced once, each with two kernels for its gradients."""
    text = """
ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %dq = f32[2]{0} custom-call(%x), custom_call_target="mosaic", metadata={op_name="transpose(jvp())/attention0/dq"}
  %dkv = f32[2]{0} custom-call(%dq), custom_call_target="mosaic", metadata={op_name="transpose(jvp())/attention0/dkv"}
  %dq.1 = f32[2]{0} custom-call(%dkv), custom_call_target="mosaic", metadata={op_name="transpose(jvp())/attention0/dq"}
  ROOT %dkv.1 = f32[2]{0} custom-call(%dq.1), custom_call_target="mosaic", metadata={op_name="transpose(jvp())/attention0/dkv"}
}
"""
    call = attention_call(8, Mask())
    assert flops_and_bytes.device_work(hlo_parser.parse_program(text), [call], 2).kernels == 2 * 2.5 * call.flops / 2
