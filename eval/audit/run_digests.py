"""Checks of the files of a run that need no computation: digests, and what checkpoints record about the other files.

Nothing here imports JAX.
"""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.audit.audit_types import Check, passed_or_failed
from train.checkpoints.config_check import check_identity
from train.checkpoints.manifest import NAME, DamagedCheckpoint, Manifest, folder_name, kind_of_entry
from train.config.run_config import Run
from train.run.metric_definitions import METRICS, leading_metrics
from train.run.metrics_file import LARGEST_FILE, read_rows
from train.run.run_dir import RunDir, check_unlocked
from train.run.run_identity import is_repeated
from train.tokenizers.tokenizer import FILE
from zoo.errors import BadInput
from zoo.file_access import open_regular
from zoo.sha256_and_fsync import sha256

Manifests = dict[int, Manifest]
"""Step of a checkpoint -> its manifest, ascending."""


def require_audit_files(folder: RunDir) -> None:
    """Refuse a run that lacks what an audit compares, or that another process trains.

    Raises:
        BadInput: names everything that is missing, or the process.
    """
    files = {"metrics.jsonl": folder.metrics, "starts.jsonl": folder.starts, "ledger.jsonl": folder.ledger}
    missing = [name for name, path in {**files, f"tokenizer/{FILE}": folder.tokenizer / FILE}.items() if not path.is_file()]
    missing += [] if folder.is_resumable else ["a checkpoint"]
    if missing:
        fix = "train a run that is to be audited with --log.ledger, and keep all of its files"
        raise BadInput(f"{folder.path} cannot be audited without {', '.join(missing)}; {fix}")
    check_unlocked(folder.path, "audit it when it has ended or stopped")


def digest_run_files(folder: RunDir) -> dict[str, str]:
    """Return the SHA-256 of each file of a run on which a result depends, by its path in the folder.

    A checkpoint is represented by its COMMIT.json, which has the digests of its arrays.

    Raises:
        BadInput: a file is larger than any that a run writes, so that its digest would take minutes or hours.
    """
    single = (folder.config, folder.metrics, folder.ledger, folder.starts, folder.data, folder.scores, folder.predictions)
    single += (folder.outcomes, folder.evaluations)
    inside = [path for place in (folder.tokenizer, folder.embedding) for path in place.rglob("*") if path.is_file()]
    manifests = [path for place in (folder.checkpoints, folder.best, folder.base) for path in place.rglob(NAME)]
    paths = sorted([path for path in single if path.is_file()] + inside + manifests)
    if large := next((path for path in paths if path.stat().st_size > LARGEST_FILE), None):
        raise BadInput(f"{large} is larger than {LARGEST_FILE >> 20} MiB, as no run writes it; restore the file")
    return {path.relative_to(folder.path).as_posix(): sha256(path) for path in paths}


def check_arrays(place: Path) -> tuple[Manifests, list[Check]]:
    """Return the intact manifests of the checkpoints in a folder, after reading all of their files, and a check of each."""
    steps = sorted(int(entry.name) for entry in place.iterdir() if kind_of_entry(entry) == "step") if place.is_dir() else []
    manifests, checks = Manifests(), []
    for step in steps:
        path, problem = place / folder_name(step), ""
        try:
            manifest = Manifest.read(path, step)
            manifest.check_content(path)
            manifests[step] = manifest
        except DamagedCheckpoint as damage:
            problem = str(damage)
        detail = f"{len(manifests[step].files)} files have the digests in {NAME}" if step in manifests else ""
        checks.append(passed_or_failed(f"{place.name}/{folder_name(step)}: arrays", problem, detail))
    return manifests, checks


def check_options(folder: RunDir, starts: Sequence[Mapping[str, Any]]) -> Check:
    """Refuse options of a start by which a replay would have another configuration than the run."""
    wrong = [(number, key) for number, start in enumerate(starts, 1) for key in start.get("options", {}) if not is_repeated(key)]
    problem = f"row {wrong[0][0]} sets {wrong[0][1]}, which no start may change" if wrong else ""
    return passed_or_failed(folder.starts.name, problem, "its options are those that a start may change")


