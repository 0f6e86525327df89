"""The error of a difference over items, from the outcomes in the folders of the runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.experiments.grid import Grid, build_grid
from eval.experiments.item_sampling_error import domain_differences, domain_of, item_errors
from tests.support.small_experiment import FILES, experiment, with_claim
from train.run.item_outcomes import Outcomes, write_outcomes
from train.run.run_dir import RunDir
from zoo.cli.commands.train import parse_options

ITEMS = 400


def grid_of(metric: str, **more: Any) -> Grid:
    return build_grid(experiment(**with_claim(metric=metric, **more)), "smoke", FILES, parse_options, seeds=(0, 1, 2))


def write_runs(grid: Grid, folder: Path, score: str, nats: float = 0.0) -> list[dict[str, Any]]:
    """Write outcomes of a and b, and return their cells: an item is right if it is easy enough for the row."""
    rng, cells = np.random.default_rng(0), []
    difficulty, count = rng.random(ITEMS), rng.integers(1, 9, ITEMS)
    for node in (node for node in grid.nodes if node.task and node.row in ("a", "b")):
        (folder / node.run).mkdir(parents=True, exist_ok=True)
        right = (difficulty < (0.5 if node.row == "a" else 0.6)).astype(np.float64)
        loss = count * (difficulty + (0.1 if node.row == "a" else 0.0) * right)
        outcomes = Outcomes.of(("test.tsv:1",) * ITEMS, right, loss, None if score == "accuracy" else count)
        write_outcomes(RunDir(folder / node.run), node.task, outcomes)
        value = right.mean() if score == "accuracy" else loss.sum() / count.sum()
        cells.append({"run": node.run, "stage": node.stage, "scores": {score: float(value) + nats}})
    return cells


def test_the_error_over_items_of_an_accuracy(tmp_path: Path) -> None:
    grid = grid_of("score/accuracy")
    cells = write_runs(grid, tmp_path, "accuracy")
    (error,) = item_errors(grid, cells, tmp_path)
    # All seeds have the same outcomes: the error is sqrt(p (1 - p) / n) of the share of items that differs.
    share = np.mean([0.5 <= value < 0.6 for value in np.random.default_rng(0).random(ITEMS)])
    assert {**error, "item_error": pytest.approx(np.sqrt(share * (1 - share) / (ITEMS - 1)))} == {
        **{"row": "b", "reference": "a", "metric": "score/accuracy", "items": ITEMS, "item_error": error["item_error"]},
        "domains": [],
    }
    # A seed without a score is left out; a run with a score and without its outcomes is not.
    assert item_errors(grid, cells[1:], tmp_path) == [error]
    RunDir(tmp_path / cells[0]["run"]).outcomes.unlink()
    assert item_errors(grid, cells, tmp_path) == []
    assert item_errors(grid_of("score/perplexity"), cells, tmp_path) == []


def test_the_error_over_items_of_a_loss(tmp_path: Path) -> None:
    """A loss is a ratio of sums: its error is that of a simulation over other items."""
    grid = grid_of("pretrain/loss", second_metric="score/loss", second_margin=0.01)
    cells = write_runs(grid, tmp_path, "loss")
    (error,) = item_errors(grid, cells, tmp_path)
    rng, draws = np.random.default_rng(0), []
    difficulty, count = rng.random(ITEMS), rng.integers(1, 9, ITEMS)
    for chosen in rng.integers(0, ITEMS, (2_000, ITEMS)):
        of_a = (difficulty[chosen] < 0.5) * 0.1
        draws.append((count[chosen] * of_a).sum() / count[chosen].sum())
    assert error["item_error"] == pytest.approx(np.std(draws), rel=0.06)
    # A score that is not the mean of these outcomes has no error from them.
    assert item_errors(grid, write_runs(grid, tmp_path, "loss", nats=0.1), tmp_path) == []


def test_the_error_over_items_of_bleu(tmp_path: Path) -> None:
    grid, cells = grid_of("score/bleu"), []
    for node in (node for node in grid.nodes if node.task and node.row in ("a", "b")):
        (tmp_path / node.run).mkdir(parents=True)
        by_text = 30 + 5 * np.random.default_rng(ord(node.row)).normal(size=ITEMS)
        outcomes = Outcomes.of(("test.de:1",) * ITEMS, np.zeros(ITEMS), np.full(ITEMS, np.nan), bleu=by_text)
        write_outcomes(RunDir(tmp_path / node.run), node.task, outcomes)
        cells.append({"run": node.run, "stage": node.stage, "scores": {"bleu": float(by_text.mean())}})
    (error,) = item_errors(grid, cells, tmp_path)
    assert error["item_error"] == pytest.approx(5 * np.sqrt(2 / ITEMS), rel=0.1)


def outcomes_of(shifts: dict[str, float], seed: int) -> Outcomes:
    """Return outcomes of 50 items in each domain whose losses are 2 plus a shift, with noise of items and of a seed."""
    hard = np.random.default_rng(0).normal(0, 0.1, 50 * len(shifts))
    count = np.random.default_rng(1).integers(1, 9, len(hard))
    loss = 2 + np.repeat([*shifts.values()], 50) + hard + np.random.default_rng(seed).normal(0, 0.01)
    names = [f"/data/{domain}_{number}.txt" for domain in shifts for number in range(50)]
    return Outcomes.of(names, np.zeros(len(hard)), loss * count, count)


@pytest.mark.parametrize("is_paired", [True, False])
def test_differences_in_each_domain(is_paired: bool) -> None:
    """The difference is +0.1 in one domain and -0.3 in the other, and each is that of the domain's own sums."""
    row = [outcomes_of({"plays": 0.1, "austen": 0.0}, seed) for seed in range(5)]
    reference = [outcomes_of({"plays": 0.0, "austen": 0.3}, seed) for seed in (range(5) if is_paired else range(5, 10))]
    austen, plays = domain_differences(row, reference, "loss", is_paired=is_paired)
    assert (austen["domain"], austen["items"], plays["domain"], plays["items"]) == ("austen", 50, "plays", 50)
    values = [[run.nats[50:].sum() / run.count[50:].sum() for run in side] for side in (row, reference)]
    assert austen["estimate"] == pytest.approx(np.mean(values[0]) - np.mean(values[1])) == pytest.approx(-0.3, abs=0.02)
    assert plays["estimate"] == pytest.approx(0.1, abs=0.02)
    if is_paired:
        # Both rows of a seed have the same noise, and all items the same difference.
        assert plays["interval"] is None or np.ptp(plays["interval"]) < 1e-9
    else:
        low, high = plays["interval"]
        assert low < plays["estimate"] < high and 0.005 < high - low < 0.1
    assert domain_differences(row, reference, "bleu", is_paired=is_paired) == []
    single = [Outcomes.of(["a"] * 50, run.right[:50], run.nats[:50], run.count[:50]) for run in row]
    assert domain_differences(single, single, "loss", is_paired=is_paired) == []


def test_the_domain_of_an_item_is_what_its_file_name_begins_with() -> None:
    names = ("austen_emma.txt (3)", "plays.txt", "val.de.gz:26", "sotu_2001_george_w_bush_r.txt", "document 3")
    assert [*map(domain_of, names)] == ["austen", "plays", "val", "sotu", "document"]
