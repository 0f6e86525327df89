"""Folders of models with a vector for each token: read in both forms, written, trained from, and used to rank."""

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from eval.inference.encoder_inputs import TaskVectors
from eval.inference.encoder_runner import Text
from eval.inference.token_vectors import TokenEmbedder, max_sim_scores
from tests.support import encoders, tiny
from tests.support.commands import assert_refused, call
from train.config.data_options import LabelledData
from train.config.late_interaction_options import LateInteraction
from train.data.example_types import Ranked
from train.engine.token_projection import PROJECTION
from train.inputs.labelled_inputs import rows_of_labels
from train.objectives.late_interaction import LateInteractionObjective
from train.rows.batches import in_order
from train.rows.late_interaction_rows import PUNCTUATION
from train.weights.load import load_model
from zoo.embedding_modules import DenseLayer, EmbeddingModules, read_modules, write_modules
from zoo.errors import BadInput
from zoo.multi_vector_files import MultiVector, read_multi_vector

WIDTH, SIZE = 32, 6
QUERIES = ("the old whale", "Paris, the capital of France")
DOCUMENTS = ("The old men of the ship.", "Paris is the capital of France, the whale", "whale", "the white whale sleeps; the ship")
IDENTITY = "torch.nn.modules.linear.Identity"
KERNEL = np.random.default_rng(0).normal(size=(SIZE, WIDTH)).astype(np.float32)


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def module_rows(types: tuple[str, ...], paths: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {"idx": number, "name": str(number), "path": path, "type": kind}
        for number, (kind, path) in enumerate(zip(types, paths, strict=True))
    ]


def add_pylate(folder: Path, **settings: Any) -> None:
    """Write the files of PyLate beside an encoder."""
    types = ("sentence_transformers.models.Transformer", "pylate.models.Dense.Dense")
    write(folder / "modules.json", module_rows(types, ("", "1_Dense")))
    write(
        folder / "1_Dense/config.json",
        {"in_features": WIDTH, "out_features": SIZE, "bias": False, "activation_function": IDENTITY},
    )
    save_file({"linear.weight": KERNEL}, folder / "1_Dense/model.safetensors")
    own = {"query_prefix": "whale ", "document_prefix": "[D] ", "query_length": 12, "document_length": 20}
    write(folder / "config_sentence_transformers.json", {"model_type": "ColBERT", **own, **settings})


def add_native(folder: Path) -> None:
    """Write the files of sentence-transformers 6 beside an encoder; the settings are those of `add_pylate` without markers."""
    add_pylate(folder)
    base = "sentence_transformers.base.modules"
    mask = "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"
    types = (f"{base}.transformer.Transformer", f"{base}.dense.Dense", mask, f"{base}.normalize.Normalize")
    paths = ("", "1_Dense", "2_MultiVectorMask", "3_Normalize")
    write(folder / "modules.json", module_rows(types, paths))
    sizes = {"in_features": WIDTH, "out_features": SIZE, "bias": False, "activation_function": IDENTITY}
    write(folder / "1_Dense/config.json", sizes | dict.fromkeys(("module_input_name", "module_output_name"), "token_embeddings"))
    expansion = {"strategy": "fixed", "attend": False, "token": None, "length": 12}
    write(folder / "sentence_bert_config.json", {"document_length": 20, "query_expansion": expansion})
    prompts = {"query": "whale ", "document": "[D] "}
    write(folder / "config_sentence_transformers.json", {"model_type": "MultiVectorEncoder", "prompts": prompts})
    mask_config = {"skiplist_words": list(PUNCTUATION), "skiplist_tasks": ["document"], "keep_only_token_ids": None}
    write(folder / "2_MultiVectorMask/config.json", mask_config)
    write(folder / "3_Normalize/config.json", {"module_input_name": "token_embeddings"})


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoders.folder(tmp_path_factory.mktemp("models") / "bare", "bert")


@pytest.fixture
def folder(bare: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bare, tmp_path / "model"))


def token_vectors(folder: Path, truncate: bool = False) -> tuple[Any, Any]:
    embedder = TokenEmbedder.of(load_model(folder), TaskVectors(), batch=4, dtype="float32", truncate=truncate)
    texts = ([Text("t", text) for text in side] for side in (QUERIES, DOCUMENTS))
    return embedder.vectors(next(texts), "query"), embedder.vectors(next(texts), "document")


