"""The pilot of a tier: its rows, the choice of learning rates, and what ties it to its grid."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.experiments import catalogue, grid_runner, pilot
from eval.experiments.declaration import Experiment, Tier, Times
from eval.experiments.grid import build_grid
from eval.experiments.preregistration import registration_of
from eval.experiments.workers import node_process
from tests.support.commands import call
from tests.support.small_experiment import FILES, STAND_IN, experiment, with_row
from zoo.cli.commands.train import parse_options
from zoo.errors import BadInput

TIER = Tier(corpus="embedded", seeds=3, rates=(0.5, 2.0), overrides={"pretrain": {"optim.lr": 1e-3}})


def declared(**changes: Any) -> Experiment:
    return experiment(**{"tiers": {"smoke": TIER}, **with_row("b"), **changes})


def result(losses: dict[str, tuple[float | None, ...]]) -> dict[str, Any]:
    """Return the part of the pilot's experiment.json that is read; a loss of None is a seed that diverged."""
    cells = [
        {"row": row, "stage": "pretrain", "seed": seed, "status": "diverged" if value is None else "done"}
        | {"scores": {} if value is None else {"loss": value}}
        for row, values in losses.items()
        for seed, value in zip(TIER.pilot_seeds, values, strict=True)
    ]
    return {"registration": {"seeds": [*TIER.pilot_seeds], "hash": "0" * 64}, "cells": cells}


LOSSES = {"a-rate0.5": (3.0, 3.2), "a-rate2": (2.0, None), "b-rate0.5": (3.0, 3.2), "b-rate2": (2.9, 2.9), "none": (6.0, 6.0)}


def test_a_pilot_has_each_row_at_each_rate_and_other_seeds() -> None:
    trial = pilot.pilot_experiment(declared(), "smoke")
    assert [row.name for row in trial.rows] == ["a-rate0.5", "a-rate2", "b-rate0.5", "b-rate2", "none"] and not trial.claims
    grid = build_grid(trial, "smoke", FILES, parse_options, seeds=TIER.pilot_seeds)
    rates = {node.row: node.config.optim.lr for node in grid.nodes if node.stage == "pretrain"}
    assert rates == {"a-rate0.5": 5e-4, "a-rate2": 2e-3, "b-rate0.5": 5e-4, "b-rate2": 2e-3, "none": 1e-3}
    assert {node.seed for node in grid.nodes if node.row} == {1000, 1001}
    # A row whose optimizer needs other rates has multiples of its own.
    trial = pilot.pilot_experiment(declared(**with_row("b", **{"optim.lr": Times(0.1)})), "smoke")
    grid = build_grid(trial, "smoke", FILES, parse_options, seeds=(1000,))
    rates = {node.row: node.config.optim.lr for node in grid.nodes if node.stage == "pretrain"}
    assert rates == pytest.approx({"a-rate0.5": 5e-4, "a-rate2": 2e-3, "b-rate0.5": 5e-5, "b-rate2": 2e-4, "none": 1e-3})


