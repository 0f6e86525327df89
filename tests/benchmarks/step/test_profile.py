"""Where the time of a step goes: every instant of every thread has its instruction, and every instruction its part."""

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import cases, parts, trace
from benchmarks.hlo import parse
from benchmarks.programs import Step, Variant
from tests.support import benchmark_steps as steps


def event(name: str, start: float, duration: float = 0.0, **stats: Any) -> Any:
    return SimpleNamespace(name=name, start_ns=start, duration_ns=duration, stats=stats.items())


def test_threads_share_an_instant_and_work_that_is_handed_on_is_its_owners() -> None:
    """Two threads: a begins `dot`, which hands work on to the other, in which another instruction runs a while."""
    one = [event("dot", 0, 10, hlo_op="dot"), event(trace.HANDS_ON, 2, _p=7)]
    other = [event(trace.BEGINS, 4, _c=7), event("copy", 5, 1, hlo_op="copy"), event(trace.ENDS, 8)]
    shares, busy, times = trace._shared(trace._threads([SimpleNamespace(events=each) for each in (one, other)]))
    assert shares == pytest.approx({"dot": 9.5e-9, "copy": 0.5e-9}, abs=0)
    assert busy == pytest.approx({"dot": 13e-9, "copy": 1e-9}, abs=0)
    assert times == {"dot": 1, "copy": 1}


@pytest.mark.full
@pytest.mark.parametrize("name", ["gpt-nano", "t5-nano"])
def test_every_instruction_has_a_part(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows from where an instruction of a compiled step comes from; none that computes has no part."""
    steps.shrink(monkeypatch)
    step = Step(cases.case(name, "train", **steps.SMALL), Variant())
    step.compile()
    program = parse(step.compiled.as_text())
    compute = [each for each in program.instructions.values() if each.opcode in ("fusion", "dot")]
    part = {each.name: parts.part_of(program, each) for each in compute}
    assert set(parts.PARTS[:5]) <= set(part.values())
    unknown = [each for each in compute if part[each.name] == parts.OTHER]
    assert len(unknown) <= 0.02 * len(compute), [(each.name, each.op_name) for each in unknown]
    # The loss head's product is in the forward pass once, in the backward pass twice.
    head = [each for each in program.instructions.values() if each.opcode == "dot" and parts.part_of(program, each) == parts.HEAD]
    assert sorted(parts.direction_of(program, each) for each in head) == ["backward", "backward", "forward"]
