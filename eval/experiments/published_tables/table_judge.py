"""Verdicts on claims about published values: a registration and cells that are built from them, and the judge of experiments."""

import dataclasses
import datetime
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.experiments import preregistration
from eval.experiments.analysis.learned_seeds import NEXT_LOSS, reported_baseline
from eval.experiments.analysis.significance_tests import item_variance
from eval.experiments.analysis.verdicts import claim_parts, claim_references, judge
from eval.experiments.declaration import Claim
from eval.experiments.judge_source import registered_judge
from eval.experiments.published_tables import claim_statements, harness_results, measurements
from eval.experiments.published_tables.claim_statements import STAGE, stage_metric
from eval.experiments.published_tables.measurements import TRAITS, Measurement
from zoo.errors import BadInput
from zoo.sha256_and_fsync import sha256

NOT_REGISTERED = (
    "Not registered here: the claims were written after the data were published, so that every verdict is exploratory."
)
COMPARABLE = "bits_per_byte"
"""End of the names of metrics that can be compared between vocabularies."""
Values = dict[tuple[str, str, str], dict[str, float]]
"""(row, seed, metric) -> item -> value; the item of a value over all items is ""."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableOptions:
    """The options of `zoo judge` that decide what is read and judged."""

    files: Sequence[str]
    claims: Sequence[Claim] = ()
    registration: str = ""
    """Folder of an experiment whose registration has the claims; "" = `claims` are used."""
    control: str = ""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    where: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pattern: str = harness_results.PATTERN
    source: str = ""
    command: str = ""


def judge_tables(options: TableOptions) -> dict[str, Any]:
    """Return the content of experiment.json for claims about published tables.

    Raises:
        BadInput: see `read_table`, `read_results_folder` and `check_claims`; rows of a claim have other budgets, vocabularies or
            items; or the registration does not fit.
    """
    registered = preregistration.read_registration(Path(options.registration)) if options.registration else None
    claims = [_registered_claim(claim) for claim in registered["claims"]] if registered else list(options.claims)
    measured = _read_measurements(options, [part.metric.removeprefix(f"{STAGE}/") for c in claims for part in c.by_metric])
    registration, cells, items, entries = judge_measurements(measured, claims, options.control, registered)
    digests, numbers = _digests(options.files), _seed_numbers(measured, registered)
    for cell in cells:
        cell["provenance"] = {"tables": "; ".join(f"{name} SHA-256 {digest}" for name, digest in digests.items())}
    names = ", ".join(Path(name).name for name in options.files)
    return {
        "schema": 1,
        "name": names,
        "title": f"Claims about {names}",
        "question": "What do published values of single seeds show?",
        "source": options.source or names,
        "scale": "" if registered else NOT_REGISTERED,
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "tier": None,
        "command": options.command,
        "registration": registration,
        "cells": cells,
        "claims": entries,
        "paper": [],
        "floors": [],
        "items": items,
        "budget": {"rule": "", "values": {}, "note": ""},
        "deviations": [] if registered else [NOT_REGISTERED],
        "table": {"files": digests, "seeds": numbers},
    }


def judge_measurements(
    measured: Sequence[Measurement], claims: Sequence[Claim], control: str = "", registered: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the registration, cells, errors over items and entries of claims, as in experiment.json.

    Args:
        registered: a registration that was written before the values, which has the claims and the control.

    Raises:
        BadInput: see `judge_tables`.
    """
    rows, metrics = list(dict.fromkeys(item.row for item in measured)), _metrics_by_row(measured)
    claim_statements.check_claims(claims, metrics)
    control = str(registered["control"]) if registered else control
    if control and not registered:
        measurements.require_name(control, rows, f"--control {control}", "row")
    _check_traits(claims, measured, control)
    numbers = _seed_numbers(measured, registered)
    values: Values = {}
    for item in measured:
        values.setdefault((item.row, item.seed, stage_metric(item.metric)), {})[item.item] = item.value
    registration = dict(registered) if registered else _build_registration(claims, rows, numbers, control)
    if registered and (registered_by := registered["judge"]) != (current := registered_judge(judge)):
        if registered_by["function"] != current["function"]:
            raise BadInput(
                f"--registration: its claims have a judge of their own, {registered_by['function']}; run its experiment"
            )
        registration["changed"] = [claim["id"] for claim in registration["claims"]]
    cells = _build_cells(values, numbers, {part.metric for claim in claims for part in claim.by_metric})
    items = _item_errors(registration["claims"], values)
    entries = judge(registration, cells, (), items)
    return registration, cells, items, entries if registered else [{**entry, "exploratory": True} for entry in entries]


