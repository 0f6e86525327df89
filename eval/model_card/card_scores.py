"""The scores of a run that are those of the exported weights, with 95% intervals."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.metrics.standard_error import ratio_and_error
from eval.model_card.markdown_spans import code
from train.run.item_outcomes import HELD_OUT, Outcomes, outcome_names, read_outcomes
from train.run.metric_definitions import COUNTS, METRICS, Metric
from train.run.result_files import read_result
from train.run.run_dir import RunDir
from zoo.json_shapes import Number

NORMAL = 1.959964
"""The 97.5% quantile of the normal distribution."""
ERROR = "_stderr"
MEANS = {"loss": "nats", "masked_loss": "nats", "accuracy": "right", "exact": "right"}
"""Score that is a mean over predictions -> the outcome of each item that it is the mean of."""
SHARES = ("accuracy", "exact", "f1", "ndcg", "map", "mrr", "recall", "precision")
"""Beginnings of the names of scores between 0 and 1."""
LARGEST = 700.0
"""Nats above which perplexities are not computed, as in scores."""
ROUNDING = 1e-3
"""Relative difference up to which a score is the mean of its outcomes: sums in float32, and ties."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A score of the exported weights."""

    task: str
    """Name of a task; "" = the held-out data of the run."""
    metric: str
    value: float | int
    interval: tuple[float, float] | None = None
    """Ends of the 95% interval; None = no outcomes of single items are recorded for it, or all are equal, which says nothing."""
    items: int | None = None
    """Number of examples, or of rows of a text."""

    @property
    def title(self) -> str:
        """Name of the metric in a table."""
        metric = METRICS.get(self.metric)
        return metric.title if metric else self.metric.replace("_", " ")

    def show(self, value: float | int) -> str:
        """Return a number of this score as text."""
        return METRICS.get(self.metric, _PLAIN).show(value)


_PLAIN = Metric(label="", note="", better=None)


def read_card_scores(files: RunDir, step: int | None) -> tuple[list[Score], list[str]]:
    """Return the scores in scores.json and evaluations.json of the parameters at a step, and a sentence for each other score.

    Args:
        step: None = of an average that the run never had, which has no scores.

    Raises:
        BadInput: one of these files, or outcomes.npz, is damaged.
    """
    held_out, tasks = read_result(files.scores) or {}, read_result(files.evaluations) or {}
    scores: list[Score] = []
    others: list[str] = []
    if held_out and _is_at(held_out, step):
        scores += _held_out_scores(files, held_out)
    elif held_out:
        others.append(f"The run's own score is of {_place(held_out)}, so it is not listed.")
    for name, result in tasks.items():
        if _is_at(result, step):
            scores += _task_scores(name, result)
        else:
            others.append(f"The run's score in {code(name)} is of {_place(result)}, so it is not listed.")
    return scores, others


def _is_at(result: Mapping[str, Any], step: int | None) -> bool:
    return step is not None and result.get("step") == step


def _place(result: Mapping[str, Any]) -> str:
    step = result.get("step")
    return f"step {step:,}, not of these weights" if isinstance(step, int) else "a step that is not recorded"


def _held_out_scores(files: RunDir, held_out: Mapping[str, Any]) -> list[Score]:
    judged = {
        name: held_out[name] for name, metric in METRICS.items() if metric.better and isinstance(held_out.get(name), Number)
    }
    outcomes = read_outcomes(files, HELD_OUT) if HELD_OUT in outcome_names(files) else None
    intervals = {} if outcomes is None else _intervals(judged, outcomes)
    items = None if outcomes is None else len(outcomes.id)
    return [
        Score(task="", metric=name, value=value, interval=intervals.get(name), items=items if name in intervals else None)
        for name, value in judged.items()
    ]


def _intervals(judged: Mapping[str, float | int], outcomes: Outcomes) -> dict[str, tuple[float, float]]:
    """Return the interval of each score that the outcomes of single items determine."""
    intervals: dict[str, tuple[float, float]] = {}
    for name, field in MEANS.items():
        sums, count = getattr(outcomes, field), outcomes.count.astype(np.float64)
        if name not in judged or not count.sum() or not np.isfinite(sums).all():
            continue
        mean, error = ratio_and_error(sums, count)
        if error and abs(mean - judged[name]) <= ROUNDING * max(1.0, abs(judged[name])):
            intervals[name] = _ends(judged[name], error, share=field == "right")
    if "loss" in intervals:
        low, high = intervals["loss"]
        loss, perplexity, bits = (judged.get(name, math.nan) for name in ("loss", "perplexity", "bits_per_byte"))
        if abs(math.exp(min(loss, LARGEST)) - perplexity) <= ROUNDING * perplexity:
            intervals["perplexity"] = math.exp(min(low, LARGEST)), math.exp(min(high, LARGEST))
        if math.isfinite(bits) and loss:
            # The same nats over another unit.
            intervals["bits_per_byte"] = bits * low / loss, bits * high / loss
    return intervals


def _task_scores(name: str, result: Mapping[str, Any]) -> list[Score]:
    metrics = result["metrics"]
    return [
        Score(
            task=name,
            metric=metric,
            value=value,
            interval=_ends(value, error, share=metric.startswith(SHARES)) if (error := metrics.get(f"{metric}{ERROR}")) else None,
            items=result["examples"],
        )
        for metric, value in metrics.items()
        if metric not in COUNTS and (metric.removesuffix(ERROR) == metric or metric.removesuffix(ERROR) not in metrics)
    ]


def _ends(value: float | int, error: float | int, *, share: bool = False) -> tuple[float, float]:
    """Return the ends of the interval of a value with a standard error; a share is between 0 and 1."""
    low, high = value - NORMAL * error, value + NORMAL * error
    return (max(0.0, low), min(1.0, high)) if share else (low, high)


def score_lines(scores: Sequence[Score]) -> list[tuple[str, str, str, str]]:
    """Return (metric, value, interval, items) of each score as text."""
    return [
        (
            score.title,
            score.show(score.value),
            "" if score.interval is None else " to ".join(map(score.show, score.interval)),
            "" if score.items is None else f"{score.items:,}",
        )
        for score in scores
    ]