def check_configuration(folder: RunDir, run: Run, manifests: Mapping[int, Manifest], best: Mapping[int, Manifest]) -> Check:
    """Compare config.json with the configuration that each checkpoint records."""
    problem = ""
    for place, step in [*((folder.checkpoints, step) for step in manifests), *((folder.best, step) for step in best)]:
        meta = (manifests if place == folder.checkpoints else best)[step].meta
        if type(meta.get("config", {}).get("steps")) is not int:
            problem = problem or f"{place.name}/{folder_name(step)} records no configuration"
        try:
            check_identity(place / folder_name(step), meta, run)
        except BadInput as error:
            problem = problem or str(error)
    return passed_or_failed("config.json", problem, "every checkpoint records this configuration")


def check_selection(folder: RunDir, run: Run, best: Mapping[int, Manifest], name: str) -> list[Check]:
    """Compare the best checkpoint with the validations of the run; no check if it selects none.

    Args:
        name: name of the check.
    """
    if not run.selection.best:
        return []
    if not best:
        return [Check(name, "not checked", f"{folder.best} has no intact checkpoint")]
    rows = [row for row in read_rows(folder.metrics) if row.get("kind") == "valid"]
    meta, step = best[max(best)].meta, max(best)
    metric = run.selection.metric or next(iter(leading_metrics(rows[0]) if rows else ()), "")
    values = [(row["step"], float(row[metric])) for row in rows if isinstance(row.get(metric), int | float)]
    finite = [(number, value) for number, value in values if math.isfinite(value)]
    if metric not in METRICS or not finite:
        return [Check(name, "not checked", f"no validation has measured {metric or 'a metric'}")]
    sign = -1 if METRICS[metric].better == "higher" else 1
    expected = min(finite, key=lambda pair: (sign * pair[1], pair[0]))
    problem = (
        ""
        if (meta.get("metric"), step, meta.get("value")) == (metric, *expected)
        else (
            f"it is of step {step}, by {meta.get('metric')} {meta.get('value')}, and the best validation by {metric} is "
            f"{expected[1]} at step {expected[0]}"
        )
    )
    return [passed_or_failed(name, problem, f"step {step} has the best {metric} of {len(finite)} validations")]


def check_rows(path: Path, manifests: Mapping[int, Manifest]) -> Check:
    """Compare a file of rows with the number of its rows, and their SHA-256, that each checkpoint records."""
    records = {step: manifest.meta.get("records", {}).get(path.name) for step, manifest in manifests.items()}
    if absent := [step for step, record in records.items() if record is None]:
        return Check(path.name, "failed", f"the checkpoint of step {absent[0]} has no digest of it")
    counts = {record["rows"] for record in records.values() if record}
    digests = _prefix_digests(path, counts)
    problems = []
    for step, record in records.items():
        assert record is not None
        rows = record["rows"]
        if (digest := digests.get(rows)) != record["sha256"]:
            is_short = f"there are fewer than the {rows} rows" if digest is None else f"the first {rows} rows are not those"
            problems.append(f"{is_short} of the checkpoint of step {step}")
    newest = max(records)
    rows = read_rows(path)
    own = sum(row["step"] <= newest for row in rows)
    if not problems and own != records[newest]["rows"]:
        problems.append(f"{own} rows up to step {newest}, and its checkpoint records {records[newest]['rows']}")
    if not problems and (later := [row["step"] for row in rows if row["step"] > newest]):
        detail = f"{len(later)} rows up to step {max(later)} are later than the newest checkpoint, of step {newest}"
        return Check(path.name, "not checked", f"{detail}, so that nothing records them; continue the run to its end")
    return passed_or_failed(path.name, "; ".join(problems), f"{own} rows have the digests in {len(records)} checkpoints")


def _prefix_digests(path: Path, counts: set[int]) -> dict[int, str]:
    """Return the SHA-256 of the first n lines of a file for each n in `counts` that it has."""
    digest = hashlib.sha256()
    digests = {0: digest.hexdigest()} if 0 in counts else {}
    with open_regular(path) as file:
        for number, line in enumerate(itertools.islice(file, max(counts, default=0)), 1):
            digest.update(line)
            if number in counts:
                digests[number] = digest.hexdigest()
    return digests