def _read_measurements(options: TableOptions, metrics: Sequence[str]) -> list[Measurement]:
    """Return the values in all files and folders, of which each may have other rows, seeds or metrics."""
    measured, names = list[Measurement](), list[str]()
    for name in options.files:
        if Path(name).is_dir():
            of_file = harness_results.read_results_folder(Path(name), options.pattern)
            names += [item.metric for item in of_file]
        else:
            of_file, of_metrics = measurements.read_table(Path(name), _with_baselines(metrics), options.columns, options.where)
            names += of_metrics
        measured += of_file
    for metric in metrics:
        measurements.require_name(metric, list(dict.fromkeys(names)), f"claim on {metric}", "metric")
    measurements.require_single_values(measured)
    return measured


def _with_baselines(metrics: Sequence[str]) -> list[str]:
    """Return metrics of claims, and those that say what a model reaches without learning."""
    others = [other for metric in metrics if (other := reported_baseline(stage_metric(metric)))]
    return [*metrics, *(name.removeprefix(f"{STAGE}/") for name in others), NEXT_LOSS]


def _metrics_by_row(measured: Sequence[Measurement]) -> dict[str, set[str]]:
    metrics: dict[str, set[str]] = {}
    for item in measured:
        metrics.setdefault(item.row, set()).add(stage_metric(item.metric))
    return metrics


def _registered_claim(claim: Mapping[str, Any]) -> Claim:
    fields = {field.name for field in dataclasses.fields(Claim)}
    values = {name: value for name, value in claim.items() if name in fields}
    return Claim(**{**values, "reference": tuple(claim_references(claim))})


def _check_traits(claims: Sequence[Claim], measured: Sequence[Measurement], control: str) -> None:
    """Refuse claims over rows of other budgets or vocabularies; the vocabulary of the control row counts too."""
    traits: dict[tuple[str, str, str], list[str]] = {}
    for item in measured:
        for name, value in item.traits.items():
            of_row = traits.setdefault((item.row, stage_metric(item.metric), name), [])
            of_row += [value] if value not in of_row else []
    for claim in claims:
        for part, trait in itertools.product(claim.by_metric, TRAITS):
            is_vocabulary = trait == "vocabulary"
            if is_vocabulary and part.metric.endswith(COMPARABLE):
                continue
            rows = [part.row, *part.reference, *([control] if control and is_vocabulary else [])]
            values = {row: traits.get((row, part.metric, trait), []) for row in dict.fromkeys(rows)}
            if len(set(map(tuple, values.values()))) > 1 or any(len(of_row) > 1 for of_row in values.values()):
                of_rows = ", ".join(f"{row} has {' and '.join(of_row) or 'none'}" for row, of_row in values.items())
                fix = "compare rows of equal ones" + (
                    ", or in bits_per_byte" if is_vocabulary else ", or choose lines by --where"
                )
                raise BadInput(f'claim "{claim.id}": its rows differ in their {trait}: {of_rows}; {fix}')


def _seed_numbers(measured: Sequence[Measurement], registered: Mapping[str, Any] | None) -> dict[str, dict[str, int]]:
    """Return row -> name of a seed -> its number, which is the same in all rows.

    Names that are not whole numbers are numbered in the order of the table.
    """
    names = list(dict.fromkeys(item.seed for item in measured))
    others = [name for name in names if not re.fullmatch(r"0|[1-9][0-9]{,15}", name)]
    if registered and others:
        raise BadInput(f"seed {others[0]}: registered seeds are whole numbers; write those")
    of_name = {name: number if others else int(name) for number, name in enumerate(names)}
    numbers: dict[str, dict[str, int]] = {}
    for item in measured:
        numbers.setdefault(item.row, {})[item.seed] = of_name[item.seed]
    return numbers


