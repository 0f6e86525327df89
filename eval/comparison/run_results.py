"""Finished runs, read from their folders, and the checks that their scores can be compared."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.comparison.task_scores import TaskScore, read_task_scores
from train.checkpoints.config_check import check_identity
from train.checkpoints.manifest import NAME, DamagedCheckpoint, Manifest, folder_name
from train.config.declaration import scored_as
from train.config.run_config import Run
from train.run import metric_definitions
from train.run.costs import Costs, read_costs
from train.run.metrics_file import read_rows, read_starts
from train.run.progress_display import short_number
from train.run.result_files import read_result
from train.run.run_dir import RunDir, read_config
from train.weights.lineage import Parent, seeds_of, total_costs
from zoo.errors import BadInput
from zoo.hf import hub
from zoo.json_shapes import is_usable_number
from zoo.models import parameter_count

BY_TEXT = "bits_per_byte"
"""The metric that compares models on a text whatever their tokenizers."""
SLACK = 0.01
"""Share by which equal budgets may differ, since a budget is rarely a multiple of the tokens of a step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run that was trained to its end and scored."""

    path: Path
    run: Run
    scores: dict[str, float | int]
    """Content of scores.json."""
    held_out: str
    """Fingerprint of the held-out data; of a text, as the tokens of the run's tokenizer."""
    held_out_text: str
    """Digest of the held-out text, whatever the tokenizer; "" for data that are not a text, and for runs of earlier versions."""
    targets: dict[str, Any]
    """Options that decide which tokens of the held-out data were scored; see `Objective.target_options`."""
    tokenizer: str
    """Fingerprint of its tokenizer."""
    data: str
    """Fingerprint of the training data."""
    parameters: int
    costs: Costs
    """Costs of the run itself, without those of the models that it starts from."""
    parents: dict[str, Parent]
    """The models that it starts from, as they were recorded when it began; see `train.weights.lineage`."""

    provenance: dict[str, Any]
    """Code and machine of its newest start: see `train.run.provenance`, with `versions` of packages; {} if not recorded."""
    tasks: dict[str, TaskScore]
    """Content of evaluations.json."""

    def value(self, metric: str) -> float:
        """Return a score by its name, METRIC of scores.json or TASK/METRIC of evaluations.json."""
        task, _, name = metric.rpartition("/")
        return float(self.tasks[task].metrics[name] if task else self.scores[metric])

    @property
    def tokens(self) -> float | int | None:
        """Tokens seen in the run's own training."""
        return self.costs["tokens"]

    @property
    def flops(self) -> float | int | None:
        """FLOPs of the run's own training; None if it did not record those of a step."""
        return self.costs["flops"]

    @functools.cached_property
    def total_costs(self) -> Costs:
        """Costs of the run and of all of its ancestors, without those of published weights, which are unknown."""
        return total_costs(self.costs, self.parents.values())

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the run's ancestors, the oldest first, and then its own."""
        return seeds_of(self.run, self.parents)

    @property
    def seed(self) -> int | str:
        """The seed of the run; if its ancestors have other seeds, all seeds, the oldest first, as "0/3"."""
        return self.run.seed if len(set(self.seeds)) == 1 else "/".join(map(str, self.seeds))

    def notices(self) -> list[str]:
        """Return a line for each parent that was moved or deleted."""
        return [
            f"{self.path}: --{key} {parent['path']} is no longer there; it counts as it was recorded when the run began"
            for key, parent in self.parents.items()
            if not parent["path"].startswith(hub.PREFIX)
            # The path of the option is relative to the folder in which the run was started.
            and not any(path.exists() for path in (Path(parent["path"]), self.path / parent.get("from_run", parent["path"])))
        ]


def read_run(path: str | Path) -> FinishedRun:
    """Read a run: its configuration, scores, evaluations, metrics and starts, and the manifest of its last checkpoint.

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
        held_out, tokenizer, data, targets = (meta[name] for name in ("held_out", "tokenizer", "data", "targets"))
    except DamagedCheckpoint as damage:
        fix = f"train it to step {last}, its last, or restore the checkpoint"
        raise BadInput(f"{path} is not finished: {checkpoint.name}: {damage}; {fix}") from None
    except KeyError as absent:
        raise BadInput(f"{checkpoint / NAME}: no {absent}, so the data of the run are unknown; train it again") from None
    check_identity(checkpoint, meta, run)
    if (run.init or run.teacher) and "parents" not in meta:
        raise BadInput(f"{checkpoint / NAME}: no 'parents', so it is unknown what {path} started from; train it again")
    costs = read_costs(folder, last, meta, run.data.sizes)
    if costs["tokens"] is None:
        raise BadInput(f"{folder.metrics}: no row of the training; restore the file")
    scores = read_result(folder.scores, "score the run again")
    return FinishedRun(
        path=folder.path,
        run=run,
        scores={name: value for name, value in scores.items() if is_usable_number(value)},
        held_out=held_out,
        held_out_text=meta.get("held_out_text", ""),
        targets=targets,
        tokenizer=tokenizer,
        data=data,
        parameters=parameter_count(run.model),
        costs=costs,
        parents=meta.get("parents", {}),
        provenance=_provenance(folder),
        tasks=read_task_scores(folder.evaluations),
    )


def refuse_incomparable(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs whose scores cannot be compared: they differ in objective, held-out text, or the targets in it.

    Raises:
        BadInput: names the first two that differ.
    """
    first = runs[0]
    for other in runs[1:]:
        first_score, other_score = (scored_as(type(run.run.options)) for run in (first, other))
        if first_score != other_score:
            raise BadInput(
                f"{other.path} was scored as {other_score} and {first.path} as {first_score}; compare runs of one objective"
            )
        if first.held_out != other.held_out and (problem := _other_text(first, other)):
            raise BadInput(problem)
        if changed := _different(first.targets, other.targets):
            fix = "score all of them alike with zoo eval RUN --task masked:all, and compare with --metric masked:all/loss"
            raise BadInput(f"{other.path} was scored on other targets than {first.path}: {'; '.join(changed)}; {fix}")


