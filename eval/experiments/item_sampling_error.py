"""The error of a difference that is due to the choice of test items, and the difference in each held-out domain.

Both are computed from the outcomes of single items that runs store.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from eval.experiments import node_status
from eval.experiments.analysis import significance_tests
from eval.experiments.grid import Grid, Node
from train.run.item_outcomes import HELD_OUT, Outcomes, read_outcomes
from train.run.run_dir import RunDir
from zoo.errors import BadInput

SCORES: dict[str, str] = dict(accuracy="right", exact="right", exact_match="right", loss="nats", masked_loss="nats", bleu="bleu")
"""Score that is a mean over predictions, or whose contributions are stored -> the outcome that it is the mean of. Items of a text
are its rows."""
ROUNDING = 1e-3
"""Relative difference up to which a score is the mean of its outcomes: sums in float32, and ties."""
MOST_DOMAINS = 20
"""Domains up to which differences are computed for each of them; more are names of single documents."""


def item_errors(grid: Grid, cells: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return the errors over items of the differences that claims are about, as far as the runs have the outcomes.

    An element has `row`, `reference` and `metric`, `items` (how many there are), `item_error` (standard error of the difference
    if other items were sampled, with the same seeds) and `domains` (see `domain_differences`). There is none unless all runs of
    both rows that have a score were scored on the same items, and their scores are the means of the outcomes. A paired claim is
    about the seeds that both rows have.

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
                    node
                    for node in grid.nodes
                    if (node.row, node.stage) == (row, stage) and score in scores.get((node.run, stage), {})
                ]
                for row in (claim.row, reference)
            ]
            if claim.paired:
                shared = {node.seed for node in sides[0]} & {node.seed for node in sides[1]}
                sides = [[node for node in side if node.seed in shared] for side in sides]
            row, other = (
                [run for node in side if (run := _read(node, score, scores[node.run, stage][score], folder)) is not None]
                for side in sides
            )
            complete = [len(row), len(other)] == [*map(len, sides)] and min(len(row), len(other)) > 1
            if complete and len({run.id for run in (*row, *other)}) == 1 and len(row[0].id) > 1:
                key = claim.row, reference, claim.metric
                errors[key] = dict(zip(("row", "reference", "metric"), key, strict=True))
                values = [np.stack([_contributions(run, score) for run in side]) for side in (row, other)]
                variance = significance_tests.item_variance(*values, is_paired=claim.paired)
                errors[key] |= {"items": values[0].shape[1], "item_error": math.sqrt(variance)}
                errors[key]["domains"] = domain_differences(row, other, score, is_paired=claim.paired)
    return list(errors.values())


def domain_of(item: str) -> str:
    """Return the domain of an item: the name of its file up to the first underscore, full stop or space."""
    return re.split(r"[_. ]", item, maxsplit=1)[0]


def domain_differences(
    row: Sequence[Outcomes], reference: Sequence[Outcomes], score: str, *, is_paired: bool
) -> list[dict[str, Any]]:
    """Return the difference of two rows in each domain, if there are several: an element for each, in the order of their names.

    It has `domain`, `items` (how many there are), `estimate`, and `interval`, the two-sided 95% interval of this domain alone,
    with the error over its items; None without any noise. Verdicts do not depend on it. There is none of BLEU, because what an
    item contributes depends on the other items.

    Args:
        row, reference: the outcomes of each seed, all of the same items; at least two seeds each.
        is_paired: whether the seeds of both rows belong together.
    """
    domains = np.array([domain_of(item) for item in row[0].id])
    names = sorted({*domains.tolist()})
    if not 1 < len(names) <= MOST_DOMAINS or score == "bleu":
        return []
    test = significance_tests.paired_difference if is_paired else significance_tests.larger_variance_difference
    entries = []
    for name in names:
        chosen = domains == name
        if not all(run.count[chosen].sum() for run in (*row, *reference)):
            continue
        values = [np.stack([_contributions(run, score, chosen) for run in side]) for side in (row, reference)]
        difference, count = test(values[0].mean(1), values[1].mean(1)), int(chosen.sum())
        if count > 1:
            variance = significance_tests.item_variance(*values, is_paired=is_paired)
            difference = difference.with_items(math.sqrt(variance), count)
        estimate, half = float(difference.estimate), float(difference.half_width(0.975))
        interval = [estimate - half, estimate + half] if math.isfinite(half) and half > 0 else None
        entries.append({"domain": name, "items": count, "estimate": estimate, "interval": interval})
    return entries


def _read(node: Node, score: str, value: float, folder: Path) -> Outcomes | None:
    """Return the outcomes of a run whose mean is the value of a score; None without them."""
    try:
        outcomes = read_outcomes(RunDir(folder / node.run), node_status.evaluation_name(node) if node.task else HELD_OUT)
    except BadInput:
        return None
    sums, count = getattr(outcomes, SCORES[score]), outcomes.count.astype(np.float64)
    if sums is None or not count.sum() or not np.isfinite(sums).all():
        return None
    return None if abs(sums.sum() / count.sum() - value) > ROUNDING * max(1.0, abs(value)) else outcomes


def _contributions(outcomes: Outcomes, score: str, chosen: np.ndarray | slice = slice(None)) -> Float64[np.ndarray, " N"]:
    """Return the contributions of the chosen items to a score of them, which is their mean.

    The score is the ratio of the sums of outcomes and of predictions, which is not linear in the items: a contribution is the
    linear part of the change of the ratio (the delta method).
    """
    sums, count = getattr(outcomes, SCORES[score])[chosen], outcomes.count[chosen].astype(np.float64)
    ratio = sums.sum() / count.sum()
    return ratio + (sums - ratio * count) / count.mean()