def test_the_jobs_of_a_pilot_mount_the_volume_of_the_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The pilot is in a folder of the experiment, so its jobs mount the folder two above it."""
    own = tmp_path / "experiment" / pilot.FOLDER
    text = ["--corpus", "embedded", "--corpus-digest", "any"]
    printed = call(capsys, "experiment", "masks", str(own.parent), *text, "--on", "jobset", "--commands")
    first, *_ = printed.stdout.split("\n---\n")
    assert f'"mountPath": "{tmp_path.resolve()}"' in first and f'"workingDir": "{own.resolve()}"' in first


def test_the_best_rate_of_which_every_seed_has_a_value_is_chosen() -> None:
    chosen = pilot.read_pilot(declared(), "smoke", result(LOSSES), 5)
    assert {name: row["factor"] for name, row in chosen["rows"].items()} == {"a": 0.5, "b": 2.0, "none": 1.0}
    assert chosen["rows"]["a"]["sd"]["pretrain/loss"] == pytest.approx(0.02**0.5)
    assert chosen["rows"]["b"]["sd"]["pretrain/loss"] == pytest.approx(0.1) and 0 < chosen["power"]["b_below_a"] < 0.1
    tuned = pilot.tuned_experiment(declared(), "smoke", chosen, (0, 1, 2))
    grid = build_grid(tuned, "smoke", FILES, parse_options, pilot=chosen)
    assert {node.row: node.config.optim.lr for node in grid.nodes if node.stage == "pretrain"} == {
        "a": 5e-4,
        "b": 2e-3,
        "none": 1e-3,
    }
    assert [claim.pilot_deviation for claim in tuned.claims] == [pytest.approx(0.02**0.5)]
    assert registration_of(grid)["pilot"] == json.loads(json.dumps(chosen))


@pytest.mark.planted
def test_wrong_pilots_are_refused() -> None:
    chosen = pilot.read_pilot(declared(), "smoke", result(LOSSES), 5)
    with pytest.raises(BadInput, match="seed 1000 is one of the pilot's"):
        pilot.tuned_experiment(declared(), "smoke", chosen, (0, 1000))
    with pytest.raises(BadInput, match="no rate of the row a has pretrain/loss for every seed"):
        pilot.read_pilot(declared(), "smoke", result(LOSSES | {"a-rate0.5": (3.0, None)}), 5)
    with pytest.raises(BadInput, match=r"row b: it has its own optim\.lr, which the pilot chooses"):
        pilot.pilot_experiment(declared(**with_row("b", **{"optim.lr": 2e-3})), "smoke")
    with pytest.raises(BadInput, match=r"tier smoke: its rates are multiples of optim\.lr of the stage pretrain; set it"):
        declared(tiers={"smoke": dataclasses.replace(TIER, overrides={})})


def test_a_grid_follows_its_pilot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The second command finds the pilot finished, though a rate diverged; the grid's registration has its result."""
    monkeypatch.setattr(node_process, "PROGRAM", (sys.executable, "-c", STAND_IN))
    monkeypatch.setattr(grid_runner, "POLL", 0.01)
    monkeypatch.setattr(catalogue, "find_experiment", lambda _: declared())
    words = ("experiment", "small", str(tmp_path), "--tier", "smoke")
    assert call(capsys, *words, "--node", "tokenizer").stderr.startswith("zoo: --node tokenizer: the pilot in")
    (tmp_path / "pilot").mkdir()
    (tmp_path / "pilot/fail-a-rate2-pretrain-1000").write_text("3 steps in a row had a non-finite loss or gradient")
    first = call(capsys, *words, "--pilot")
    assert first.code == 0 and first.stdout.startswith("pilot: 2 learning rates for each row, seeds 1000, 1001\n")
    assert not (tmp_path / "runs").exists() and len([*(tmp_path / "pilot/runs").glob("*/scores.json")]) == 10
    assert call(capsys, *words).code == 0
    registered = json.loads((tmp_path / "registration.json").read_text())
    trial = json.loads((tmp_path / "pilot/registration.json").read_text())
    assert registered["pilot"]["hash"] == trial["hash"] and registered["seeds"] == [0, 1, 2]
    assert registered["pilot"]["rows"]["a"]["values"] == {"0.5": [1.5, 1.5]}
    assert registered["pilot"]["power_seeds"] == 3
    assert call(capsys, *words, "--render").code == 0
    # The pilot of another grid, and one that is not of its registration.
    trial = json.loads((tmp_path / "pilot/experiment.json").read_text())
    monkeypatch.setattr(catalogue, "find_experiment", lambda _: declared(**with_row("b", **{"data.batch": 16, "steps": 2})))
    assert "has another registration: row b-rate0.5" in call(capsys, *words).stderr
    monkeypatch.setattr(catalogue, "find_experiment", lambda _: declared())
    trial["registration"]["hash"] = "0" * 64
    (tmp_path / "pilot/experiment.json").write_text(json.dumps(trial))
    assert "is not of the registration beside it" in call(capsys, *words).stderr
