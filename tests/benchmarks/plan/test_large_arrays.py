"""What a plan says of a program that does not fit: the arrays that take the memory, where they are made, and what to try."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.core import timing
from benchmarks.core.source_paths import ROOT
from benchmarks.hlo import hlo_parser
from benchmarks.plan import compile_program, large_arrays, memory_advice, plan_page, plan_record, target_devices
from benchmarks.plan.large_arrays import LargeArray
from benchmarks.plan.plan_record import Plan
from tests.support import benchmark_steps, tiny
from train.config.data_options import CausalData
from train.config.run_config import Mesh, Run
from zoo.cli.commands import plan as plan_options

CPU = target_devices.parse_target("cpu:8")
GIB = 1 << 30

REFUSALS = {
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (36.29G) exceeds available HBM "
    "(31.25G).": (36.29, 31.25),
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40.50G of 15.75G hbm. Exceeded hbm capacity by 24.75G.": (
        *(40.5, 15.75),
    ),
}
"""Texts of libtpu's errors, of GPT-3 on a v6e:16x16 (0.0.42.1) and of an earlier version -> GiB needed and available."""

LIVE = """\
HloLiveRange (max 2593):
  InstructionSequence:
    0:constant.192.clone
  BufferLiveRange:
    fusion.1331{}:676-690
  Live ranges at 676 (peak):
    fusion.1331{}: 8589934592 bytes (cumulative: 8589934592 bytes)
    bitcast_select_fusion.2.remat3{}: 3221225472 bytes (cumulative: 11811160064 bytes)
    bitcast_select_fusion.3.remat3{}: 3221225472 bytes (cumulative: 15032385536 bytes)
    convert_reduce_fusion.1{1}: 201326592 bytes (cumulative: 17448304640 bytes)
    param.102{}: 3145728 bytes (cumulative: 18357420032 bytes)
    updated.1{}: 99999999999 bytes (cumulative: 18357420032 bytes)
  Stack trace breakdown for peak usage: 18 463 193 122 bytes
    main.65_spmd (100.0%, total: 18 463 193 122 bytes, current: 0 bytes, remaining: 18 463 193 122 bytes)
"""
"""The beginning of the peak of gpt-nano with 8,192 rows of 256 on a v5e:2x2, by libtpu 0.0.42.1; `updated.1` is added."""
BUFFERS = """\
BufferAssignment:
allocation 3: size 3145728, parameter 25, shape |f32[4096,192]| at ShapeIndex {}, maybe-live-out:
 value: <11142 param.102 @0> (size=3145728,offset=0): f32[4096,192]{0,1:T(8,128)}
 value: <11499 updated.1 @0> (size=99999999999,offset=0): f32[4096,192]{0,1:T(8,128)}
allocation 456: size 18635489792, preallocated-temp:
 value: <9001 fusion.1331 @0> (size=8589934592,offset=7176192): f32[2048,256,4096]{2,1,0:T(8,128)}
 value: <9002 bitcast_select_fusion.2.remat3 @0> (size=3221225472,offset=8597110784): f32[2048,6,256,256]{2,3,1,0:T(8,128)}
 value: <9003 bitcast_select_fusion.3.remat3 @0> (size=3221225472,offset=11818336256): f32[2048,6,256,256]{2,3,1,0:T(8,128)}
 value: <9004 convert_reduce_fusion.1{1} @0> (size=268435456,offset=15039561728): bf16[2048,256,192]{2,1,0:T(8,128)(2,1)}
allocation 457: size 79691776, color 1, preallocated-temp:
 value: <9005 convert_reduce_fusion.1{0} @1> (size=2097152,offset=0): f32[2048,256]{1,0:T(8,128)S(1)}
"""
"""Values of its buffers, with the padding of the last dimension from 192 to 256."""
PROGRAM = f"""\
HloModule jit_step, is_scheduled=true

FileNames
1 "{ROOT}/zoo/nn/layers.py"
2 "{ROOT}/zoo/ops/products.py"

FunctionNames
1 "unembed"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=371 end_line=371 column=1 end_column=2}}
2 {{file_name_id=2 function_name_id=1 line=151 end_line=151 column=1 end_column=2}}

StackFrames
1 {{file_location_id=1 parent_frame_id=0}}
2 {{file_location_id=2 parent_frame_id=1}}

ENTRY %main (param.102: f32[4096,192]) -> f32[2048,256,4096] {{
  %param.102 = f32[4096,192]{{0,1:T(8,128)}} parameter(0), metadata={{op_name="state.params"}}
  %updated.1 = f32[4096,192]{{0,1:T(8,128)}} copy(%param.102), metadata={{op_name="jit(step)/update"}}
  %convert_reduce_fusion.1 = (f32[2048,256]{{1,0:T(8,128)}}, bf16[2048,256,192]{{2,1,0:T(8,128)(2,1)}}) custom-call(%param.102)
  %bitcast_select_fusion.3.remat3 = f32[2048,6,256,256]{{2,3,1,0:T(8,128)}} copy(%param.102), metadata={{op_name="jit(step)/qk"}}
  %bitcast_select_fusion.2.remat3 = f32[2048,6,256,256]{{2,3,1,0:T(8,128)}} copy(%param.102), metadata={{op_name="jit(step)/qk"}}
  ROOT %fusion.1331 = f32[2048,256,4096]{{2,1,0}} copy(%param.102), metadata={{op_name="jit(step)/unembed/dot" stack_frame_id=2}}
}}
"""


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, timing.without_compilation_cache():
        benchmark_steps.hurry_plans(patch)
        yield


