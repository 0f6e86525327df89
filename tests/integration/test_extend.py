"""A run is continued by --extend, and another one by --fork: with the moments and data that follow, whatever interrupts it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.support import runs, tiny
from tests.support.commands import assert_refused, call
from tests.support.object_stores import Place
from tests.support.runs import Training
from train.run.run_dir import RunDir, read_config
from zoo.cli import main
from zoo.fault_points import faults

FLAGS = [*tiny.FLAGS, "--data.paths", "text.txt", "--checkpoint.every", "4", "--log.ledger", "--log.samples", "1"]
CONSTANT = ["--optim.schedule", "constant"]
RESULTS = ("scores", "samples", "report")


def command(name: str, steps: int, *flags: str) -> list[str]:
    return ["train", "gpt-nano", *FLAGS, *flags, "--name", name, "--steps", str(steps)]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(runs.text())


@pytest.mark.full
@pytest.mark.planted
def test_an_extended_run_with_a_constant_rate_is_the_longer_run_whenever_it_is_killed(capsys: pytest.CaptureFixture) -> None:
    """Killed after config.json is written, before the first new checkpoint, and before the score; the order of the data, the
    moments and the parameters are those of a run of 12 steps."""
    assert main.main(command("long", 12, *CONSTANT)) == 0
    assert main.main(command("short", 8, *CONSTANT)) == 0
    extended = command("short", 12, *CONSTANT, "--extend")
    folder = RunDir("runs/short")
    moments = Training(Path.cwd(), "short").state(8)
    for point, step in (("train.compile:error:1", 8), ("train.step:error:3", 8), ("train.score:error:1", 12)):
        capsys.readouterr()
        with faults(point), pytest.raises(RuntimeError, match="fault at"):
            main.main(extended)
        assert Training(Path.cwd(), "short").latest() == step
        assert not any(getattr(folder, name).exists() for name in RESULTS)
        assert read_config(folder.path).extended_from == (8,)
        rates = "the learning rate of step 9 is 3.0e-03, where the schedule of 8 steps ended at 3.0e-03"
        assert f"! extended from 8 to 12 steps; {rates}" in capsys.readouterr().out
    ended = call(capsys, *command("short", 8, *CONSTANT))
    assert ended.code == 2 and "holds another run: steps: 12 before, 8 now; choose another --name" in ended.stderr
    assert main.main(extended) == 0
    assert all(getattr(folder, name).exists() for name in RESULTS)
    short, long = (Training(Path.cwd(), name) for name in ("short", "long"))
    assert short.ledger() == long.ledger()
    states = [run.state() for run in (short, long)]
    assert not [path for path in states[0] if states[0][path].tobytes() != states[1][path].tobytes()]
    assert any(np.any(states[0][path] != moments[path]) for path in moments if path.startswith("opt_state"))
    assert json.loads(folder.scores.read_text()) == json.loads((long.folder / "scores.json").read_text())
    assert "is finished" in call(capsys, *extended).stdout
    assert call(capsys, *command("short", 12, *CONSTANT)).code == 0


def test_the_change_of_the_schedule_is_stated_and_the_best_checkpoint_stays(capsys: pytest.CaptureFixture) -> None:
    best = ["--selection.best", "--log.validate-every", "4"]
    assert main.main(command("best", 8, *best)) == 0
    ended = call(capsys, *command("best", 16, *best, "--extend"))
    assert ended.code == 0, ended
    assert "the learning rate of step 9 is 2.5e-03, where the schedule of 8 steps ended at " in ended.stdout
    assert call(capsys, "eval", "runs/best").code == 0
    assert call(capsys, "compare", "runs/best").code == 0


def test_what_cannot_be_extended_is_refused_in_one_line(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main.main(command("done", 8)) == 0
    with faults("train.step:error:6"), pytest.raises(RuntimeError, match="fault at"):
        main.main(command("begun", 8))
    fewer = "--steps 6: runs/done has 8 steps, and --extend adds some; choose more"
    unfinished = "--extend: runs/begun has not finished its 8 steps; finish it first, by the same command with --steps 8"
    cases = {
        "fewer": (command("done", 6, "--extend"), fewer),
        "none": (command("none", 8, "--extend"), "--extend: runs/none holds no run with a checkpoint; leave the option out"),
        "unfinished": (command("begun", 12, "--extend"), unfinished),
        "another": (command("done", 12, "--extend", "--seed", "1"), "runs/done holds another run: seed: 0 before, 1 now; choose"),
        "without": (command("done", 12), "runs/done holds another run: steps: 8 before, 12 now; .*--extend continues it"),
    }
    assert_refused(capsys, tmp_path, cases)


@pytest.mark.slow
def test_a_run_in_a_store_is_extended_on_another_machine(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("ZOO_CACHE", os.path.abspath("first"))
    assert main.main(command("moved", 8, "--out", place.uri)) == 0
    monkeypatch.setenv("ZOO_CACHE", os.path.abspath("second"))
    extended = command("moved", 16, "--out", place.uri, "--extend")
    with faults("train.step:error:6"), pytest.raises(RuntimeError, match="fault at"):
        main.main(extended)
    objects = place.store("moved").list()
    assert "checkpoints/00000012/COMMIT.json" in objects and "scores.json" not in objects
    monkeypatch.setenv("ZOO_CACHE", os.path.abspath("third"))
    assert main.main(extended) == 0
    assert json.loads(place.store("moved").read("scores.json"))["step"] == 16


@pytest.mark.slow
def test_a_fork_with_a_decay_is_the_run_that_would_have_had_it(capsys: pytest.CaptureFixture) -> None:
    """A run at a constant rate, continued from step 8 with a decay in four steps, has the state of a run of 12 steps with that
    decay, and the data that follow; also if it is killed before its first checkpoint."""
    decay = ["--optim.schedule", "wsd", "--optim.decay-steps", "4"]
    assert main.main(command("plateau", 8, *CONSTANT)) == 0
    assert main.main(command("direct", 12, *decay)) == 0
    forked = command("forked", 12, *decay, "--init", "runs/plateau", "--fork", "8")
    capsys.readouterr()
    with faults("train.step:error:3"), pytest.raises(RuntimeError, match="fault at"):
        main.main(forked)
    assert "continues runs/plateau from step 8, with its moments and its position in the data" in capsys.readouterr().out
    assert main.main(forked) == 0
    forked_run, direct = (Training(Path.cwd(), name) for name in ("forked", "direct"))
    states = [run.state() for run in (forked_run, direct)]
    assert states[0].keys() == states[1].keys()
    assert not [path for path in states[0] if states[0][path].tobytes() != states[1][path].tobytes()]
    assert forked_run.ledger() == direct.ledger()[8:]
    scores = [json.loads((run.folder / "scores.json").read_text()) for run in (forked_run, direct)]
    assert scores[0] == scores[1]
    # The step is a part of the command, so that a source that goes on changes nothing.
    assert main.main(command("plateau", 12, *CONSTANT, "--extend", "--checkpoint.keep", "9")) == 0
    assert main.main(["audit", "runs/forked", "--steps", "0"]) == 0


def test_what_cannot_be_forked_is_refused_in_one_line(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main.main(command("done", 8)) == 0
    assert main.main(["export", "runs/done", "published"]) == 0
    init = ["--init", "runs/done", "--fork", "8"]
    capsys.readouterr()
    for flags, message in (
        ((12, "--fork", "8"), "--fork 8: it is a step of the run --init, before --steps; name a run, and a step of it, or leave"),
        (
            (12, "--init", "published", "--fork", "8"),
            "--fork 8: published has weights alone, and no moments; name a run, or leave",
        ),
        ((8, *init), "--fork 8: it is a step of the run --init, before --steps; name a run, and a step of it, or leave it out"),
        (
            (12, *init[:3], "5"),
            "--fork 5: runs/done has checkpoints of the steps 4, 8; choose one of them, or train with a larger",
        ),
        ((12, *init, "--seed", "1"), "--seed 1: the state of runs/done has 0; choose it, or leave --fork out"),
        ((12, *init, "--data.batch", "16"), "--data.batch 16: the state of runs/done has 8; choose it, or leave --fork out"),
        (
            (12, *init, "--optim.name", "lion"),
            "--optim.name lion: the state of runs/done has muon; choose it, or leave --fork out",
        ),
        ((12, *init, "--optim.clip", "0"), "--optim.clip 0.0: the state of runs/done has 1.0; choose it, or leave --fork out"),
        (
            (12, *init, "--optim.average", "0.9"),
            "--optim.average 0.9: runs/done has no average of its parameters; choose the same",
        ),
        ((12, *init, "--lora.rank", "2"), "--fork 8: adapters and frozen parts cannot be forked; leave it out"),
    ):
        ended = call(capsys, *command("fork", *flags))
        assert ended.code == 2 and message in ended.stderr, ended
    assert not Path("runs/fork").exists()
