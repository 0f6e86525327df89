"""Preferences between two forms of a word, compared with those of people: nominalizations of invented adjectives, past tenses.

Source: Hofmann et al. 2024, "Derivational Morphology Reveals Analogical Generalization in Large Language Models", in the form of
the BabyLM challenges of 2025 and later: people prefer one of two forms in some share of the cases, and a model is asked for its
share.

Format: .jsonl; a line is an object with `sentences`, the two sentences that differ in the form (a list, or one text with a tab
between them), and `ratio`, people's share of the first one, 0 to 1. These names are written from memory of the published files.

Metrics:
- spearman: rank correlation of the model's shares p(first) / (p(first) + p(second)) and people's, -1 to 1; 0 if one is constant;
- pearson: their linear correlation.
Details: the method of the likelihoods. Outcomes: whether the model and people prefer the same form, and -log p of the first one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from eval import task_data_files
from eval.inference.batch_loop import Progress
from eval.inference.text_likelihoods import find_method, method_items, text_likelihoods
from eval.metrics import metric_functions
from eval.tasks.task import Result, Settings, Task, first
from train.data.text_files import parse_object
from train.run.item_outcomes import Outcomes
from train.weights.load import Loaded
from zoo.errors import BadInput

SHAPE = '{"sentences": ["...", "..."], "ratio": 0.5}'


class Forms(NamedTuple):
    """Two sentences, and people's share of the first one."""

    where: str
    sentences: tuple[str, str]
    ratio: float


def read_forms(names: Sequence[str], settings: Settings) -> list[Forms]:
    """Read the items of all files.

    Raises:
        BadInput: fewer than two items, or a line without two sentences or with a ratio outside 0 to 1, by file and line.
    """
    items: list[Forms] = []
    for _, where, text in task_data_files.lines(names, (".jsonl",)):
        line: dict[str, Any] = parse_object(text, where, SHAPE)
        sentences, ratio = line.get("sentences"), line.get("ratio")
        parts = sentences.split("\t") if isinstance(sentences, str) else sentences
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part.strip() for part in parts):
            raise BadInput(f'{where}: field "sentences" is no pair of sentences; write ["...", "..."]')
        if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0 <= ratio <= 1:
            raise BadInput(f'{where}: field "ratio" must be a number from 0 to 1')
        items.append(Forms(where, (parts[0], parts[1]), float(ratio)))
    if len(items) < 2:
        raise BadInput(f"--files {names[0]}: a correlation needs two items or more; name files with more lines")
    return first(items, settings.limit)


def score_forms(subject: Loaded, items: Sequence[Forms], settings: Settings, progress: Progress) -> Result:
    """Compute the model's shares and correlate them with people's.

    Raises:
        BadInput: a sentence longer than the model's positions, by file and line; see also `find_method`.
    """
    method = find_method(subject, settings.likelihood)
    results = text_likelihoods(
        subject,
        [("", sentence) for item in items for sentence in item.sentences],
        method=method,
        orders=settings.orders,
        batch=settings.batch,
        dtype=settings.dtype,
        name=lambda number: items[number // 2].where,
        progress=progress,
    )
    nats = np.array([result.nats for result in results]).reshape(-1, 2)
    # p(first) / (p(first) + p(second)); probabilities of sentences underflow.
    shares, ratios = expit(nats[:, 1] - nats[:, 0]), np.array([item.ratio for item in items])
    metrics = {"spearman": metric_functions.spearman(ratios, shares), "pearson": metric_functions.pearson(ratios, shares)}
    outcomes = Outcomes.of((item.where for item in items), (shares > 0.5) == (ratios > 0.5), nats[:, 0])
    return Result(metrics, len(items), {"likelihood": method}, items=method_items(method, settings.orders), outcomes=outcomes)


TASK = Task(read=read_forms, score=score_forms, metrics=("spearman", "pearson"), options=("limit", "likelihood", "orders"))