def test_refusals_of_the_compiler_are_read() -> None:
    for text, (used, limit) in REFUSALS.items():
        assert compile_program.bytes_needed(text) == (int(used * GIB), int(limit * GIB))
    assert (
        compile_program.bytes_needed("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20M of 16M vmem.") is None
    )


@pytest.mark.planted(2)
def test_the_largest_temporaries_of_a_refused_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal ones are one row, an element of a tuple has its shape, and neither arguments nor their updates are temporaries."""
    module = hlo_parser.parse_program(PROGRAM)
    rows = large_arrays.live_arrays(LIVE, BUFFERS, module, 17 * GIB)
    assert rows == [
        LargeArray(
            bytes=8 * GIB,
            count=1,
            shape="f32[2048,256,4096]",
            operation="jit(step)/unembed/dot",
            source="zoo/nn/layers.py:371",
        ),
        LargeArray(bytes=3 * GIB, count=2, shape="f32[2048,6,256,256]", operation="jit(step)/qk", source=""),
        LargeArray(bytes=256 << 20, count=1, shape="bf16[2048,256,192]", operation="convert_reduce_fusion.1", source=""),
    ]
    # The mistakes: updates of arguments count, and another memory is read.
    assert len(large_arrays.live_arrays(LIVE, BUFFERS, module, 1 << 60)) == 4
    monkeypatch.setattr(large_arrays, "_VALUE", re.compile(large_arrays._VALUE.pattern.replace("@0", "@1"), re.MULTILINE))
    assert large_arrays.live_arrays(LIVE, BUFFERS, module, 17 * GIB) == []


def test_the_compiler_dumps_the_arrays_of_a_program() -> None:
    """That of a CPU refuses none, and dumps the same lists."""

    def outer(x: Any) -> Any:
        return jnp.sin(x[:, None] * x).sum(0) @ jnp.cos(x[:, None] + x)

    lowered = jax.jit(outer).lower(jax.ShapeDtypeStruct((512,), jnp.float32))
    rows = large_arrays.refused_arrays(lowered, 1 << 30)
    assert rows[0].bytes == 4 * 512**2 and rows[0].shape == "f32[512,512]" and rows[0].operation
    assert large_arrays.program_arrays(hlo_parser.parse_program(lowered.compile().as_text() or ""))[0].shape == "f32[512,512]"


def large_run() -> Run:
    run = tiny.run(mesh=Mesh(), data=CausalData(length=32, batch=64))
    return dataclasses.replace(run, recipe="gpt-nano")


def refused(limit: int) -> tuple[compile_program.Program, Plan]:
    program = dataclasses.replace(compile_program.compile_run(large_run(), "train", CPU), limit=limit)
    return program, plan_record.make_plan(program, "gpt-nano")


@pytest.mark.planted
def test_what_to_try_are_options_that_the_command_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them gives the run that was checked against the mesh."""
    program, plan = refused(1 << 20)
    assert not plan.fits and plan.large and Plan.of(json.loads(json.dumps(plan.plain()))) == plan
    advice = memory_advice.memory_advice(program, plan.large, 1 << 20)
    names = {line.partition(" ")[0].rstrip(":") for line in plan.advice}
    expected = {"--loss-chunk", "--model.compute.remat", "--accumulate", "--batch", "--mesh.data", "--search", "--target"}
    # A CPU has one memory, so that moments on the host are not among them.
    assert names == expected | {"--optim.moments"}
    base = plan_options.parse_options("gpt-nano", tiny.FLAGS)
    for each in advice:
        words = each.options.split() if each.options != "--target" else []
        request = plan_options.parse_options("gpt-nano", [*tiny.FLAGS, *words])
        run = request.run if not request.batch else memory_advice._within("data", batch=request.batch)(request.run)
        assert run == each.change(base.run), each.options
        # What does not depend on the value of the limit divides over the mesh.
        assert each.change(program.run).data.batch % 8 == 0
    # Those of fewer positions than `auto` computes at a time, and none if that is one.
    (logits,) = program.logits
    assert plan.logits == str(logits) and logits.chunk == 0 and "--loss-chunk 8" in {each.options for each in advice}
    for parts, options in {2: ["--loss-chunk 4"], 32: []}.items():
        smaller = dataclasses.replace(program, logits=(dataclasses.replace(logits, memory=4 * logits.bytes / parts),))
        advised = memory_advice.memory_advice(smaller, plan.large, 1 << 20)
        assert [each.options for each in advised if "chunk" in each.options] == options
    # The mistake: options that do not divide over the devices are listed.
    wide = dataclasses.replace(
        program, run=dataclasses.replace(program.run, model=dataclasses.replace(program.run.model, width=36))
    )
    offered = [each.options for each in memory_advice.memory_advice(wide, plan.large, 1 << 20)]
    assert "--mesh.data 1 --mesh.fsdp 8" not in offered
    monkeypatch.setattr(memory_advice, "_is_valid", lambda *_: True)
    offered = [each.options for each in memory_advice.memory_advice(wide, plan.large, 1 << 20)]
    assert "--mesh.data 1 --mesh.fsdp 8" in offered


