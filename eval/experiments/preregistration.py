"""The preregistration of an experiment: its claims and how they will be judged, written and hashed before the first run.

A later start must declare the same grid. Its claims may differ, but a claim that changed after the first run counts as
exploratory from then on.
"""

import dataclasses
import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

from eval.experiments.grid import PARENTS, RUNS, TOKENIZER, Grid, Node
from train.run.run_dir import write_json
from zoo.errors import BadInput
from zoo.file_access import read_regular_text

FILE = "registration.json"
FIXED = ("name", "tier", "seeds", "budget", "control", "rows", "tokenizer", "corpus")
"""Parts that a later start may not change."""


def registration_of(grid: Grid) -> dict[str, Any]:
    """Return the registration of a grid, as JSON, with the hash of everything that is judged; the date is not part of it."""
    experiment = grid.experiment
    claims = [dataclasses.asdict(claim) for claim in experiment.tier_claims(grid.tier)]
    content = {
        "name": experiment.name,
        "tier": grid.tier,
        "rows": [_row(grid, row.name, row.label) for row in experiment.tier_rows(grid.tier)],
        "tokenizer": _stage(next(node for node in grid.nodes if node.stage == TOKENIZER)),
        "seeds": list(grid.seeds),
        "budget": experiment.budget,
        "control": experiment.control,
        "corpus": grid.files.corpus,
        "claims": claims,
        "forecast": {claim["id"]: experiment.forecast[claim["id"]] for claim in claims},
    }
    content = json.loads(json.dumps(content))
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {"hash": digest, "changed": [], **content}


def register_grid(grid: Grid, folder: Path) -> dict[str, Any]:
    """Write the registration of a grid into its folder, unless it has one, and return the registration that is in force.

    It has the claims of the grid, and in `changed` the ids of those that differ from the registered ones.

    Raises:
        BadInput: the folder has a damaged registration, or that of another grid; the message says what changed.
    """
    current = registration_of(grid)
    path = folder / FILE
    has_runs = any((folder / RUNS).glob("*/config.json"))
    if not path.exists() or not has_runs:
        if has_runs:
            raise BadInput(f"{folder} has runs and no {FILE}; restore the file, or choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        registered = {**current, "date": today, "deviations": list(grid.files.deviations)}
        if not path.exists() or {**read_registration(folder), "date": today} != registered:
            write_json(path, registered)
        return registered
    registered = read_registration(folder)
    if different := [name for name in FIXED if registered.get(name) != current[name]]:
        details = "; ".join(_difference(name, registered.get(name), current[name]) for name in different)
        raise BadInput(f"{folder} has another registration: {details}; choose another folder, or these values")
    before = {claim["id"]: claim for claim in registered["claims"]}
    changed = [claim["id"] for claim in current["claims"] if before.get(claim["id"]) != claim]
    dropped = [name for name in before if name not in {claim["id"] for claim in current["claims"]}]
    return {**registered, "claims": current["claims"], "forecast": current["forecast"], "changed": [*changed, *dropped]}


def read_registration(folder: Path) -> dict[str, Any]:
    """Return the registration in a folder.

    Raises:
        BadInput: there is none, or it is damaged.
    """
    path = folder / FILE
    try:
        content = json.loads(read_regular_text(path))
    except OSError as error:
        raise BadInput(f"{folder} is not an experiment: {FILE} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not valid JSON ({error}); restore the file") from None
    if not isinstance(content, dict) or "hash" not in content:
        raise BadInput(f"{path} is not a registration; restore the file")
    return content


def _row(grid: Grid, name: str, label: str) -> dict[str, Any]:
    nodes = grid.chain(name, grid.seeds[0])
    names, stages = {node.stage for node in nodes}, {}
    for node in nodes:
        after = grid.experiment.stage(node.stage).after
        stages[node.stage] = _stage(node) | ({"after": after} if after in names else {})
    return {"name": name, "label": label, "stages": stages}


def _stage(node: Node) -> dict[str, Any]:
    """Return the recipe or task of a stage and its options, which are the same for all seeds."""
    seedless = {key: "PARENT" if key in PARENTS else value for key, value in node.options.items()}
    command = {"task": node.task} if node.task else {"recipe": node.argv[1]}
    return {**command, "options": seedless}


def _difference(name: str, before: Any, now: Any) -> str:
    """Return in words how a part of a registration changed; of rows, only what differs."""
    if name == "rows":
        rows_before, rows_now = ({row["name"]: row for row in rows or []} for rows in (before, now))
        lines = [f"row {row}: absent now" for row in rows_before.keys() - rows_now.keys()]
        lines += [f"row {row}: absent before" for row in rows_now.keys() - rows_before.keys()]
        for row in rows_before.keys() & rows_now.keys():
            flat_before, flat_now = (_flat(rows[row]["stages"], "") for rows in (rows_before, rows_now))
            lines += [
                f"row {row}, {key}: {flat_before.get(key, 'absent')} before, {flat_now.get(key, 'absent')} now"
                for key in flat_before | flat_now
                if flat_before.get(key, "absent") != flat_now.get(key, "absent")
            ]
        return "; ".join(sorted(lines))
    if name == "tokenizer":
        return "the training of the tokenizer"
    before, now = (" ".join(map(str, value)) if isinstance(value, list) else value for value in (before, now))
    return f"{name}: {before} before, {now} now"


def _flat(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {inner: leaf for name, item in value.items() for inner, leaf in _flat(item, f"{key}.{name}" if key else name).items()}
