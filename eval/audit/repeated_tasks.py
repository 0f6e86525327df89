"""Repetition of the tasks in evaluations.json. Its entries name tasks, options and files, and may be written by somebody else.

Nothing that an entry names is imported or fetched, and nothing about the content of a file that it names comes into a result.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from eval.audit.audit_types import Check, passed_or_failed
from eval.audit.comparison import values_problem
from eval.audit.recomputed_scores import outcomes_check
from eval.commands.run_task import result_entry, settings_of_record
from eval.task_data_files import digest_data_files
from eval.tasks import task_table
from eval.tasks.task import Settings
from train.run.progress_display import ProgressBar
from train.run.result_files import read_result
from train.run.run_dir import RunDir
from train.weights.load import load_model
from zoo.errors import BadInput
from zoo.hf import hub
from zoo.json_shapes import shape_problem

LIMITED = re.compile(r" \(first [\d,]+\)$")
"""End of the name of an evaluation of the first examples of a task."""
COMPARED_EXACTLY = ("fingerprint", "tokenizer", "per_token", "limit")
"""Fields of an entry that do not depend on the machine."""
MOST_FILES, LARGEST_FILES = 10_000, 16 << 30
"""Number and bytes of the files of an entry that are read."""
SUITE = "it was written by a suite, whose parts are not repeated; score the task alone by zoo eval --task"


def check_evaluations(folder: RunDir, steps: Collection[int], replayed: Collection[int]) -> list[Check]:
    """Repeat each task of evaluations.json with its recorded files, options and checkpoint.

    Scores are compared within the bounds between kinds of hardware, since an evaluation may have been made on any.

    Args:
        steps: those of the checkpoints that there are.
        replayed: those of them whose states replays have reproduced.
    """
    checks = []
    for name, entry in (read_result(folder.evaluations) or {}).items():
        title = f"evaluations.json: {name}"
        if reason := _reason_not_to_repeat(name, entry, steps, replayed):
            checks.append(Check(title, "not checked", reason))
            continue
        try:
            checks += _check_task(folder, name, entry)
        except BadInput as error:
            checks.append(Check(title, "not checked", str(error)))
        except OSError as error:
            checks.append(Check(title, "not checked", f"its files cannot be read ({error.strerror})"))
    return checks


def _reason_not_to_repeat(name: str, entry: dict[str, Any], steps: Collection[int], replayed: Collection[int]) -> str:
    """Return why a task is not repeated, without importing or reading anything that the entry names; "" if it can be."""
    title = LIMITED.sub("", name)
    task, colon, _ = title.partition(":")
    if title.endswith(")"):
        return SUITE
    if task not in task_table.TASKS:
        return "it is not a task of the zoo, and the code of others is not run by an audit; repeat it by zoo eval --task"
    if task == "harness":
        return "files of the harness may name functions, which an audit does not run; repeat it by zoo eval --task"
    if "settings" not in entry:
        return "it was recorded without its options; evaluate the run again"
    rollout = entry["settings"].get("rollout", {})
    if task == "responses" or not isinstance(rollout, dict) or rollout.get("reward"):
        return "it names judges of responses, which an audit neither imports nor loads; repeat it by zoo eval --task"
    if rollout.get("reference"):
        return "it names a reference model, which an audit neither fetches nor loads; repeat it by zoo eval --task"
    if colon and not entry["settings"].get("argument"):
        return SUITE
    if (step := entry["step"]) not in steps:
        return f"it is of step {step}, whose checkpoint is not here any more; evaluate a checkpoint that the run keeps"
    if step not in replayed:
        return f"the state of step {step} was not replayed; add --steps 0"
    return _reason_not_to_read(entry.get("details", {}).get("files", []))


def _reason_not_to_read(files: Any) -> str:
    """Return why files that an entry names are not read; "" if they can be."""
    if problem := shape_problem(files, [str]):
        return f"its files are not a list of names ({problem})"
    if remote := [name for name in files if name.startswith(hub.PREFIX) or "://" in name]:
        return f"{remote[0]} is not on this machine, and an audit fetches nothing"
    count = size = 0
    try:
        for name in files:
            if not Path(name).exists():
                return f"{name} is not here"
            for path in Path(name).rglob("*") if Path(name).is_dir() else [Path(name)]:
                count, size = count + 1, size + (path.stat().st_size if path.is_file() else 0)
                if count > MOST_FILES or size > LARGEST_FILES:
                    return f"it names more than {MOST_FILES:,} files, or more than {LARGEST_FILES >> 30} GiB"
    except OSError as error:
        return f"its files cannot be read ({error.strerror})"
    return ""


def _check_task(folder: RunDir, name: str, entry: dict[str, Any]) -> list[Check]:
    """Repeat a task, and compare everything that its entry says of its items and its scores."""
    title, files = f"evaluations.json: {name}", entry.get("details", {}).get("files", [])
    # The digest is not shown: whoever writes an entry chooses the files.
    if digest_data_files(files) != entry.get("fingerprint", {}).get("files"):
        return [Check(title, "failed", "its files do not have the digest that it records")]
    settings = settings_of_record(entry["settings"])
    if (expected := _expected_name(name, settings)) != name:
        return [Check(title, "failed", f"its options are those of {expected}")]
    task, _ = task_table.find_task(LIMITED.sub("", name))
    subject = load_model(folder.path, None, entry["step"])
    with ProgressBar(f"repeating {name}", before="compiling") as progress:
        result = task.score(subject, task.read(files, settings), settings, progress)
    computed = result_entry(LIMITED.sub("", name), task, subject, files, settings, result)
    # The tokenizer is compared too: scores of tokens depend on it.
    problem = _entry_problem(entry, json.loads(json.dumps(computed)))
    checks = [passed_or_failed(title, problem, f"computed again from the checkpoint of step {entry['step']}")]
    if result.outcomes is not None:
        checks.append(outcomes_check(folder, name, result.outcomes, bits=False))
    return checks


def _expected_name(name: str, settings: Settings) -> str:
    """Return the name under which `zoo eval` stores a task with these options."""
    task = LIMITED.sub("", name).partition(":")[0]
    task = f"{task}:{settings.argument}" if settings.argument else task
    return f"{task} (first {settings.limit:,})" if settings.limit else task


def _entry_problem(stored: dict[str, Any], computed: dict[str, Any]) -> str:
    """Return the first difference between an entry and its repetition: all of what defines its items, and then its scores."""
    exact, scores = (
        [{key: entry.get(key) for key in keys} for entry in (stored, computed)]
        for keys in (COMPARED_EXACTLY, ("metrics", "examples"))
    )
    return values_problem(*exact, bits=True) or values_problem(*scores, bits=False, scores=True)
