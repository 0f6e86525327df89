"""Tasks of embedding models: metrics equal those of plain loops over cosines of the hidden states of each text alone."""

import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from eval.tasks import task_table
from eval.tasks.task import Result, Settings
from tests.support import encoders
from tests.support.commands import call
from tests.support.text_tasks import quiet, write
from train.weights.load import Loaded
from zoo.errors import BadInput

WORDS = ("whale", "ship", "men", "capital", "France", "Paris", "the", "old", "white", "sleeps", "seen", "of", "and", "is")


@functools.cache
def sentences(count: int) -> tuple[str, ...]:
    rng = np.random.default_rng(1)
    return tuple(" ".join(rng.choice(WORDS, rng.integers(2, 7))) + f" {number}" for number in range(count))


@functools.cache
def unit(text: str) -> np.ndarray:
    """The mean of the hidden states of a text alone, of length 1."""
    made = encoders.loaded("bert")
    special_tokens = made.tokenizer.special_tokens
    assert special_tokens is not None
    vector = encoders.hidden(made, [special_tokens.cls, *made.tokenizer.encode(text).tolist(), special_tokens.sep])
    vector = vector.astype(np.float64).mean(0)
    return vector / np.linalg.norm(vector)


def score(task: str, *files: str, model: Loaded | None = None, **options: Any) -> Result:
    found, argument = task_table.find_task(task)
    settings = Settings(batch=4, argument=argument, **options)
    return found.score(model or encoders.loaded("bert"), found.read(files, settings), settings, quiet)


def test_sts_correlates_cosines_with_scores(tmp_path: Path) -> None:
    texts = sentences(12)
    rows = [{"sentence1": texts[i], "sentence2": texts[(5 * i + 1) % 12], "score": (i * 7) % 5 / 2} for i in range(12)]
    jsonl = write(tmp_path / "a.jsonl", *rows)
    header = "score\tgenre\tsentence2\tsentence1"
    tsv = write(tmp_path / "a.tsv", header, *[f"{row['score']}\tnews\t{row['sentence2']}\t{row['sentence1']}" for row in rows])
    result = score("sts", jsonl)
    assert score("sts", tsv).metrics == result.metrics
    cosines, truth = [unit(row["sentence1"]) @ unit(row["sentence2"]) for row in rows], [row["score"] for row in rows]
    rank = stats.spearmanr(truth, cosines).statistic
    assert result.metrics["spearman"] == pytest.approx(rank, abs=1e-9)
    assert result.metrics["pearson"] == pytest.approx(np.corrcoef(truth, cosines)[0, 1], abs=1e-5)
    assert result.metrics["spearman_stderr"] == pytest.approx((1 - rank**2) * math.sqrt((1 + rank**2 / 2) / 9))
    assert result.examples == 12 and score("sts", jsonl, limit=4).examples == 4


