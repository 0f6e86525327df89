"""Compare the closed model with compiled programs: `python -m benchmarks.pipeline.compiled_steps`.

It compiles `PROGRAMS`, steps without a pipeline and steps of a stage, and prints a table in Markdown: FLOPs, links, operations
and memory of the program over those of the model, and for how much of the links the program waits in the order that the compiler
chose. The environment needs the compiler for GPUs.
"""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.pipeline.layer_costs import shape_of_model
from benchmarks.pipeline.pipeline_tables import describe_layout, table_line
from benchmarks.pipeline.step_model import Layout, predict_step, step_flops
from benchmarks.plan.find_run import find_run
from benchmarks.plan.target_devices import parse_target, prepare_target
from train.config.run_config import Mesh, Run
from zoo.errors import BadInput


@dataclasses.dataclass(frozen=True)
class CompiledCase:
    """A step, or the step of one stage of a pipeline on the devices that share a row."""

    size: str
    target: str
    length: int
    layout: Layout
    layers: int = 0
    """Layers of a stage, of an encoder-decoder those of each side; 0 = all."""
    options: tuple[str, ...] = ()
    """Options of XLA that are on."""

    @property
    def run(self) -> Run:
        run, layout = find_run(self.size), self.layout
        sides = [name for name in ("layers", "decoder_layers") if self.layers and hasattr(run.model, name)]
        compute = dataclasses.replace(run.model.compute, remat=layout.remat)
        model = dataclasses.replace(run.model, compute=compute, **dict.fromkeys(sides, self.layers))
        mesh = Mesh(data=layout.data, fsdp=layout.fsdp, tensor=layout.tensor, sequence=layout.sequence)
        data = dataclasses.replace(run.data, batch=layout.batch, ramp=(), length=self.length)
        return dataclasses.replace(run, model=model, mesh=mesh, data=data, accumulate=layout.micro)


PIPELINED = (
    "xla_gpu_enable_pipelined_all_gather",
    "xla_gpu_enable_pipelined_reduce_scatter",
    "xla_gpu_enable_pipelined_all_reduce",
    "xla_gpu_enable_while_loop_double_buffering",
)
"""Options with which a loop over layers gathers those of the next iteration, and scatters those of the previous one."""
PROGRAMS = (
    CompiledCase("gpt3-175b", "h100:512", 2048, Layout(fsdp=512, rows=3)),
    CompiledCase("gpt3-175b", "h100:512", 2048, Layout(fsdp=512, rows=3), options=PIPELINED),
    CompiledCase("gpt3-175b", "h100:512", 2048, Layout(data=4, fsdp=128, rows=3, remat="save_out")),
    CompiledCase("gpt3-175b", "h100:512", 2048, Layout(fsdp=512, micro=3, remat="save_dots")),
    CompiledCase("llama-3.1-405b", "h100:1024", 8192, Layout(fsdp=1024, micro=2)),
    CompiledCase("llama-3.1-405b", "h100:1024", 8192, Layout(fsdp=1024, micro=2), options=PIPELINED),
    CompiledCase("llama-3.1-405b", "h100:1024", 8192, Layout(fsdp=256, sequence=4, micro=8, remat="save_qkv")),
    CompiledCase("t5-11b", "h100:512", 512, Layout(data=8, fsdp=64, rows=4, remat="save_dots")),
    CompiledCase("t5-11b", "h100:64", 512, Layout(data=8, fsdp=4, tensor=2, rows=4, remat="save_dots")),
    CompiledCase("gpt3-175b", "h100:8", 2048, Layout(tensor=8, micro=192), layers=12),
    CompiledCase("gpt3-175b", "h100:8", 2048, Layout(tensor=8, micro=192, remat="save_dots"), layers=12),
    CompiledCase("llama-3.1-405b", "h100:8", 8192, Layout(tensor=8, micro=256), layers=8),
    CompiledCase("t5-11b", "h100:8", 512, Layout(tensor=8, rows=8, micro=8, remat="save_dots"), layers=6),
)
HEAD = ("program", "layout", "FLOPs", "links", "operations", "memory", "links, s", "waits for", "a step in this order, s")


def compare_program(case: CompiledCase) -> tuple[str, ...]:
    """Return the row of the table of a compiled case.

    Raises:
        BadInput: it cannot be compiled, or does not fit.
    """
    from benchmarks.flops import flops_and_bytes
    from benchmarks.hlo import hlo_parser
    from benchmarks.pipeline.exposed_links import scheduled_step
    from benchmarks.plan import collectives, compile_program, roofline

    run, target = case.run, parse_target(case.target)
    options: dict[str, Any] = dict.fromkeys(case.options, True)
    program = compile_program.compile_run(run, "train", target, options or None)
    target_length = getattr(run.data, "target_length", 0) or T5_TARGET
    shape = shape_of_model(run.model, case.size, length=case.length, target_length=target_length)
    closed = predict_step(shape, case.layout, target)
    scheduled = scheduled_step(program)
    module = hlo_parser.parse_program(program.text)
    work = flops_and_bytes.device_work(module, program.calls, program.mesh.size, products=program.products)
    sent = collectives.find_collectives(module, dict(program.mesh.shape))
    times = roofline.times_of_step(work, sent, program.mesh.devices, target, run.precision)
    flops = step_flops(shape, case.layout.remat) * case.layout.batch / case.layout.devices
    links = max(closed.links, closed.waits)
    ratios = (work.flops / flops, (times.interconnect or 0.0) / links)
    operations = scheduled.operations / (closed.products + closed.other)
    stage = f", {case.layers} layers" if case.layers else ""
    exposed = f"{scheduled.exposed / scheduled.links:.0%}"
    name = f"{case.size}{stage}, {case.target}{', pipelined collectives' if case.options else ''}"
    numbers = [f"{ratio:.2f}" for ratio in (*ratios, operations, program.total / closed.memory)]
    return (name, describe_layout(case.layout), *numbers, f"{scheduled.links:.3g}", exposed, f"{scheduled.total:.4g}")


T5_TARGET = 114
"""Positions of the decoder for 512 of the encoder, of which 15 % are removed in spans of three."""


def compiled_table() -> Iterator[str]:
    """Yield the lines of the table, each when its program is compiled."""
    yield table_line(HEAD)
    yield table_line(["---"] * 2 + ["---:"] * 7)
    for case in PROGRAMS:
        yield table_line(compare_program(case))


if __name__ == "__main__":
    try:
        prepare_target(parse_target(PROGRAMS[0].target))
        for line in compiled_table():
            print(line, flush=True)
    except BadInput as error:
        print(f"compiled_steps: {error}", file=sys.stderr)
        raise SystemExit(2) from None
