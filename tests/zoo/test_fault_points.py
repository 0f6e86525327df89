"""Fault points: a fault happens at its pass and in its process, and a description with a mistake is refused in one line."""

import ast
import errno
import os
import re
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.support.processes import ROOT, Ended, run_python
from zoo import fault_points
from zoo.errors import BadInput
from zoo.fault_points import POINTS, fault_point, faults, set_faults


@pytest.fixture(autouse=True)
def _no_faults() -> Iterator[None]:
    yield
    set_faults("")


def passes(count: int, point: str = "train.step") -> list[str]:
    """Return the names of the exceptions of `count` passes; "" where there was none."""
    outcomes = []
    for _ in range(count):
        try:
            fault_point(point)
            outcomes.append("")
        except (OSError, MemoryError, RuntimeError) as error:
            outcomes.append(getattr(error, "errno", None) or type(error).__name__)
    return outcomes


@pytest.mark.parametrize(
    ("text", "outcomes"),
    [
        ("train.step:ENOSPC", [errno.ENOSPC, "", ""]),
        ("train.step:EIO:2", ["", errno.EIO, ""]),
        ("train.step:error:2+", ["", "RuntimeError", "RuntimeError"]),
        ("train.step:memory:3:0,train.save:EIO", ["", "", "MemoryError"]),
        ("train.step:EIO:1:1", ["", "", ""]),
        ("train.step:EIO:1,train.step:memory:3", [errno.EIO, "", "MemoryError"]),
        ("train.save:EIO:1+", ["", "", ""]),
        ("train.step:delay=0:1+", ["", "", ""]),
        ("", ["", "", ""]),
    ],
)
def test_a_fault_happens_at_its_point_its_passes_and_in_its_process(text: str, outcomes: list[str]) -> None:
    with faults(text):
        assert passes(3) == outcomes
    assert passes(3) == [""] * 3


def test_a_fault_is_for_the_process_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_PROCESS", "1")
    with faults("train.step:EIO:1:1,train.step:memory:2:0"):
        assert passes(2) == [errno.EIO, ""]


@pytest.mark.parametrize("kind", fault_points.SIGNALS)
def test_a_signal_reaches_the_process_itself(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    with faults(f"train.step:{kind}:2"):
        passes(3)
    assert sent == [(os.getpid(), fault_points.SIGNALS[kind])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "checkpoint.renam:kill",
            "'checkpoint.renam:kill': there is no fault point 'checkpoint.renam'; the nearest is checkpoint.rename",
        ),
        (
            "train.step:kill,train.score:crash:2",
            "'train.score:crash:2': there is no kind of fault 'crash'; choose kill, term, stop, error, memory, delay=",
        ),
        ("train.step", "'train.step': write POINT:KIND, "),
        ("train.step:kill:0", "'train.step:kill:0': write POINT:KIND, "),
        ("train.step:kill:-1", "'train.step:kill:-1': write POINT:KIND, "),
        ("train.step:delay=soon", "there is no kind of fault 'delay=soon'"),
        ("train.step:kill,", "'': write POINT:KIND, "),
    ],
)
def test_a_mistake_is_refused_and_sets_no_fault(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)) as refused:
        set_faults(text)
    assert str(refused.value).startswith("ZOO_FAULT ") and "\n" not in str(refused.value)


def points_in(source: str) -> list[str]:
    """Return the names with which `fault_point` is called; "?" for one that is not a literal."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    names = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "fault_point"]
    return [name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else "?" for name in names]


@pytest.mark.planted(2)
def test_every_point_is_registered_once_in_the_source_and_documented() -> None:
    names = [
        name
        for package in ("zoo", "train", "eval")
        for path in (ROOT / package).rglob("*.py")
        for name in points_in(path.read_text())
    ]
    assert {*names} == POINTS.keys()
    repeated = {name for name in names if names.count(name) > 1}
    assert repeated == {"file.fsync"}
    page = (ROOT / "docs" / "faults.md").read_text()
    assert {*re.findall(r"^\| `([a-z]+\.[a-z_]+)`", page, re.MULTILINE)} == POINTS.keys()
    assert not {*points_in("fault_point('train.stp')")} <= POINTS.keys()
    assert not {*points_in("fault_point(name)")} <= POINTS.keys()


@pytest.mark.planted
def test_the_command_refuses_a_point_that_does_not_exist(zoo: Callable[..., Ended]) -> None:
    done = zoo("train", "gpt-nano", env={fault_points.VARIABLE: "train.stp:kill"})
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr == "zoo: ZOO_FAULT 'train.stp:kill': there is no fault point 'train.stp'; the nearest is train.step\n"


def test_a_process_that_kills_itself_ends_by_that_signal() -> None:
    program = "from zoo.fault_points import *; set_faults('train.step:kill:2'); fault_point('train.step'); print(1, flush=True)"
    done = run_python("-c", f"{program}; fault_point('train.step'); print(2)")
    assert (done.code, done.stdout) == (-signal.SIGKILL, "1\n")
