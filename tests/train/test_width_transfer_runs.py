"""Runs with width transfer: what is scored, loaded, exported and continued."""

from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support import runs, tiny
from tests.support.commands import call
from tests.support.runs import Training
from train.engine.width_transfer import factors_of_run
from train.run.run_dir import read_config
from train.weights.load import load_model
from zoo.cli import main
from zoo.fault_points import faults
from zoo.sharding import path_of

FLAGS = [*tiny.FLAGS, "--data.paths", "text.txt", "--steps", "8", "--checkpoint.every", "4", "--log.validate-every", "4"]
FLAGS += ["--log.ledger", "--checkpoint.keep", "9", "--width-transfer", "16"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(runs.text())


def parameters(source: str) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(load_model(source).params)
    return {path_of(keys): np.asarray(leaf) for keys, leaf in leaves}


@pytest.mark.full
def test_a_run_is_resumed_exported_and_audited_with_the_parameters_of_its_model(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "gpt-nano", *FLAGS, "--name"]
    assert main.main([*command, "reference"]) == 0
    assert "from width 16 to 32" in capsys.readouterr().out
    with faults("train.step:error:6"), pytest.raises(RuntimeError, match="fault at"):
        main.main([*command, "killed"])
    assert main.main([*command, "killed"]) == 0
    states = [Training(Path.cwd(), name).state() for name in ("reference", "killed")]
    assert not [path for path in states[0] if states[0][path].tobytes() != states[1][path].tobytes()]

    factors, loaded = factors_of_run(read_config(Path("runs/reference"))), parameters("runs/reference")
    for path, leaf in loaded.items():
        np.testing.assert_array_equal(leaf, states[0][f"params/{path}"] * np.float32(factors[path].multiplier))
    assert main.main(["export", "runs/reference", "published"]) == 0
    for path, leaf in parameters("published").items():
        np.testing.assert_array_equal(leaf, loaded[path])
    assert main.main(["audit", "runs/reference", "--steps", "4"]) == 0
    generate = ("--prompt", "the", "--limit", "8", "--temperature", "0")
    texts = [call(capsys, "generate", source, *generate).stdout for source in ("runs/reference", "published")]
    assert texts[0] == texts[1]

    forked = [*command, "forked", "--init", "runs/reference", "--fork", "4"]
    without = [part for part in forked if part not in ("--width-transfer", "16")]
    assert main.main(without) == 2
    message = capsys.readouterr().err
    assert "--width-transfer none: the state of runs/reference has 16; choose it" in message
    assert main.main(forked) == 0
