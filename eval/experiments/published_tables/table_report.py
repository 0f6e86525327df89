"""Output of verdicts on claims about published tables: lines for a terminal, experiment.json and the page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.experiments import collect_results
from eval.experiments.page import experiment_tables
from train.run.run_dir import write_json
from zoo.errors import BadInput
from zoo.json_shapes import read_shaped_json


def verdict_lines(result: Mapping[str, Any]) -> list[str]:
    """Return two lines for each claim, its verdict and the numbers behind it, and what holds for all of them."""
    lines = []
    for claim in experiment_tables.joined_claims(result):
        remark = ", exploratory" if claim["exploratory"] else ""
        lines.append(f"{claim['verdict']}{remark}: {claim['text'].rstrip('.')}")
        numbers = []
        if claim["estimate"] is not None:
            numbers.append(f"difference {experiment_tables.difference_text(claim, 'estimate')}")
        if claim["interval"]:
            numbers.append(f"95% interval {experiment_tables.interval_text(claim)}")
        counts = claim["counts"]
        numbers.append(f"{counts['row']} and {counts['reference']} seeds")
        numbers += [] if claim["power"] is None else [f"power {claim['power']:.0%}"]
        lines.append(f"  {', '.join(numbers)}; {'; '.join([claim['reason'], *claim['notes']])}")
    return [*lines, *result["deviations"]]


def check_folder(folder: Path) -> None:
    """Refuse a folder that has an experiment, whose results would be overwritten.

    Raises:
        BadInput: it has one, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--out {folder}: is a file; name a folder")
    before = read_shaped_json(folder / collect_results.JSON, {str: object}, "name another folder")
    if (folder / "registration.json").exists() or (before is not None and "table" not in before):
        raise BadInput(f"--out {folder}: has the results of an experiment; name another folder")


def write_table_pages(result: Mapping[str, Any], folder: Path) -> Path:
    """Write experiment.json and both pages, and return the path of the HTML page."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**result, "interpretation": collect_results.read_interpretation(folder)}
    written = json.loads(json.dumps(content))
    write_json(folder / collect_results.JSON, written)
    collect_results.write_pages(written, folder)
    return folder / collect_results.HTML
