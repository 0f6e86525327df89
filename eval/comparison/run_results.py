"""Finished runs, read from their folders, and the checks that their scores can be compared."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from train.checkpoints.config_check import check_identity
from train.checkpoints.manifest import NAME, Damaged, Manifest, folder_name
from train.config.objectives import scored_as
from train.config.run_config import Run
from train.run import metric_definitions
from train.run.console import short
from train.run.metrics_file import read_rows as read_rows
from train.run.run_dir import RunDir, read_config
from zoo.errors import BadInput
from zoo.models import parameter_count

SLACK = 0.01
"""Share by which equal budgets may differ, since a budget is rarely a multiple of the tokens of a step."""

SCORED_AS = {"distilled": "masked"}
"""Objective -> the objective whose held-out score it has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that was trained to its end and scored."""

    path: Path
    run: Run
    scores: dict[str, float | int]
    """Content of scores.json."""
    held_out: str
    """Fingerprint of the held-out data."""
    tokenizer: str
    """Fingerprint of its tokenizer."""
    data: str
    """Fingerprint of the training data."""
    parameters: int
    tokens: int
    """Tokens seen in training."""
    flops: float | None
    """FLOPs of the whole training; None if the run did not record those of a step."""


def read_run(path: str | Path) -> Finished:
    """Read a run: config.json, scores.json, metrics.jsonl, starts.jsonl, and the manifest of its last checkpoint.

    Raises:
        BadInput: no run, one that is not finished, or a damaged file.
    """
    folder, run = RunDir(path), read_config(path)
    if not folder.scores.exists():
        raise BadInput(f"{path} is not finished: it has no {folder.scores.name}; train it to step {run.steps}, its last")
    rows = read_rows(folder.metrics)
    # A run with early stopping validates at the step where it ends.
    last = rows[-1]["step"] if rows and run.selection.patience else run.steps
    checkpoint = folder.checkpoints / folder_name(last)
    try:
        meta = Manifest.read(checkpoint, last).meta
        held_out, tokenizer, data = meta["held_out"], meta["tokenizer"], meta["data"]
    except Damaged as damage:
        fix = f"train it to step {last}, its last, or restore the checkpoint"
        raise BadInput(f"{path} is not finished: {checkpoint.name}: {damage}; {fix}") from None
    except KeyError as absent:
        raise BadInput(f"{checkpoint / NAME}: no {absent}, so the data of the run are unknown; train it again") from None
    check_identity(checkpoint, meta, run)
    trained = [row for row in rows if row.get("kind") == "train"]
    if not trained:
        raise BadInput(f"{folder.metrics}: no row of the training; restore the file")
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
        # Every step has the same number of tokens, and a run that ended early may have ended between two rows.
        tokens=trained[-1]["tokens"] * last // trained[-1]["step"],
        flops=None if per_step is None else last * per_step,
    )


def refuse_incomparable(runs: Sequence[Finished]) -> None:
    """Refuse runs whose scores cannot be compared: another objective, or other held-out text.

    Raises:
        BadInput: names the first two that differ.
    """
    first = runs[0]
    for other in runs[1:]:
        first_score, other_score = (SCORED_AS.get(name := scored_as(type(run.run.options)), name) for run in (first, other))
        if first_score != other_score:
            raise BadInput(
                f"{other.path} was scored as {other_score} and {first.path} as {first_score}; compare runs of one objective"
            )
        if first.held_out != other.held_out:
            cause = "" if first.tokenizer == other.tokenizer else ", or on the tokens of another tokenizer"
            fix = "give all runs the same --data.valid-paths and --tokenizer.path"
            raise BadInput(f"{other.path} was scored on other held-out text than {first.path}{cause}; {fix}")


def unequal(runs: Sequence[Finished]) -> list[str]:
    """Return a line for each budget or count that should be equal between runs and is not.

    Budgets are equal if all runs have seen the same number of tokens, or have taken the same FLOPs (within `SLACK`): equal data
    and equal compute are both fair. The data that runs were scored on must be equal in every count in the scores.
    """
    lines = []
    flops = [run.flops for run in runs if run.flops is not None]
    if not (_agree([run.tokens for run in runs]) or (len(flops) == len(runs) and _agree(flops))):
        least, greatest = (select(runs, key=lambda run: run.tokens) for select in (min, max))
        budgets = f"{least.path} has seen {short(least.tokens)} tokens and {greatest.path} {short(greatest.tokens)}"
        if least.flops is not None and greatest.flops is not None:
            budgets += f", in {scientific(least.flops)} and {scientific(greatest.flops)} FLOPs"
        lines.append(f"unequal budgets: {budgets}")
    for name in metric_definitions.COUNTS:
        counts = {run.scores[name]: run for run in runs if name in run.scores}
        if len(counts) > 1:
            (first_count, first), (second_count, second), *_ = counts.items()
            lines.append(
                f"unequal scores: {first.path} is scored on {first_count:,} {name} and {second.path} on {second_count:,}"
            )
    return lines


def scientific(number: float) -> str:
    """Return a number in scientific notation, as 1.23e18."""
    return f"{number:.2e}".replace("e+", "e")


def _scores(path: Path) -> dict[str, float | int]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is invalid JSON ({error}); score the run again") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path} is not an object of numbers; score the run again")
    return {
        name: value
        for name, value in content.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _agree(values: Sequence[float | int]) -> bool:
    return max(values) <= min(values) * (1 + SLACK)
