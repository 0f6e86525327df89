"""The results of a run as JSON files: the shape of each, the one way to read them, and which run may replace them."""

import contextlib
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from train.config.objectives import RolloutOptions
from train.config.run_config import Run
from train.run.metric_definitions import METRICS
from train.run.run_dir import RunDir, read_config, refuse_links, write_json
from train.run.run_identity import identity_differences
from zoo.errors import BadInput, require
from zoo.json_shapes import Number, read_shaped_json

SHAPES: dict[str, Any] = {
    "scores.json": {f"{name}?": Number for name in METRICS},
    "evaluations.json": {
        str: {
            **{"step": int | None, "metrics": {str: Number}, "examples": int, "details?": {str: object}},
            **{"fingerprint?": {str: object}, "tokenizer?": str, "per_token?": [str], "settings?": {str: object}},
        }
    },
    "predictions.json": {
        "labels": [str],
        "confusion": [[int]],
        "worst": [{"text": str, "pair": str, "truth": str, "found": str, "loss": Number}],
    },
    "samples.json": {
        "step": int,
        "temperature?": Number,
        "samples": [{"prompt": str, "text": str, "truth": str}],
        "alignment?": {"source": [str], "text": [str], "weights": [[Number]]},
    },
    "failure.json": {"reason": str, "at": Number},
    "data.json": [{"name": str, "weight": Number, "tokens": int, "rows": int, "share": Number, "epochs": Number}],
}
"""Name of a file -> its shape, see `zoo.json_shapes`.

predictions.json has the names of classes, and the numbers of examples by true class (rows) and predicted class (columns), both
empty for a model that does not classify; and examples, the greatest loss first, with `pair` "" if there is no second text.
"""
LONGEST_REASON = 1000
"""Characters of the reason of a failure that are kept."""
REWRITE = "create it again, or remove it"
"""The fix for a file with other content, unless its reader has a better one."""


def read_result(path: Path, fix: str = REWRITE) -> Any:
    """Return the content of one of the files that `SHAPES` describes; None if it does not exist.

    Args:
        fix: what to do about a file with other content, for the message.

    Raises:
        BadInput: it is not valid JSON, or has another shape.
    """
    return read_shaped_json(path, SHAPES[path.name], fix)


def check_same_run(folder: RunDir, run: Run, undecided: Collection[str] = ()) -> None:
    """Refuse a folder that has the results of a run of another configuration. With --extend, `steps` may be larger than there.

    Args:
        undecided: dotted keys that are not compared, because the run has no final value for them yet.

    Raises:
        BadInput: names every field that differs; or there is no finished run to extend, or it has more steps.
    """
    extend = run.machine.extend
    if folder.has_results and folder.config.exists():
        old = read_config(folder.path, compute=False)
        ignored = {*undecided, "steps"} if extend else undecided
        changed = [line for line in identity_differences(old, run) if line.partition(":")[0] not in ignored]
        if changed:
            fix = f"choose another --name (--init {folder.path} begins with the parameters of this run), or these values"
            if run.steps > old.steps and len(changed) == 1 and changed[0].startswith("steps:"):
                fix = f"--extend continues it to {run.steps:,} steps; or {fix}"
            raise BadInput(f"{folder.path} holds another run: {'; '.join(changed)}; {fix}")
        if extend:
            _check_extension(folder, old, run)
    elif extend:
        raise BadInput(f"--extend: {folder.path} holds no run with a checkpoint; leave the option out to start one")


def _check_extension(folder: RunDir, old: Run, run: Run) -> None:
    """Refuse to extend a run that is not finished, or to fewer steps. An extension that has begun has the steps of `run`."""
    fix = f"{folder.path} has {old.steps:,} steps, and --extend adds some; choose more"
    require(run.steps >= old.steps, "steps", run.steps, fix)
    if run.steps > old.steps and not folder.scores.exists():
        fix = f"finish it first, by the same command with --steps {old.steps} and without --extend"
        raise BadInput(f"--extend: {folder.path} has not finished its {old.steps:,} steps; {fix}")
    if isinstance(run.options, RolloutOptions) and run.steps > old.steps:
        period = run.options.rollout.steps
        fix = f"its {old.steps:,} steps end within a rollout of {period} steps, of which the rest is lost; leave the option out"
        require(old.steps % period == 0, "extend", "", fix)


def remove_stale_files(folder: RunDir, run: Run) -> bool:
    """Delete the files of a run of another configuration that left no results, and return whether there was one."""
    refuse_links(folder.path)
    if folder.has_results or not folder.config.exists():
        return False
    with contextlib.suppress(BadInput):
        if not identity_differences(read_config(folder.path, compute=False), run):
            return False
    stale = (*folder.path.glob("stacks*.txt"), *folder.path.glob("native*.txt"), *folder.rollouts.glob("*.jsonl"))
    for file in (folder.metrics, folder.ledger, folder.starts, folder.failure, folder.report, folder.generation, *stale):
        file.unlink(missing_ok=True)
    shutil.rmtree(folder.embedding, ignore_errors=True)
    return True


@contextlib.contextmanager
def failure_recorded(folder: RunDir, process: int) -> Iterator[None]:
    """Write failure.json if the block raises an error, and remove that of an earlier start; the block trains a claimed run.

    The file has the `reason` in one line and the Unix time. A run that is interrupted by a signal or killed has not failed, and
    continues. Process 0 writes.
    """
    if process == 0:
        folder.failure.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        if process == 0:
            text = " ".join(str(error).split())
            reason = text if isinstance(error, BadInput) else f"{type(error).__name__}: {text}"
            with contextlib.suppress(BadInput):  # as on a full disk, on which the run may have failed
                write_json(folder.failure, {"reason": reason[:LONGEST_REASON], "at": time.time()})
        raise
