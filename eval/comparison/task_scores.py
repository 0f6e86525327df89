"""Scores of tasks in a comparison: the entries of RUN/evaluations.json, with metrics like blimp/accuracy."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from train.run.metric_definitions import METRICS, Metric
from train.run.result_files import read_result
from zoo.errors import BadInput

OWN: dict[str, Metric] = {
    "phenomenon_accuracy": Metric(label="phenomenon accuracy", note="mean accuracy over phenomena", better="higher"),
    "word_perplexity": Metric(label="word perplexity", note="e to the loss per word", better="lower", format=".2f"),
    "pseudo_perplexity": Metric(label="pseudo-perplexity", note="e to the loss per token", better="lower", format=".2f"),
    "word_pseudo_perplexity": Metric(label="word pseudo-perplexity", note="e to the loss per word", better="lower", format=".2f"),
}
"""Metrics that only tasks measure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One entry of evaluations.json."""

    metrics: dict[str, float | int]
    examples: int
    step: int | None
    """Step of the checkpoint that was scored."""
    fingerprint: dict[str, Any]
    """Digest of the files, and the options that decide the scored items (`run_task.task_fingerprint`); may be empty."""
    tokenizer: str
    """Fingerprint of the model's tokenizer."""
    per_token: tuple[str, ...]
    """Metrics that are comparable with one tokenizer only."""


@runtime_checkable
class Scored(Protocol):
    """A run with scores; `eval.comparison.run_results.FinishedRun` is one."""

    @property
    def path(self) -> Path: ...

    @property
    def scores(self) -> Mapping[str, float | int]: ...

    @property
    def tasks(self) -> Mapping[str, TaskScore]: ...


def is_task_metric(name: str) -> bool:
    """Return whether the name of a metric has a task before it."""
    return "/" in name


def find_task_metric(name: str) -> Metric:
    """Return the presentation of a metric; a task's metric in neither table has no better direction."""
    task, _, metric = name.rpartition("/")
    plain = METRICS.get(metric) or OWN.get(metric)
    plain = plain or Metric(label=metric.replace("_", " "), note="", better=None)
    return dataclasses.replace(plain, label=f"{task} {plain.label}") if task else plain


def read_task_scores(path: Path) -> dict[str, TaskScore]:
    """Read evaluations.json; a run without that file has no tasks.

    Raises:
        BadInput: the file is damaged.
    """
    entries = read_result(path, "fix or remove it, and score the tasks again") or {}
    return {name: _task_score(entry) for name, entry in entries.items()}


def _task_score(entry: Mapping[str, Any]) -> TaskScore:
    own = {name: entry.get(name, default) for name, default in (("fingerprint", {}), ("tokenizer", ""), ("per_token", ()))}
    own["per_token"] = tuple(own["per_token"])
    return TaskScore(metrics=entry["metrics"], examples=entry["examples"], step=entry["step"], **own)


def check_comparable(name: str, runs: Sequence[Scored]) -> None:
    """Refuse a metric of a task that some runs lack, or that was measured on different items.

    Raises:
        BadInput: names the first run that does not fit, and what differs.
    """
    task, _, metric = name.rpartition("/")
    for run in runs:
        if task not in run.tasks:
            has = ", ".join(run.tasks) or "none"
            raise BadInput(
                f"--metric {name}: {run.path} has no score of {task} (it has {has}); "
                f"run zoo eval {run.path} --task {task.partition(' ')[0]} --files ..."
            )
        score = run.tasks[task]
        if metric not in score.metrics:
            near = difflib.get_close_matches(metric, score.metrics, n=1, cutoff=0.0)
            raise BadInput(f"--metric {name}: {task} does not measure it in {run.path}; the nearest is {task}/{near[0]}")
        again = f"run zoo eval {run.path} --task {task.partition(' ')[0]} --files ... again"
        if not score.fingerprint:
            raise BadInput(f"--metric {name}: {run.path} has no fingerprint of the files of {task}; {again}")
        if score.step != (step := run.scores.get("step", score.step)):
            raise BadInput(f"--metric {name}: {run.path} was scored on {task} at step {score.step}, and not at {step}; {again}")
    first = runs[0]
    for other in runs[1:]:
        if changed := _differences(first.tasks[task], other.tasks[task], metric):
            raise BadInput(f"--metric {name}: {other.path} was scored on other items than {first.path}: {'; '.join(changed)}")


def _differences(first: TaskScore, other: TaskScore, metric: str) -> list[str]:
    lines = []
    if first.fingerprint.get("files") != other.fingerprint.get("files"):
        lines.append("the contents of --files differ; score both on the same files")
    for part in ("settings", "items"):
        before, now = (score.fingerprint.get(part, {}) for score in (first, other))
        lines += [
            f"{key} is {now.get(key)} and not {before.get(key)}; choose one"
            for key in before | now
            if now.get(key) != before.get(key)
        ]
    if metric in first.per_token and first.tokenizer != other.tokenizer:
        lines.append("its tokens are those of another tokenizer, and the metric is one per token; choose a metric that is not")
    if not lines and first.examples != other.examples:
        lines.append(f"{other.examples:,} and not {first.examples:,} examples")
    return lines
