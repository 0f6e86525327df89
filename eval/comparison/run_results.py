"""Finished runs, read off their folders, and whether what they scored can be compared."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from train.checkpoints.identity import check_identity
from train.checkpoints.manifest import NAME, Damaged, Manifest, folder_name
from train.config.run_config import Run
from train.run import metric_names
from train.run.console import short
from train.run.metrics_file import read as read_rows
from train.run.run_dir import Folder, read_config
from zoo.errors import BadInput
from zoo.models import parameter_count

SLACK = 0.01
"""Budgets that differ by at most this share are equal: steps and rows are whole numbers, and a budget seldom divides by them."""

SCORED_AS = {"distilled": "masked"}
"""Objective -> the one whose held-out score it has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that was trained to its end and scored."""

    path: Path
    run: Run
    scores: dict[str, float | int]
    """scores.json."""
    held_out: str
    """Fingerprint of what it was scored on."""
    tokenizer: str
    """Fingerprint of its tokenizer."""
    data: str
    """Fingerprint of what it was trained on."""
    parameters: int
    tokens: int
    """Seen in training."""
    flops: float | None
    """Of the whole training; None where the run did not record what a step costs."""


def read(path: str | Path) -> Finished:
    """Read a run: config.json, scores.json, the newest rows of metrics.jsonl and starts.jsonl, the mark of its last checkpoint.

    Raises:
        BadInput: no run, one that is not finished, or a file of it that is damaged.
    """
    folder, run = Folder(path), read_config(path)
    if not folder.scores.exists():
        raise BadInput(f"{path} is not finished: it has no {folder.scores.name}; train it to step {run.steps}, its last")
    rows = read_rows(folder.metrics)
    # One that may end before its last step validates at its end.
    last = rows[-1]["step"] if rows and run.selection.patience else run.steps
    checkpoint = folder.checkpoints / folder_name(last)
    try:
        meta = Manifest.read(checkpoint, last).meta
        held_out, tokenizer, data = meta["held_out"], meta["tokenizer"], meta["data"]
    except Damaged as damage:
        fix = f"train it to step {last}, its last, or put the checkpoint back"
        raise BadInput(f"{path} is not finished: {checkpoint.name}: {damage}; {fix}") from None
    except KeyError as absent:
        raise BadInput(f"{checkpoint / NAME}: no {absent}, so the run does not say what it read; train it anew") from None
    check_identity(checkpoint, meta, run)
    trained = [row for row in rows if row.get("kind") == "train"]
    if not trained:
        raise BadInput(f"{folder.metrics}: no row of the training; put the file back")
    starts = read_rows(folder.starts) if folder.starts.exists() else []
    per_step = starts[-1].get("flops") if starts else None
    return Finished(
        path=folder.path,
        run=run,
        scores=_scores(folder.scores),
        held_out=held_out,
        tokenizer=tokenizer,
        data=data,
        parameters=parameter_count(run.model),
        # Every step sees as many, and a run that ended early may have done so between two rows.
        tokens=trained[-1]["tokens"] * last // trained[-1]["step"],
        flops=None if per_step is None else last * per_step,
    )


def refuse_incomparable(runs: Sequence[Finished]) -> None:
    """Refuse runs whose scores are not of the same thing: another objective, or other held-out text.

    Raises:
        BadInput: names the first two that differ.
    """
    first = runs[0]
    for other in runs[1:]:
        ours, theirs = (SCORED_AS.get(each.run.objective, each.run.objective) for each in (first, other))
        if ours != theirs:
            raise BadInput(f"{other.path} was scored as {theirs} and {first.path} as {ours}; compare runs of one objective")
        if first.held_out != other.held_out:
            cause = "" if first.tokenizer == other.tokenizer else ", or on the tokens of another tokenizer"
            fix = "give all runs the same --data.valid-paths and --tokenizer.path"
            raise BadInput(f"{other.path} was scored on other held-out text than {first.path}{cause}; {fix}")


def unequal(runs: Sequence[Finished]) -> list[str]:
    """What is not equal between runs and should be, one line each.

    Their budgets are equal where all have seen as many tokens, or all have taken as many FLOPs (within `SLACK`): equal data and
    equal compute are both fair. What they were scored on has to be equal in every count that the scores tell.
    """
    lines = []
    flops = [run.flops for run in runs if run.flops is not None]
    if not (_agree([run.tokens for run in runs]) or (len(flops) == len(runs) and _agree(flops))):
        least, most = (chosen(runs, key=lambda run: run.tokens) for chosen in (min, max))
        told = f"{least.path} has seen {short(least.tokens)} tokens and {most.path} {short(most.tokens)}"
        if least.flops is not None and most.flops is not None:
            told += f", in {scientific(least.flops)} and {scientific(most.flops)} FLOPs"
        lines.append(f"unequal budgets: {told}")
    for name in metric_names.COUNTS:
        counts = {run.scores[name]: run for run in runs if name in run.scores}
        if len(counts) > 1:
            (one, first), (two, second), *_ = counts.items()
            lines.append(f"unequal scores: {first.path} is scored on {one:,} {name} and {second.path} on {two:,}")
    return lines


def scientific(number: float) -> str:
    """A number too large to be read in digits: 1.23e18."""
    return f"{number:.2e}".replace("e+", "e")


def _scores(path: Path) -> dict[str, float | int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is no JSON that can be read ({error}); make it again") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path} is no object of numbers; make it again")
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _agree(values: Sequence[float | int]) -> bool:
    return max(values) <= min(values) * (1 + SLACK)
