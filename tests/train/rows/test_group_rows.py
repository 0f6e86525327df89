"""Rows of queries with a teacher's scores: what files say, and what of it does not fit a loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.encoders import KINDS, tokenizer
from tests.support.labelled_files import put, read
from train.config.ranking_options import Ranking, ScoredTexts
from train.data.example_types import Ranked, ScoredPair, TaughtRanked
from train.rows.embedding_rows import group_rows
from train.rows.example_rows import ExampleRow
from zoo.errors import BadInput

WORDPIECE = tokenizer(KINDS["bert"])
LINE = {"query": "the whale", "positive": "old men", "negatives": ["the ship", "white whale"], "scores": [3.5, -1, 0.25]}


def rows_of(*examples: TaughtRanked, **group: Any) -> list[ExampleRow]:
    return list(group_rows(examples, WORDPIECE, ScoredTexts(), 16, group=Ranking(**group)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_scores_of_files_are_the_labels_of_rows(name: str, tmp_path: Path) -> None:
    (example,) = read("ranking", put(tmp_path / name, [LINE]))
    assert isinstance(example, TaughtRanked) and example.scores == (3.5, -1.0, 0.25)
    for negatives in (1, 2):
        (row,) = rows_of(example, loss="margin_mse", negatives=negatives, query_prompt="is ", document_prompt="by ")
        texts = ["is the whale", "by old men", "by the ship", "by white whale"][: 2 + negatives]
        special = WORDPIECE.special_tokens
        assert special is not None
        assert [each.ids.tolist() for each in row.inputs] == [special.single(WORDPIECE.encode(t))[0].tolist() for t in texts]
        assert row.labels.dtype == np.float32 and row.labels.tolist() == [3.5, -1.0, 0.25][: 1 + negatives]
    # Triplets need none, and contrastive learning does not read them.
    (plain,) = read("ranking", put(tmp_path / "b.tsv", "query\tpositive\tnegatives\nq\tp\tn\n"))
    assert isinstance(plain, TaughtRanked) and rows_of(plain)[0].labels.tolist() == [0.0, 0.0]
    (example,) = read("contrastive", put(tmp_path / name, [LINE | {"scores": [1.0]}]))
    assert type(example) is Ranked and example.negatives == ("the ship", "white whale")


def test_scored_pairs_are_read_from_parquet(tmp_path: Path) -> None:
    (example,) = read("similarity", put(tmp_path / "a.parquet", [{"sentence1": "a", "sentence2": "b", "score": 0.5}]))
    assert isinstance(example, ScoredPair) and (example.first, example.second, example.score) == ("a", "b", 0.5)


@pytest.mark.planted
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            [LINE | {"scores": [1, 2]}],
            r"a.jsonl:1: 2 scores for 3 texts; write that of the positive, then one for each",
        ),
        ("a.jsonl", [LINE | {"scores": [1, "nan", 2]}], r'a.jsonl:1: the score "nan" is not a finite number; fix it, or remove'),
        ("a.parquet", [LINE | {"scores": [1.0, float("nan"), 2.0]}], r"a.parquet.*: the score NaN is not a finite number"),
        ("a.jsonl", [LINE | {"scores": 3}], r"a.jsonl:1: the scores are a number; write a list of numbers"),
        ("a.tsv", "query\tpositive\tnegatives\tscores\nq\tp\tn\t1\n", r"a.tsv:2: the scores are a string; write a list"),
        ("a.jsonl", [LINE | {"negatives": ["a", " "]}], r"a.jsonl:1: the negative is empty; write some text"),
    ],
)
def test_scores_that_cannot_be_used_are_refused(name: str, content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        read("ranking", put(tmp_path / name, content))


@pytest.mark.planted
@pytest.mark.parametrize(
    ("example", "options", "message"),
    [
        ({"negatives": ("n",)}, {"loss": "kl"}, "f:1: no teacher's scores, and --ranking.loss is kl; name their column with"),
        ({"negatives": ("n",)}, {"negatives": 2}, "f:1: 1 negatives, and --ranking.negatives is 2; .*or choose fewer"),
        ({"positive": ""}, {}, "f:1: the query has no positive; name its column with --labelled.positive$"),
    ],
)
def test_examples_that_do_not_fit_are_refused(example: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        rows_of(TaughtRanked(**{"origin": "f:1", "query": "q", "positive": "p", **example}), **options)
