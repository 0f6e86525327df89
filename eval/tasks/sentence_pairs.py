"""Similarity of two sentences as the cosine of their vectors: STS, and pairs with labels.

sts. Format: .jsonl, or .tsv with a header; the fields `sentence1`, `sentence2` and `score`, a number of any scale, larger for
more similar sentences. Metrics: spearman, the rank correlation of scores and cosines, with its standard error (Bonett and Wright
2000, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations"); pearson.

pair_classification. Format: the same with `label`, 1 (a paraphrase, a duplicate, ...) or 0, in place of the score. Metrics:
average_precision of the cosine, see `eval.metrics.ranking.binary_average_precision`; positives, the share of labels 1, which is
the value of a random order.

Examples are pairs. Pooling, dense layers and the default prompt are those of the model's folder, see `zoo.embedding_modules`. A
text that is longer than the model's positions is cut, and the result says so.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from eval import task_data_files
from eval.inference.batch_loop import Progress
from eval.inference.encoder_runner import Text
from eval.inference.text_vectors import TaskEmbedder
from eval.metrics.metric_functions import pearson, spearman
from eval.metrics.ranking import binary_average_precision
from eval.tasks.task import Result, Settings, Task, first
from train.data.text_files import check_string, list_names, parse_object
from train.run.item_outcomes import Outcomes
from train.weights.load import Loaded
from zoo.errors import BadInput, require


class SentencePair(NamedTuple):
    """Two sentences, and how similar they are."""

    where: str
    """file:line."""
    sentence1: str
    sentence2: str
    truth: float


def read_sentence_pairs(field: str, names: Sequence[str], settings: Settings) -> list[SentencePair]:
    """Read the pairs of all files, whose number is in a field.

    Raises:
        BadInput: a file or a line that cannot be read, an empty sentence, a score that is not finite, or a label that is not 0
            or 1; or a prompt of queries or documents, of which there are none here.
    """
    refuse_side_prompts(settings)
    pairs = []
    for where, values in read_fields(names, ("sentence1", "sentence2", field)):
        for name in ("sentence1", "sentence2"):
            if not check_string(values[name], f"{where}: field {name}").strip():
                raise BadInput(f"{where}: field {name} has no text; write a sentence, or remove the line")
        pairs.append(SentencePair(where, values["sentence1"], values["sentence2"], _number(values[field], field, where)))
    if not pairs:
        raise BadInput(f"{names[0]}: no pairs, only a header; add lines")
    return first(pairs, settings.limit)


def refuse_side_prompts(settings: Settings) -> None:
    """Refuse a prompt of queries or documents in a task that has neither.

    Raises:
        BadInput: there is one.
    """
    for name in ("query_prompt", "document_prompt"):
        value = getattr(settings.vectors, name)
        require(value is None, f"vectors.{name}", value, "has no effect in this task, which has no queries; remove it")


def score_sts(subject: Loaded, pairs: Sequence[SentencePair], settings: Settings, progress: Progress) -> Result:
    """Correlate the cosines with the scores.

    Raises:
        BadInput: the model is no encoder, see `TaskEmbedder`.
    """
    truth, cosines, details = _cosines(subject, pairs, settings, progress)
    rank = spearman(truth, cosines)
    metrics = {"spearman": rank}
    if len(pairs) > SMALLEST_SAMPLE:
        metrics["spearman_stderr"] = (1 - rank**2) * math.sqrt((1 + rank**2 / 2) / (len(pairs) - SMALLEST_SAMPLE))
    # The mean of these is 1 - spearman (of constant cosines 1/2), so that two models are compared pair by pair.
    nats = (_standard_ranks(truth) - _standard_ranks(cosines)) ** 2 / 2
    outcomes = Outcomes.of([pair.where for pair in pairs], np.full(len(pairs), np.nan), nats)
    return Result({**metrics, "pearson": pearson(truth, cosines)}, len(pairs), details, outcomes=outcomes)


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks, the mean one of equal values, with mean 0 and variance 1."""
    # Imported here, because the import takes a second.
    from scipy.stats import rankdata

    ranks = rankdata(values)
    return (ranks - ranks.mean()) / (ranks.std() or 1.0)


