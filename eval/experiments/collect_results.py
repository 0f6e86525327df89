"""Collection of an experiment's results in experiment.json: all that its page shows, read from the runs, and the verdicts."""

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.experiments import grid_checks, node_status, preregistration
from eval.experiments.collected_outcomes import write_collected_outcomes
from eval.experiments.declaration import Experiment
from eval.experiments.experiment_data import ANY, EMBEDDED
from eval.experiments.grid import TOKENIZER, Grid, Node
from eval.experiments.item_sampling_error import item_errors
from train.checkpoints import manifest
from train.config.data_options import Data
from train.run.metric_definitions import METRICS
from train.run.metrics_file import read_rows
from train.run.progress_display import short_number
from train.run.run_dir import RunDir, write_json, write_text
from zoo.errors import BadInput
from zoo.file_access import read_regular_text
from zoo.json_shapes import shape_problem

JSON, HTML, MARKDOWN = "experiment.json", "experiment.html", "experiment.md"
INTERPRETATION = "interpretation.md"
"""Text on the results, which the page shows; it is written by hand after the runs."""
LARGEST_INTERPRETATION = 64 << 10
"""Bytes of that file."""
COSTS = ("input_tokens", "text_tokens", "predictions", "bytes", "flops", "seconds", "peak_bytes")
COMPARED = {
    **{"tokenizer": "tokenizers", "held_out": "held-out data", "targets": "targets"},
    **{"files": "files", "settings": "settings of the evaluation", "items": "items"},
}
"""Fingerprints that the cells of a claim must have in common, with the words for them."""
TEXT_SLACK = 0.03
"""Share by which equal budgets in text tokens may differ: how much text is in a row is known only after the runs."""


