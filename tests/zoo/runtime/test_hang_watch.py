"""The stacks of a run that is stuck are written to its folder, or to stderr if the folder does not take them in time."""

import threading
from pathlib import Path

import pytest

from zoo.runtime import hang_watch


def test_stacks_are_appended_for_each_process(tmp_path: Path) -> None:
    path = tmp_path / "stacks.txt"
    for reason in ("first", "second"):
        assert hang_watch.write_stacks(reason, ["a\n", "b\n"], path) == f"the stacks of all threads are in {path}"
    lines = path.read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("20")] == ["Process 0:", "a", "Process 1:", "b"] * 2
    assert [line.split()[-1] for line in lines if line.startswith("20")] == ["first", "second"]


@pytest.mark.planted(2)
@pytest.mark.parametrize("hangs", [False, True])
def test_stacks_that_cannot_be_written_are_printed(
    hangs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is not there, or its disk does not answer."""
    monkeypatch.setattr(hang_watch, "PATIENCE", 0.1)
    path, answers = tmp_path / "absent/stacks.txt", threading.Event()
    if hangs:
        monkeypatch.setattr(hang_watch, "open_to_append", lambda path: answers.wait() and path.open("ab"))
    assert hang_watch.write_stacks("why", ["a\n"], path) == "the stacks of all threads are above"
    assert "why\n\nProcess 0:\na\n" in capsys.readouterr().err
    answers.set()  # The thread that waits ends.
