"""Runs with an average of their parameters: what is scored, loaded, kept as the best and continued."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support import runs, tiny
from tests.support.commands import call
from tests.support.runs import Training
from train.weights.load import load_model
from zoo.cli import main
from zoo.fault_points import faults
from zoo.sharding import path_of

FLAGS = [*tiny.FLAGS, "--data.paths", "text.txt", "--steps", "8", "--checkpoint.every", "4", "--log.validate-every", "4"]
FLAGS += ["--log.samples", "0"]
AVERAGE = ("--optim.average", "0.9")
SCHEDULE_FREE = ("--optim.name", "schedule_free_adamw", "--optim.schedule", "constant")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(runs.text())


def train(name: str, *flags: str) -> Training:
    assert main.main(["train", "gpt-nano", *FLAGS, *flags, "--name", name]) == 0
    return Training(Path.cwd(), name)


def parameters(source: str, step: int | None = None) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(load_model(source, step=step).params)
    return {path_of(keys): np.asarray(leaf) for keys, leaf in leaves}


def averages_of(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path.partition("/average/")[2]: leaf for path, leaf in state.items() if "/average/" in path}


@pytest.mark.parametrize("average", [AVERAGE, pytest.param(SCHEDULE_FREE, marks=pytest.mark.full)])
def test_the_average_is_scored_and_loaded_and_continues_after_a_kill(
    average: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    reference = train("reference", *average)
    command = ["train", "gpt-nano", *FLAGS, *average, "--name", "killed"]
    with faults("train.step:error:6"), pytest.raises(RuntimeError, match="fault at"):
        main.main(command)
    assert main.main(command) == 0
    states = [run.state() for run in (reference, Training(Path.cwd(), "killed"))]
    assert not [path for path in states[0] if states[0][path].tobytes() != states[1][path].tobytes()]
    expected, loaded = averages_of(states[0]), parameters("runs/reference")
    assert expected.keys() == loaded.keys()
    for path, leaf in loaded.items():
        np.testing.assert_array_equal(leaf, expected[path])
        assert (leaf != states[0][f"params/{path}"]).any()
    printed = call(capsys, "eval", "runs/reference").stdout
    loss = json.loads(Path("runs/reference/scores.json").read_text())["loss"]
    assert f"{loss:.6f}" in printed
    assert main.main(["export", "runs/reference", "published"]) == 0
    for path, leaf in parameters("published").items():
        np.testing.assert_array_equal(leaf, expected[path])


def test_the_best_checkpoint_has_the_average() -> None:
    best = train("best", *AVERAGE, "--selection.best", "--log.ledger")
    plain = averages_of(best.state())
    for path, leaf in parameters("runs/best").items():
        np.testing.assert_array_equal(leaf, plain[path])
    assert main.main(["audit", "runs/best", "--steps", "0"]) == 0


@pytest.mark.slow
def test_averages_of_several_widths_are_kept_and_others_are_made_from_them(capsys: pytest.CaptureFixture[str]) -> None:
    run = train("widths", "--optim.average-widths", "0.05", "0.1", "--checkpoint.every", "1", "--checkpoint.keep", "8")
    state = run.state()
    first = {path.partition("/average/")[2]: leaf for path, leaf in state.items() if "/average/" in path}
    second = {path.partition("/others/1/")[2]: leaf for path, leaf in state.items() if "/others/1/" in path}
    loaded = parameters("runs/widths")
    assert first.keys() == second.keys() == loaded.keys()
    for path, leaf in loaded.items():
        np.testing.assert_array_equal(leaf, first[path])
    # A width that the run computed is made of its own average alone; of both, any is between or beyond them.
    assert main.main(["export", "runs/widths", "own", "--average-width", "0.1"]) == 0
    for path, leaf in parameters("own").items():
        np.testing.assert_allclose(leaf, second[path], rtol=1e-4, atol=1e-6)
    printed = call(capsys, "export", "runs/widths", "wider", "--average-width", "0.2").stdout
    assert "step 8, an average of width 0.2" in printed
    wider = parameters("wider")
    assert any((wider[path] != second[path]).any() for path in wider)
    train("plain")
    cases = {
        ("runs/widths", "--average-width", "0.5"): "--average-width 0.5: choose 0.001 to 0.28",
        ("runs/widths", "--average-width", "0.1", "--last", "2"): "leave out --step, --last and --adapter",
        ("runs/plain", "--average-width", "0.1"): "runs/plain has no averages to make it from; name a run with",
    }
    for (source, *options), message in cases.items():
        refused = call(capsys, "export", source, "refused", *options)
        assert refused.code == 2 and message in refused.stderr and not Path("refused").exists()
