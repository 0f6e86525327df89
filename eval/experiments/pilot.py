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

from eval.experiments.analysis import significance_tests
from eval.experiments.analysis.seed_values import sign_of_better
from eval.experiments.analysis.significance_tests import FEWEST_SEEDS, LEVEL, Design
from eval.experiments.declaration import Claim, Experiment, Row, Times
from eval.experiments.preregistration import read_registration
from zoo.errors import BadInput
from zoo.json_shapes import read_shaped_json

FOLDER = "pilot"
RATE = "optim.lr"
SHAPE = {
    "registration": {"seeds": [int], "hash": str},
    "cells": [{"row": str, "seed": int, "stage": str, "status": str, "scores": {str: object}}],
}
UNCHANGED = Times(1.0)
SEPARATOR = "-rate"
"""Between the name of a row and the factor of its rate, in the names of the pilot's rows."""


def pilot_experiment(experiment: Experiment, tier: str) -> Experiment:
    """Return the experiment whose rows are those of a tier at each of its learning rates; the control has one rate."""
    settings, rows = experiment.tiers[tier], []
    for row in experiment.tier_rows(tier):
        if row.name == experiment.control:
            rows.append(row)
            continue
        if not isinstance(row.overrides.get(RATE, UNCHANGED), Times):
            raise BadInput(
                f"experiment {experiment.name}, row {row.name}: it has its own {RATE}, which the pilot chooses; remove it, or "
                "write a multiple of the stage's"
            )
        rows += [_with_rate(row, factor, name=f"{row.name}{SEPARATOR}{factor:g}") for factor in settings.rates]
    tiers = {tier: dataclasses.replace(settings, rows=(), rates=(), looks=(), seeds=len(settings.pilot_seeds))}
    question = f"Pilot: which learning rate suits each row? For the question: {experiment.question}"
    fields: dict[str, Any] = {"claims": (), "forecast": {}, "judge": None, "is_pilot": True}
    return dataclasses.replace(experiment, rows=tuple(rows), tiers=tiers, question=question, **fields)


def finished_pilot(folder: Path) -> dict[str, Any] | None:
    """Return the result of the pilot of an experiment's folder; None if it has not been run to the end.

    A run that diverged has ended, and so have the stages after it, which it has not.

    Raises:
        BadInput: its experiment.json is damaged, or is not of the registration beside it.
    """
    path = folder / FOLDER / "experiment.json"
    result = read_shaped_json(path, SHAPE, "run the pilot again")
    if result is None:
        return None
    if result["registration"]["hash"] != read_registration(folder / FOLDER)["hash"]:
        raise BadInput(f"{path} is not of the registration beside it; write it again with --pilot --render")
    diverged = {(cell["row"], cell["seed"]) for cell in result["cells"] if cell["status"] == "diverged"}
    is_open = any(
        cell["status"] == "failed"
        or (cell["status"] == "missing" and not {(cell["row"], cell["seed"]), ("", cell["seed"])} & diverged)
        for cell in result["cells"]
    )
    return None if is_open else result


def read_pilot(experiment: Experiment, tier: str, result: Mapping[str, Any], seeds: int) -> dict[str, Any]:
    """Return the part of the registration that the pilot determines, from the pilot's experiment.json.

    `rows` has for each row the chosen `factor` of the learning rate, the `values` of each factor over the pilot's seeds in the
    metric of the first claim, by which all rows are tuned, and by metric the standard deviation over seeds, `sd`, pooled over the
    factors whose seeds all have a value. `power` has for each claim the chance that the grid's seeds find a difference of the
    claim's margin, or show an equivalence of equal rows, at these standard deviations.

    Args:
        seeds: number of the grid's seeds.

    Raises:
        BadInput: no rate of a row has a value for every seed.
    """
    rows: dict[str, Any] = {}
    claim = experiment.claims[0]
    metric, is_lower_better = claim.metric, sign_of_better(claim.metric, claim.better) < 0
    for row in experiment.tier_rows(tier):
        values = _complete_values(experiment, tier, result, row.name, metric)
        if not values:
            raise BadInput(
                f"the pilot of {experiment.name}: no rate of the row {row.name} has {metric} for every seed; see its page"
            )
        best = (min if is_lower_better else max)(values, key=lambda factor: statistics.mean(values[factor]))
        by_metric = {
            other: _pooled_deviation(_complete_values(experiment, tier, result, row.name, other).values())
            for other in dict.fromkeys(part.metric for claim in experiment.claims for part in claim.by_metric)
        }
        rows[row.name] = {"factor": float(best), "metric": metric, "values": values, "sd": by_metric}
    power = {claim.id: _planned_power(experiment, tier, claim, rows, seeds) for claim in experiment.tier_claims(tier)}
    return {
        "seeds": list(result["registration"]["seeds"]),
        "power_seeds": seeds,
        "hash": result["registration"]["hash"],
        "rows": rows,
        "power": power,
    }


