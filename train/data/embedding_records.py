"""Parsing of the records of a file as examples of embedding models: queries with texts, and pairs of texts with a score."""

import dataclasses
import json
import math
from typing import Any

from train.config.embedding_options import RankedTexts, ScoredPairs
from train.config.ranking_options import ScoredTexts
from train.config.sentence_denoising_options import PlainTexts
from train.data.example_types import Ranked, ScoredPair, TaughtRanked
from train.data.records import Record, column_value
from train.data.text_files import check_string, json_type
from zoo.errors import BadInput

LARGEST = 1e38
"""Greatest absolute value of a score, which float32 has."""
REMOVE = "write some text, remove the example, or skip it with --labelled.skip-bad"


def ranked_of_record(record: Record, options: RankedTexts) -> Ranked:
    """Return the example of a record with a query and, if it has them, a positive and negatives (a list, or one text).

    Queries of the same positive are held out together.

    Raises:
        BadInput: a text is empty or not a string.
    """
    query = _text(column_value(record, options.query, "query", 0, "query"), record, "query")
    positive, negatives = "", ()
    if options.positive or _has_column(record, "positive", 1):
        positive = _text(column_value(record, options.positive, "positive", 1, "positive"), record, "positive")
    if options.negatives or _has_column(record, "negatives", 2):
        value = column_value(record, options.negatives, "negatives", 2, "negatives")
        # An empty cell has no negatives, which the rows refuse if they need some.
        texts = value if isinstance(value, list) else [] if value in (None, "") else [value]
        negatives = tuple(_text(text, record, "negative") for text in texts)
    return Ranked(origin=record.where, document=positive or query, query=query, positive=positive, negatives=negatives)


def text_of_record(record: Record, options: PlainTexts) -> Ranked:
    """Return a query alone, the text of a record. Equal texts are held out together.

    Raises:
        BadInput: the text is empty or not a string.
    """
    text = _text(column_value(record, options.text, "text", 0, "text"), record, "text")
    return Ranked(origin=record.where, document=text, query=text)


def scored_texts_of_record(record: Record, options: ScoredTexts) -> TaughtRanked:
    """Return the example of a record as `ranked_of_record`, with the teacher's scores if it has them.

    Raises:
        BadInput: the same; or the scores are not a list of finite numbers, one for each text.
    """
    example = TaughtRanked(**vars(ranked_of_record(record, options)))
    if not options.scores and (record.numbered or "scores" not in record.values):
        return example
    values = column_value(record, options.scores, "scores", 3, "scores")
    if not isinstance(values, list):
        fix = "write a list of numbers, which .jsonl and .parquet have"
        raise BadInput(f"{record.where}: the scores are {json_type(values)}; {fix}")
    if len(values) != 1 + len(example.negatives):
        fix = "write that of the positive, then one for each negative"
        raise BadInput(f"{record.where}: {len(values)} scores for {1 + len(example.negatives)} texts; {fix}")
    return dataclasses.replace(example, scores=tuple(_number(value, record) for value in values))


def scored_pair_of_record(record: Record, options: ScoredPairs) -> ScoredPair:
    """Return the example of a record with two texts and their score. Pairs of the same first text are held out together.

    Raises:
        BadInput: a text is empty or not a string, or the score is not a finite number.
    """
    first = _text(column_value(record, options.sentence1, "sentence1", 0, "sentence1"), record, "first text")
    second = _text(column_value(record, options.sentence2, "sentence2", 1, "sentence2"), record, "second text")
    value = column_value(record, options.score, "score", 2, "score")
    return ScoredPair(origin=record.where, document=first, first=first, second=second, score=_number(value, record))


def _has_column(record: Record, name: str, number: int) -> bool:
    return number < len(record.values) if record.numbered else name in record.values


def _text(value: Any, record: Record, what: str) -> str:
    text = check_string(value, f"{record.where}: the {what}")
    if not text.strip():
        raise BadInput(f"{record.where}: the {what} is empty; {REMOVE}")
    return text


def _number(value: Any, record: Record) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not abs(number) < LARGEST:
        written = json.dumps(value)[:80] if isinstance(value, str | int | float) else json_type(value)
        raise BadInput(f"{record.where}: the score {written} is not a finite number; fix it, or remove the example")
    return number