def test_pair_classification_is_the_average_precision_of_the_cosines(tmp_path: Path) -> None:
    texts = sentences(12)
    rows = [{"sentence1": texts[i], "sentence2": texts[(5 * i + 1) % 12], "label": i % 3 // 2} for i in range(12)]
    cosines = np.array([unit(row["sentence1"]) @ unit(row["sentence2"]) for row in rows])
    labels = np.array([row["label"] for row in rows])[np.argsort(-cosines)]
    expected = np.mean([labels[: rank + 1].mean() for rank in np.flatnonzero(labels)])
    metrics = score("pair_classification", write(tmp_path / "a.jsonl", *rows)).metrics
    assert metrics == {"average_precision": pytest.approx(expected), "positives": pytest.approx(1 / 3)}


def collection(folder: Path) -> dict[str, dict[str, int]]:
    """Write a folder of BEIR with a query whose id is that of a document, and documents of equal text; return the grades."""
    (folder / "qrels").mkdir(parents=True)
    texts = sentences(14)
    corpus = [{"_id": f"d{i}", "title": texts[i].split()[0], "text": texts[i]} for i in range(8)]
    corpus += [
        {"_id": "d9", "text": "white ship", "title": ""},
        {"_id": "d8", "text": "white ship"},
        {"_id": "q1", "text": texts[9]},
    ]
    write(folder / "corpus.jsonl", *corpus)
    write(folder / "queries.jsonl", *[{"_id": f"q{i}", "text": texts[i + 8]} for i in range(5)])
    grades = {"q1": {"d0": 2, "d3": 1, "q1": 0}, "q2": {"d8": 1, "d5": 0}, "q4": {"d1": 3, "d2": 1}}
    rows = [f"{query}\t{document}\t{grade}" for query, own in grades.items() for document, grade in own.items()]
    write(folder / "qrels/test.tsv", "query-id\tcorpus-id\tscore", *rows)
    write(folder / "qrels/trec.tsv", *[f"{a} 0 {b} {c}" for a, b, c in map(str.split, rows)])
    return grades


def ndcg(grades: list[int], every: list[int]) -> float:
    best = sorted(every, reverse=True)[:10]
    return sum(g / math.log2(r + 2) for r, g in enumerate(grades[:10])) / sum(g / math.log2(r + 2) for r, g in enumerate(best))


def test_retrieval_ranks_the_documents_for_each_query(tmp_path: Path) -> None:
    grades = collection(tmp_path / "beir")
    documents = {row["_id"]: row for row in map(json.loads, (tmp_path / "beir/corpus.jsonl").read_text().splitlines())}
    queries = {row["_id"]: row["text"] for row in map(json.loads, (tmp_path / "beir/queries.jsonl").read_text().splitlines())}
    expected: dict[str, list[float]] = {name: [] for name in ("ndcg_at_10", "map_at_100", "mrr_at_10", "recall_at_100")}
    for query, own in grades.items():
        scores = {
            name: round(float(unit(queries[query]) @ unit(f"{row.get('title', '')} {row['text']}".strip())), 6)
            for name, row in documents.items()
        }
        ranked = sorted((name for name in documents if name != query), key=lambda name: (scores[name], name), reverse=True)
        found = [own.get(name, 0) for name in ranked]
        at = [rank for rank, grade in enumerate(found, 1) if grade]
        count = sum(grade > 0 for grade in own.values())
        expected["ndcg_at_10"].append(ndcg(found, [*own.values()]))
        expected["map_at_100"].append(sum(number / rank for number, rank in enumerate(at, 1)) / count)
        expected["mrr_at_10"].append(1 / at[0] if at[0] <= 10 else 0)
        expected["recall_at_100"].append(len(at) / count)
    result = score("retrieval", str(tmp_path / "beir"))
    for name, values in expected.items():
        assert result.metrics[name] == pytest.approx(np.mean(values)), name
        assert result.metrics[f"{name}_stderr"] == pytest.approx(np.std(values, ddof=1) / 3**0.5)
    assert result.outcomes is not None
    np.testing.assert_allclose(result.outcomes.right, expected["ndcg_at_10"])
    assert result.outcomes.id == ("queries.jsonl:2", "queries.jsonl:3", "queries.jsonl:5")
    assert score("retrieval:trec", str(tmp_path / "beir")).metrics == result.metrics
    on_devices = score("retrieval", str(tmp_path / "beir"), model=encoders.loaded("bert", shape=(4, 1, 1)))
    assert on_devices.metrics == pytest.approx(result.metrics)


def test_rerank_orders_the_candidates(tmp_path: Path) -> None:
    texts = sentences(14)
    rows = [{"query": texts[i], "positive": [texts[i + 4]], "negative": [*texts[i + 6 : i + 9]]} for i in range(4)]
    ranks = []
    for row in rows:
        scores = [unit(row["query"]) @ unit(text) for text in (*row["positive"], *row["negative"])]
        ranks.append(1 + sum(score >= scores[0] for score in scores[1:]))
    metrics = score("rerank", write(tmp_path / "a.jsonl", *rows)).metrics
    assert metrics["map"] == metrics["mrr_at_10"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert metrics["ndcg_at_10"] == pytest.approx(np.mean([1 / math.log2(rank + 1) for rank in ranks]))
    tied = write(tmp_path / "b.jsonl", {"query": "ship", "positive": ["whale"], "negative": ["whale"]})
    assert score("rerank", tied).metrics["map"] == 0.5


def test_a_folder_is_scored_with_its_prompts_and_long_texts_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = encoders.folder(tmp_path / "model", "bert")
    collection(tmp_path / "beir")
    rows = [{"_id": "q2", "text": "whale " * 60}, {"_id": "q1", "text": "ship"}, {"_id": "q4", "text": "men"}]
    write(tmp_path / "beir/queries.jsonl", *rows)

    def metrics(*options: str) -> dict[str, Any]:
        ended = call(capsys, "eval", str(folder), "--task", "retrieval", "--files", str(tmp_path / "beir"), "--json", *options)
        assert ended.code == 0, ended.stderr
        assert "too long: 1 texts were cut to 40 tokens, the first at " in ended.stderr
        return json.loads(ended.stdout)["metrics"]

    plain = metrics()
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in (("Transformer", ""), ("Pooling", "p"))
    ]
    write(folder / "modules.json", json.dumps(modules))
    (folder / "p").mkdir()
    write(folder / "p/config.json", {"pooling_mode": "cls"})
    write(folder / "config_sentence_transformers.json", {"prompts": {"query": "old men ", "passage": "white "}})
    own = metrics()
    assert own != plain
    assert metrics("--vectors.pool", "cls", "--vectors.query-prompt", "old men ", "--vectors.document-prompt", "white ") == own
    assert metrics("--vectors.pool", "mean", "--vectors.query-prompt", "", "--vectors.document-prompt", "") == plain


PAIR = '{"sentence1": "a", "sentence2": "b", "score": 1}'
WRONG: list[tuple[str, str, str, str]] = [
    ("sts", "a.jsonl", f'{PAIR}\n{{"sentence1": " ", "sentence2": "b", "score": 1}}', "a.jsonl:2: field sentence1 has no text"),
    ("sts", "a.jsonl", '{"sentence1": "a", "score": 1}', "a.jsonl:1: no field sentence2; it has"),
    (
        "sts",
        "a.jsonl",
        '{"sentence1": "a", "sentence2": "b", "score": "x"}',
        "a.jsonl:1: field score is 'x'; write a finite number",
    ),
    ("sts", "a.tsv", "sentence1\tsentence2\tscore\na\tb", "a.tsv:2: 2 columns, and the header has 3"),
    ("sts", "a.tsv", "sentence1\tsentence2\na\tb", "a.tsv:1: no field score; it has"),
    ("pair_classification", "a.tsv", "sentence1\tsentence2\tlabel\na\tb\t2", "a.tsv:2: field label is '2'; write 0 or 1"),
    ("pair_classification", "a.tsv", "sentence1\tsentence2\tlabel\na\tb\t0", "a.tsv:2: no label from here on is 1"),
    ("sts", "a.tsv", "sentence1\tsentence2\tscore\n", "a.tsv: no pairs, only a header"),
    ("sts", "a.jsonl", f'{{"sentence1": "a", "sentence2": "b", "score": 1{"0" * 400}}}', "field score is"),
    ("rerank", "a.jsonl", '{"query": "a", "positive": [], "negative": ["b"]}', "a.jsonl:1: field positive is no list of texts"),
    ("rerank", "a.jsonl", '{"query": "", "positive": ["b"], "negative": ["b"]}', "a.jsonl:1: field query has no text"),
]
BEIR: list[tuple[str, str, str]] = [
    (
        "qrels/test.tsv",
        "query-id\tcorpus-id\tscore\nq1\td77\t1",
        'test.tsv:2: there is no document "d77" in corpus.jsonl; add it',
    ),
    ("qrels/test.tsv", "q9 0 d1 1", 'test.tsv:1: there is no query "q9" in queries.jsonl'),
    ("qrels/test.tsv", "q1 0 d1 1\nq1 0 d1 2", 'test.tsv:2: a second grade of document "d1"'),
    ("qrels/test.tsv", "q1 0 d1 high", "test.tsv:1: the grade 'high' is no whole number"),
    ("qrels/test.tsv", "q1 d1", "test.tsv:1: 2 columns"),
    ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "test.tsv: no query has a judgement"),
    ("qrels/test.tsv", "q1 0 d1 1001", "test.tsv:1: the grade 1001 is too large"),
    ("corpus.jsonl", '{"_id": "\\ud800", "text": "a"}', "corpus.jsonl:1: field _id"),
    ("corpus.jsonl", '{"_id": "d1", "text": ""}', "corpus.jsonl:1: field text has no text"),
    ("corpus.jsonl", '{"_id": 1, "text": "a"}', "corpus.jsonl:1: field _id is 1"),
    ("queries.jsonl", '{"_id": "q1", "text": "a"}\n{"_id": "q1", "text": "b"}', 'queries.jsonl:2: the id "q1" is that of'),
    ("queries.jsonl", '{"_id": "q1"', "queries.jsonl:1: invalid JSON"),
]


@pytest.mark.planted(len(WRONG) + len(BEIR))
def test_wrong_files_are_refused_by_line(tmp_path: Path) -> None:
    for task, name, content, message in WRONG:
        with pytest.raises(BadInput, match=re.escape(message)):
            score(task, write(tmp_path / name, content))
    for number, (name, content, message) in enumerate(BEIR):
        collection(folder := tmp_path / str(number))
        write(folder / name, content)
        with pytest.raises(BadInput, match=re.escape(message)):
            score("retrieval", str(folder))
    with pytest.raises(BadInput, match=r"name one folder with corpus\.jsonl"):
        score("retrieval", str(tmp_path / "a.jsonl"))
    with pytest.raises(BadInput, match=re.escape("--files ") + ".*dev.tsv"):
        score("retrieval:dev", str(tmp_path / "0"))
