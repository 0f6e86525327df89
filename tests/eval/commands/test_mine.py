"""`zoo mine` writes negatives that contrastive training reads, and refuses what it cannot mine."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from tests.support import encoders
from tests.support.commands import assert_refused, call
from tests.support.labelled_files import put, read
from tests.support.text_tasks import write
from train.data.example_types import Ranked
from zoo.embedding_modules import EmbeddingModules, read_modules, write_modules

PAIRS = [
    {"query": "whale", "positive": "the white whale sleeps"},
    {"query": "whale", "positive": "the whale is seen"},
    {"query": "capital", "positive": "Paris is the capital of France"},
    {"query": "men", "positive": "the old men of the ship"},
]
CORPUS = ("the ship", "the capital of France", "whale", "the white whale sleeps")
MODULES = EmbeddingModules(pool="mean", prompts={"query": "old ", "document": "white "})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    encoders.folder(folder / "model", "bert")
    write_modules(folder / "model", MODULES, 32)
    put(folder / "pairs.jsonl", PAIRS)
    write(folder / "corpus.jsonl", *[{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(CORPUS)])
    return folder


def embedded(capsys: pytest.CaptureFixture[str], model: Path, prompt: str, *texts: str) -> np.ndarray:
    ended = call(capsys, "embed", str(model), "--json", "--normalize", "--prompt", prompt, "--text", *texts)
    return np.array([json.loads(line)["embedding"] for line in ended.stdout.splitlines()], np.float32)


def test_negatives_are_the_nearest_texts_that_do_not_belong_to_the_query(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mined.jsonl"
    files = ("--queries", str(folder / "pairs.jsonl"), "--corpus", str(folder / "corpus.jsonl"))
    ended = call(capsys, "mine", str(folder / "model"), *files, "--out", str(out), "--negatives", "2")
    assert ended.code == 0, ended.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    candidates = [*dict.fromkeys((*CORPUS, *(pair["positive"] for pair in PAIRS)))]
    assert [{name: line[name] for name in ("query", "positive")} for line in lines] == PAIRS
    documents = dict(zip(candidates, embedded(capsys, folder / "model", "document", *candidates), strict=True))
    for line in lines:
        (query,) = embedded(capsys, folder / "model", "query", line["query"])
        own = {pair["positive"] for pair in PAIRS if pair["query"] == line["query"]} | {line["query"]}
        nearest = sorted({*candidates} - own, key=lambda text: -(documents[text] @ query))[:2]
        assert line["negatives"] == nearest
        expected = [documents[text] @ query for text in (line["positive"], *nearest)]
        np.testing.assert_allclose(line["scores"], expected, atol=1e-6)
    assert ended.stdout.startswith(f"{out}: 4 pairs with 2 of 7 texts each; mean similarity ")
    assert ended.stdout.count("\n") == 1
    # The order of lines is that of the queries, and training reads them.
    assert [example.negatives for example in read("contrastive", out) if isinstance(example, Ranked)] == [
        tuple(line["negatives"]) for line in lines
    ]


def test_queries_with_too_few_negatives_are_counted_and_columns_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Positives alone are the candidates: the query with two has one fewer."""
    rows = [{"anchor": row["query"], "answer": row["positive"]} for row in PAIRS] + [{"anchor": "", "answer": "x"}]
    put(tmp_path / "pairs.parquet", rows)
    columns = ("--labelled.query", "anchor", "--labelled.positive", "answer", "--labelled.skip-bad")
    files = ("--queries", str(tmp_path / "pairs.parquet"), "--out", str(tmp_path / "out.jsonl"))
    ended = call(capsys, "mine", str(folder / "model"), *files, *columns, "--negatives", "3")
    assert ended.code == 0, ended.stderr
    assert "! 1 of 3 queries have fewer than 3 admitted candidates and are left out\n" in ended.stdout
    assert "! 1 malformed examples are left out; the first: " in ended.stdout
    assert [json.loads(line)["query"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ["capital", "men"]


def test_a_run_learns_from_the_mined_scores(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [" ".join(words) for words in itertools.permutations(("the", "whale", "ship", "men"), 3)]
    put(tmp_path / "pairs.jsonl", [{"query": a, "positive": b} for a, b in itertools.pairwise(texts)])
    model = str(folder / "model")
    assert call(capsys, "mine", model, "--queries", "pairs.jsonl", "--out", "mined.jsonl", "--negatives", "2").code == 0
    command = ["train", "embed-ranking", "--init", model, "--data.paths", "mined.jsonl", "--steps", "2", "--data.batch", "8"]
    command += ["--data.length", "16", "--ranking.loss", "margin_mse", "--ranking.negatives", "2", "--name", "student"]
    command += ["--ranking.similarity", "dot"]
    assert (done := call(capsys, *command)).code == 0, done
    modules = read_modules(Path("runs/student/embedding"))
    assert modules is not None and (modules.similarity, modules.normalize) == ("dot", False)
    assert dict(modules.prompts) == dict(MODULES.prompts)
    refused = call(capsys, "train", "embed-ranking", "--init", model, "--data.paths", "pairs.jsonl", "--name", "other")
    assert refused.code == 2 and "pairs.jsonl:1: 0 negatives, and --ranking.negatives is 1; write more" in refused.stderr


@pytest.mark.planted(11)
def test_what_cannot_be_mined_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, pairs = str(folder / "model"), str(folder / "pairs.jsonl")
    put(tmp_path / "alone.jsonl", [{"query": "whale"}])
    put(tmp_path / "empty.jsonl", [{"query": "whale", "positive": " "}])
    (tmp_path / "a.csv").write_text("a,b\n")
    (tmp_path / "a.txt").write_text("a\n")
    out = ("--out", "out.jsonl")
    assert_refused(
        capsys,
        tmp_path,
        {
            "queries": (("mine", model, *out), "--queries: is not given; name files of queries"),
            "out": (("mine", model, "--queries", pairs, "--out", "a.npy"), "--out a.npy: name a file that ends in .jsonl"),
            "depth": (("mine", model, "--queries", pairs, *out, "--skip", "100"), "--depth 100: choose 101"),
            "positive": (("mine", model, "--queries", "alone.jsonl", *out), "alone.jsonl:1: the query has no positive; name its"),
            "empty": (("mine", model, "--queries", "empty.jsonl", *out), "empty.jsonl:1: the positive is empty; write some text"),
            "input": (
                ("mine", model, "--queries", pairs, "--corpus", "alone.jsonl", "--out", "./alone.jsonl"),
                "--out ./alone.jsonl: it is one of the files that are read, and would be replaced; name another",
            ),
            "corpus": (
                ("mine", model, "--queries", pairs, *out, "--corpus", "a.csv"),
                "--corpus a.csv: only .jsonl or .txt files are read here",
            ),
            "twice": (("mine", model, "--queries", pairs, *out, "--corpus", "a.txt", "a.txt"), "--corpus a.txt: named twice"),
            "missing": (("mine", model, "--queries", "gone.jsonl", *out), "--queries gone.jsonl: no such file"),
            "too many": (
                ("mine", model, "--queries", pairs, *out, "--negatives", "9"),
                "--negatives 9: no query has more than 3 candidates that are admitted; choose fewer, name more texts",
            ),
            "similar": (
                ("mine", model, "--queries", pairs, *out, "--max-similarity", "-1"),
                "--negatives 1: no query has more than 0 candidates that are admitted",
            ),
        },
    )
