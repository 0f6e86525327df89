"""The preregistration of an experiment: its claims and how they will be judged, written and sealed before the first run.

A later start must declare the same grid. Its claims, forecasts and judge may differ, but each difference from the registered ones
is an edit, which the page shows, and the claims concerned are exploratory. What is known only later, as the digest of the
tokenizer, and the date on which an edit was first seen are records that are appended to the registration.
"""

import dataclasses
import datetime
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.experiments.analysis.registration_seal import append_record, content_hash, seal_problem
from eval.experiments.experiment_data import task_digests
from eval.experiments.grid import PARENTS, RUNS, TOKENIZER, Grid, Node
from eval.experiments.judge_source import registered_judge
from train.run.provenance import REGISTRATION as FILE
from train.run.provenance import read_code
from train.run.run_dir import write_json
from zoo.errors import BadInput
from zoo.json_shapes import read_shaped_json

FIXED = (
    *("name", "tier", "seeds", "budget", "control", "rows", "tokenizer", "other_tokenizers", "corpus", "tasks", "pilot", "looks"),
)
"""Parts that a later start may not change."""
PACKAGES = ("jax", "numpy", "scipy")
"""Packages that runs and verdicts depend on, whose versions are registered."""
SHAPE = {
    **{"hash": str, "date": str, "claims": [{"id": str}], "forecast": {str: str}, "deviations": [str]},
    **{"rows": [{"name": str, "stages": {str: object}}], "tasks": {str: str}, "versions": {str: str}},
    **{"code": {"commit": str | None, "dirty": bool | None}},
    "judge": {"function": str, "files": {str: str}, "levels": {str: int | float}},
    "records?": [{"hash": str, "date": str}],
}
"""Shape of what this module uses of a registration."""
ALL_CLAIMS = ""
"""Name in place of a claim's, in an edit that concerns all of them."""


def registration_of(grid: Grid) -> dict[str, Any]:
    """Return the registration of a grid as of today, as JSON, with the hash of all of it.

    Raises:
        BadInput: a task file does not exist.
    """
    from eval.experiments.analysis import verdicts

    experiment = grid.experiment
    claims = [dataclasses.asdict(claim) for claim in experiment.tier_claims(grid.tier)]
    values = (value for node in grid.nodes for value in node.options.values())
    texts = (text for value in values for text in (value if isinstance(value, tuple) else (value,)) if isinstance(text, str))
    tokenizers = {node.name: _stage(node) for node in grid.nodes if node.stage == TOKENIZER}
    content = {
        "name": experiment.name,
        "tier": grid.tier,
        "rows": [_row(grid, row.name, row.label) for row in experiment.tier_rows(grid.tier)],
        "tokenizer": tokenizers.pop(TOKENIZER),
        **({"other_tokenizers": tokenizers} if tokenizers else {}),
        "seeds": list(grid.seeds),
        **({"looks": list(looks)} if (looks := experiment.tiers[grid.tier].looks) else {}),
        "budget": experiment.budget,
        "control": experiment.control,
        "corpus": grid.files.corpus,
        "tasks": task_digests(grid.files, texts),
        "pilot": grid.pilot,
        "claims": claims,
        "forecast": {claim["id"]: experiment.forecast[claim["id"]] for claim in claims},
        "judge": registered_judge(experiment.judge or verdicts.judge),
        "code": read_code(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "deviations": list(grid.files.deviations),
        "date": _today(),
    }
    content = json.loads(json.dumps(content))
    return {"hash": content_hash(content), **content}


def register_grid(grid: Grid, folder: Path) -> dict[str, Any]:
    """Write the registration of a grid into its folder, unless it has one, and return the registration that is in force.

    It has the claims of the grid; in `edits` what differs from the registered ones, in `changed` the ids of the claims that this
    makes exploratory, and in `sealed` the content of the file.

    Raises:
        BadInput: the folder has a registration that was edited, or that of another grid; the message says what changed.
    """
    current = registration_of(grid)
    path = folder / FILE
    has_runs = any((folder / RUNS).glob("*/config.json"))
    if has_runs and not path.exists():
        raise BadInput(f"{folder} has runs and no {FILE}; restore the file, or choose another folder")
    registered = read_registration(folder) if path.exists() else None
    if registered is None or not has_runs:
        if registered is not None and _undated(registered) == _undated(current):
            return in_force(registered, current["claims"], [])
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, current)
        return in_force(current, current["claims"], [])
    check_fixed(registered, current, folder)
    registered, edits = _record_edits(folder, registered, _edits(registered, current))
    return in_force(registered, current["claims"], edits)


def check_fixed(registered: Mapping[str, Any], current: Mapping[str, Any], folder: Path, *, free: Sequence[str] = ()) -> None:
    """Refuse a registration that differs from that of a folder in a part that a later start may not change.

    Args:
        free: parts that may differ, because they are not known yet.

    Raises:
        BadInput: names what changed.
    """
    if different := [name for name in FIXED if name not in free and registered.get(name) != current.get(name)]:
        details = "; ".join(_difference(name, registered.get(name), current.get(name)) for name in different)
        raise BadInput(f"{folder} has another registration: {details}; choose another folder, or these values")


