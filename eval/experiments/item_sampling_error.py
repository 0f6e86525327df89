"""The error of a difference that is due to the choice of test items, from the outcomes of single items that runs store."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from eval.experiments import node_status
from eval.experiments.analysis.significance_tests import item_variance
from eval.experiments.grid import Grid, Node
from train.run.item_outcomes import HELD_OUT, read_outcomes
from train.run.run_dir import RunDir
from zoo.errors import BadInput

SCORES: dict[str, str] = dict(accuracy="right", exact="right", exact_match="right", loss="nats", masked_loss="nats", bleu="bleu")
"""Score that is a mean over predictions, or whose contributions are stored -> the outcome that it is the mean of. The held-out
text of a pretraining has no items."""
ROUNDING = 1e-3
"""Relative difference up to which a score is the mean of its outcomes: sums in float32, and ties."""


def item_errors(grid: Grid, cells: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return the errors over items of the differences that claims are about, as far as the runs have the outcomes.

    An element has `row`, `reference` and `metric`, `items` (how many there are) and `item_error` (standard error of the
    difference if other items were sampled, with the same seeds). There is none unless all runs of both rows that have a score
    were scored on the same items, and their scores are the means of the outcomes.

    Args:
        folder: of the experiment.
    """
    scores = {(cell["run"], cell["stage"]): cell["scores"] for cell in cells}
    errors: dict[tuple[str, str, str], dict[str, Any]] = {}
    for claim in grid.experiment.claims_by_metric(grid.tier):
        stage, score = claim.metric.split("/")
        for reference in claim.reference if score in SCORES else ():
            sides = [
                [
                    _read_values(node, score, scores[node.run, stage][score], folder)
                    for node in grid.nodes
                    if (node.row, node.stage) == (row, stage) and score in scores.get((node.run, stage), {})
                ]
                for row in (claim.row, reference)
            ]
            runs = [run for side in sides for run in side if run is not None]
            complete = len(runs) == sum(map(len, sides)) and min(map(len, sides)) > 1
            if complete and len({names for names, _ in runs}) == 1 and len(runs[0][0]) > 1:
                of_row, of_reference = (np.stack([run[1] for run in side if run is not None]) for side in sides)
                key = claim.row, reference, claim.metric
                errors[key] = dict(zip(("row", "reference", "metric"), key, strict=True))
                errors[key] |= {"items": of_row.shape[1], "item_error": math.sqrt(item_variance(of_row, of_reference))}
    return list(errors.values())


def _read_values(node: Node, score: str, value: float, folder: Path) -> tuple[tuple[str, ...], Float64[np.ndarray, " N"]] | None:
    """Return the names of the items of a run and their contributions to a score, whose mean is its value; None without them.

    The score is the ratio of the sums of outcomes and of predictions, which is not linear in the items: a contribution is the
    linear part of the change of the ratio (the delta method).
    """
    try:
        outcomes = read_outcomes(RunDir(folder / node.run), node_status.evaluation_name(node) if node.task else HELD_OUT)
    except BadInput:
        return None
    sums, count = getattr(outcomes, SCORES[score]), outcomes.count.astype(np.float64)
    if sums is None or not count.sum() or not np.isfinite(sums).all():
        return None
    ratio = sums.sum() / count.sum()
    if abs(ratio - value) > ROUNDING * max(1.0, abs(value)):
        return None
    return outcomes.id, ratio + (sums - ratio * count) / count.mean()
