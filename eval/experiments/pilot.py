"""The pilot of a tier: each row at several learning rates, with seeds that the grid does not use.

It chooses the learning rate of each row at equal cost, because a comparison with one rate for all rows is a comparison of rates,
and measures the standard deviation over seeds, from which the power of the grid follows. It is an experiment of its own, without
claims, in the folder `pilot` of the experiment; its result becomes a part of the registration.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.experiments.declaration import Experiment, Row, Times
from zoo.errors import BadInput
from zoo.json_shapes import read_shaped_json

FOLDER = "pilot"
RATE = "optim.lr"
SHAPE = {
    "registration": {"seeds": [int], "hash": str},
    "cells": [{"row": str, "stage": str, "status": str, "scores": {str: object}}],
}
SEPARATOR = "@"
"""Between the name of a row and the factor of its rate, in the names of the pilot's rows."""


def pilot_experiment(experiment: Experiment, tier: str) -> Experiment:
    """Return the experiment whose rows are those of a tier at each of its learning rates; the control has one rate."""
    settings, rows = experiment.tiers[tier], []
    for row in experiment.tier_rows(tier):
        if row.name == experiment.control:
            rows.append(row)
            continue
        if RATE in row.overrides:
            raise BadInput(
                f"experiment {experiment.name}, row {row.name}: it has its own {RATE}, which the pilot chooses; remove it"
            )
        rows += [_with_rate(row, factor, name=f"{row.name}{SEPARATOR}{factor:g}") for factor in settings.rates]
    tiers = {tier: dataclasses.replace(settings, rows=(), rates=(), seeds=len(settings.pilot_seeds))}
    return dataclasses.replace(experiment, rows=tuple(rows), claims=(), forecast={}, tiers=tiers, judge=None)


def finished_pilot(folder: Path) -> dict[str, Any] | None:
    """Return the result of the pilot of an experiment's folder; None if it has not been run to the end.

    Raises:
        BadInput: its experiment.json is damaged.
    """
    result = read_shaped_json(folder / FOLDER / "experiment.json", SHAPE, "run the pilot again")
    unfinished = ("missing", "failed")
    return None if result is None or any(cell["status"] in unfinished for cell in result["cells"]) else result


def read_pilot(experiment: Experiment, tier: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the registration that the pilot determines, from the pilot's experiment.json.

    `rows` has for each row the chosen `factor` of the learning rate, the `values` of each factor over the pilot's seeds, and the
    standard deviation `sd` over seeds, pooled over the factors whose seeds all have a value. The metric of a row is that of the
    first claim about it, or else of the first claim.

    Raises:
        BadInput: no rate of a row has a value for every seed.
    """
    settings, seeds = experiment.tiers[tier], list(result["registration"]["seeds"])
    rows: dict[str, Any] = {}
    for row in experiment.tier_rows(tier):
        metric, is_lower_better = _metric(experiment, row.name)
        stage, score = metric.split("/")
        names = {factor: f"{row.name}{SEPARATOR}{factor:g}" for factor in settings.rates}
        if row.name == experiment.control:
            names = {1.0: row.name}
        values = {
            f"{factor:g}": [
                cell["scores"][score]
                for cell in result["cells"]
                if cell["row"] == name and cell["stage"] == stage and cell["status"] != "diverged" and score in cell["scores"]
            ]
            for factor, name in names.items()
        }
        complete = {factor: of_factor for factor, of_factor in values.items() if len(of_factor) == len(seeds)}
        if not complete:
            raise BadInput(
                f"the pilot of {experiment.name}: no rate of the row {row.name} has {metric} for every seed; see its page"
            )
        best = (min if is_lower_better else max)(complete, key=lambda factor: statistics.mean(complete[factor]))
        rows[row.name] = {"factor": float(best), "metric": metric, "values": values, "sd": _pooled_deviation(complete.values())}
    return {"seeds": seeds, "hash": result["registration"]["hash"], "rows": rows}


def tuned_experiment(experiment: Experiment, tier: str, pilot: Mapping[str, Any], seeds: Sequence[int]) -> Experiment:
    """Return the experiment with the learning rates that the pilot chose.

    Raises:
        BadInput: the grid has a seed of the pilot, on which its rates were chosen.
    """
    if shared := sorted({*pilot["seeds"]} & {*seeds}):
        raise BadInput(
            f"experiment {experiment.name}: seed {shared[0]} is one of the pilot's, which chose the rates; choose other seeds"
        )
    rows = tuple(
        row if row.name == experiment.control else _with_rate(row, pilot["rows"][row.name]["factor"])
        for row in experiment.tier_rows(tier)
    )
    others = tuple(row for row in experiment.rows if row.name not in {tuned.name for tuned in rows})
    return dataclasses.replace(experiment, rows=(*rows, *others))


def _with_rate(row: Row, factor: float, name: str = "") -> Row:
    label = f"{row.label}, {factor:g} times the rate" if name else row.label
    return dataclasses.replace(row, name=name or row.name, label=label, overrides={**row.overrides, RATE: Times(factor)})


def _metric(experiment: Experiment, row: str) -> tuple[str, bool]:
    """Return the metric by which a row is tuned, and whether lower is better."""
    from eval.experiments.analysis.seed_values import sign_of_better

    about = [claim for claim in experiment.claims if row in (claim.row, *claim.reference)] or list(experiment.claims)
    return about[0].metric, sign_of_better(about[0].metric, about[0].better) < 0


def _pooled_deviation(groups: Iterable[Sequence[float]]) -> float | None:
    """Return the standard deviation within groups, pooled over them; None if no group has two values."""
    squares = [(statistics.variance(group) * (len(group) - 1), len(group) - 1) for group in groups if len(group) > 1]
    return math.sqrt(sum(square for square, _ in squares) / sum(count for _, count in squares)) if squares else None
