"""The working copies of a run on two machines."""

from pathlib import Path

import pytest

from tests.support.run_copies import NAME
from train.run.run_dir import RunDir


@pytest.fixture
def work(tmp_path: Path) -> RunDir:
    """The working copy of a run, without checkpoints yet."""
    run = RunDir(tmp_path / "work" / NAME)
    run.tokenizer.mkdir(parents=True)
    run.config.write_text('{"family": "gpt"}\n')
    run.metrics.write_text('{"step":1}\n')
    (run.tokenizer / "tokenizer.json").write_text("{}")
    return run


@pytest.fixture
def other(tmp_path: Path) -> RunDir:
    """The folder of the run on another machine, on which nothing is yet."""
    run = RunDir(tmp_path / "other" / NAME)
    run.path.mkdir(parents=True)
    return run