SMALLEST_SAMPLE = 3
"""Pairs at which the standard error of a correlation is not defined."""


def score_pair_classification(subject: Loaded, pairs: Sequence[SentencePair], settings: Settings, progress: Progress) -> Result:
    """Score the order of the cosines by the labels.

    Raises:
        BadInput: no label is 1, or the model is no encoder, see `TaskEmbedder`.
    """
    if not any(pair.truth for pair in pairs):
        raise BadInput(f"{pairs[0].where}: no label from here on is 1; add pairs that belong together")
    truth, cosines, details = _cosines(subject, pairs, settings, progress)
    precision = binary_average_precision(truth.astype(np.int64), cosines)
    # The precision of all pairs that are as similar as each positive one: its mean is the average precision.
    positives = np.flatnonzero(truth)
    order = np.sort(cosines), np.sort(cosines[positives])
    similar, right = (len(values) - np.searchsorted(values, cosines[positives]) for values in order)
    outcomes = Outcomes.of([pairs[i].where for i in positives.tolist()], right / similar, np.full(len(positives), np.nan))
    metrics = {"average_precision": precision, "positives": float(truth.mean())}
    return Result(metrics, len(pairs), details, outcomes=outcomes)


def _cosines(
    subject: Loaded, pairs: Sequence[SentencePair], settings: Settings, progress: Progress
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return (the numbers of the pairs, their cosines, details)."""
    embedder = TaskEmbedder.of(subject, settings.vectors, batch=settings.batch, dtype=settings.dtype)
    # Many sentences are in several pairs.
    texts = {text: Text(pair.where, text) for pair in pairs for text in (pair.sentence1, pair.sentence2)}
    vectors = embedder.vectors([*texts.values()], "sentence", progress)
    number = {text: i for i, text in enumerate(texts)}
    firsts, seconds = ([number[text] for text in side] for side in zip(*((p.sentence1, p.sentence2) for p in pairs), strict=True))
    return np.array([pair.truth for pair in pairs]), (vectors[firsts] * vectors[seconds]).sum(1), embedder.details()


def _number(value: Any, field: str, where: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"{where}: field {field} is {str(value)[:40]!r}; write a finite number")
    if field == "label" and number not in (0, 1):
        raise BadInput(f"{where}: field label is {str(value)[:40]!r}; write 0 or 1")
    return number


def read_fields(names: Sequence[str], fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file:line, the fields) of each line of .jsonl and .tsv files; the first line of a .tsv names its columns."""
    columns: dict[Any, list[str]] = {}
    for file, where, line in task_data_files.lines(names, (".jsonl", ".tsv")):
        if file.suffix.lower() == ".tsv":
            cells = line.split("\t")
            if file not in columns:
                columns[file] = cells
                present, values = cells, None
            elif len(cells) != len(columns[file]):
                raise BadInput(
                    f"{where}: {len(cells)} columns, and the header has {len(columns[file])}; separate them by single tabs"
                )
            else:
                present, values = columns[file], dict(zip(columns[file], cells, strict=True))
        else:
            values = parse_object(line, where, json.dumps(dict.fromkeys(fields, "...")))
            present = [*values]
        if absent := [name for name in fields if name not in present]:
            raise BadInput(f"{where}: no field {absent[0]}; it has {list_names(present)}")
        if values is not None:
            yield where, values


def _task(field: str, score: Callable[..., Result], metrics: tuple[str, ...]) -> Task[list[SentencePair]]:
    read = functools.partial(read_sentence_pairs, field)
    return Task(read=read, score=score, metrics=metrics, options=("limit", "vectors"))


STS = _task("score", score_sts, ("spearman", "spearman_stderr", "pearson"))
PAIR_CLASSIFICATION = _task("label", score_pair_classification, ("average_precision", "positives"))
