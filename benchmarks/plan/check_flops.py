"""The check of a plan's FLOPs: a planner that loses products must say so, and not print a bound that no device reaches."""

import dataclasses

from benchmarks.flops.flops_and_bytes import Work
from benchmarks.plan.compile_program import Program
from zoo.errors import BadInput

TOLERANCE = 0.03
"""By how much counts may differ: XLA leaves out products whose result is not used, and adds padding."""


def needed_flops(program: Program) -> float:
    """Return the FLOPs of all devices that a step needs: the model's own, without pairs of positions that attention leaves out.

    The model's count is that of all its layers; of a run that trains only some of them, it is at most what was traced.
    """
    traced = program.traced
    needed = program.flops - traced.skipped
    return min(needed, traced.flops - traced.recomputed) if program.run.has_frozen else needed


def check_flops(program: Program, work: Work, name: str) -> Work:
    """Check the counted FLOPs of a program against those that were traced and those that the model needs; return the work.

    In decoding, a device may have a single row, and XLA for GPUs turns products with it into sums, which are no products in the
    program: gpt2 with a row for each device of h100:8 has 0.62 of 2.28 GFLOP left. There, what was traced counts.

    Raises:
        BadInput: a loop that multiplies or sends has no known count; fewer FLOPs are counted than were traced or are needed.
    """
    advice = "this is an error of the planner, please report it with the command"
    if work.unresolved:
        raise BadInput(f"plan {name}: how often the loop {work.unresolved[0]} runs is not known, so its FLOPs are not; {advice}")
    if program.mode == "decode":
        return dataclasses.replace(work, products=max(work.products, program.traced.products / program.mesh.size))
    counted = work.flops * program.mesh.size
    needed = needed_flops(program) + program.traced.recomputed
    amounts = {"were traced": program.traced.flops, "the model needs with its recomputation": needed}
    kernels = f" (without those of the kernel {', '.join(work.unknown)})" if work.unknown else ""
    for origin, flops in amounts.items():
        if counted < (1 - TOLERANCE) * flops:
            counts = f"{counted:.4g} FLOPs are counted in the compiled program{kernels}, and {flops:.4g} {origin}"
            raise BadInput(f"plan {name}: {counts}; {advice}")
    return work
