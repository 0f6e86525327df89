"""The keys of a run's objects in an object store, which are the paths in its folder.

checkpoints/00000400/...            the files of a step; it exists only with its COMMIT.json, which is uploaded last
best/..., base/...                  the files of the best step and of frozen parameters, also with a COMMIT.json
config.json, metrics.jsonl, ...     everything else, each an object that is replaced at once
writer.json                         the machine that trains the run

The folder `fetched` exists in a working copy only, with the results as they were last fetched or uploaded.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from train.checkpoints import manifest
from train.checkpoints.manifest import DamagedCheckpoint, Manifest
from train.run.run_dir import LOCK, RESULTS_LOCK, RunDir
from zoo.errors import BadInput

CHECKPOINTS, BEST, BASE = "checkpoints", "best", "base"
STEP_FOLDERS = (CHECKPOINTS, BEST, BASE)
"""Folders with a folder for each step."""
WRITER = "writer.json"
FETCHED = "fetched"
DAMAGED = "damaged.json"
"""File in `FETCHED` with the SHA-256 of the COMMIT.json of every later step of the store that is damaged, by step."""
LOGS = re.compile(r"(metrics|ledger|starts)\.jsonl|stacks(-\d+)?\.txt|generation_config\.json|embedding/.+|rollouts/[^/]+\.jsonl")
"""Files of a run that left no checkpoint, which a run of another configuration deletes when it takes the name."""
EXTENDED = ("scores.json", "predictions.json", "samples.json", "failure.json")
"""Files that only training writes, and that it removes when a run is extended, or continues after a failure."""
EVALUATIONS, OUTCOMES = "evaluations.json", "outcomes.npz"
RESULTS = (EVALUATIONS, OUTCOMES, "report.html", "reward_scale.json")
"""Files that the evaluation of a run writes, perhaps on another machine than its training."""
NOT_UPLOADED = (*STEP_FOLDERS, "profile", LOCK, RESULTS_LOCK, WRITER, FETCHED)
"""Names in the folder of a run that are not among its `run_files`."""
NATIVE = re.compile(r"native(-\d+)?\.txt")
"""Files of native code's messages, which stay on the machine that they are about."""
PLAIN = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")
"""Name of a file or folder in a step."""
FETCHED_FILES = re.compile(
    r"[A-Za-z0-9][\w-]*(\.[\w-]+)*\.(jsonl?|npz|html|txt|md|csv|svg|png)"
    r"|tokenizer/[A-Za-z0-9][\w.-]*\.(json|txt|jinja|model)"
    r"|embedding/([1-9]\d?_[A-Z][a-z]+/)?[A-Za-z0-9][\w-]*\.(json|safetensors)"
    r"|rollouts/\d+\.jsonl"
    r"|tensorboard/events\.out\.[\w.-]+"
    r"|(trackio|mlflow)/id"
    r"|wandb(/[A-Za-z0-9][\w.-]*)+",
    re.ASCII,
)
"""Keys of the files beside the steps that are fetched: no hidden file, no program, and none that only the local folder has."""


def committed_steps(keys: Iterable[str], folder: str) -> list[int]:
    """Return the steps below a folder that have a COMMIT.json among the keys, newest first."""
    steps = [step for key in keys if (step := _step_of(key, folder)) is not None and key == commit_key(folder, step)]
    return sorted(steps, reverse=True)


def steps_with_objects(keys: Iterable[str], folder: str) -> set[int]:
    """Return the steps below a folder that have any object."""
    return {step for key in keys if (step := _step_of(key, folder)) is not None}


def step_prefix(folder: str, step: int) -> str:
    """Return the beginning of the keys of a step."""
    return f"{folder}/{manifest.folder_name(step)}/"


def commit_key(folder: str, step: int) -> str:
    """Return the key of the manifest of a step."""
    return step_prefix(folder, step) + manifest.NAME


def valid_steps(folder: Path) -> list[int]:
    """Return the steps below a local folder with a valid manifest and files of the listed sizes, newest first."""
    entries = folder.iterdir() if folder.is_dir() else ()
    steps = sorted((int(entry.name) for entry in entries if manifest.kind_of_entry(entry) == "step"), reverse=True)
    return [step for step in steps if is_valid(folder, step)]


def is_valid(folder: Path, step: int) -> bool:
    """Return whether a local folder has a valid manifest of a step, and files of the sizes that it lists."""
    try:
        Manifest.read(step_folder(folder, step), step)
    except DamagedCheckpoint:
        return False
    return True


def step_folder(folder: Path, step: int) -> Path:
    """Return the local folder of a step."""
    return folder / manifest.folder_name(step)


def run_keys(keys: Iterable[str]) -> list[str]:
    """Return the keys of the objects of a run that are neither those of steps nor about the store."""
    return sorted(key for key in keys if key.partition("/")[0] not in NOT_UPLOADED and is_of_run(key))


def is_of_run(key: str) -> bool:
    """Return whether a key is one that a run has; others are not fetched, since whoever can write to the store chooses them."""
    folder, _, rest = key.partition("/")
    if folder in STEP_FOLDERS:
        return all(PLAIN.fullmatch(name) and name not in (".", "..") for name in rest.split("/"))
    # In lower case, because some file systems do not distinguish it.
    return key == WRITER or (folder.lower() not in NOT_UPLOADED and FETCHED_FILES.fullmatch(key) is not None)


def run_files(folder: RunDir) -> dict[str, Path]:
    """Return the files in the folder of a run that are uploaded as they are, by key."""
    regular = sorted(file for file in folder.path.rglob("*") if file.is_file() and not file.is_symlink())
    files = {file.relative_to(folder.path).as_posix(): file for file in regular}
    # A name that begins with a dot is that of a file which is being written.
    files = {key: file for key, file in files.items() if key.split("/")[0] not in NOT_UPLOADED and not NATIVE.fullmatch(key)}
    return {key: file for key, file in files.items() if not file.name.startswith(".")}


def check_key(uri: str, key: str) -> None:
    """Refuse a key that is no path of a file below a folder.

    Raises:
        BadInput: names the key.
    """
    if any(name in ("", ".", "..") or "\0" in name for name in key.split("/")):
        raise BadInput(f"{uri}/{key!r}: not the name of a file in a run; remove that object")


def _step_of(key: str, folder: str) -> int | None:
    """Return the step whose prefix a key has; None for any other key."""
    parts = key.split("/")
    if len(parts) < 3 or parts[0] != folder or not (parts[1].isascii() and parts[1].isdecimal()):
        return None
    step = int(parts[1])
    return step if manifest.folder_name(step) == parts[1] else None
