"""Folders of sentence-transformers: vectors equal numpy's from the hidden states, and files are written as they are read."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import special

from eval.inference.encoder_runner import Encoder
from eval.inference.text_vectors import embed_texts, modules_of
from tests.support import encoders
from tests.support.commands import call
from train.run.run_dir import RunDir
from train.store import run_layout
from train.weights.load import load_model
from zoo.embedding_modules import DenseLayer, EmbeddingModules, read_modules, write_modules
from zoo.errors import BadInput

TEXTS = ("The old men of the ship.", "Paris is the capital of France, the whale", "whale")
WIDTH = 32
ACTIVATIONS = {
    "linear.Identity": lambda x: x,
    "activation.Tanh": np.tanh,
    "activation.ReLU": lambda x: np.where(x > 0, x, 0),
    "activation.GELU": lambda x: x * (1 + special.erf(x / 2**0.5)) / 2,
    "activation.SiLU": lambda x: x / (1 + np.exp(-x)),
    "activation.Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}
POOLS = {
    "pooling_mode_mean_tokens": lambda h: h.mean(0),
    "pooling_mode_cls_token": lambda h: h[0],
    "pooling_mode_max_tokens": lambda h: h.max(0),
    "pooling_mode_mean_sqrt_len_tokens": lambda h: h.sum(0) / len(h) ** 0.5,
    "pooling_mode_weightedmean_tokens": lambda h: np.average(h, 0, np.arange(1, len(h) + 1)),
    "pooling_mode_lasttoken": lambda h: h[-1],
    "mean": lambda h: h.mean(0),
    "weightedmean": lambda h: np.average(h, 0, np.arange(1, len(h) + 1)),
}


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def add_modules(folder: Path, pool: str, activations: tuple[str, ...] = (), normalize: bool = False) -> list[dict[str, Any]]:
    """Write the files of modules as the library does, and return the arrays of the dense layers."""
    kinds = ["Transformer", "Pooling", *("Dense" for _ in activations), *(["Normalize"] if normalize else [])]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], 1))]
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write(folder / "modules.json", rows)
    flags = {key: key == pool for key in POOLS if key.startswith("pooling_mode_")}
    write(
        folder / "1_Pooling/config.json",
        {"word_embedding_dimension": WIDTH, **(flags if pool in flags else {"pooling_mode": pool})},
    )
    rng, size, layers = np.random.default_rng(0), WIDTH, []
    for path, activation in zip(paths[2:], activations, strict=False):
        out, bias = size - 8, bool(len(layers) % 2 == 0)
        sizes = {"in_features": size, "out_features": out, "bias": bias, "activation_function": f"torch.nn.modules.{activation}"}
        write(folder / path / "config.json", sizes)
        arrays = {"linear.weight": rng.normal(size=(out, size)).astype(np.float32) / size**0.5}
        if bias:
            arrays["linear.bias"] = rng.normal(size=out).astype(np.float32)
        save_file(arrays, folder / path / "model.safetensors")
        layers.append(arrays)
        size = out
    return layers


def expected(folder: Path, pool: str, activations: tuple[str, ...], layers: list[dict[str, Any]], normalize: bool) -> np.ndarray:
    """The vectors, in float64 from the hidden states of each text alone."""
    loaded, vectors = load_model(folder), []
    special_tokens = loaded.tokenizer.special_tokens
    for text in TEXTS:
        ids = [special_tokens.cls, *loaded.tokenizer.encode(text).tolist(), special_tokens.sep]
        x = POOLS[pool](encoders.hidden(loaded, ids).astype(np.float64))
        for activation, arrays in zip(activations, layers, strict=True):
            x = ACTIVATIONS[activation](arrays["linear.weight"].astype(np.float64) @ x + arrays.get("linear.bias", 0))
        vectors.append(x / (np.sqrt((x**2).sum()) if normalize else 1))
    return np.stack(vectors)


def vectors(folder: Path, **options: Any) -> np.ndarray:
    loaded = load_model(folder)
    encoder = Encoder.of(loaded, batch=4, dtype="float32")
    return embed_texts(encoder, encoders.texts(*TEXTS), modules_of(loaded), **options)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoders.folder(tmp_path_factory.mktemp("models") / "bare", "bert")


@pytest.fixture
def folder(bare: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bare, tmp_path / "model"))


CASES = [
    (pool, (activation,), number % 2 == 0)
    for number, (pool, activation) in enumerate(zip(POOLS, [*ACTIVATIONS] * 2, strict=False))
]
CASES += [("pooling_mode_cls_token", ("activation.Tanh", "linear.Identity"), False), ("mean", (), False)]


@pytest.mark.parametrize(("pool", "activations", "normalize"), CASES, ids=str)
def test_vectors_equal_those_of_numpy(folder: Path, pool: str, activations: tuple[str, ...], normalize: bool) -> None:
    layers = add_modules(folder, pool, activations, normalize)
    reference = expected(folder, pool, activations, layers, normalize)
    np.testing.assert_allclose(vectors(folder), reference, rtol=0, atol=1e-5 * np.abs(reference).max())


@pytest.mark.parametrize(
    "family", ["roberta", *(pytest.param(name, marks=pytest.mark.full) for name in ("distilbert", "modernbert"))]
)
def test_vectors_of_other_families_equal_those_of_numpy(family: str, tmp_path: Path) -> None:
    folder = encoders.folder(tmp_path / "model", family)
    layers = add_modules(folder, "mean", ("activation.Tanh",), True)
    reference = expected(folder, "mean", ("activation.Tanh",), layers, True)
    np.testing.assert_allclose(vectors(folder), reference, rtol=0, atol=1e-5)


def test_dimensions_are_cut_before_normalization(folder: Path) -> None:
    layers = add_modules(folder, "mean", ("activation.Tanh",), True)
    cut = expected(folder, "mean", ("activation.Tanh",), layers, False)[:, :5]
    np.testing.assert_allclose(vectors(folder, dimensions=5), cut / np.linalg.norm(cut, axis=1, keepdims=True), rtol=0, atol=1e-5)
    with pytest.raises(BadInput, match=r"--dimensions 25: choose 1 to 24, or 0 for all 24"):
        vectors(folder, dimensions=25)


def test_prompts_come_before_texts_and_are_pooled_unless_the_folder_says_no(folder: Path) -> None:
    add_modules(folder, "mean")
    loaded = load_model(folder)
    special_tokens = loaded.tokenizer.special_tokens
    prompt = loaded.tokenizer.encode("the ship: ").tolist()
    ids = [special_tokens.cls, *loaded.tokenizer.encode("the ship: " + TEXTS[0]).tolist(), special_tokens.sep]
    states = encoders.hidden(loaded, ids)
    np.testing.assert_allclose(vectors(folder, prompt="the ship: ")[0], states.mean(0), rtol=0, atol=1e-5)
    write(folder / "1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False})
    after = states[1 + len(prompt) :].mean(0)
    np.testing.assert_allclose(vectors(folder, prompt="the ship: ")[0], after, rtol=0, atol=1e-5)
    assert np.abs(after - states.mean(0)).max() > 0.01


def test_commands_use_the_modules_and_options_take_precedence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_modules(folder, "pooling_mode_cls_token", (), True)
    write(
        folder / "config_sentence_transformers.json", {"prompts": {"query": "whale ", "none": ""}, "default_prompt_name": "query"}
    )

    def embed(*options: str) -> np.ndarray:
        lines = call(capsys, "embed", str(folder), "--text", TEXTS[0], "--json", *options).stdout.splitlines()
        return np.array(json.loads(lines[0])["embedding"], np.float32)

    modules = EmbeddingModules(pool="cls", normalize=True)
    encoder = Encoder.of(load_model(folder), batch=4, dtype="float32")
    for options, of, prompt in (
        ((), modules, "whale "),
        (("--prompt", "none"), modules, ""),
        (("--prompt-text", "ship "), modules, "ship "),
        (("--no-normalize", "--prompt", "none"), EmbeddingModules(pool="cls"), ""),
        (("--pool", "mean", "--normalize", "--prompt", "none"), EmbeddingModules(normalize=True), ""),
    ):
        np.testing.assert_array_equal(embed(*options), embed_texts(encoder, encoders.texts(TEXTS[0]), of, prompt=prompt)[0])
    said = call(capsys, "embed", str(folder), "--text", "a", "--json", "--prompt", "passage").stderr
    assert "--prompt passage:" in said and "choose one of query, none" in said


def test_a_folder_without_modules_is_a_mean(bare: Path) -> None:
    assert read_modules(bare) is None
    np.testing.assert_allclose(vectors(bare), expected(bare, "mean", (), [], False), rtol=0, atol=1e-5)


def values(modules: EmbeddingModules) -> dict[str, Any]:
    dense = [
        (layer.kernel.tolist(), None if layer.bias is None else layer.bias.tolist(), layer.activation) for layer in modules.dense
    ]
    return {**vars(modules), "dense": dense, "prompts": dict(modules.prompts)}


def test_import_and_export_keep_the_modules(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_modules(folder, "weightedmean", ("activation.Tanh", "activation.GELU"), True)
    prompts = {"prompts": {"query": "q: "}, "default_prompt_name": "query", "similarity_fn_name": "dot"}
    write(folder / "config_sentence_transformers.json", prompts)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    assert call(capsys, "import", str(folder), "--out", str(tmp_path), "--name", "imported").code == 0
    assert call(capsys, "export", str(tmp_path / "imported"), str(tmp_path / "exported")).code == 0
    modules = read_modules(folder)
    assert modules is not None
    assert (modules.longest, modules.lowercase, modules.similarity, modules.default_prompt) == (20, True, "dot", "query")
    for name in ("imported", "exported"):
        assert (read := read_modules(tmp_path / name)) is not None and values(read) == values(modules)
        np.testing.assert_array_equal(vectors(tmp_path / name), vectors(folder))


@pytest.mark.full
def test_a_run_that_begins_with_a_folder_keeps_its_modules(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_modules(folder, "weightedmean", ("activation.Tanh",), True)
    (tmp_path / "book.txt").write_text(encoders.TEXT * 40)
    options = ("--steps", "1", "--data.batch", "8", "--data.length", "32", "--log.samples", "0", "--out", str(tmp_path))
    data = (
        "--data.paths",
        str(tmp_path / "book.txt"),
        "--data.rows",
        "full_sentences",
        "--model.task",
        "masked",
        "--name",
        "run",
    )
    sizes = {"vocab": 96, "layers": 2, "width": WIDTH, "heads": 4, "ffn": 64, "context": encoders.POSITIONS}
    model = (part for name, number in sizes.items() for part in (f"--model.{name}", str(number)))
    ended = call(capsys, "train", "bert-nano", "--init", str(folder), *model, *data, *options)
    assert ended.code == 0, ended.stderr
    assert call(capsys, "export", str(tmp_path / "run"), str(tmp_path / "exported")).code == 0
    assert (modules := read_modules(folder)) is not None
    for name in ("run/embedding", "exported"):
        assert (read := read_modules(tmp_path / name)) is not None and values(read) == values(modules)
    np.testing.assert_array_equal(vectors(tmp_path / "run"), vectors(tmp_path / "exported"))


@pytest.mark.parametrize("pool", ["mean", "cls", "last", "max", "weighted_mean", "mean_sqrt"])
def test_every_pooling_is_written_as_it_is_read(pool: Any, tmp_path: Path) -> None:
    write_modules(tmp_path, modules := EmbeddingModules(pool=pool, include_prompt=pool == "cls"), WIDTH)
    assert (read := read_modules(tmp_path)) is not None and values(read) == values(modules)


WRONG: dict[str, tuple[str, Any, str]] = {
    "module": (
        "modules.json",
        [{"type": "sentence_transformers.models.LSTM", "path": "1"}],
        "module sentence_transformers.models.LSTM",
    ),
    "own code": ("modules.json", [{"type": "custom.Pooling", "path": "1"}], "the module custom.Pooling is not supported"),
    "order": (
        "modules.json",
        [{"type": "sentence_transformers.models.Pooling", "path": "1"}],
        "the modules Pooling are not supported",
    ),
    "path": ("modules.json", [{"type": "sentence_transformers.models.Pooling", "path": "../1"}], 'the path "../1" of Pooling'),
    "parent": ("modules.json", [{"type": "sentence_transformers.models.Pooling", "path": ".."}], 'the path ".." of Pooling'),
    "list": ("modules.json", {"type": "x"}, "not a list of modules"),
    "two flags": (
        "1_Pooling/config.json",
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        "pooling_mode_mean_tokens is true; several at once are not supported",
    ),
    "two modes": ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "several at once are not supported"),
    "mode": ("1_Pooling/config.json", {"pooling_mode": "median"}, 'pooling_mode is "median"; this is not supported'),
    "flag": (
        "1_Pooling/config.json",
        {"pooling_mode_median": True},
        "pooling_mode_median is true; this pooling is not supported",
    ),
    "prompt": ("1_Pooling/config.json", {"pooling_mode": "cls", "include_prompt": False}, "include_prompt is false"),
    "activation": (
        "2_Dense/config.json",
        {"in_features": 32, "out_features": 24, "activation_function": "torch.nn.modules.activation.Mish"},
        'activation_function is "torch.nn.modules.activation.Mish"; this is not supported, only',
    ),
    "sizes": ("2_Dense/config.json", {"in_features": 31, "out_features": 24}, "the tensors are"),
    "default": ("config_sentence_transformers.json", {"default_prompt_name": "query"}, 'default_prompt_name is "query"'),
    "similarity": ("config_sentence_transformers.json", {"similarity_fn_name": "jaccard"}, 'similarity_fn_name is "jaccard"'),
    "sparse": ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, 'model_type is "SparseEncoder"'),
    "longest": ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length is 0"),
}


@pytest.mark.planted(len(WRONG))
@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_supported_is_refused_by_name(folder: Path, name: str) -> None:
    add_modules(folder, "mean", ("activation.Tanh",))
    file, content, message = WRONG[name]
    assert read_modules(folder) is not None
    write(folder / file, content)
    with pytest.raises(BadInput, match=re.escape(message)):
        read_modules(folder)


def test_a_run_trains_the_vectors_that_its_folder_describes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    add_modules(folder, "pooling_mode_cls_token", (), True)
    write(folder / "config_sentence_transformers.json", {"prompts": {"query": "whale "}})
    rows = [{"query": f"ship {number}", "positive": f"whale {number}"} for number in range(24)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["train", "embed-contrastive", "--init", str(folder), "--data.paths", "pairs.jsonl", "--steps", "2"]
    command += ["--data.batch", "8", "--data.length", "16", "--log.validate-every", "0"]
    assert (done := call(capsys, *command, "--name", "vectors")).code == 0, done
    modules = read_modules(Path("runs/vectors/embedding"))
    assert modules is not None and (modules.pool, modules.normalize, modules.longest) == ("cls", True, 16)
    assert (dict(modules.prompts), modules.similarity) == ({"query": "whale "}, "cosine")
    np.testing.assert_allclose(np.linalg.norm(vectors(Path("runs/vectors")), axis=1), 1, rtol=1e-5)
    assert call(capsys, "export", "runs/vectors", "published").code == 0
    assert (read := read_modules(Path("published"))) is not None and values(read) == values(modules)
    # The options of a run take precedence.
    changes = ("--contrastive.pool", "mean", "--contrastive.no-normalize", "--contrastive.query-prompt", "")
    assert call(capsys, *command, "--name", "dot", *changes).code == 0
    modules = read_modules(Path("runs/dot/embedding"))
    assert modules is not None and (modules.pool, modules.normalize, dict(modules.prompts)) == ("mean", False, {})
    assert modules.similarity == "dot"
    add_modules(folder, "mean", ("activation.Tanh",))
    refused = call(capsys, *command, "--name", "dense")
    assert refused.code == 2 and "its vectors have dense layers, which are not trained; remove them from" in refused.stderr


@pytest.mark.planted(3)
def test_the_files_of_a_run_are_fetched_from_a_store(tmp_path: Path) -> None:
    modules = EmbeddingModules(dense=(DenseLayer(np.ones((3, WIDTH), np.float32), None),), normalize=True)
    write_modules(RunDir(tmp_path).embedding, modules, WIDTH)
    keys = run_layout.run_files(RunDir(tmp_path))
    assert len(keys) == 6 and all(run_layout.is_of_run(key) for key in keys)
    for key in ("embedding/../config.json", "embedding/1_Pooling/run.py", "embedding/.hidden.json"):
        assert not run_layout.is_of_run(key)
