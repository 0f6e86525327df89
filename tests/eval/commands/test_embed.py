"""Vectors of texts depend on the text alone, and every file format holds the same ones."""

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from eval.inference import encoder_runner
from eval.inference.encoder_inputs import Texts
from eval.inference.encoder_runner import Encoder
from eval.inference.likelihood import row_length
from eval.inference.text_vectors import embed_texts
from tests.support import encoders
from tests.support.commands import assert_refused, call
from zoo.configs._pooling import Pool
from zoo.embedding_modules import EmbeddingModules
from zoo.errors import BadInput

TEXTS = (
    "The old men of the ship.",
    "Paris is the capital of France, the whale",
    "A white whale sleeps by the ship",
    "The capital of France is Paris.",
)
"""Of different lengths, but rounded up to one."""


@functools.cache
def vectors(family: str = "bert", pool: Pool = "mean", batch: int = 4, normalize: bool = False, **which: Any) -> np.ndarray:
    modules = EmbeddingModules(pool=pool, normalize=normalize)
    return embed_texts(encoders.encoder(family, batch, **which), encoders.texts(*TEXTS), modules)


@functools.cache
def states(family: str, number: int) -> np.ndarray:
    """Return the hidden states, float64 [T, D], of a text alone, between its special tokens and without padding."""
    made = encoders.loaded(family)
    ids = made.tokenizer.encode(TEXTS[number]).tolist()
    return encoders.hidden(made, [made.tokenizer.special_tokens.cls, *ids, made.tokenizer.special_tokens.sep]).astype(np.float64)


def bound(expected: np.ndarray) -> dict[str, float]:
    """Sums of some dozens of float32 products, twice over: rounding stays far below a hundred-thousandth of the largest."""
    return {"rtol": 0, "atol": 1e-5 * float(np.abs(expected).max())}


@pytest.mark.planted(2)
@pytest.mark.parametrize("family", ["bert", pytest.param("roberta", marks=pytest.mark.full)])
def test_vector_is_the_mean_over_the_real_tokens_or_the_first_of_the_text_alone(family: str) -> None:
    for number in (1, 0):
        alone = states(family, number)
        np.testing.assert_allclose(vectors(family)[number], alone.mean(0), **bound(alone))
        np.testing.assert_allclose(vectors(family, "cls")[number], alone[0], **bound(alone))
    assert vectors(family).dtype == np.float32 and vectors(family).shape == (4, 32)
    # A mean over padding too, or over the text without its special tokens, would be another vector.
    row = row_length(len(alone), encoders.POSITIONS)
    padded = alone.sum(0) / row
    assert len(alone) < row and np.abs(padded - alone.mean(0)).max() > 0.01
    assert np.abs(alone[1:-1].mean(0) - alone.mean(0)).max() > 0.01


@pytest.mark.full
@pytest.mark.parametrize("options", [{"batch": 1}, {"shape": (2, 2, 2)}, {"normalize": True}], ids=str)
def test_batch_and_mesh_do_not_change_a_vector_and_normalization_gives_it_length_1(options: dict[str, Any]) -> None:
    length = np.linalg.norm(vectors(), axis=1, keepdims=True) if "normalize" in options else 1
    np.testing.assert_allclose(vectors(**options), vectors() / length, **bound(vectors() / length))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(encoders.folder(tmp_path_factory.mktemp("models") / "body", "distilbert", "body"))


