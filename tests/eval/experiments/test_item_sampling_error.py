"""The errors of a claim over items and over seeds, from the outcomes in the folders of the runs."""

from pathlib import Path

import numpy as np
import pytest

from eval.experiments.grid import build_grid
from eval.experiments.item_sampling_error import item_errors
from tests.support.small_experiment import FILES, experiment
from train.run.item_outcomes import Outcomes, write_outcomes
from train.run.run_dir import RunDir
from zoo.cli.commands.train import parse_options

ITEMS = 400


def test_errors_of_items_and_of_seeds(tmp_path: Path) -> None:
    grid = build_grid(experiment(), "smoke", FILES, parse_options, seeds=(0, 1, 2))
    rng, entry = np.random.default_rng(0), {"reference": "a"}
    difficulty = rng.random(ITEMS)
    for node in grid.nodes:
        if node.task and node.row in ("a", "b"):
            (tmp_path / node.run).mkdir(parents=True)
            right = difficulty < (0.5 if node.row == "a" else 0.6)
            outcomes = Outcomes.of(("test.tsv:1",) * ITEMS, right, right, None)
            write_outcomes(RunDir(tmp_path / node.run), node.task, outcomes)
    parts = item_errors(grid, entry, "score/accuracy", "b", tmp_path)
    assert parts is not None and parts["items"] == ITEMS and parts["different"] == parts["seeds"] == 3
    # All seeds have the same outcomes: the whole error is that of the items, sqrt(p (1 - p) / n) of the share that differs.
    share = np.mean((difficulty >= 0.5) & (difficulty < 0.6))
    assert parts["seed_error"] == 0 and parts["item_error"] == pytest.approx(np.sqrt(share * (1 - share) / ITEMS), rel=0.1)
    assert item_errors(grid, entry, "score/perplexity", "b", tmp_path) is None
    # The control has no outcomes.
    assert item_errors(grid, {"reference": "none"}, "score/accuracy", "b", tmp_path) is None
