"""The record of a failure, which a run leaves in its own folder."""

import json
from pathlib import Path

import pytest

from train.run.result_files import LONGEST_REASON, failure_recorded, read_result
from train.run.run_dir import RunDir
from zoo.errors import BadInput


def fail(folder: RunDir, error: BaseException, process: int = 0) -> None:
    with pytest.raises(type(error)), failure_recorded(folder, process):
        raise error


def test_an_error_is_recorded_until_the_run_continues(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    fail(folder, BadInput("6 steps in a row had a non-finite loss or gradient"), process=1)
    assert not folder.failure.exists()
    fail(folder, BadInput("6 steps in a row had a non-finite loss or gradient"))
    assert read_result(folder.failure)["reason"] == "6 steps in a row had a non-finite loss or gradient"
    fail(folder, ZeroDivisionError("a\nb" * LONGEST_REASON))
    reason = json.loads(folder.failure.read_text())["reason"]
    assert reason.startswith("ZeroDivisionError: a ba b") and len(reason) == LONGEST_REASON
    with failure_recorded(folder, 0):
        assert not folder.failure.exists()
    # An interrupted run has not failed.
    fail(folder, KeyboardInterrupt())
    assert not folder.failure.exists()
