"""Folders that ColBERT's own code wrote, read as models with a vector for each token.

The description is that of github:stanford-futuredata/ColBERT (`colbert/modeling/tokenization` and `colbert/modeling/colbert.py`):
a text of at most `maxlen` - 1 tokens with its special tokens gets its marker behind the first; the padding of queries becomes
mask tokens; each hidden state is multiplied by `linear.weight` [dim, hidden] and divided by its length; punctuation of documents
is left out.
"""

import functools
import json
import re
import shutil
import string
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from eval.inference.encoder_inputs import TaskVectors
from eval.inference.encoder_runner import Text
from eval.inference.token_vectors import TokenEmbedder, max_sim_scores
from tests.support import encoders
from tests.support.commands import call
from train.weights.load import load_model
from train.weights.run_modules import late_interaction_options
from train.weights.token_modules import read_projection
from zoo.batch import Batch
from zoo.embedding_modules import read_modules
from zoo.errors import BadInput
from zoo.hf.hub import PATTERNS
from zoo.multi_vector_files import MultiVector

WIDTH, SIZE = 32, 6
QUERIES = ("the old whale", "Paris, the capital of France, is seen by the old men of the ship")
DOCUMENTS = ("The old men of the ship.", "Paris is the capital of France, the whale", "the white whale sleeps; the ship " * 4)
METADATA: dict[str, Any] = {
    **{"query_token_id": "whale", "doc_token_id": "ship", "query_token": "[Q]", "doc_token": "[D]", "dim": SIZE},
    **{"query_maxlen": 12, "doc_maxlen": 20, "mask_punctuation": True, "attend_to_mask_tokens": True},
    **{"similarity": "cosine", "interaction": "colbert", "nbits": 1, "bsize": 32, "checkpoint": None},
}
"""Some of the keys of the file; the published markers are "[unused0]" and "[unused1]", which this vocabulary lacks."""
KERNEL = np.random.default_rng(0).normal(size=(SIZE, WIDTH)).astype(np.float32)


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoders.folder(tmp_path_factory.mktemp("models") / "bare", "bert", "body")


@pytest.fixture
def folder(bare: Path, tmp_path: Path) -> Path:
    return original(bare, tmp_path / "model")


def original(bare: Path, folder: Path, kernel: np.ndarray = KERNEL, **changes: Any) -> Path:
    """Write a folder of ColBERT's own code: tensors `bert.*` and `linear.weight` in one file."""
    shutil.copytree(bare, folder)
    tensors = {f"bert.{name.removeprefix('bert.')}": array for name, array in load_file(folder / "model.safetensors").items()}
    save_file(tensors | {"linear.weight": np.ascontiguousarray(kernel)}, folder / "model.safetensors")
    content = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", content | {"architectures": ["HF_ColBERT"]})
    write(folder / "artifact.metadata", METADATA | {"dim": len(kernel)} | changes)
    return folder


def pylate(bare: Path, folder: Path, **settings: Any) -> Path:
    """Write the same weights as a folder of PyLate, with the keys that PyLate takes from `artifact.metadata`."""
    shutil.copytree(bare, folder)
    types = (("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense"))
    rows = [{"idx": number, "name": str(number), "path": path, "type": kind} for number, (path, kind) in enumerate(types)]
    write(folder / "modules.json", rows)
    sizes = {"in_features": WIDTH, "out_features": SIZE, "bias": False}
    write(folder / "1_Dense/config.json", sizes | {"activation_function": "torch.nn.modules.linear.Identity"})
    save_file({"linear.weight": KERNEL}, folder / "1_Dense/model.safetensors")
    own = {"query_prefix": "whale", "document_prefix": "ship", "query_length": 12, "document_length": 20}
    write(folder / "config_sentence_transformers.json", {"model_type": "ColBERT", **own, **settings})
    return folder


def token_vectors(folder: Path) -> list[list[np.ndarray]]:
    embedder = TokenEmbedder.of(load_model(folder), TaskVectors(), batch=4, dtype="float32")
    queries, documents = ([Text("t", text) for text in side] for side in (QUERIES, DOCUMENTS))
    return [embedder.vectors(queries, "query"), embedder.vectors(documents, "document")]