def tuned_experiment(experiment: Experiment, tier: str, pilot: Mapping[str, Any], seeds: Sequence[int]) -> Experiment:
    """Return the experiment with the learning rates that the pilot chose, and claims that have its standard deviations.

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
    claims = tuple(
        dataclasses.replace(
            claim,
            pilot_deviation=_largest_deviation(claim, claim.metric, pilot["rows"]),
            second_pilot_deviation=claim.second_metric and _largest_deviation(claim, claim.second_metric, pilot["rows"]),
        )
        for claim in experiment.claims
    )
    return dataclasses.replace(experiment, rows=(*rows, *others), claims=claims)


def planning_lines(experiment: Experiment, tier: str, pilot: Mapping[str, Any]) -> list[str]:
    """Return what the pilot found, a line for each row and claim."""
    seeds = pilot["power_seeds"]
    lines = [
        f"{name}: {row['factor']:g} times the rate; {row['metric']} "
        + ", ".join(f"{statistics.mean(values):.4f} at {factor}" for factor, values in row["values"].items())
        for name, row in pilot["rows"].items()
    ]
    for claim in experiment.tier_claims(tier):
        if (power := pilot["power"][claim.id]) is not None:
            effect = f"equal rows equivalent within {claim.margin:g}" if claim.kind == "equivalent" else f"{claim.margin:g}"
            lines.append(f"{claim.id}: {seeds} seeds find {effect} in {power:.0%} of the cases")
    return lines


def _complete_values(
    experiment: Experiment, tier: str, result: Mapping[str, Any], row: str, metric: str
) -> dict[str, list[float]]:
    """Return factor -> the values of a metric, of each factor that has a value for every seed."""
    stage, score = metric.split("/")
    names = {f"{factor:g}": f"{row}{SEPARATOR}{factor:g}" for factor in experiment.tiers[tier].rates}
    if row == experiment.control:
        names = {"1": row}
    values = {
        factor: [
            float(cell["scores"][score])
            for cell in result["cells"]
            if cell["row"] == name and cell["stage"] == stage and cell["status"] != "diverged" and score in cell["scores"]
        ]
        for factor, name in names.items()
    }
    return {factor: numbers for factor, numbers in values.items() if len(numbers) == len(result["registration"]["seeds"])}


def _planned_power(experiment: Experiment, tier: str, claim: Claim, rows: Mapping[str, Any], seeds: int) -> float | None:
    """Return the power of a claim; None for too few seeds, and for pairs, whose differences have a deviation of their own."""
    deviations = [sd for name in (claim.row, *claim.reference) if name in rows and (sd := rows[name]["sd"].get(claim.metric))]
    if claim.paired or len(deviations) < 2 or seeds < FEWEST_SEEDS:
        return None
    tests = sum(len(other.by_metric) for other in experiment.tier_claims(tier))
    design = Design(
        counts=(seeds, seeds), deviations=(deviations[0], max(deviations[1:])), alpha=LEVEL / tests, least=max(deviations)
    )
    power = significance_tests.power_of_equivalence if claim.kind == "equivalent" else significance_tests.power_of_direction
    return power(claim.margin, design)


def _largest_deviation(claim: Claim, metric: str, rows: Mapping[str, Any]) -> float | None:
    if claim.paired:
        return None
    deviations = [rows[name]["sd"].get(metric) for name in (claim.row, *claim.reference) if name in rows]
    return max((deviation for deviation in deviations if deviation), default=None)


def _with_rate(row: Row, factor: float, name: str = "") -> Row:
    """Return a row with `factor` times its learning rate, which may itself be a multiple of the stage's."""
    label, own = f"{row.label}, {factor:g} times the rate" if name else row.label, row.overrides.get(RATE, UNCHANGED)
    assert isinstance(own, Times)
    rate = Times(own.factor * factor)
    return dataclasses.replace(row, name=name or row.name, label=label, overrides={**row.overrides, RATE: rate})


def _pooled_deviation(groups: Iterable[Sequence[float]]) -> float | None:
    """Return the standard deviation within groups, pooled over them; None if no group has two values."""
    squares = [(statistics.variance(group) * (len(group) - 1), len(group) - 1) for group in groups if len(group) > 1]
    return math.sqrt(sum(square for square, _ in squares) / sum(count for _, count in squares)) if squares else None
