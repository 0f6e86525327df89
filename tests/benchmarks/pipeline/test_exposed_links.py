"""Links of a scheduled program: what operations between the start of a collective and its end hide."""

import numpy as np
import pytest

from benchmarks.flops.flops_and_bytes import Work
from benchmarks.hlo import hlo_parser
from benchmarks.pipeline.exposed_links import ScheduledStep, step_in_order
from benchmarks.plan import collectives
from benchmarks.plan.target_devices import parse_target
from tests.benchmarks.plan.test_roofline import devices

TEXT = """HloModule m, is_scheduled=true

ENTRY %main (x: f32[1024,1024], w: f32[128,1024]) -> f32[1024,1024] {{
  %x = f32[1024,1024]{{1,0}} parameter(0)
  %w = f32[128,1024]{{1,0}} parameter(1)
  %s = (f32[128,1024]{{1,0}}, f32[1024,1024]{{1,0}}) all-gather-start(%w), replica_groups=[1,8]<=[8], dimensions={{0}}
{first}  %d = f32[1024,1024]{{1,0}} all-gather-done(%s)
{second}  ROOT %r = f32[1024,1024]{{1,0}} add(%n, %d)
}}
"""
NEGATE = "  %n = f32[1024,1024]{1,0} negate(%x)\n"
GATHER = 4 * 1024 * 1024 * 7 / 8 / 450e9
"""Seconds of the gather by eight devices of a host."""
MOVED = 2 * 4 * 1024 * 1024 / 3350e9
"""Seconds of the negation, which reads and writes an array."""


def step_of(text: str) -> ScheduledStep:
    """Return the times of a program on eight H100 of a host."""
    module = hlo_parser.parse_program(text)
    sent = collectives.find_collectives(module, {"fsdp": 8})
    nothing = Work(products=0.0, kernels=0.0, bytes=0.0, unknown=())
    return step_in_order(module, sent, nothing, devices(8), parse_target("h100:8"), "bfloat16")


@pytest.mark.planted(1)
def test_only_operations_before_the_end_of_a_collective_hide_it() -> None:
    hidden = step_of(TEXT.format(first=NEGATE, second=""))
    assert hidden.links == pytest.approx(GATHER) and np.isclose(hidden.exposed, GATHER - MOVED)
    waited = step_of(TEXT.format(first="", second=NEGATE))
    assert waited.exposed == pytest.approx(GATHER) and waited.total > hidden.total
    assert waited.operations == pytest.approx(hidden.operations)