@functools.cache
def hidden() -> Any:
    """The hidden states [T, D] of the tokens of a text alone, all of which see each other."""
    made = encoders.loaded("bert", "body")
    return jax.jit(lambda tokens: made.model.apply(made.params, Batch(tokens=tokens[None])).hidden[0])


def described(markers: tuple[str, ...] = ("whale", "ship"), kernel: np.ndarray = KERNEL) -> list[list[np.ndarray]]:
    """The vectors of queries and documents by the description, each text alone, with attention to the mask tokens."""
    words = encoders.loaded("bert", "body").tokenizer
    special, entries = words.special_tokens, words.ids()
    assert special is not None
    skipped = {entries[symbol] for symbol in string.punctuation if symbol in entries}
    sides = []
    for texts, longest, marker in zip((QUERIES, DOCUMENTS), (12, 20), markers, strict=True):
        vectors = []
        for text in texts:
            ids = [special.cls, *words.encode(text).tolist()[: longest - 3], special.sep]
            ids[1:1] = [entries[marker]] if marker else []
            ids += [special.mask] * (longest - len(ids)) * (texts == QUERIES)
            rows = np.asarray(hidden()(jnp.array(ids, jnp.int32)), np.float64) @ kernel.T.astype(np.float64)
            compared = [texts == QUERIES or number not in skipped for number in ids]
            vectors.append((rows / np.linalg.norm(rows, axis=1, keepdims=True))[compared])
        sides.append(vectors)
    return sides


def difference(one: list[list[np.ndarray]], other: list[list[np.ndarray]]) -> float:
    """The largest difference of two sides of vectors; infinity if the numbers of vectors differ."""
    pairs = [pair for sides in zip(one, other, strict=True) for pair in zip(*sides, strict=True)]
    return max(float(np.abs(a - b).max()) if a.shape == b.shape else np.inf for a, b in pairs)


@pytest.mark.parametrize("attend", [False, True])
def test_vectors_equal_those_of_the_same_weights_in_a_folder_of_pylate(bare: Path, tmp_path: Path, attend: bool) -> None:
    own = token_vectors(original(bare, tmp_path / "own", attend_to_mask_tokens=attend))
    theirs = token_vectors(pylate(bare, tmp_path / "theirs", attend_to_expansion_tokens=attend))
    assert difference(own, theirs) <= 1e-6
    # The second query and the last document are longer than the model's lengths.
    assert [len(vectors) for vectors in own[0]] == [12, 12] and len(own[1][2]) < 20


@pytest.mark.planted(3)
def test_vectors_are_those_of_the_description(bare: Path, folder: Path, tmp_path: Path) -> None:
    own = token_vectors(folder)
    assert difference(own, described()) < 1e-5
    for markers in (("", "ship"), ("whale", ""), ("ship", "whale")):
        assert difference(own, described(markers)) > 1e-2
    # Of a square layer, which no shape refuses.
    square = np.random.default_rng(1).normal(size=(WIDTH, WIDTH)).astype(np.float32)
    right, wrong = (token_vectors(original(bare, tmp_path / name, kernel)) for name, kernel in (("s", square), ("t", square.T)))
    reference = described(kernel=square)
    assert difference(right, reference) < 1e-5 < 1e-2 < difference(wrong, reference)


def test_settings_have_the_defaults_of_the_code(folder: Path) -> None:
    settings = MultiVector(query_length=12, document_length=20, attend_to_expansion_tokens=True)
    modules = read_modules(folder)
    assert modules is not None and modules.multi_vector == settings and modules.prompts == {"query": "whale", "document": "ship"}
    write(
        folder / "artifact.metadata", {"query_token_id": "whale", "doc_token_id": "ship", "dim": SIZE, "mask_punctuation": False}
    )
    modules = read_modules(folder)
    assert modules is not None
    assert modules.multi_vector == MultiVector(query_length=32, document_length=220, skiplist_words=())
    assert "artifact.metadata" in PATTERNS