def test_every_format_holds_the_same_vectors(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{text}\n\n" for text in TEXTS))
    for name in ("v.npy", "v.safetensors", "v.jsonl"):
        ended = call(capsys, "embed", model, "--files", str(lines), "--out", str(tmp_path / name))
        assert (ended.code, ended.stdout, ended.stderr) == (0, f"{tmp_path / name}: 4 x 32 float32\n", "")
    array = np.load(tmp_path / "v.npy")
    assert array.dtype == np.float32
    np.testing.assert_array_equal(load_file(tmp_path / "v.safetensors")["embeddings"], array)
    objects = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [each["text"] for each in objects] == list(TEXTS)
    np.testing.assert_array_equal(np.array([each["embedding"] for each in objects], np.float32), array)
    assert call(capsys, "embed", model, "--text", *TEXTS, "--json").stdout == (tmp_path / "v.jsonl").read_text()
    unit = array / np.linalg.norm(array, axis=1, keepdims=True)
    shown = call(capsys, "embed", model, "--text", *TEXTS).stdout.splitlines()[-4:]
    # Three digits after the point are shown.
    np.testing.assert_allclose([[float(value) for value in line.split()[1:]] for line in shown], unit @ unit.T, atol=6e-4)


def test_standard_input_is_read_one_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("one\n\n two\n")
    before = os.dup(0)
    try:
        with (tmp_path / "in").open() as file:
            os.dup2(file.fileno(), 0)
        result = encoder_runner.read_texts(Texts(files=("-",)))
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert [tuple(each) for each in result] == [("/dev/stdin:1", "one"), ("/dev/stdin:3", " two")]


WRONG = [
    (("--text", "whale", "--out", "a.txt"), "--out a.txt: name a file"),
    (("--text", "whale", "--out", "gone/a.npy"), "--out gone/a.npy: its folder does not exist"),
    (("--text", "whale", "--out", "a.npy", "--json"), "--json: it prints the vectors, and --out writes them to a.npy"),
    (("--text", "whale"), "--out: a single text cannot be compared"),
    (("--text", *"abcdefghijklm"), "--out: a table of 13 texts is too wide (at most 11)"),
    (("--text", "whale", "--batch", "0", "--json"), "--batch 0: choose 1 or more"),
    (("--text", "whale", "--json", "--dimensions", "-1"), "--dimensions -1: choose 0 (all)"),
    (("--text", "whale", "--json", "--dimensions", "33"), "--dimensions 33: choose 1 to 32"),
    (("--text", "whale", "--json", "--prompt", "a"), "--prompt a:"),
    (("--text", "whale", "--json", "--prompt", "a", "--prompt-text", "b"), "--prompt a: there is --prompt-text too"),
    (("--files", "a.txt"), "a.txt:3: 41 tokens with special tokens, and this model reads at most 40"),
]


def test_wrong_options_and_texts_are_refused_in_one_line(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(f"whale\n\n{'whale ' * 39}\n")
    assert_refused(capsys, tmp_path, {said: (("embed", model, *options), re.escape(said)) for options, said in WRONG})


def test_a_tokenizer_without_special_tokens_is_refused() -> None:
    without_special_tokens = encoders.with_tokenizer(encoders.loaded("bert"), encoders.gpt().tokenizer)
    with pytest.raises(BadInput, match=r"its tokenizer has no \[CLS\]"):
        Encoder.of(without_special_tokens, batch=1, dtype="float32")


@pytest.mark.planted
def test_vector_that_is_not_finite_is_refused_with_its_text() -> None:
    with pytest.raises(BadInput, match="text 2: the hidden states are not finite; the weights are damaged"):
        embed_texts(encoders.broken("bert", "Paris"), encoders.texts(*TEXTS[:2], TEXTS[0], TEXTS[0]), EmbeddingModules())


@pytest.mark.planted
def test_texts_are_batched_by_length_with_little_padding_and_come_back_in_order() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(["whale"] * n) for n in rng.integers(1, 30, 40)]
    runner = encoders.encoder("bert", 2)
    lengths = [len(runner.with_special_tokens(runner.loaded.tokenizer.encode(text), "a")) for text in texts]
    rows = [encoder_runner.EncoderRow(number, "a", np.zeros(length, np.int32)) for number, length in enumerate(lengths)]
    groups = list(runner._sorted_groups(rows))
    assert sorted(row.number for _, group, _ in groups for row in group) == list(range(40))
    assert all(length * size <= 2 * encoders.POSITIONS for length, _, size in groups)
    padded = sum(length * size for length, _, size in groups)
    assert sum(lengths) < padded < 1.3 * sum(lengths) and padded < sum(length * size for length, _, size in runner._groups(rows))
    together = embed_texts(runner, encoders.texts(*texts), EmbeddingModules())
    alone = np.concatenate([embed_texts(runner, encoders.texts(text), EmbeddingModules()) for text in texts[:6]])
    np.testing.assert_allclose(together[:6], alone, **bound(alone))
    assert np.abs(together[:6] - alone[::-1]).max() > 0.01
    np.testing.assert_array_equal(together, embed_texts(runner, encoders.texts(*texts), EmbeddingModules()))
