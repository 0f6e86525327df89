"""Where the time of a step goes: every instant of every thread has its instruction, and every instruction its part."""

import dataclasses
from typing import Any

import pytest

from benchmarks import cases, parts, trace
from benchmarks.hlo import parse
from benchmarks.programs import Step, Variant
from tests.support import benchmark_steps as steps


def test_threads_share_an_instant_and_work_that_is_handed_on_is_its_owners() -> None:
    """Two threads: a begins `dot`, which hands work on to the other, in which another instruction runs a while."""
    ours, theirs = [_told(0, 10, "dot"), _hands(2, 7)], [_begins(4, 7), _told(5, 1, "copy"), _ends(8)]
    shares, busy, times = trace._shared(trace._threads([_Line(ours), _Line(theirs)]))
    seconds = {name: round(each * 1e9, 6) for name, each in shares.items()}
    assert seconds == {"dot": 9.5, "copy": 0.5}
    assert {name: round(each * 1e9, 6) for name, each in busy.items()} == {"dot": 13.0, "copy": 1.0}
    assert times["dot"] == 1 and times["copy"] == 1


@dataclasses.dataclass
class _Line:
    events: list[Any]


@dataclasses.dataclass
class _Event:
    name: str
    start_ns: float
    duration_ns: float
    stats: list[tuple[str, Any]]


def _told(start: float, duration: float, name: str) -> _Event:
    return _Event(name, start, duration, [("hlo_op", name)])


def _hands(at: float, number: int) -> _Event:
    return _Event(trace.HANDS_ON, at, 0, [("_p", number)])


def _begins(at: float, number: int) -> _Event:
    return _Event(trace.BEGINS, at, 0, [("_c", number)])


def _ends(at: float) -> _Event:
    return _Event(trace.ENDS, at, 0, [])


@pytest.mark.parametrize("name", ["gpt-nano", "t5-nano"])
def test_every_part_is_found_by_where_its_instructions_come_from(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a compiled step: no instruction that computes is of no part."""
    steps.shrink(monkeypatch)
    made = Step(cases.case(name, "train", **steps.SMALL), Variant())
    made.compile()
    program = parse(made.compiled.as_text())
    compute = [each for each in program.instructions.values() if each.opcode in ("fusion", "dot")]
    found = {each.name: parts.part_of(program, each) for each in compute}
    assert set(parts.PARTS[:5]) <= set(found.values())
    unknown = [each for each in compute if found[each.name] == parts.OTHER]
    assert len(unknown) <= 0.02 * len(compute), [(each.name, each.op_name) for each in unknown]
    # The loss head's product is in the forward pass once, in the backward pass twice.
    head = [each for each in program.instructions.values() if each.opcode == "dot" and parts.part_of(program, each) == parts.HEAD]
    assert sorted(parts.direction_of(program, each) for each in head) == ["backward", "backward", "forward"]
