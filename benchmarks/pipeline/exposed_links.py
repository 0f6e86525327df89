"""Time of a compiled step for GPUs whose operations run in the order in which the compiler scheduled them.

A GPU's program starts a collective, computes, and waits for the collective where its result is needed. Between the two, links and
operations are used at the same time; for what is left of the collective then, the device waits.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from benchmarks.flops import flops_and_bytes
from benchmarks.flops.flops_and_bytes import Work
from benchmarks.hlo import hlo_parser
from benchmarks.hlo.hlo_parser import Module
from benchmarks.plan import collectives
from benchmarks.plan.collectives import Collective
from benchmarks.plan.compile_program import Program
from benchmarks.plan.roofline import SUSTAINED, times_of_step
from benchmarks.plan.target_devices import Target
from zoo.errors import BadInput


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduledStep:
    """Seconds of a step in the compiler's order."""

    operations: float
    """All operations, one after another."""
    links: float
    """All collectives, one after another."""
    exposed: float
    """The part of `links` for which a device waits."""

    @property
    def total(self) -> float:
        return self.operations + self.exposed


def scheduled_step(program: Program) -> ScheduledStep:
    """Return the times of a compiled program: see `step_in_order`.

    Raises:
        BadInput: the compiler refused the program, or did not schedule it.
    """
    if "is_scheduled=true" not in program.text:
        raise BadInput(f"--target {program.target.name}: the program has no schedule; choose GPUs, and a step that fits")
    module = hlo_parser.parse_program(program.text)
    sent = collectives.find_collectives(module, dict(program.mesh.shape))
    work = flops_and_bytes.device_work(module, program.calls, program.mesh.size, products=program.products)
    return step_in_order(module, sent, work, program.mesh.devices, program.target, program.run.precision)


def step_in_order(
    module: Module, sent: Iterable[Collective], work: Work, devices: np.ndarray, target: Target, dtype: str
) -> ScheduledStep:
    """Return the times of a step whose operations run in the order of the program's text.

    Products and kernels take the share of the peak rate that programs reach (`roofline.SUSTAINED`), other operations the time for
    their bytes, and collectives that of the busiest links, all at the published rates. Collectives run in the order of their
    starts. All executions of kernels take equally long.

    Args:
        sent: collectives of the program.
        work: the work of a device, of which only the kernels are read.
    """
    device = target.published
    assert device is not None and device.bandwidth is not None
    named = {one.run.instruction.name: one for one in sent}
    kernel = work.kernels / max(1.0, sum(work.runs.values()))
    rate = SUSTAINED.get(target.chip, 1.0) * device.peak[dtype] * 1e12
    nothing = dataclasses.replace(work, products=0.0, kernels=0.0, bytes=0.0, operations=())
    operations = links = exposed = 0.0
    waiting: dict[str, float] = {}
    for operation in flops_and_bytes.executed_operations(module):
        instruction, times = operation.run.instruction, operation.run.times
        if instruction.name in named:
            once = dataclasses.replace(named[instruction.name], run=dataclasses.replace(operation.run, times=1.0))
            seconds = times_of_step(nothing, [once], devices, target, dtype).interconnect or 0.0
            links += times * seconds
            if instruction.opcode.endswith("-start"):
                waiting[instruction.name] = seconds
            else:
                exposed += times * seconds
        elif instruction.opcode.endswith("-done"):
            # The links carry what was started earlier first.
            while instruction.operands and instruction.operands[0].name in waiting:
                exposed += times * waiting.pop(next(iter(waiting)))
        else:
            flops = operation.products + kernel * len(operation.kernels)
            seconds = max(flops / rate, operation.bytes / (device.bandwidth * 1e9))
            operations += times * seconds
            for name, rest in waiting.items():
                waiting[name] = max(0.0, rest - seconds)
                seconds = max(0.0, seconds - rest)
    return ScheduledStep(operations=operations, links=links, exposed=exposed)