def in_force(registered: Mapping[str, Any], claims: Sequence[Any], edits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a registration with the claims that are judged, and the ids of those that edits make exploratory."""
    names = list(dict.fromkeys(claim["id"] for claim in (*claims, *registered["claims"])))
    edited = {edit["claim"] for edit in edits}
    changed = names if ALL_CLAIMS in edited else [name for name in names if name in edited]
    return {**registered, "claims": claims, "changed": changed, "edits": list(edits), "sealed": registered}


def add_edits(registration: Mapping[str, Any], edits: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Return a registration in force with more edits, which are recorded in its folder."""
    registered, dated = _record_edits(folder, registration["sealed"], edits)
    return in_force(registered, registration["claims"], [*registration["edits"], *dated])


def add_edited_fields(entries: Sequence[dict[str, Any]], registration: Mapping[str, Any]) -> None:
    """Add to the entries of claims in experiment.json what was edited in the declarations, as it is now.

    What was registered is in the registration there.
    """
    before = {claim["id"]: claim for claim in registration["sealed"]["claims"]}
    now = {claim["id"]: claim for claim in registration["claims"]}
    for entry in entries:
        old = before.get(entry["id"], {})
        entry |= {name: value for name, value in now[entry["id"]].items() if name not in entry and old.get(name) != value}


def record_tokenizer(registration: Mapping[str, Any], digest: str, folder: Path, name: str = TOKENIZER) -> dict[str, Any]:
    """Record the digest of a tokenizer and return the registration in force; a digest other than the recorded is an edit.

    Args:
        name: of the run that trained it.
    """
    recorded = [record[name] for record in registration["sealed"].get("records", []) if name in record]
    if digest in recorded:
        return dict(registration)
    if recorded:
        return add_edits(registration, [edit_entry(ALL_CLAIMS, name, recorded[0], digest)], folder)
    # Read again: another command may have appended a record in the meantime.
    sealed = append_record(read_registration(folder), {"date": _today(), name: digest})
    write_json(folder / FILE, sealed)
    return in_force(sealed, registration["claims"], registration["edits"])


def read_registration(folder: Path) -> dict[str, Any]:
    """Return the registration in a folder, whose seal is intact.

    Raises:
        BadInput: there is none, or it is damaged, was edited, or is of a version that did not seal it.
    """
    path = folder / FILE
    content = read_shaped_json(path, {"hash": str}, "restore the file")
    if content is None:
        raise BadInput(f"{folder} is not an experiment: {FILE} cannot be read (there is no such file)")
    if "judge" not in content:
        raise BadInput(f"{path} was not sealed by the version that wrote it; choose another folder, and run the experiment again")
    if problem := seal_problem(read_shaped_json(path, SHAPE, "restore the file")):
        raise BadInput(f"{path} was edited after the registration: {problem}; restore the file, or register in another folder")
    return content


def _record_edits(
    folder: Path, registered: dict[str, Any], edits: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the registration with a record of the edits that are new, which is written, and the edits with their dates."""
    dates = {_key(edit): record["date"] for record in registered.get("records", []) for edit in record.get("edits", [])}
    if new := [dict(edit) for edit in edits if _key(edit) not in dates]:
        registered = append_record(read_registration(folder), {"date": _today(), "edits": new})
        write_json(folder / FILE, registered)
    return registered, [{**edit, "date": dates.get(_key(edit), _today())} for edit in edits]


def _edits(registered: Mapping[str, Any], current: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what differs from a registration in the claims, forecasts and the judge: claim, field, and its value before and now.

    A claim that is left out concerns all of them, since each p value is adjusted for their number.
    """
    before, now = ({claim["id"]: claim for claim in content["claims"]} for content in (registered, current))
    edits = [
        edit_entry(ALL_CLAIMS, f"claim {name}", claim.get("text"), None) for name, claim in before.items() if name not in now
    ]
    for name, claim in now.items():
        if name not in before:
            edits.append(edit_entry(name, "claim", None, claim["text"]))
            continue
        edits += _changes(name, "", before[name], claim)
        edits += _changes(name, "", {"forecast": registered["forecast"].get(name)}, {"forecast": current["forecast"][name]})
    judges = registered["judge"], current["judge"]
    edits += _changes(ALL_CLAIMS, "judge ", *({"function": judge["function"]} for judge in judges))
    edits += _changes(ALL_CLAIMS, "judge ", *(judge["files"] for judge in judges))
    return edits + _changes(ALL_CLAIMS, "level ", *(judge["levels"] for judge in judges))


def _changes(claim: str, prefix: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = dict.fromkeys([*before, *now])
    return [
        edit_entry(claim, f"{prefix}{name}", before.get(name), now.get(name))
        for name in names
        if before.get(name) != now.get(name)
    ]


def edit_entry(claim: str, field: str, before: Any, now: Any) -> dict[str, Any]:
    """Return an edit of a claim, or of `ALL_CLAIMS`, without the date on which it was first seen."""
    return {"claim": claim, "field": field, "before": before, "now": now}


def _key(edit: Mapping[str, Any]) -> str:
    """Return what is the same for an edit whenever it is seen."""
    return json.dumps({name: value for name, value in edit.items() if name != "date"}, sort_keys=True)


def _undated(registration: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in registration.items() if name not in ("date", "hash")}


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


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
    if name == "tasks":
        edits = _changes(ALL_CLAIMS, "", before or {}, now)
        return "; ".join(f"tasks: {edit['field']} {edit['before']} before, {edit['now']} now" for edit in edits)
    if name in ("tokenizer", "other_tokenizers", "pilot"):
        return "the result of the pilot" if name == "pilot" else "the training of the tokenizers"
    before, now = (" ".join(map(str, value)) if isinstance(value, list) else value for value in (before, now))
    return f"{name}: {before} before, {now} now"


def _flat(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {inner: leaf for name, item in value.items() for inner, leaf in _flat(item, f"{key}.{name}" if key else name).items()}