def test_commands_read_such_folders(
    bare: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def printed(*argv: str) -> str:
        ended = call(capsys, *argv)
        assert ended.code == 0, ended
        return ended.stdout

    own = token_vectors(folder)
    first = max_sim_scores(own[0][:1], own[1])[0]
    write(Path("candidates.jsonl"), {"query": QUERIES[0], "positive": [DOCUMENTS[0]], "negative": list(DOCUMENTS[1:])})
    result = json.loads(printed("eval", str(folder), "--task", "rerank", "--files", "candidates.jsonl", "--json"))
    rank = int((first[1:] >= first[0]).sum()) + 1
    assert result["metrics"]["ndcg_at_10"] == pytest.approx(1 / np.log2(rank + 1))

    Path("corpus.jsonl").write_text("".join(f"{json.dumps({'_id': text[:3], 'text': text})}\n" for text in DOCUMENTS[:2]))
    printed("embed", str(bare), "--files", "corpus.jsonl", "--index", "index")
    search = ("search", "index", QUERIES[0], "--model", str(bare), "--k", "2", "--rerank-k", "2", "--rerank", str(folder))
    rows = [json.loads(line) for line in printed(*search, "--json").splitlines()]
    np.testing.assert_allclose([row["score"] for row in rows], np.sort(first[:2])[::-1], rtol=1e-5)

    printed("import", str(folder), "--out", "models", "--name", "imported")
    assert difference(token_vectors(Path("models/imported")), own) == 0
    group = late_interaction_options(str(folder))
    assert (group.dimensions, group.query_length, group.query_prompt, group.document_prompt) == (SIZE, 12, "whale", "ship")
    np.testing.assert_array_equal(read_projection(str(folder)), KERNEL.T)
    texts = [" ".join(encoders.TEXT.split()[start : start + 6]) for start in range(16)]
    pairs = [{"query": text[:9], "positive": text} for text in texts]
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    train = f"train embed-late-interaction --init {folder} --data.paths pairs.jsonl --steps 1 --name run --data.batch 8 "
    train += "--data.length 20 --optim.lr 1e-9 --log.validate-every 0 --labelled.truncate"
    printed(*train.split())
    assert difference(token_vectors(Path("runs/run")), own) < 1e-4


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "similarity": ({"similarity": "l2"}, 'artifact.metadata: similarity is "l2"; this is not supported, only cosine'),
    "interaction": ({"interaction": "flipr"}, 'artifact.metadata: interaction is "flipr"; this is not supported, only colbert'),
    "marker": ({"query_token_id": "[unused0]"}, 'query_token_id is "[unused0]"; the tokenizer has no entry "[unused0]"'),
    "text": ({"doc_token_id": 2}, "doc_token_id is 2; the tokenizer has no entry 2"),
    "empty": ({"doc_token_id": ""}, 'doc_token_id is ""; the tokenizer has no entry ""'),
    "attention": ({"attend_to_mask_tokens": "yes"}, 'attend_to_mask_tokens is "yes"; it must be true or false'),
    "length": ({"doc_maxlen": 0}, "doc_maxlen is 0; it must be a whole number of at least 1"),
    "dimensions": ({"dim": 8}, "linear.weight is [6, 32], and artifact.metadata says dim 8; use the files of one model"),
}


@pytest.mark.planted
@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_supported_is_refused_by_name(folder: Path, name: str) -> None:
    changes, message = WRONG[name]
    assert read_modules(folder) is not None
    write(folder / "artifact.metadata", METADATA | changes)
    with pytest.raises(BadInput, match=re.escape(message)):
        read_modules(folder)


@pytest.mark.planted(4)
def test_folders_of_other_files_are_refused(bare: Path, folder: Path, tmp_path: Path) -> None:
    transposed = original(bare, tmp_path / "transposed", KERNEL.T, dim=SIZE)
    without, damaged = (
        original(bare, tmp_path / name, kernel) for name, kernel in (("without", KERNEL), ("damaged", KERNEL * np.inf))
    )
    tensors = load_file(without / "model.safetensors")
    del tensors["linear.weight"]
    save_file(tensors, without / "model.safetensors")
    (folder / "artifact.metadata").unlink()
    for wrong, message in (
        (folder, "artifact.metadata: no such file, and config.json names the architecture HF_ColBERT; copy that file"),
        (transposed, "transposed: linear.weight is [32, 6], and artifact.metadata says dim 6"),
        (without, "without: linear.weight is missing, and artifact.metadata says dim 6"),
        (damaged, "damaged: linear.weight is not finite"),
    ):
        with pytest.raises(BadInput, match=re.escape(message)):
            token_vectors(wrong)