@pytest.mark.parametrize("attend", [False, True])
@pytest.mark.parametrize("family", ["bert", "modernbert", "xlnet"])
def test_vectors_are_those_of_training(family: str, attend: bool) -> None:
    """The rows of training and of tasks have the same special tokens, types, expansion and visible tokens."""
    loaded = encoders.loaded(family, "body")
    group = LateInteraction(dimensions=SIZE, query_length=30, attend_to_expansion_tokens=attend, query_prompt="whale ")
    run = tiny.run("late_interaction", model=loaded.model.config, data=LabelledData(length=40), late_interaction=group)
    examples = [Ranked(origin="f:1", query=query, positive=text) for query, text in zip(QUERIES, DOCUMENTS, strict=False)]
    rows = rows_of_labels(examples, run, loaded.tokenizer)
    build = LateInteractionObjective.builder(run, loaded.tokenizer, lambda: np.zeros(0, np.int64))
    (batch,) = in_order(rows, build, 2, np.arange(2))
    params = loaded.params | {PROJECTION: {"kernel": jnp.asarray(KERNEL.T)}}
    trained = np.asarray(LateInteractionObjective(group).vectors(loaded.model, params, jax.tree.map(jnp.asarray, batch)))

    settings = MultiVector(query_length=30, document_length=40, attend_to_expansion_tokens=attend)
    modules = EmbeddingModules(dense=(DenseLayer(KERNEL, None, "identity"),), prompts={"query": "whale "}, multi_vector=settings)
    embedder = TokenEmbedder(encoders.encoder(family, task="body"), modules, settings, TaskVectors(), False)
    queries = embedder.vectors([Text("t", text) for text in QUERIES], "query")
    documents = embedder.vectors([Text("t", text) for text in DOCUMENTS[:2]], "document")
    compared = batch.extra["compared"]  # pyright: ignore[reportOptionalSubscript]
    for number, own in enumerate(trained):
        np.testing.assert_allclose(queries[number], own[:30], atol=1e-5)
        np.testing.assert_allclose(documents[number], own[30:][compared[number, 1] > 0], atol=1e-5)


def scores(folder: Path) -> np.ndarray:
    return max_sim_scores(*token_vectors(folder))


def reference(folder: Path, *, attend: bool) -> np.ndarray:
    """MaxSim in float64 from the hidden states of each text alone, if the mask tokens are seen or there are none."""
    loaded, expand = load_model(folder), attend
    special, entries = loaded.tokenizer.special_tokens, loaded.tokenizer.ids()
    assert special is not None

    def unit(ids: list[int]) -> np.ndarray:
        vectors = encoders.hidden(loaded, ids).astype(np.float64) @ KERNEL.T.astype(np.float64)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    queries, documents = [], []
    for text in QUERIES:
        ids = [special.cls, entries["whale"], *loaded.tokenizer.encode(text).tolist(), special.sep]
        queries.append(unit(ids + [special.mask] * (12 - len(ids)) * expand))
    for text in DOCUMENTS:
        ids = [special.cls, *loaded.tokenizer.encode(f"[D] {text}").tolist(), special.sep]
        documents.append(unit(ids)[[loaded.tokenizer.entries([number])[0] not in PUNCTUATION for number in ids]])
    return np.array([[(query @ document.T).max(1).sum() for document in documents] for query in queries])


@pytest.mark.parametrize("attend", [True, False])
def test_scores_of_a_folder_equal_those_of_numpy(folder: Path, attend: bool) -> None:
    add_pylate(folder, attend_to_expansion_tokens=attend, do_query_expansion=attend)
    np.testing.assert_allclose(scores(folder), reference(folder, attend=attend), rtol=1e-5)


@pytest.mark.planted(3)
def test_every_setting_changes_the_scores(folder: Path) -> None:
    add_pylate(folder)
    for options in (TaskVectors(pool="mean"), TaskVectors(dimensions=3)):
        with pytest.raises(BadInput, match=r"--vectors\.(pool mean: .* has a vector for each token|dimensions 3: all 6 dim)"):
            TokenEmbedder.of(load_model(folder), options, batch=4, dtype="float32")
    first = scores(folder)
    for changes in ({"attend_to_expansion_tokens": True}, {"skiplist_words": []}, {"query_prefix": ""}):
        add_pylate(folder, **changes)
        assert np.abs(scores(folder) - first).max() > 1e-4