def _other_text(first: FinishedRun, other: FinishedRun) -> str:
    """Return why not even the bits per byte of runs with unlike held-out tokens compare; "" if they do."""
    fix = "give all runs the same --data.valid-paths and --tokenizer.path"
    if first.tokenizer == other.tokenizer:
        return f"{other.path} was scored on other held-out text than {first.path}; {fix}"
    missing = [f"{run.path} has no digest of it" for run in (first, other) if not run.held_out_text]
    missing += [f"{run.path} has no {BY_TEXT}" for run in (first, other) if not {BY_TEXT, "bytes"} <= run.scores.keys()]
    if missing:
        by_task = "or compare them with zoo eval RUN --task perplexity --files ... and --metric perplexity/bits_per_byte"
        tokens = f"{other.path} was scored on other held-out text than {first.path}, or on the tokens of another tokenizer"
        return f"{tokens}, and {missing[0]}; {fix}, {by_task}"
    if first.held_out_text != other.held_out_text:
        return f"{other.path} was scored on other held-out text than {first.path}, with another tokenizer; {fix}"
    counts = [run.scores["bytes"] for run in (first, other)]
    if counts[0] != counts[1]:
        cause = "one of their tokenizers drops or changes some of it"
        return f"{first.path} counts {counts[0]:,} bytes of the held-out text and {other.path} {counts[1]:,}: {cause}; {fix}"
    return ""


def unequal_run_budgets(runs: Sequence[FinishedRun], *, held_out: bool = True) -> list[str]:
    """Return a line for each budget or count that should be equal between runs and is not.

    Args:
        held_out: also check the counts of the held-out data.

    Budgets are equal if all runs have seen the same number of tokens, or have taken the same FLOPs (within `SLACK`): equal data
    and equal compute are both fair. The runs that a run starts from are part of its budget. The data that runs were scored on
    must be equal in every count in the scores.
    """
    lines = []
    tokens, flops = ([run.total_costs[name] for run in runs] for name in ("tokens", "flops"))
    if not (_agree(tokens) or _agree(flops)):
        lines.append(f"unequal budgets: {_budgets(runs)}")
    # Of other tokenizers' tokens of the same text only the bytes are compared.
    counted = metric_definitions.COUNTS if len({run.held_out for run in runs}) == 1 else ("bytes",)
    for name in counted if held_out else ():
        counts = {run.scores[name]: run for run in runs if name in run.scores}
        if len(counts) > 1:
            (first_count, first), (second_count, second), *_ = counts.items()
            lines.append(
                f"unequal scores: {first.path} is scored on {first_count:,} {name} and {second.path} on {second_count:,}"
            )
    return lines


def unlike_text(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a line if runs saw unequal amounts of text in equally many positions, because their rows differ in padding."""
    by_text = len({run.held_out for run in runs}) > 1 and len({run.held_out_text for run in runs}) == 1
    kind, unit = ("bytes", "bytes") if by_text else ("text_tokens", "tokens")
    text, tokens = ([run.total_costs[name] for run in runs] for name in (kind, "tokens"))
    amounts = [amount for amount in text if amount is not None]
    if len(amounts) < len(runs) or _agree(text) or not _agree(tokens):
        return []
    least, greatest = (select(amounts) for select in (min, max))
    first, second = (runs[text.index(amount)].path for amount in (least, greatest))
    counts = f"{first} has seen {short_number(least)} {unit} of text and {second} {short_number(greatest)}"
    return [f"{counts}, in equally many positions, padding included"]


def format_scientific(number: float) -> str:
    """Return a number in scientific notation, as 1.23e18."""
    return f"{number:.2e}".replace("e+", "e")


def _provenance(folder: RunDir) -> dict[str, Any]:
    starts = read_starts(folder)
    return {**starts[-1].get("provenance", {}), "versions": starts[-1].get("versions", {})} if starts else {}


def _different(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return a text for each name whose values differ."""
    return [
        f"{name} is {other.get(name, 'absent')} and not {first.get(name, 'absent')}"
        for name in {**first, **other}
        if first.get(name) != other.get(name)
    ]


def _agree(values: Sequence[float | int | None]) -> bool:
    """Return whether all amounts are recorded and equal, within `SLACK`."""
    recorded = [value for value in values if value is not None]
    return len(recorded) == len(values) and max(recorded) <= min(recorded) * (1 + SLACK)


def _budgets(runs: Sequence[FinishedRun]) -> str:
    """Return the smallest and the largest budget of some runs as text, those of their ancestors included."""
    unknown = next((run for run in runs if run.total_costs["tokens"] is None), None)
    if unknown is not None:
        names = ", ".join(parent["path"] for parent in unknown.parents.values())
        return f"the tokens that {unknown.path} has seen are unknown, because {names} has not recorded those of its own training"
    tokens = {id(run): run.total_costs["tokens"] or 0 for run in runs}
    least, greatest = (select(runs, key=lambda run: tokens[id(run)]) for select in (min, max))
    text = (
        f"{least.path} has seen {short_number(tokens[id(least)])} tokens and {greatest.path} {short_number(tokens[id(greatest)])}"
    )
    flops = [run.total_costs["flops"] for run in (least, greatest)]
    if flops[0] is not None and flops[1] is not None:
        text += f", in {format_scientific(flops[0])} and {format_scientific(flops[1])} FLOPs"
    return f"{text}, with the runs that they start from" if any(run.parents for run in runs) else text
