"""Rows of queries and of scored pairs: what files say, and what of it does not fit an objective."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.encoders import KINDS, tokenizer
from tests.support.labelled_files import put, read
from train.config.embedding_options import Contrastive, RankedTexts, ScoredPairs, Similarity
from train.data.example_types import Ranked, ScoredPair
from train.rows.embedding_rows import ranked_rows, scored_rows
from train.rows.example_rows import ExampleRow
from zoo.errors import BadInput

WORDPIECE = tokenizer(KINDS["bert"])
EXAMPLES = [
    Ranked(origin="f:1", query="the whale", positive="old men", negatives=("the ship", "white whale")),
    Ranked(origin="f:2", query="the ship", positive="old men", negatives=("the whale",)),
]


def rows_of(examples: list[Ranked] = EXAMPLES, length: int = 16, truncate: bool = False, **group: Any) -> list[ExampleRow]:
    options = RankedTexts(truncate=truncate)
    return list(ranked_rows(examples, WORDPIECE, options, length, group=Contrastive(**group)))


def ids(text: str) -> list[int]:
    return WORDPIECE.special_tokens.single(WORDPIECE.encode(text))[0].tolist()  # pyright: ignore[reportOptionalMemberAccess]


def test_a_row_has_the_texts_with_their_prompts_and_the_numbers_of_the_texts() -> None:
    first, second = rows_of(negatives=1, query_prompt="is ", document_prompt="seen by ")
    assert [each.ids.tolist() for each in first.inputs] == [ids("is the whale"), ids("seen by old men"), ids("seen by the ship")]
    assert [row.labels.tolist() for row in (first, second)] == [[0, 1, 2], [2, 1, 0]]
    assert first.labels.dtype == np.int32 and first.weights.tolist() == [1.0]


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        (EXAMPLES, {"negatives": 2}, "f:2: 1 negatives, and --contrastive.negatives is 2; .*or choose fewer"),
        ([Ranked(origin="f:3", query="a")], {}, "f:3: the query has no positive; .*--labelled.positive, or .*unsupervised"),
        (EXAMPLES, {"length": 3}, "f:1: 4 tokens, and a row has 3 .*--labelled.truncate"),
    ],
)
def test_examples_that_do_not_fit_are_refused(examples: list[Ranked], options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        rows_of(examples, **options)


def test_a_long_text_is_cut_alone() -> None:
    (row, _) = rows_of(length=3, truncate=True)
    assert [len(each.ids) for each in row.inputs] == [3, 3] and row.size == 4


@pytest.mark.parametrize(("score", "loss"), [(1.5, "cosine"), (-2.0, "cosine"), (4.0, "cosent"), (4.0, "angle")])
def test_scores_that_no_cosine_has_are_refused_where_they_are_compared(score: float, loss: Any) -> None:
    def rows() -> list[ExampleRow]:
        pair = ScoredPair(origin="f:1", first="old men", second="the ship", score=score)
        return list(scored_rows([pair], WORDPIECE, ScoredPairs(), 16, group=Similarity(loss=loss)))

    if loss == "cosine":
        with pytest.raises(BadInput, match=re.escape(f"f:1: the score {score:g} is compared with a cosine; a cosine is -1 to 1")):
            rows()
    else:
        (row,) = rows()
        assert row.labels.dtype == np.float32 and row.labels.tolist() == [score] and len(row.inputs) == 2


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.jsonl", [{"query": "q", "positive": "p", "negatives": ["n", "m"]}], {}),
        ("a.jsonl", [{"anchor": "q", "positive": "p", "no": ["n", "m"]}], {"query": "anchor", "negatives": "no"}),
        ("a.tsv", "positive\tquery\tnegatives\np\tq\tn\n", {}),
        ("a.csv", "q,p,n\n", {"header": False}),
        ("a.jsonl", [{"query": "q"}], {}),
    ],
)
def test_columns_are_named_or_numbered(name: str, content: Any, options: dict[str, Any], tmp_path: Path) -> None:
    (example,) = read("contrastive", put(tmp_path / name, content), **options)
    assert isinstance(example, Ranked)
    expected = ("n", "m") if name == "a.jsonl" else ("n",)
    if len(content[0]) == 1 and name == "a.jsonl":
        assert (example.query, example.positive, example.negatives, example.document) == ("q", "", (), "q")
    else:
        assert (example.query, example.positive, example.negatives, example.document) == ("q", "p", expected, "p")


def test_empty_cells_are_absent_texts_and_absent_columns_are_named(tmp_path: Path) -> None:
    (example,) = read("contrastive", put(tmp_path / "a.jsonl", [{"query": "q", "positive": "p", "negatives": None}]))
    assert isinstance(example, Ranked) and example.negatives == ()
    (example,) = read("contrastive", put(tmp_path / "b.tsv", "query\tpositive\tnegatives\nq\tp\t\n"))
    assert isinstance(example, Ranked) and (example.positive, example.negatives) == ("p", ())
    with pytest.raises(BadInput, match=r"c\.tsv:1: 2 columns, and column 3 is the score; add it to the file"):
        read("similarity", put(tmp_path / "c.tsv", "a\tb\n"), header=False)


def test_scored_pairs_are_read_from_tables(tmp_path: Path) -> None:
    (example,) = read("similarity", put(tmp_path / "a.tsv", "x\ty\tz\na\tb\t0.5\n"), sentence1="x", sentence2="y", score="z")
    assert isinstance(example, ScoredPair)
    assert (example.first, example.second, example.score) == ("a", "b", 0.5)