def test_padding_and_blocks_do_not_change_scores(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    add_pylate(folder)
    queries, documents = token_vectors(folder)
    assert len({len(tokens) for tokens in documents}) > 2
    whole = max_sim_scores(queries, documents)
    pairs = [[max_sim_scores([query], [document])[0, 0] for document in documents] for query in queries]
    np.testing.assert_allclose(whole, pairs, rtol=1e-6)
    monkeypatch.setattr("eval.inference.token_vectors.DOCUMENTS", 2)
    monkeypatch.setattr("eval.inference.token_vectors.QUERIES", 1)
    np.testing.assert_allclose(max_sim_scores(queries, documents), whole, rtol=1e-6)


def values(modules: EmbeddingModules) -> dict[str, Any]:
    return {**vars(modules), "dense": [layer.kernel.tolist() for layer in modules.dense], "prompts": dict(modules.prompts)}


def test_both_forms_are_read_and_written_as_they_are_used(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_native(folder)
    settings = read_multi_vector(folder)
    assert settings == MultiVector(query_length=12, document_length=20, has_markers=False)
    native = scores(folder)
    add_pylate(folder)
    assert read_multi_vector(folder) == MultiVector(query_length=12, document_length=20)
    assert call(capsys, "import", str(folder), "--out", str(tmp_path), "--name", "imported").code == 0
    assert (read := read_modules(tmp_path / "imported")) is not None and (own := read_modules(folder)) is not None
    assert values(read) == values(own) and dict(read.prompts) == {"query": "whale ", "document": "[D] "}
    np.testing.assert_array_equal(scores(tmp_path / "imported"), scores(folder))
    # The marker of the query is the token that the text of the prompt has too; that of documents is text in both.
    np.testing.assert_allclose(native, scores(folder), rtol=1e-5)
    defaults = EmbeddingModules(normalize=True, dense=(DenseLayer(KERNEL, None, "identity"),), multi_vector=MultiVector())
    write_modules(tmp_path / "defaults", defaults, WIDTH)
    assert (read := read_modules(tmp_path / "defaults")) is not None and values(read) == values(defaults)


WRONG: dict[str, tuple[str, Any, str]] = {
    "pooling": (
        "modules.json",
        [
            {"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "1"},
        ],
        "the module sentence_transformers.models.Pooling is not supported, only Transformer, Dense, MultiVectorMask, Normalize",
    ),
    "token pooling": (
        "modules.json",
        [{"type": "a.HierarchicalTokenPooling", "path": "1"}],
        "the module a.HierarchicalTokenPooling",
    ),
    "mask": (
        "modules.json",
        [{"type": "sentence_transformers.models.Transformer", "path": ""}],
        "a MultiVectorEncoder without MultiVectorMask or Normalize is not supported",
    ),
    "residual": (
        "1_Dense/config.json",
        {"in_features": WIDTH, "out_features": SIZE, "use_residual": True},
        "use_residual is true; layers with a residual connection are not supported",
    ),
    "input": (
        "1_Dense/config.json",
        {"in_features": WIDTH, "out_features": SIZE, "module_input_name": "sentence_embedding"},
        'module_input_name is "sentence_embedding"; a layer on something else is not supported, only token_embeddings',
    ),
    "expansion": ("sentence_bert_config.json", {"query_expansion": {"strategy": "min", "length": 8}}, "query_expansion is"),
    "sides": (
        "2_MultiVectorMask/config.json",
        {"skiplist_tasks": ["query"]},
        'skiplist_tasks is ["query"]; this is not supported',
    ),
    "ids": ("2_MultiVectorMask/config.json", {"keep_only_token_ids": [3]}, "keep_only_token_ids is [3]; this is not supported"),
    "words": ("2_MultiVectorMask/config.json", {"skiplist_words": "."}, "skiplist_words is"),
    "similarity": (
        "config_sentence_transformers.json",
        {"model_type": "MultiVectorEncoder", "similarity_fn_name": "meanmaxsim"},
        'similarity_fn_name is "meanmaxsim"; this is not supported for vectors of tokens, only maxsim',
    ),
}


@pytest.mark.planted
@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_supported_is_refused_by_name(folder: Path, name: str) -> None:
    add_native(folder)
    file, content, message = WRONG[name]
    assert read_modules(folder) is not None
    write(folder / file, content)
    with pytest.raises(BadInput, match=re.escape(message)):
        read_modules(folder)


def collection(folder: Path) -> None:
    """Write pairs, candidates, and a folder of BEIR with a document for each query."""
    rng, words = np.random.default_rng(0), encoders.TEXT.split()[:20]
    texts = [" ".join(rng.permutation(words)[:6]) for _ in range(24)]
    lines = {
        "pairs.jsonl": [{"query": " ".join(text.split()[:2]), "positive": text} for text in texts],
        "candidates.jsonl": [{"query": texts[0][:9], "positive": [texts[0]], "negative": texts[1:4]}],
        "beir/corpus.jsonl": [{"_id": f"d{number:02}", "text": text} for number, text in enumerate(texts)],
        "beir/queries.jsonl": [{"_id": f"q{number}", "text": text[:9]} for number, text in enumerate(texts[:3])],
    }
    (folder / "beir/qrels").mkdir(parents=True)
    (folder / "beir/qrels/test.tsv").write_text("q0 0 d00 1\nq1 0 d01 1\nq2 0 d02 1\n")
    for name, rows in lines.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_trains_the_projection_of_its_folder_and_exports_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    collection(tmp_path)
    add_pylate(folder)
    command = ["train", "embed-late-interaction", "--init", str(folder), "--data.paths", "pairs.jsonl", "--steps", "2"]
    command += ["--data.batch", "8", "--data.length", "16", "--labelled.truncate"]
    assert (done := call(capsys, *command, "--name", "tokens", "--log.validate-every", "0")).code == 0, done
    assert call(capsys, "export", "runs/tokens", "published").code == 0
    modules = read_modules(Path("published"))
    assert modules is not None and modules.multi_vector == MultiVector(query_length=12, document_length=16)
    assert dict(modules.prompts) == {"query": "whale ", "document": "[D] "}
    assert 0 < np.abs(modules.dense[0].kernel - KERNEL).max() < 1e-3
    np.testing.assert_array_equal(scores(Path("published")), scores(Path("runs/tokens")))

    imported = call(capsys, "import", "published", "--out", "copies")
    assert imported.code == 0 and "zoo embed" not in imported.stdout
    assert call(capsys, *command, "--name", "adapted", "--lora.rank", "2", "--log.validate-every", "0").code == 0
    run = {"projection": (("export", "runs/adapted", "adapter", "--adapter"), "--adapter True: runs/adapted has a projection")}
    assert_refused(capsys, tmp_path, run)


def test_tasks_and_searches_rank_by_the_scores(
    bare: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    collection(tmp_path)
    add_pylate(folder)
    corpus = [json.loads(line)["text"] for line in Path("beir/corpus.jsonl").read_text().splitlines()]
    embedder = TokenEmbedder.of(load_model(folder), TaskVectors(), batch=4, dtype="float32", truncate=True)

    def ranks_of(queries: list[str], documents: list[str]) -> list[int]:
        """The ranks of the document of each query, which has its number."""
        sides = (
            embedder.vectors([Text("", text) for text in side], "document" if n else "query")
            for n, side in enumerate((queries, documents))
        )
        table = max_sim_scores(next(sides), next(sides))
        return [int((row > row[number]).sum()) + 1 for number, row in enumerate(table)]

    def printed(*argv: str) -> str:
        ended = call(capsys, *argv)
        assert ended.code == 0, ended
        return ended.stdout

    for task, files, ranks in (
        ("retrieval", "beir", ranks_of([text[:9] for text in corpus[:3]], corpus)),
        ("rerank", "candidates.jsonl", ranks_of([corpus[0][:9]], corpus[:4])),
    ):
        metrics = json.loads(printed("eval", str(folder), "--task", task, "--files", files, "--json"))["metrics"]
        expected = np.mean([1 / np.log2(rank + 1) if rank <= 10 else 0 for rank in ranks])
        assert metrics["ndcg_at_10"] == pytest.approx(expected)
    printed("embed", str(bare), "--files", "beir/corpus.jsonl", "--index", "index")
    search = ("search", "index", "the old whale", "--model", str(bare), "--json")
    first = [json.loads(line) for line in printed(*search, "--k", "6").splitlines()]
    second = [json.loads(line) for line in printed(*search, "--k", "3", "--rerank", str(folder), "--rerank-k", "6").splitlines()]
    texts = [Text("", "the old whale")], [Text("", row["text"]) for row in first]
    (own,) = max_sim_scores(embedder.vectors(texts[0], "query"), embedder.vectors(texts[1], "document"))
    order = np.argsort(-own, kind="stable")[:3]
    assert [(row["id"], row["rank"]) for row in second] == [(first[at]["id"], rank) for rank, at in enumerate(order.tolist(), 1)]
    np.testing.assert_allclose([row["score"] for row in second], own[order], rtol=1e-5)


@pytest.mark.planted(10)
def test_wrong_models_and_options_are_refused(
    bare: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    collection(tmp_path)
    add_pylate(folder)
    pooled, words, layerless = (Path(shutil.copytree(bare, tmp_path / name)) for name in ("pooled", "words", "layerless"))
    write_modules(pooled, EmbeddingModules(), WIDTH)
    add_pylate(words, skiplist_words=["whale"])
    add_pylate(layerless)
    write(layerless / "modules.json", module_rows(("sentence_transformers.models.Transformer",), ("",)))
    assert call(capsys, "embed", str(bare), "--files", "beir/corpus.jsonl", "--index", "index").code == 0
    train = ("train", "embed-late-interaction", "--data.paths", "pairs.jsonl", "--steps", "1", "--data.length", "16", "--init")
    search = ("search", "index", "whale " * 11, "--model", str(bare))
    assert_refused(
        capsys,
        tmp_path,
        {
            "pooled": ((*train, str(pooled)), "--init .*pooled: it has a Pooling, one vector for a text"),
            "words": ((*train, str(words)), "--init .*words: its skiplist_words are neither none nor the punctuation"),
            "layer": ((*train, str(layerless)), "--init .*layerless: it has no 1_Dense, the layer that is trained"),
            "size": (
                (*train, str(folder), "--late-interaction.dimensions", "8"),
                "--late-interaction.dimensions 8: the projection of --init .* has 6; choose 6",
            ),
            "query": (
                (*train, str(folder), "--late-interaction.query-length", "17"),
                "--late-interaction.query-length 17: a row has --data.length 16 tokens; choose at most 16",
            ),
            "contrastive": (
                ("train", "embed-contrastive", "--data.paths", "pairs.jsonl", "--init", str(folder)),
                "--init .*model: it has a vector for each token, and this recipe trains one for a text",
            ),
            "embed": (
                ("embed", str(folder), "--text", "a", "--json"),
                ".*model: it has a vector for each token, not one for a text",
            ),
            "kind": ((*search, "--rerank", str(bare)), "--rerank .*bare: it has one vector for a text; name a cross-encoder, or"),
            "long": ((*search, "--rerank", str(folder)), "the query: 14 tokens .* this model reads at most 12"),
            "depth": (
                (*search, "--rerank-k", "5"),
                "--rerank-k 5: --k 10 documents are shown; choose 10 or more|--rerank-k 5: it says",
            ),
        },
    )


@pytest.mark.parity
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "modernbert"])
def test_folders_equal_sentence_transformers(family: str, tmp_path: Path) -> None:
    """In both directions, with and without attention to the expansion."""
    # Installed beside the group `parity`: pip install sentence-transformers==6.2.0
    theirs = importlib.import_module("sentence_transformers").MultiVectorEncoder
    folder = encoders.folder(tmp_path / "model", family)
    for attend in (False, True):
        add_pylate(folder, attend_to_expansion_tokens=attend)
        model = theirs(str(folder), device="cpu")
        own = model.similarity(model.encode_query([*QUERIES]), model.encode_document([*DOCUMENTS])).numpy()
        np.testing.assert_allclose(scores(folder), own, rtol=0, atol=1e-5)
        model.save_pretrained(str(tmp_path / f"saved{attend}"))
        np.testing.assert_allclose(scores(tmp_path / f"saved{attend}"), own, rtol=0, atol=1e-5)
