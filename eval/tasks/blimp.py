"""Minimal pairs: is the grammatical sentence of a pair more likely than the other? BLiMP and files of its format.

Source: Warstadt et al. 2020, "BLiMP: The Benchmark of Linguistic Minimal Pairs for English", sections 3 and 4 (the full-sentence
method: log-probabilities of full sentences are compared, not normalized by length).

Format: .jsonl; a line is an object with `sentence_good` and `sentence_bad`, and with `UID`, the name of its paradigm (the file's
name where it is absent) and `linguistics_term`, the phenomenon the paradigm belongs to (the paradigm where it is absent).

A sentence is the beginning of a document: its log-probability is that of all its tokens after end-of-text. No space goes before
its first word (the task in lm-evaluation-harness adds one, its `target_delimiter`) and no end-of-text after its last. For an
encoder, XLNet included, it is the pseudo-log-likelihood of the sentence with its special tokens (Salazar et al. 2020, section
4.1), for an encoder-decoder that of the target after an empty source. --likelihood chooses another of the methods in
`eval.inference.text_likelihoods`.

Metrics:
- accuracy: a pair counts 1 if the good sentence is more likely, 1/2 if both are equally likely, so that a model that cannot
  distinguish them gets 0.5; the mean over a paradigm's pairs, then over the paradigms;
- accuracy_stderr: its standard error; pairs are a sample of their paradigm, the paradigms are fixed;
- phenomenon_accuracy: the mean over phenomena of the mean over their paradigms;
- ties: pairs whose sentences are equally likely.
Details: accuracy, standard error and number of pairs of each paradigm and each phenomenon, and the method of the likelihoods.
Outcomes: whether each pair is right, and -log p of its good sentence.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from eval import task_data_files
from eval.inference.batch_loop import Progress
from eval.inference.text_likelihoods import find_method, method_items, text_likelihoods
from eval.metrics.standard_error import mean_and_error
from eval.tasks.task import Result, Settings, Task
from train.run.item_outcomes import Outcomes
from train.weights.load import Loaded


class Pair(NamedTuple):
    """One minimal pair."""

    where: str
    """file:line."""
    paradigm: str
    phenomenon: str
    good: str
    bad: str


def read_pairs(names: Sequence[str], settings: Settings) -> list[Pair]:
    """Read the pairs of all files; with a limit, only the first ones of each paradigm.

    Raises:
        BadInput: see `eval.task_data_files`.
    """
    pairs: list[Pair] = []
    counts: collections.Counter[str] = collections.Counter()
    for file, where, text in task_data_files.lines(names, (".jsonl",)):
        fields = task_data_files.text_fields(text, where, ("sentence_good", "sentence_bad"), ("UID", "linguistics_term"))
        paradigm = fields.get("UID", file.stem)
        phenomenon = fields.get("linguistics_term", paradigm)
        counts[paradigm] += 1
        if not settings.limit or counts[paradigm] <= settings.limit:
            pairs.append(Pair(where, paradigm, phenomenon, fields["sentence_good"], fields["sentence_bad"]))
    return pairs


def score_pairs(subject: Loaded, pairs: Sequence[Pair], settings: Settings, progress: Progress) -> Result:
    """Compare the two sentences of each pair.

    Raises:
        BadInput: a sentence longer than the model's positions, by file and line (an encoder's sentence may have any
            length); see also `find_method` and `text_likelihoods`.
    """
    method = find_method(subject, settings.likelihood)
    if settings.likelihood == "auto" and method == "left_to_right":
        method = find_method(subject, "pseudo")
    results = text_likelihoods(
        subject,
        [("", sentence) for pair in pairs for sentence in (pair.good, pair.bad)],
        method=method,
        orders=settings.orders,
        batch=settings.batch,
        dtype=settings.dtype,
        name=lambda number: pairs[number // 2].where,
        progress=progress,
    )
    nats = [result.nats for result in results]
    outcomes: dict[tuple[str, str], list[float]] = {}
    right = [0.5 if good == bad else float(good < bad) for good, bad in zip(nats[::2], nats[1::2], strict=True)]
    for pair, outcome in zip(pairs, right, strict=True):
        outcomes.setdefault((pair.phenomenon, pair.paradigm), []).append(outcome)
    by_pair = Outcomes.of((pair.where for pair in pairs), np.array(right), np.array(nats[::2]))
    result = blimp_summary(outcomes)
    return dataclasses.replace(
        result, details={**result.details, "likelihood": method}, items=method_items(method, settings.orders), outcomes=by_pair
    )


def blimp_summary(outcomes: Mapping[tuple[str, str], Sequence[float]]) -> Result:
    """Return the metrics from the outcomes of pairs (0, 1/2 or 1), by (phenomenon, paradigm)."""
    paradigms = {key: _row(*mean_and_error(values), len(values)) for key, values in outcomes.items()}
    phenomena = {
        name: _mean([row for key, row in paradigms.items() if key[0] == name]) for name in sorted({p for p, _ in outcomes})
    }
    overall = _mean(list(paradigms.values()))
    metrics = {"accuracy": overall["accuracy"]}
    if "stderr" in overall:
        metrics["accuracy_stderr"] = overall["stderr"]
    metrics["phenomenon_accuracy"] = mean_and_error([row["accuracy"] for row in phenomena.values()])[0]
    metrics["ties"] = sum(outcome == 0.5 for values in outcomes.values() for outcome in values)
    by_name = {paradigm: row for (_, paradigm), row in sorted(paradigms.items())}
    return Result(metrics, overall["pairs"], {"paradigms": by_name, "phenomena": phenomena})


def _row(accuracy: float, error: float | None, pairs: int) -> dict[str, Any]:
    return {"accuracy": accuracy, **({} if error is None else {"stderr": error}), "pairs": pairs}


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean over paradigms with equal weights; the squared errors of independent samples add up."""
    errors = [row["stderr"] for row in rows if row.get("stderr") is not None]
    error = math.sqrt(sum(error**2 for error in errors)) / len(rows) if len(errors) == len(rows) else None
    return _row(sum(row["accuracy"] for row in rows) / len(rows), error, sum(row["pairs"] for row in rows))


TASK = Task(
    read=read_pairs,
    score=score_pairs,
    metrics=("accuracy", "accuracy_stderr", "phenomenon_accuracy", "ties"),
    options=("limit", "likelihood", "orders"),
)
