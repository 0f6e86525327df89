"""`zoo bench` killed outright: what it died of twice is failed and not tried again; stopped in order it died of nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import attention_row, records
from tests.support import benchmark_steps as steps
from tests.support.commands import call
from tests.support.processes import ROOT, clean_environment, run_python
from zoo.kernels import blocked

DEADLY = """
import os, signal, sys
import pytest
from benchmarks import attention_row, growth, programs, records
from tests.support import benchmark_steps as steps
from zoo import cli

def plant(owner, name, deadly):
    honest = getattr(owner, name)
    def planted(*given, **more):
        if deadly(*given):
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(*given, **more)
    setattr(owner, name, planted)

steps.shrink(pytest.MonkeyPatch())
records.environment = steps.environment
attention_row._checked = lambda *_: ("", "", 0.0)
growth.BASE = {"length": 8, "layers": 1, "width": 32, "devices": 1}
growth._devices = lambda settings, counts, watch: {count: {"state": "skipped", "reason": "not here"} for count in counts}
plant(attention_row, "_first_call", lambda trial, *_: trial.name == "xla" and trial.key["keys"] == 16)
plant(programs.Step, "compile", lambda step: step.variant.layers == "scan" and step.case.config.layers == 2)
sys.exit(cli.main(sys.argv[1:]))
"""
"""The command, with a cell that kills its process: the unit, where there is one."""
LINES = {
    "attention --impl xla reference blocked --feature full --direction forward --shape 2,16,16,2,2,8 2,24,24,2,2,8 --rounds 1": (
        {"implementation": "xla", "keys": 16},
        6,
    ),
    "step gpt-nano --mode inference --batch 2 --length 8 --rounds 1": ({"layers": "scan"}, 2),
    "growth gpt-nano --batch 2 --length 8 16 --layers 1 2 --width 32 64 --device-counts 1 2 --rounds 1": (
        {"axis": "layers", "value": 2},
        8,
    ),
}


@pytest.mark.parametrize("line", LINES, ids=[line.split()[0] for line in LINES])
def test_what_kills_it_twice_is_failed_and_stops_no_other(line: str, tmp_path: Path) -> None:
    """By SIGKILL, as the kernel kills what takes too much memory."""
    deadly, count = LINES[line]
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    ended = [
        run_python("-c", DEADLY, "bench", *line.split(), "--out", "out", *resume, cwd=tmp_path, env=paths)
        for resume in ((), ("--resume",), ("--resume",))
    ]
    assert [each.code for each in ended] == [-signal.SIGKILL, -signal.SIGKILL, 1], ended[-1].stderr
    cells = records.read(tmp_path / "out").cells
    died = [cell for cell in cells if cell["state"] == "failed"]
    assert len(cells) == count and len(died) == 1, died
    assert died[0]["reason"] == records.DIED and deadly.items() <= died[0]["key"].items()
    assert records.DIED in (tmp_path / "out" / "table.md").read_text()
    assert all(cell["state"] == "timed" for cell in cells if cell["reason"] not in (records.DIED, "not here"))
    content = (tmp_path / "out" / "cells.jsonl").read_bytes()
    run_python("-c", DEADLY, "bench", *line.split(), "--out", "out", "--resume", cwd=tmp_path, env=paths)
    assert (tmp_path / "out" / "cells.jsonl").read_bytes() == content


STOPS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
LINE = "bench attention --impl blocked --feature full --direction forward --shape 2,16,16,2,2,8"


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_stopped_by_a_signal_it_died_of_nothing(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However often; and whoever started it has the signals as before."""
    honest, before = blocked.blocked, signal.getsignal(number)
    monkeypatch.setattr(records, "environment", steps.environment)
    monkeypatch.setattr(attention_row, "_checked", lambda *_: ("", "", 0.0))

    def stopped(*given: Any, **more: Any) -> Any:
        os.kill(os.getpid(), number)
        return honest(*given, **more)

    monkeypatch.setattr(blocked, "blocked", stopped)
    out = ("--rounds", "1", "--out", str(tmp_path / "out"))
    for resume in ((), ("--resume",), ("--resume",)):
        ended = call(capsys, *LINE.split(), *out, *resume)
        assert ended.code == code and "stopped; --resume completes it" in ended.stderr
    assert signal.getsignal(number) is before
    monkeypatch.setattr(blocked, "blocked", honest)
    assert call(capsys, *LINE.split(), *out, "--resume").code == 0
    assert {cell["state"] for cell in records.read(tmp_path / "out").cells} == {"timed"}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_stopped_command_stops_its_fresh_process_in_order(number: int, code: int, tmp_path: Path) -> None:
    """It is waited for, and not killed."""
    path = tmp_path / "out" / "cells.jsonl"
    command = [sys.executable, "-P", "-m", "zoo.cli", *LINE.split(), "--rounds", "100000000", "--repeats", "3", "--out", "out"]
    with subprocess.Popen(command, env=clean_environment(), cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not path.exists() or path.read_bytes().count(b'"attempt"') < 4):
            time.sleep(0.05)
        process.send_signal(number)
    assert process.returncode == code
    assert path.read_bytes().endswith(b'{"attempt":[],"process":0}\n')
    assert not records.read(path).begun