def test_no_other_kernel_is_proposed_to_a_fused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model as wide as its rows are long, inputs of layers have the shape of weights of attention."""
    program, _ = refused(1 << 20)
    large = [LargeArray(bytes=program.total, count=1, shape="bf16[80,2,32,32]", operation="dynamic_update_slice", source="")]
    monkeypatch.setattr(memory_advice, "_kernels", lambda _: ["flash_tpu"])

    def offered(implementation: str) -> list[str]:
        calls = tuple(dataclasses.replace(call, name=implementation) for call in program.calls)
        target = target_devices.parse_target("v6e:2x4")
        changed = dataclasses.replace(program, calls=calls, target=target)
        return [advice.options for advice in memory_advice.memory_advice(changed, large, 1 << 20)]

    assert "--model.compute.attention flash_tpu" not in offered("splash")
    assert "--model.compute.attention flash_tpu" in offered("xla")


def test_a_plan_that_does_not_fit_says_why() -> None:
    """On a terminal, on a page and in JSON: the part that exceeds, the gradient, the arrays and the options."""
    _, plan = refused(1 << 20)
    terminal = [block for block in plan_page.plan_blocks(plan) if isinstance(block, str)]
    page = plan_page.render_plan(plan)
    lead = next(block for block in terminal if "does not fit" in block)
    missing = f"{(plan.largest - (1 << 20)) / 2**20:.1f} MiB are missing. The largest part is temporaries, "
    assert (
        missing in lead and "more than a device has; " in lead and "of the temporaries are a gradient of the parameters." in lead
    )
    assert "The largest temporaries" in terminal and "What to try" in terminal
    assert plan.gradient == plan.memory["parameters"]
    for text in (missing, plan.large[0].shape, plan.large[0].source, *plan.advice):
        assert text in page, text
    assert Path(ROOT, plan.large[0].source.partition(":")[0]).is_file()
    fits = dataclasses.replace(plan, fits=True, large=[], advice=[])
    assert "What to try" not in plan_page.plan_blocks(fits) and "missing" not in plan_page.render_plan(fits)
