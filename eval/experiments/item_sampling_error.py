"""The error of a claim that is due to the choice of test items, next to that due to seeds, from the outcomes of single items."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.experiments import node_status
from eval.experiments.analysis.significance_tests import error_parts, mcnemar
from eval.experiments.grid import Grid, Node
from train.run.item_outcomes import HELD_OUT, Outcomes, read_outcomes
from train.run.run_dir import RunDir
from zoo.errors import BadInput

SCORES = ("accuracy", "exact_match")
"""Scores that are the mean of the outcomes of the items, apart from ties."""


def item_errors(grid: Grid, entry: Mapping[str, Any], metric: str, row: str, folder: Path) -> dict[str, float | int] | None:
    """Return the errors of a claim's difference, by what was sampled; None for a metric that is not a mean of outcomes.

    The result has `items` (how many there are), `item_error` and `seed_error` (standard errors of the difference over other items
    and over other seeds), and `different` (seeds in which the two rows differ on these items by McNemar's test, p < 0.05).

    Args:
        entry: of the claim in experiment.json; its `reference` is the row that the numbers of the claim belong to.
        folder: of the experiment.
    """
    stage, score = metric.split("/")
    if score not in SCORES or not entry.get("reference"):
        return None
    sides = [
        {node.seed: outcomes for node in _nodes(grid, name, stage) if (outcomes := _outcomes(node, folder)) is not None}
        for name in (row, entry["reference"])
    ]
    seeds = [seed for seed in sides[0] if seed in sides[1]]
    if len(seeds) < 2 or len({outcomes.id for side in sides for outcomes in side.values()}) != 1:
        return None
    of_row, of_reference = (np.stack([side[seed].right for seed in seeds]) for side in sides)  # [seeds, items]
    if not np.isfinite(of_row).all() or not np.isfinite(of_reference).all():
        return None
    parts = error_parts(of_row, of_reference)
    different = sum(mcnemar(first > 0.5, second > 0.5) < 0.05 for first, second in zip(of_row, of_reference, strict=True))
    return {
        "items": of_row.shape[1],
        "item_error": parts.items,
        "seed_error": parts.seeds,
        "seeds": len(seeds),
        "different": different,
    }


def _nodes(grid: Grid, row: str, stage: str) -> Sequence[Node]:
    return [node for node in grid.nodes if node.stage == stage and node.row == row]


def _outcomes(node: Node, folder: Path) -> Outcomes | None:
    try:
        return read_outcomes(RunDir(folder / node.run), node_status.evaluation_name(node) if node.task else HELD_OUT)
    except BadInput:
        return None
