"""Rows of cross-encoders: a pair of texts for each candidate of a query."""

from typing import Any

import pytest

from tests.support.encoders import KINDS, tokenizer
from train.config.embedding_options import RankedTexts
from train.config.rerank_options import Rerank
from train.data.example_types import Ranked
from train.rows.example_rows import ExampleRow
from train.rows.rerank_rows import candidate_rows
from zoo.errors import BadInput

WORDPIECE = tokenizer(KINDS["bert"])
EXAMPLES = [
    Ranked(origin="f:1", query="the whale", positive="old men", negatives=("the ship", "white whale")),
    Ranked(origin="f:2", query="the ship", positive="the capital of France", negatives=("the whale",)),
]


def rows_of(examples: list[Ranked] = EXAMPLES, length: int = 16, truncate: bool = False, **group: Any) -> list[ExampleRow]:
    return list(candidate_rows(examples, WORDPIECE, RankedTexts(truncate=truncate), length, group=Rerank(**group)))


def test_a_row_has_a_pair_for_the_positive_and_each_negative() -> None:
    special = WORDPIECE.special_tokens
    assert special is not None
    for row, example in zip(rows_of(), EXAMPLES, strict=True):
        query, *candidates = (WORDPIECE.encode(text).tolist() for text in (example.query, example.positive, example.negatives[0]))
        pairs = [[special.cls, *query, special.sep, *text, special.sep] for text in candidates]
        assert [pair.ids.tolist() for pair in row.inputs] == pairs
        assert [pair.types.tolist() for pair in row.inputs] == [
            [0] * (len(query) + 2) + [1] * (len(text) + 1) for text in candidates
        ]
        assert row.labels.shape == () and row.labels == 0 and row.size == max(map(len, pairs))


def test_the_longer_text_of_a_long_pair_is_cut() -> None:
    (_, second) = rows_of(length=8, truncate=True)
    whole = rows_of()[1]
    assert [len(pair.ids) for pair in second.inputs] == [8, 7] and second.size == whole.size == 9
    assert second.inputs[0].ids[:7].tolist() == whole.inputs[0].ids[:7].tolist()


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        (EXAMPLES, {"negatives": 2}, "f:2: 1 negatives, and --rerank.negatives is 2; .*or choose fewer"),
        ([Ranked(origin="f:3", query="a")], {}, "f:3: the query has no positive; .*--labelled.positive"),
        (EXAMPLES, {"length": 8}, "f:2: 9 tokens, and a row has 8; .*--labelled.truncate"),
    ],
)
def test_examples_that_do_not_fit_are_refused(examples: list[Ranked], options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        rows_of(examples, **options)
