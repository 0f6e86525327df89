"""An index has the vectors of `zoo embed`, a search finds the nearest of them, and another model is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support import encoders
from tests.support.commands import assert_refused, call
from tests.support.text_tasks import write
from zoo.embedding_modules import EmbeddingModules, write_modules

DOCUMENTS = ("Paris is the capital of France", "the white whale sleeps", "the old men of the ship", "whale", "whale")
MODULES = EmbeddingModules(pool="cls", prompts={"query": "old ", "document": "white "})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with prompts, another one, the documents, and the index `index` of both."""
    folder = tmp_path_factory.mktemp("search")
    encoders.folder(folder / "model", "bert")
    write_modules(folder / "model", MODULES, 32)
    encoders.folder(folder / "other", "distilbert")
    write(folder / "corpus.jsonl", *[{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(DOCUMENTS)])
    return folder


@pytest.fixture
def index(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    target = str(tmp_path / "index")
    ended = call(capsys, "embed", str(folder / "model"), "--files", str(folder / "corpus.jsonl"), "--index", target)
    assert (ended.code, ended.stdout) == (0, f"{target}: 5 documents x 32; zoo search {target} TEXT --model ...\n"), ended.stderr
    return target


def embedded(capsys: pytest.CaptureFixture[str], model: Path, *options: str) -> np.ndarray:
    lines = call(capsys, "embed", str(model), "--json", "--normalize", *options).stdout.splitlines()
    return np.array([json.loads(line)["embedding"] for line in lines], np.float32)


def test_search_prints_the_nearest_documents(folder: Path, index: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder / "model"
    vectors = np.load(f"{index}/vectors.npy")
    np.testing.assert_allclose(vectors, embedded(capsys, model, "--prompt", "document", "--text", *DOCUMENTS), atol=1e-6)
    (query,) = embedded(capsys, model, "--prompt", "query", "--text", "whale")
    scores = vectors @ query
    ranked = np.argsort(-scores.round(5), kind="stable")
    ended = call(capsys, "search", index, "whale", "--model", str(model), "--k", "4", "--json")
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [(row["rank"], row["id"], row["text"]) for row in rows] == [
        (rank, f"d{row}", DOCUMENTS[row]) for rank, row in enumerate(ranked[:4], 1)
    ]
    np.testing.assert_allclose([row["score"] for row in rows], scores[ranked[:4]], atol=1e-5)
    lines = call(capsys, "search", index, "whale", "--model", str(model)).stdout.splitlines()
    assert len(lines) == 5 and re.fullmatch(rf" +1 +{rows[0]['score']:.4f}  {rows[0]['id']} +{rows[0]['text']}", lines[0])
    plain = call(capsys, "search", index, "whale", "--model", str(model), "--prompt-text", "", "--json").stdout
    assert json.loads(plain.splitlines()[0])["score"] != rows[0]["score"]
    exported = folder / "exported"
    assert call(capsys, "import", str(model), "--out", str(folder), "--name", "exported").code == 0
    assert call(capsys, "search", index, "whale", "--model", str(exported), "--k", "4", "--json").stdout == ended.stdout


def test_lines_of_texts_are_documents_with_the_name_of_their_place(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("the ship\n\nwhale\n")
    options = ("--files", str(tmp_path / "a.txt"), "--index", str(tmp_path / "index"), "--dimensions", "8")
    assert call(capsys, "embed", str(folder / "other"), *options).code == 0
    settings = json.loads((tmp_path / "index/index.json").read_text())
    assert (settings["dimensions"], settings["number"], settings["similarity"], settings["pool"]) == (8, 2, "cosine", "mean")
    printed = call(capsys, "search", str(tmp_path / "index"), "whale", "--model", str(folder / "other"), "--json").stdout
    first = json.loads(printed.splitlines()[0])
    assert first["id"] == "a.txt:3" and first["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.planted(9)
def test_wrong_models_indexes_and_options_are_refused(
    folder: Path, index: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, corpus, nan, short = str(folder / "model"), str(folder / "corpus.jsonl"), tmp_path / "nan", tmp_path / "short"
    for copy in (nan, short):
        shutil.copytree(index, copy)
    vectors = np.load(f"{index}/vectors.npy")
    vectors[3, 2] = np.nan
    np.save(nan / "vectors.npy", vectors)
    np.save(short / "vectors.npy", vectors[:2])
    (tmp_path / "a.txt").write_text("whale\n")
    search = ("search", "index", "whale", "--model")
    assert_refused(
        capsys,
        tmp_path,
        {
            "another": (
                (*search, str(folder / "other")),
                f"--model .*other: index has vectors of another model, {re.escape(model)}",
            ),
            "nan": (("search", "nan", "whale", "--model", model), r"document vector 3 .*has NaN"),
            "short": (
                ("search", "short", "whale", "--model", model),
                r"short/vectors.npy: float32 \(2, 32\), and index.json says",
            ),
            "none": (("search", "gone", "whale", "--model", model), "gone: no index.json there"),
            "k": ((*search, model, "--k", "0"), "--k 0: choose 1 or more documents"),
            "long": (("search", "index", "whale " * 50, "--model", model), "the query: 53 tokens .* this model reads at most 40"),
            "out": (("embed", model, "--files", corpus, "--index", "i", "--out", "a.npy"), "--out a.npy: --index writes"),
            "exists": (("embed", model, "--files", corpus, "--index", "index"), "index: already exists"),
            "text": (("embed", model, "--text", "a", "--index", "i"), "--index i: name the documents with --files"),
        },
    )