def write_results(grid: Grid, registration: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write experiment.json and its pages, each atomically, and return the content of experiment.json."""
    for node in (node for node in grid.nodes if node.stage == TOKENIZER):
        if digest := _manifest(RunDir(folder / node.run)).get("tokenizer"):
            registration = preregistration.record_tokenizer(registration, digest, folder, node.name)
    content = {**collect_results(grid, registration, folder), "interpretation": read_interpretation(folder)}
    result = json.loads(json.dumps(content))
    write_json(folder / JSON, result)
    write_pages(result, folder)
    return result


def write_pages(result: Mapping[str, Any], folder: Path) -> None:
    """Write the pages of the content of experiment.json, each atomically."""
    from eval.experiments.page import render_html, render_markdown

    write_text(folder / HTML, render_html(result))
    write_text(folder / MARKDOWN, render_markdown(result))


def read_interpretation(folder: Path) -> str:
    """Return the text of interpretation.md in an experiment's folder, "" if there is none.

    Raises:
        BadInput: it cannot be read, is too large, or is not UTF-8.
    """
    path = folder / INTERPRETATION
    try:
        return read_regular_text(path, LARGEST_INTERPRETATION).strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadInput(f"{path}: cannot be read ({reason}); correct or remove it, and run the command with --render") from None


def experiment_command(grid: Grid) -> str:
    """Return the command that runs an experiment, with DIR, CORPUS and TASKS for the folders on the reader's machine."""
    words = ["zoo", "experiment", grid.experiment.name, "DIR", "--tier", grid.tier]
    words += ["--pilot"] if grid.experiment.is_pilot else ["--seeds", str(len(grid.seeds))]
    declared, (kind, _, digest) = grid.experiment.tiers[grid.tier].corpus, grid.files.corpus.partition(" ")
    if kind == EMBEDDED:
        words += [] if declared == EMBEDDED else ["--corpus", EMBEDDED, "--corpus-digest", ANY]
    else:
        words += ["--corpus", "CORPUS", *([] if kind == declared == "public" else ["--corpus-digest", digest])]
    return " ".join([*words, *(["--tasks", "TASKS"] if Path(grid.files.tasks).is_absolute() else [])])


def collect_results(grid: Grid, registration: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the content of experiment.json."""
    from eval.experiments.analysis.verdicts import judge

    experiment = grid.experiment
    cells = [
        read_cell(node, node.row, folder) | {"command": grid.files.without_folders(" ".join(("zoo", *node.argv)))}
        for node in grid.nodes
        if node.stage != TOKENIZER
    ]
    floors = _floors(experiment, grid, cells)
    if edits := _other_registrations(cells, registration["hash"]):
        registration = preregistration.add_edits(registration, edits, folder)
    items = item_errors(grid, cells, folder)
    claims = experiment.judge(registration, cells, floors) if experiment.judge else judge(registration, cells, floors, items)
    budget = _budget(grid, cells)
    deviations = [*registration["deviations"], *_failures(grid, folder, cells)]
    problems = _data_problems(grid, cells)
    if budget["note"]:
        problems |= dict.fromkeys((claim["id"] for claim in claims), budget["note"])
        deviations.append(budget["note"])
    for claim in claims:
        if problem := problems.get(claim["id"]):
            claim |= {"verdict": "not testable", "reason": problem}
            claim["metrics"] = [item | {"verdict": "not testable"} for item in claim.get("metrics", ())]
    preregistration.add_edited_fields(claims, registration)
    sizes = _sizes(grid, folder, cells)
    return {
        "schema": 1,
        "name": experiment.name,
        "question": experiment.question,
        "source": experiment.source,
        "scale": experiment.scale.format(**sizes),
        "date": registration["date"],
        "tier": grid.tier,
        "command": experiment_command(grid),
        "registration": {**registration["sealed"], "changed": registration["changed"], "edits": registration["edits"]},
        "cells": cells,
        "claims": claims,
        "paper": [
            {"row": row.name, "metric": metric, "value": value, "source": experiment.source}
            for row in experiment.tier_rows(grid.tier)
            for metric, value in row.paper.items()
        ],
        "floors": floors,
        "items": items,
        "outcomes": write_collected_outcomes(grid, folder),
        "budget": budget,
        "deviations": list(dict.fromkeys(deviations)),
    }


def read_cell(node: Node, row: str, folder: Path) -> dict[str, Any]:
    """Return the cell of a node: its status, scores, costs, fingerprints, curve and provenance."""
    files = RunDir(folder / node.run)
    scores, meta = _scores(node, files), _manifest(files)
    starts = _rows(files.starts)
    valid = [] if node.task else [row for row in _rows(files.metrics) if row.get("kind") == "valid"]
    per_step = starts[-1].get("flops") if starts else None
    return {
        "row": row,
        "seed": node.seed,
        "stage": node.stage,
        "run": node.run,
        "status": cell_status(node, folder, scores),
        "scores": {name: value for name, value in scores.items() if math.isfinite(value)},
        "costs": _costs(node, files, int(meta.get("step", 0)), meta),
        "fingerprints": _fingerprints(node, files, meta),
        "curves": _curves(valid, node.config.data, per_step),
        "provenance": _provenance(starts),
    }


def cell_status(node: Node, folder: Path, scores: Mapping[str, float | int]) -> str:
    """Return "done", "missing", "failed" or "diverged". Whether a run learned is decided by the judge, in a claim's metric."""
    if not node_status.is_done(node, folder):
        reason = node_status.node_failure(node, folder)
        return "diverged" if node_status.DIVERGED in reason else "failed" if reason else "missing"
    return "done" if all(math.isfinite(value) for value in scores.values()) else "diverged"


def _evaluation(node: Node, files: RunDir) -> dict[str, Any]:
    """Return the entry of an evaluation in its run's evaluations.json; {} if there is none."""
    entry = node_status.read_object(files.evaluations).get(node_status.evaluation_name(node), {})
    return entry if isinstance(entry, dict) else {}


def _fingerprints(node: Node, files: RunDir, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the scores of a cell depend on beside the model, so that only those with equal ones are compared.

    An evaluation has the digest of its `files`, its `settings`, `items` and `tokenizer`; a training run those of its data.
    """
    if not node.task:
        return {name: meta[name] for name in ("held_out", "tokenizer", "data", "targets") if name in meta}
    entry = _evaluation(node, files)
    fingerprint, tokenizer = entry.get("fingerprint", {}), entry.get("tokenizer")
    return {**fingerprint, **({"tokenizer": tokenizer} if tokenizer else {})}


def _scores(node: Node, files: RunDir) -> dict[str, float | int]:
    content = _evaluation(node, files).get("metrics", {}) if node.task else node_status.read_object(files.scores)
    return {name: value for name, value in content.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def _costs(node: Node, files: RunDir, last: int, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the costs of a training run's steps; None for costs that are not recorded, and for all costs of an evaluation."""
    from train.run.costs import read_known_costs

    recorded = {} if node.task or not last else read_known_costs(files, last, meta, node.config.data.sizes)
    return {name: recorded.get(name) for name in COSTS}


def _manifest(files: RunDir) -> dict[str, Any]:
    """Return the metadata of the newest checkpoint and its step; {} if there is none, or it is damaged."""
    for path in sorted(files.checkpoints.glob("*/COMMIT.json"), reverse=True):
        content = node_status.read_object(path)
        return {} if shape_problem(content, manifest.SHAPE) else {**content["meta"], "step": int(path.parent.name)}
    return {}


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file; none if it is absent or damaged, since the other cells can still be shown."""
    try:
        return read_rows(path) if path.exists() else []
    except BadInput:
        return []


def _provenance(starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the facts about the newest start, and every registration that a start recorded ("none" if it recorded none)."""
    if not starts:
        return {}
    recorded = starts[-1].get("provenance", {})
    names = ("commit", "dirty", "device", "host")
    hashes = dict.fromkeys(str(start.get("provenance", {}).get("registration", "none")) for start in starts)
    versions = starts[-1].get("versions", {})
    return {**{name: recorded.get(name) for name in names}, "registration": ", ".join(hashes), "versions": versions}


def _other_registrations(cells: Sequence[Mapping[str, Any]], registered: str) -> list[dict[str, Any]]:
    """Return an edit of all claims for each registration but this one that was in force when runs started."""
    runs: dict[str, list[str]] = {}
    for cell in cells:
        if (recorded := cell["provenance"].get("registration", registered)) != registered:
            runs.setdefault(recorded, []).append(cell["run"])
    return [
        preregistration.edit_entry(preregistration.ALL_CLAIMS, "registration", recorded, registered) | {"runs": sorted({*names})}
        for recorded, names in runs.items()
    ]


def _curves(valid: Sequence[Mapping[str, Any]], data: Data, flops: float | None) -> dict[str, list[list[int | float | None]]]:
    """Return score -> [input tokens, FLOPs, value] of each validation, for the scores that have a better direction.

    Args:
        data: the rows of the steps.
        flops: FLOPs of a step of `data.batch` rows; None if they are not recorded.
    """
    names = [name for name, metric in METRICS.items() if metric.better and any(name in row for row in valid)]
    return {
        name: [
            [(seen := data.sizes.examples(row["step"])) * data.length, flops and flops * (seen / data.batch), row[name]]
            for row in valid
            if isinstance(row.get(name), int | float) and math.isfinite(row[name])
        ]
        for name in names
    }


def _floors(experiment: Experiment, grid: Grid, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the scores of trivial baselines: word frequencies and the largest class in the runs, and the declared ones."""
    floors: list[dict[str, Any]] = []
    reported = (("unigram", "masked_loss", "unigram_loss"), ("unigram", "loss", "unigram_loss"))
    for name, metric, of in (*reported, ("majority class", "accuracy", "majority_share")):
        for stage in dict.fromkeys(cell["stage"] for cell in cells):
            of_stage = [cell["scores"] for cell in cells if cell["stage"] == stage and {metric, of} <= cell["scores"].keys()]
            # With pairs of segments the loss is a sum, of which word frequencies are no floor.
            values = [scores[of] for scores in of_stage if metric != "loss" or "next_loss" not in scores]
            if values:
                value, source = statistics.mean(values), "computed on the held-out data of the runs"
                floors.append({"name": name, "metric": f"{stage}/{metric}", "value": value, "source": source})
    if grid.experiment.tiers[grid.tier].tasks == "files":
        names = ("name", "metric", "value", "source")
        floors += [dict[str, Any](zip(names, floor, strict=True)) for floor in experiment.floors]
    return floors


def _budget(grid: Grid, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the budget of each row, the mean over its seeds; the note says which rows differ under the rule.

    Input tokens are the positions of all steps, as papers count them; text tokens and FLOPs are those that the runs recorded.
    """
    rule, values = grid.experiment.budget, {}
    for row in (row.name for row in grid.experiment.tier_rows(grid.tier)):
        sums = []
        for seed in grid.seeds:
            chain = [node for node in grid.chain(row, seed) if not node.task]
            if rule == "input_tokens":
                spent: list[float | int | None] = [grid_checks.input_positions(node) for node in chain]
            else:
                by_node = {(cell["run"], cell["stage"]): cell["costs"][rule] for cell in cells}
                spent = [by_node[node.run, node.stage] for node in chain]
            recorded = [value for value in spent if value is not None]
            if len(recorded) == len(chain):
                sums.append(sum(recorded))
        values[row] = statistics.mean(sums) if sums else None
    measured = {row: value for row, value in values.items() if value is not None and row != grid.experiment.control}
    slack = TEXT_SLACK if rule == "text_tokens" else grid_checks.SLACK
    lines = grid_checks.unequal_budgets(measured, grid_checks.row_groups(grid), grid_checks.budget_unit(rule), slack)
    return {"rule": rule, "values": values, "note": "; ".join(lines)}


def _data_problems(grid: Grid, cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return claim -> why its rows cannot be compared: they have other tokenizers, held-out data, targets, files or items."""
    problems = {}
    for claim in grid.experiment.claims_by_metric(grid.tier):
        stage, rows = claim.metric.partition("/")[0], (claim.row, *claim.reference)
        of_stage = [cell for cell in cells if cell["stage"] == stage and cell["row"] in rows]
        for name, words in COMPARED.items():
            first: dict[str, Any] | None = None
            for cell in of_stage:
                if name not in cell["fingerprints"]:
                    continue
                first = first or dict(cell)
                if cell["fingerprints"][name] != first["fingerprints"][name]:
                    problems[claim.id] = f"unequal {words}: {first['run']} and {cell['run']} were scored on different ones"
    return problems


def _failures(grid: Grid, folder: Path, cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the reason of each run that diverged or failed."""
    nodes = {(node.stage, node.run): node for node in grid.nodes}
    lines = []
    for cell in cells:
        if cell["status"] in ("failed", "diverged") and (
            reason := node_status.node_failure(nodes[cell["stage"], cell["run"]], folder)
        ):
            lines.append(f"{cell['run']}, {cell['stage']}: {reason}")
    return lines


def _sizes(grid: Grid, folder: Path, cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the values of the placeholders in `Experiment.scale`: parameters and input tokens of the main stage."""
    main, counts = grid.experiment.main.name, []
    for node in grid.nodes:
        if node.stage == main and (starts := _rows(RunDir(folder / node.run).starts)):
            match = re.search(r"([\d,]+) parameters", starts[-1].get("facts", {}).get("model", ""))
            counts += [int(match[1].replace(",", ""))] if match else []
    tokens = [cell["costs"]["input_tokens"] for cell in cells if cell["stage"] == main and cell["costs"]["input_tokens"]]
    unlike = bool(counts) and max(counts) > 1.2 * min(counts)
    parameters = (
        f"{short_number(min(counts))} to {short_number(max(counts))}" if unlike else short_number(max(counts)) if counts else "no"
    )
    return {"parameters": parameters, "tokens": short_number(max(tokens)) if tokens else "no"}
