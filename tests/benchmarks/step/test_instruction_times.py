"""Where the time of a step goes: every instant of every thread has its instruction, and every instruction its part."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.core import source_paths
from benchmarks.hlo.hlo_parser import parse_program
from benchmarks.step import cases, instruction_times, time_breakdown
from benchmarks.step.programs import Step, Variant
from tests.support import benchmark_steps as steps
from tests.support.processes import ROOT


def _event(name: str, start: float, duration: float, *stats: tuple[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(name=name, start_ns=start, duration_ns=duration, stats=stats)


def _runs(start: float, duration: float, name: str) -> SimpleNamespace:
    return _event(name, start, duration, ("hlo_op", name))


def test_threads_share_an_instant_and_handed_on_work_counts_for_its_owner() -> None:
    """Two threads: a begins `dot`, which hands work on to the other, in which another instruction runs a while."""
    one = [_runs(0, 10, "dot"), _event(instruction_times.HANDS_ON, 2, 0, ("_p", 7))]
    other = [_event(instruction_times.BEGINS, 4, 0, ("_c", 7)), _runs(5, 1, "copy"), _event(instruction_times.ENDS, 8, 0)]
    shares, busy, times = instruction_times._shared(
        instruction_times._threads([SimpleNamespace(events=events) for events in (one, other)])
    )
    seconds = {name: round(each * 1e9, 6) for name, each in shares.items()}
    assert seconds == {"dot": 9.5, "copy": 0.5}
    assert {name: round(each * 1e9, 6) for name, each in busy.items()} == {"dot": 13.0, "copy": 1.0}
    assert times["dot"] == 1 and times["copy"] == 1


@pytest.mark.full
@pytest.mark.parametrize("name", ["gpt-nano", "t5-nano"])
def test_every_instruction_has_a_part(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows from where an instruction of a compiled step comes from; none that computes has no part."""
    steps.shrink(monkeypatch)
    step = Step(cases.make_case(name, "train", **steps.SMALL), Variant())
    step.compile()
    program = parse_program(step.compiled.as_text())
    compute = [each for each in program.instructions.values() if each.opcode in ("fusion", "dot")]
    part = {each.name: time_breakdown.part_of(each) for each in compute}
    assert set(time_breakdown.PARTS[:5]) <= set(part.values())
    unknown = [each for each in compute if part[each.name] == time_breakdown.OTHER]
    assert len(unknown) <= 0.02 * len(compute), [(each.name, each.op_name) for each in unknown]
    # The loss head's product is in the forward pass once, in the backward pass twice.
    head = [
        each
        for each in program.instructions.values()
        if each.opcode == "dot" and time_breakdown.part_of(each) == time_breakdown.HEAD
    ]
    assert sorted(time_breakdown.direction_of(program, each) for each in head) == ["backward", "backward", "forward"]


def test_paths_begin_at_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Source files are recognized in a folder of any name."""
    monkeypatch.setattr(source_paths, "ROOT", root := tmp_path / "zoo" / "train" / "a b")
    assert (
        source_paths.own_path(str(root / "zoo/nn/layers.py")) == source_paths.own_path("zoo/nn/layers.py") == "zoo/nn/layers.py"
    )
    other = str(tmp_path / "site-packages/optax/tree.py")
    assert source_paths.own_path(other) == other


def missing_files(pattern: str) -> list[str]:
    """Return the alternatives of a pattern of RULES that match no file of this project."""
    files = [path.relative_to(ROOT).as_posix() for package in ("zoo", "train") for path in (ROOT / package).rglob("*.py")]
    groups = re.fullmatch(r"([\w/]*)\(([^()]*)\)(.*)", pattern)
    alternatives = [groups[1] + inner + groups[3] for inner in groups[2].split("|")] if groups else pattern.split("|")
    return [one for one in alternatives if not one.startswith("optax/") and not any(re.fullmatch(one, file) for file in files)]


@pytest.mark.planted
def test_the_rules_name_files_that_exist() -> None:
    """A file that was renamed would silently move its instructions to another part."""
    assert [name for pattern, _, _ in time_breakdown.RULES for name in missing_files(pattern)] == []
    assert missing_files(r"zoo/(nn/layers|nn/key_size)\.py") == [r"zoo/nn/key_size\.py"]
