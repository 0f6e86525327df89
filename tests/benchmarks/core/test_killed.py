"""`zoo bench` that dies: what it died of twice is failed and not tried again; a run that was asked to stop died of nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attention import measure_row
from benchmarks.core import result_files
from tests.support import benchmark_steps as steps
from tests.support.commands import call
from tests.support.processes import clean_environment
from zoo.attention.kernels import blocked
from zoo.cli import main

ATTENTION = "bench attention --feature full --direction forward --rounds 1"
COMMANDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "attention": (
        f"{ATTENTION} --impl xla reference blocked --shape 2,16,16,2,2,8 2,24,24,2,2,8",
        {"implementation": "xla", "keys": 24},
        6,
    ),
    "step": ("bench step gpt-nano --mode inference --batch 2 --length 8 --rounds 1", {"layers": "scan"}, 2),
    "growth": (
        "bench growth gpt-nano --batch 2 --length 8 16 --layers 1 2 --width 32 64 --device-counts 1 2 --rounds 1",
        {"axis": "layers", "value": 2},
        8,
    ),
}
"""Command, axes of the cell that it dies of, and how many cells it has. Where there is a unit, it is the unit that kills."""


class Death(BaseException):
    """What ends a command in this process as a kill would: nothing is written any more."""


def die() -> None:
    raise Death


@pytest.mark.parametrize(
    "name", ["attention", pytest.param("step", marks=pytest.mark.full), pytest.param("growth", marks=pytest.mark.slow)]
)
def test_a_cell_that_crashes_twice_is_failed_and_does_not_stop_the_others(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished before is kept and not measured again."""
    line, axes, count = COMMANDS[name]
    steps.make_deadly(monkeypatch, die)
    monkeypatch.setattr(result_files.Writer, "close", lambda writer: writer._file.close())
    command, path, before = [*line.split(), "--out", str(tmp_path)], tmp_path / "cells.jsonl", b""
    for resume in ([], ["--resume"]):
        with pytest.raises(Death):
            main.main([*command, *resume])
        content = path.read_bytes()
        assert content.startswith(before)
        # A kill may cut a line too.
        before = content
        path.write_bytes(content + b'{"key": {"implem')
    assert main.main([*command, "--resume"]) == 1
    assert path.read_bytes().startswith(before)
    cells = result_files.read_results(tmp_path).cells
    died = [cell for cell in cells if cell["state"] == "failed"]
    assert len({result_files.cell_identity(cell["key"]) for cell in cells}) == len(cells) == count
    assert [cell["reason"] for cell in died] == [result_files.DIED] and axes.items() <= died[0]["key"].items()
    assert result_files.DIED in (tmp_path / "table.md").read_text()
    assert all(cell["state"] == "timed" for cell in cells if cell["reason"] not in (result_files.DIED, "not here"))


FULL = ((signal.SIGINT, 130), (signal.SIGHUP, 129))
STOPS = [(signal.SIGTERM, 143), *(pytest.param(*each, marks=pytest.mark.full) for each in FULL)]
STOPPED = f"{ATTENTION} --impl blocked --shape 2,16,16,2,2,8"


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_run_that_is_stopped_by_a_signal_has_no_crash(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As often as a death would count; and the signals of whoever started it are as before."""
    honest, before = blocked.blocked, signal.getsignal(number)
    steps.hurry(monkeypatch)
    monkeypatch.setattr(measure_row, "_check_cases", lambda *_: None)

    def stopped(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        return honest(*arguments, **options)

    monkeypatch.setattr(blocked, "blocked", stopped)
    command = (*STOPPED.split(), "--out", str(tmp_path))
    for resume in ((), *(("--resume",),) * (result_files.DEATHS - 1)):
        ended = call(capsys, *command, *resume)
        assert ended.code == code and "stopped; --resume completes it" in ended.stderr
    assert signal.getsignal(number) is before
    monkeypatch.setattr(blocked, "blocked", honest)
    assert call(capsys, *command, "--resume").code == 0
    assert {cell["state"] for cell in result_files.read_results(tmp_path).cells} == {"timed"}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_stopped_command_stops_its_fresh_process_in_order(number: int, code: int, tmp_path: Path) -> None:
    """It is waited for, and not killed."""
    path = tmp_path / "out" / "cells.jsonl"
    line = STOPPED.replace("--rounds 1", "--rounds 100000000 --repeats 3 --out out")
    command = [sys.executable, "-P", "-m", "zoo.cli", *line.split()]
    with subprocess.Popen(command, env=clean_environment(), cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not path.exists() or path.read_bytes().count(b'"attempt"') < 4):
            time.sleep(0.05)
        process.send_signal(number)
    assert process.returncode == code
    assert path.read_bytes().endswith(b'{"attempt":[],"process":0}\n')
    assert not result_files.read_results(path).begun