def _build_registration(
    claims: Sequence[Claim],
    rows: Sequence[str],
    numbers: Mapping[str, Mapping[str, int]],
    control: str,
) -> dict[str, Any]:
    """Return a registration with the rows of the claims and the control, each with the seeds that it has in the table."""
    used = {control, *(row for claim in claims for row in (claim.row, *claim.reference))}
    listed = [{"name": row, "label": row, "seeds": list(numbers[row].values())} for row in rows if row in used]
    longest = max((row["seeds"] for row in listed), key=len)
    dictionaries = [{**dataclasses.asdict(claim), "reference": list(claim.reference)} for claim in claims]
    return {"rows": listed, "seeds": longest, "control": control, "claims": dictionaries, "changed": []}


def _build_cells(values: Values, numbers: Mapping[str, Mapping[str, int]], judged: set[str]) -> list[dict[str, Any]]:
    """Return a cell for each row, seed and stage; one with a judged value that is not finite diverged."""
    cells: dict[tuple[str, str, str], dict[str, Any]] = {}
    for (row, seed, metric), items in values.items():
        stage, _, score = metric.partition("/")
        value = math.fsum(items.values()) / len(items) if all(map(math.isfinite, items.values())) else math.nan
        empty = {"row": row, "seed": numbers[row][seed], "stage": stage, "run": f"{row}, seed {seed}", "status": "done"}
        cell = cells.setdefault((row, seed, stage), {**empty, "scores": {}})
        if math.isfinite(value):
            cell["scores"][score] = value
        elif metric in judged:
            cell["status"] = "diverged"
    return list(cells.values())


def _item_errors(claims: Sequence[Mapping[str, Any]], values: Values) -> list[dict[str, Any]]:
    """Return the errors over items of the differences that claims are about, as `item_sampling_error.item_errors` does.

    Raises:
        BadInput: seeds of both rows were scored on other items.
    """
    errors: dict[tuple[str, str, str], dict[str, Any]] = {}
    for claim in itertools.chain.from_iterable(map(claim_parts, claims)):
        metric = claim["metric"]
        for reference in claim_references(claim):
            key = (claim["row"], reference, metric)
            numbers = [[seed for row, seed, name in values if (row, name) == (side, metric)] for side in key[:2]]
            if claim.get("paired"):
                numbers = [[seed for seed in numbers[0] if seed in numbers[1]]] * 2
            sides = [[values[side, seed, metric] for seed in of_side] for side, of_side in zip(key[:2], numbers, strict=True)]
            seeds = [items for side in sides for items in side]
            if not seeds or any("" in items for items in seeds) or min(map(len, sides)) < 2:
                continue
            names = sorted(seeds[0])
            for items in seeds:
                if others := set(names) ^ items.keys():
                    what = f"item {min(others)} is not in all seeds of {key[0]} and {reference}"
                    raise BadInput(f'claim "{claim["id"]}": {what}; compare values on the same items')
            of_row, of_reference = (np.array([[items[name] for name in names] for items in side]) for side in sides)
            if len(names) > 1 and np.isfinite(of_row).all() and np.isfinite(of_reference).all():
                errors[key] = dict(zip(("row", "reference", "metric"), key, strict=True)) | {
                    "items": len(names),
                    "item_error": math.sqrt(item_variance(of_row, of_reference, is_paired=bool(claim.get("paired")))),
                }
    return list(errors.values())


def _digests(names: Sequence[str]) -> dict[str, str]:
    """Return the name of each file, without the folders that lead to it, and its SHA-256."""
    digests = {}
    for path in map(Path, names):
        files = sorted(file for file in path.rglob("*.json*") if file.is_file()) if path.is_dir() else [path]
        digests |= {str(file.relative_to(path.parent)): sha256(file) for file in files}
    return digests
