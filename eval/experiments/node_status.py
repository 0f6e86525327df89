"""The status of each node of a grid, read from the folders of the runs and the notes of failures. Nothing here imports JAX."""

import json
import os
from pathlib import Path
from typing import Any

from eval.experiments.grid import Grid, Node
from train.run.result_files import check_same_run
from train.run.run_dir import RunDir, write_text
from zoo.errors import BadInput
from zoo.file_access import LARGEST_JSON, open_regular, read_regular
from zoo.json_shapes import read_shaped_json

LOGS = "logs"
DIVERGED = "non-finite"
"""Part of the message of a run that ends because its loss or gradient is not finite."""
UNDECIDED = ("precision", "model.labels", "model.multi_label", "model.vocab")
"""Keys whose values depend on the data and the machine, and are final only once a run has begun."""


def is_done(node: Node, folder: Path) -> bool:
    """Return whether a node has its results: a training run its scores and report, an evaluation its entry."""
    files = RunDir(folder / node.run)
    if not node.task:
        return files.scores.exists() and files.report.exists() and files.has_checkpoint
    return evaluation_name(node) in read_object(files.evaluations)


def is_begun(node: Node, folder: Path) -> bool:
    """Return whether a node was started since its results are missing: its log exists."""
    return log_file(node, folder).exists()


def evaluation_name(node: Node) -> str:
    """Return the name under which an evaluation is stored in its run's evaluations.json."""
    limit = node.options.get("limit")
    return f"{node.task} (first {limit:,})" if limit else node.task


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; {} if the file is absent or damaged, which the command that reads it reports."""
    try:
        return read_shaped_json(path, {str: object}, "") or {}
    except BadInput:
        return {}


def check_runs(grid: Grid, folder: Path) -> None:
    """Refuse a folder with a finished or begun run of another configuration than the grid's.

    Raises:
        BadInput: names the run and every option that differs.
    """
    for node in grid.nodes:
        if not node.task:
            check_same_run(RunDir(folder / node.run), node.config, UNDECIDED)


def log_file(node: Node, folder: Path) -> Path:
    """Return the file that a node's output is written to."""
    return folder / LOGS / f"{node.name}.log"


def note_failure(node: Node, folder: Path, message: str) -> None:
    """Write down why a node failed."""
    write_text(_note(node, folder), message + "\n")


def clear_failure(node: Node, folder: Path) -> None:
    """Remove the note of a failure, and the record of it in a training run, before a new attempt of a node begins."""
    _note(node, folder).unlink(missing_ok=True)
    if not node.task:
        RunDir(folder / node.run).failure.unlink(missing_ok=True)


def node_failure(node: Node, folder: Path) -> str:
    """Return why a node failed the last time that it was tried; "" if it did not.

    A training run records it in its own folder, whatever started it. A note has what a run cannot record, as that it was killed.
    """
    if (recorded := _recorded_failure(node, folder)) is not None:
        return str(read_object(recorded).get("reason", ""))
    path = _note(node, folder)
    return read_regular(path, LARGEST_JSON).decode(errors="replace").strip() if path.exists() else ""


def failed_attempt(node: Node, folder: Path) -> int | None:
    """Return a number that tells the last failed attempt of a node from earlier ones; None if the last attempt did not fail."""
    try:
        return (_recorded_failure(node, folder) or _note(node, folder)).stat().st_mtime_ns
    except OSError:
        return None


def _note(node: Node, folder: Path) -> Path:
    return folder / LOGS / f"{node.name}.failed"


def _recorded_failure(node: Node, folder: Path) -> Path | None:
    """Return the file in which a training run recorded why it failed; None if it recorded nothing."""
    path = RunDir(folder / node.run).failure
    return path if not node.task and read_object(path).get("reason") else None


def failed_ancestor(grid: Grid, node: Node, folder: Path) -> Node | None:
    """Return a node that failed and that a node needs, directly or not; None if there is none."""
    by_name = {other.name: other for other in grid.nodes}
    for parent in (by_name[name] for name in node.parents):
        if not is_done(parent, folder):
            if node_failure(parent, folder):
                return parent
            if (ancestor := failed_ancestor(grid, parent, folder)) is not None:
                return ancestor
    return None


def last_line(path: Path, size: int = 4000) -> str:
    """Return the last line that a process wrote to a log, without the name of the program."""
    with open_regular(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("zoo: ") if lines else "it printed nothing"


def seconds_of(node: Node, folder: Path) -> float | None:
    """Return how long a training run took, from its start to its score; None if it was interrupted or is not finished."""
    from train.run.metrics_file import read_starts

    files = RunDir(folder / node.run)
    if node.task or not files.scores.exists() or not files.starts.exists():
        return None
    try:
        starts = read_starts(files)
    except BadInput:
        return None
    return files.scores.stat().st_mtime - starts[0]["at"] if len(starts) == 1 else None


def steps_taken(node: Node, folder: Path) -> int:
    """Return the last step in a run's metrics."""
    path = RunDir(folder / node.run).metrics
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
            rows = file.read().split(b"\n")
    except OSError:
        return 0
    for line in reversed(rows):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return 0
