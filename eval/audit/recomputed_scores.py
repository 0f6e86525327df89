"""The scores of a run, computed again from its checkpoints: scores.json, and each task in evaluations.json."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from eval.audit.audit_types import Check, passed_or_failed
from eval.audit.comparison import LARGEST_OF_SCORES, array_problem, values_problem
from eval.audit.run_digests import Manifests
from eval.commands.run_task import settings_of_record
from eval.task_data_files import digest_data_files
from eval.tasks import task_table
from train.loop.prepare import PreparedRun
from train.run.item_outcomes import HELD_OUT, Outcomes, read_outcomes
from train.run.progress_display import ProgressBar
from train.run.result_files import read_result
from train.run.run_dir import RunDir
from train.weights.load import load_model, restore_params
from zoo.errors import BadInput
from zoo.json_shapes import shape_problem

LIMITED = re.compile(r" \(first [\d,]+\)$")
"""End of the name of an evaluation of the first examples of a task."""


def check_scores(folder: RunDir, prepared: PreparedRun, manifests: Manifests, best: Manifests, *, bits: bool) -> list[Check]:
    """Score the checkpoint that scores.json belongs to again, and compare; none if the run has no score yet.

    Args:
        prepared: the run with its data.
        bits: compare all numbers exactly; else losses within the bound.
    """
    stored = read_result(folder.scores)
    if stored is None:
        return []
    scored = max(best) if prepared.run.selection.best and best else max(manifests)
    params, step, _ = restore_params(folder.path, prepared.run, prepared.mesh, scored)
    stride = max(1, prepared.run.data.length // 2)
    score = prepared.scorer(prepared.data.scored_rows(prepared.run, stride))(params)
    problem = values_problem(stored, {**score.record(), "stride": stride, "step": step}, bits=bits, scores=True)
    name = "best" if prepared.run.selection.best and best else "newest"
    checks = [passed_or_failed("scores.json", problem, f"computed again from the {name} checkpoint, of step {step}")]
    if outcomes := getattr(score, "outcomes", None):
        checks.append(_check_outcomes(folder, HELD_OUT, outcomes, bits=bits))
    return checks


def check_evaluations(folder: RunDir, steps: Collection[int]) -> list[Check]:
    """Repeat each task of evaluations.json with its recorded files, options and checkpoint.

    Scores are compared within the bounds between kinds of hardware, since an evaluation may have been made on any.

    Args:
        steps: those of the checkpoints that there are.
    """
    checks = []
    for name, entry in (read_result(folder.evaluations) or {}).items():
        try:
            checks += _check_task(folder, name, entry, steps)
        except BadInput as error:
            checks.append(Check(f"evaluations.json: {name}", "not checked", str(error)))
    return checks


def _check_task(folder: RunDir, name: str, entry: dict[str, Any], steps: Collection[int]) -> list[Check]:
    title, files = f"evaluations.json: {name}", entry.get("details", {}).get("files", [])
    if "settings" not in entry:
        return [Check(title, "not checked", "it was recorded without its options; evaluate the run again")]
    if problem := shape_problem(files, [str]):
        return [Check(title, "not checked", f"its files are not a list of names ({problem})")]
    if missing := [file for file in files if not Path(file).exists()]:
        return [Check(title, "not checked", f"{missing[0]} is not here")]
    if entry["step"] not in steps:
        return [Check(title, "failed", f"it is of step {entry['step']}, of which there is no checkpoint")]
    recorded = entry.get("fingerprint", {}).get("files")
    if (digest := digest_data_files(files)) != recorded:
        return [Check(title, "failed", f"its files have the digest {digest}, and it records {recorded}")]
    settings = settings_of_record(entry["settings"])
    task, _ = task_table.find_task(LIMITED.sub("", name))
    subject = load_model(folder.path, None, entry["step"])
    with ProgressBar(f"repeating {name}", before="compiling") as progress:
        result = task.score(subject, task.read(files, settings), settings, progress)
    # The tokenizer is compared too: scores of tokens depend on it.
    stored = {"metrics": entry["metrics"], "examples": entry["examples"], "tokenizer": entry.get("tokenizer")}
    computed = {"metrics": result.metrics, "examples": result.examples, "tokenizer": subject.tokenizer.fingerprint}
    problem = values_problem(stored, computed, bits=False, scores=True)
    checks = [passed_or_failed(title, problem, f"computed again from the checkpoint of step {entry['step']}")]
    if result.outcomes is not None:
        checks.append(_check_outcomes(folder, name, result.outcomes, bits=False))
    return checks


def _check_outcomes(folder: RunDir, name: str, computed: Outcomes, *, bits: bool) -> Check:
    """Compare the stored outcomes of single items with those computed again."""
    title = f"outcomes.npz: {name}"
    try:
        stored = read_outcomes(folder, name)
    except BadInput as error:
        return Check(title, "failed", str(error))
    if stored.id != computed.id:
        return Check(
            title, "failed", f"it has {len(stored.id):,} items, and other ones than the {len(computed.id):,} of the task"
        )
    if not bits and not np.allclose(stored.nats, computed.nats, rtol=LARGEST_OF_SCORES, equal_nan=True):
        return Check(title, "failed", f"nats of items differ by more than {LARGEST_OF_SCORES:g}")
    names = ("right", "nats", "count") if bits else ("right", "count")
    arrays: list[dict[str, np.ndarray]] = [{field: getattr(own, field) for field in names} for own in (stored, computed)]
    return passed_or_failed(title, array_problem(*arrays), f"{len(stored.id):,} items")
