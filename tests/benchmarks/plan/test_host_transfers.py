"""Moments in the memory of the host: what compiled programs move and need, by the real compilers; run with --aot."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.core import timing
from benchmarks.hlo.hlo_parser import parse_program
from benchmarks.plan import compile_program, find_run, host_transfers, plan_record, plan_text, target_devices
from benchmarks.plan.plan_record import Plan
from train.config.run_config import Mesh, Run
from zoo.runtime.hardware import DEVICES

TARGETS = {"tpu": "v5e:2x2", "gpu": "h100:4"}
PROGRAM = """HloModule jit_step, is_scheduled=true

%body (arg: (s32[], f32[4,8,128])) -> (s32[], f32[4,8,128]) {
  %arg = (s32[], f32[4,8,128]{2,1,0:S(5)}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %zero = s32[] constant(0)
  %one = s32[] constant(1)
  %moment = f32[4,8,128]{2,1,0:S(5)} get-tuple-element(%arg), index=1
  %start = ((f32[4,8,128]{2,1,0:S(5)}, s32[], s32[], s32[]), f32[1,8,128]{2,1,0}, u32[]) dynamic-slice-start(%moment, %i, %zero, \
%zero), dynamic_slice_sizes={1,8,128}
  %layer = f32[1,8,128]{2,1,0} dynamic-slice-done(%start)
  %new = f32[4,8,128]{2,1,0:S(5)} dynamic-update-slice(%moment, %layer, %i, %zero, %zero)
  %next = s32[] add(%i, %one)
  ROOT %result = (s32[], f32[4,8,128]{2,1,0:S(5)}) tuple(%next, %new)
}

%condition (arg: (s32[], f32[4,8,128])) -> pred[] {
  %arg.1 = (s32[], f32[4,8,128]{2,1,0:S(5)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %four = s32[] constant(4)
  ROOT %less = pred[] compare(%i.1, %four), direction=LT
}

ENTRY %main (p: f32[4,8,128], q: f32[16]) -> (f32[4,8,128], f32[16]) {
  %p = f32[4,8,128]{2,1,0:S(5)} parameter(0)
  %q = f32[16]{0} parameter(1)
  %first = s32[] constant(0)
  %begin = (s32[], f32[4,8,128]{2,1,0:S(5)}) tuple(%first, %p)
  %loop = (s32[], f32[4,8,128]{2,1,0:S(5)}) while(%begin), condition=%condition, body=%body
  %moments = f32[4,8,128]{2,1,0:S(5)} get-tuple-element(%loop), index=1
  %copy-start = (f32[16]{0:S(5)}, f32[16]{0}, u32[]) copy-start(%q)
  %copied = f32[16]{0:S(5)} copy-done(%copy-start)
  ROOT %results = (f32[4,8,128]{2,1,0:S(5)}, f32[16]{0:S(5)}) tuple(%moments, %copied)
}
"""


def test_slices_are_counted_by_their_own_size() -> None:
    """A loop over four layers reads and writes each once; a copy moves its array."""
    moved = host_transfers.count_transfers(parse_program(PROGRAM))
    layers = 4 * 8 * 128 * 4
    assert (moved.to_host, moved.from_host) == (layers + 16 * 4, layers)
    link = DEVICES["NVIDIA H100"].host_link
    assert link is not None
    seconds = host_transfers.transfer_seconds(moved, DEVICES["NVIDIA H100"])
    assert seconds == pytest.approx(moved.to_host / link / 1e9)
    assert host_transfers.transfer_seconds(moved, DEVICES["TPU v5e"]) is None
    none = host_transfers.HostTransfers(to_host=0.0, from_host=0.0)
    assert host_transfers.transfer_seconds(none, DEVICES["TPU v5e"]) == 0.0


def run_of(**options: Any) -> Run:
    """Return a run of a small GPT with AdamW, whose arrays divide into the tiles of a TPU, without padding."""
    run = find_run.find_run("gpt-nano")
    compute = dataclasses.replace(run.model.compute, unroll=1, remat="full")
    model = dataclasses.replace(run.model, layers=8, width=512, ffn=2048, heads=4, head=128, compute=compute)
    optim = dataclasses.replace(run.optim, name="adamw", **options)
    data = dataclasses.replace(run.data, batch=4)
    return dataclasses.replace(run, model=model, optim=optim, mesh=Mesh(data=1, fsdp=4), accumulate=1, data=data)


def planned(target: str, **options: Any) -> Plan:
    return plan_record.make_plan(
        compile_program.compile_run(run_of(**options), "train", target_devices.parse_target(target)), "gpt"
    )


@pytest.fixture
def cold() -> Iterator[None]:
    """Compile without JAX's cache, which cannot read a program for other devices again."""
    with timing.without_compilation_cache():
        yield


@pytest.mark.aot
@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("platform", TARGETS)
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_moments_on_the_host_cross_its_link_once_in_each_direction(platform: str, kind: Any) -> None:
    """Bytes are those of the layers' matrices, to 5 %, and a device needs less by them but for four layers at most."""
    if why := target_devices.unavailable_reason(target_devices.parse_target(TARGETS[platform]).platform):
        pytest.skip(str(why))
    here, on_host = (planned(TARGETS[platform], moments=kind, offload=offload) for offload in (False, True))
    model = run_of().model
    matrices = model.layers * (4 * model.width**2 + 2 * model.width * model.ffn)
    expected = 2 * {"float32": 4, "bfloat16": 2}[kind] * matrices / 4
    assert here.host == here.to_host == here.from_host == 0
    for size in (on_host.to_host, on_host.from_host, on_host.host, here.memory["optimizer"] - on_host.memory["optimizer"]):
        assert size == pytest.approx(expected, rel=0.05), (on_host.to_host, on_host.from_host, on_host.host, expected)
    # A few layers, read or written, are on the device at the same time.
    assert here.total - on_host.total >= (1 - 4 / model.layers) * expected
    assert "In the memory of the host: " in plan_text.host_sentence(on_host) and not plan_text.host_sentence(here)
    assert (on_host.times.host is None) == (platform == "tpu") == any("link to the host" in line for line in on_host.warnings)
