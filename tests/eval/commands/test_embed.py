"""Vectors of texts: what they are, that nothing but the text matters, and the files they go into."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from eval import embed as command
from eval.embed import Pool, embed, table
from eval.encoding import Encoder, Text
from eval.likelihood import row_length
from tests.support import encoders
from tests.support.commands import call
from tests.support.processes import run_python
from zoo.errors import BadInput

TEXTS = (
    "The old men of the ship.",
    "Paris is the capital of France, the whale",
    "A white whale sleeps by the ship",
    "The capital of France is Paris.",
)
"""Of different lengths, and yet of one shape when they are gathered."""


@functools.cache
def vectors(family: str = "bert", pool: Pool = "mean", batch: int = 4, **which: Any) -> np.ndarray:
    return embed(encoders.encoder(family, batch, **which), encoders.texts(*TEXTS), pool=pool)


@functools.cache
def states(family: str, number: int) -> np.ndarray:
    """float64 [T, D] of a text alone, between its marks, without padding."""
    made = encoders.loaded(family)
    marks = made.tokenizer.marks
    ids = made.tokenizer.encode(TEXTS[number]).tolist()
    return encoders.hidden(made, [marks.cls, *ids, marks.sep]).astype(np.float64)


def bound(wanted: np.ndarray) -> dict[str, float]:
    """Sums of some dozens of float32 products, twice over: rounding stays far below a hundred-thousandth of the largest."""
    return {"rtol": 0, "atol": 1e-5 * float(np.abs(wanted).max())}


@pytest.mark.planted(2)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_vector_is_the_mean_over_the_real_tokens_or_the_first_one_of_the_text_alone(family: str) -> None:
    for number in (1, 0):
        alone = states(family, number)
        np.testing.assert_allclose(vectors(family)[number], alone.mean(0), **bound(alone))
        np.testing.assert_allclose(vectors(family, "cls")[number], alone[0], **bound(alone))
    assert vectors(family).dtype == np.float32 and vectors(family).shape == (4, 32)
    # What a mean over padding too, or over the text without its marks, would give is another vector.
    row = row_length(len(alone), encoders.POSITIONS)
    padded = alone.sum(0) / row
    assert len(alone) < row and np.abs(padded - alone.mean(0)).max() > 0.01
    assert np.abs(alone[1:-1].mean(0) - alone.mean(0)).max() > 0.01


@pytest.mark.parametrize("how", [{"batch": 1}, {"shape": (2, 2, 2)}], ids=["batch", "mesh"])
def test_neither_the_batch_nor_the_mesh_matters(how: dict[str, Any]) -> None:
    np.testing.assert_allclose(vectors(**how), vectors(), **bound(vectors()))


def test_a_normalized_vector_has_length_1() -> None:
    made = embed(encoders.encoder("bert"), encoders.texts(*TEXTS), pool="mean", normalize=True)
    np.testing.assert_allclose(made, vectors() / np.linalg.norm(vectors(), axis=1, keepdims=True), atol=1e-6)


def test_the_cosines_of_a_table() -> None:
    texts = encoders.texts("one\nline", "a very long text " * 9, "three")
    shown = table(texts, np.array([[2, 0], [0, 0], [3, 3]], np.float32), 40).splitlines()
    assert shown[:3] == ["  1  one line", "  2  a very long text a very long text…", "  3  three"]
    assert [line.split() for line in shown[4:]] == [
        ["1", "2", "3"],
        ["1", "1.000", "0.000", "0.707"],
        ["2", "0.000", "0.000", "0.000"],
        ["3", "0.707", "0.000", "1.000"],
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(encoders.folder(tmp_path_factory.mktemp("models") / "body", "distilbert", "body"))


def test_every_file_holds_the_same_vectors(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{text}\n\n" for text in TEXTS))
    for name in ("v.npy", "v.safetensors", "v.jsonl"):
        ended = call(capsys, "embed", model, "--files", str(lines), "--out", str(tmp_path / name))
        assert (ended.code, ended.stdout, ended.stderr) == (0, f"{tmp_path / name}: 4 x 32 float32\n", "")
    found = np.load(tmp_path / "v.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(load_file(tmp_path / "v.safetensors")["embeddings"], found)
    objects = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [each["text"] for each in objects] == list(TEXTS)
    np.testing.assert_array_equal(np.array([each["embedding"] for each in objects], np.float32), found)
    assert call(capsys, "embed", model, "--text", *TEXTS, "--json").stdout == (tmp_path / "v.jsonl").read_text()
    shown = call(capsys, "embed", model, "--text", *TEXTS).stdout
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    rows = [[float(value) for value in line.split()[1:]] for line in shown.splitlines()[6:]]
    np.testing.assert_allclose(rows, unit @ unit.T, atol=6e-4)
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_cannot_be_written_whole_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "v.jsonl"
    file.write_text("before")

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "_line", full)
    with pytest.raises(BadInput, match=r"--out .*v\.jsonl: cannot be written \(No space left on device\)"):
        command._write(file, encoders.texts("a"), np.zeros((1, 2), np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["v.jsonl"] and file.read_text() == "before"


def test_standard_input_is_read_a_text_a_line(tmp_path: Path) -> None:
    program = "from eval import encoding, settings; print([tuple(each) for each in encoding.read(settings.Texts(files=('-',)))])"
    (tmp_path / "in").write_text("one\n\n two\n")
    told = run_python("-c", f"import os, sys; os.dup2(os.open({str(tmp_path / 'in')!r}, os.O_RDONLY), 0); {program}")
    assert told.stdout == "[('/dev/stdin:1', 'one'), ('/dev/stdin:3', ' two')]\n"


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "another kind of file": (("--out", "a.txt"), "--out a.txt: name a file that ends in .npy, .safetensors, .jsonl"),
    "no folder": (("--out", "gone/a.npy"), "--out gone/a.npy: its folder does not exist"),
    "both": (("--out", "a.npy", "--json"), "--json: the vectors go to --out a.npy; leave one of the two out"),
    "alone": ((), "--text: a single text has nothing to be compared with"),
    "a large table": (("--text", *"abcdefghijkl"), "--out: a table has room for 11 texts, not 13; name a file"),
    "no rows": (("--batch", "0", "--json"), "--batch 0: choose 1 or more rows"),
    "too long": (
        ("--text", "a " * 60, "--json"),
        "--text 2: 62 tokens with its marks, but the model has 40 positions; shorten it, or",
    ),
}


@pytest.mark.parametrize(("options", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_one_line(
    options: tuple[str, ...],
    said: str,
    model: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = call(capsys, "embed", model, "--text", "whale", *options)
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"zoo: {said}") and ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_line_of_a_file_is_refused_by_its_number(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"whale\n\n{'whale ' * 39}\n")
    ended = call(capsys, "embed", model, "--files", str(tmp_path / "a.txt"))
    assert ended.code == 2 and re.match(r"zoo: .*a\.txt:3: 41 tokens with its marks, but the model has 40", ended.stderr)


def test_what_is_no_encoder_is_refused() -> None:
    made = encoders.loaded("bert")
    for other, said in (
        (encoders.gpt(), r"gpt: gpt reads from left to right; choose an encoder \(BERT, RoBERTa, DistilBERT\)"),
        (encoders.with_tokenizer(made, encoders.gpt().tokenizer), "its tokenizer has no marks"),
    ):
        with pytest.raises(BadInput, match=said):
            Encoder.of(other, batch=1, dtype="float32")


@pytest.mark.planted
def test_a_vector_that_is_not_finite_is_told_by_its_text() -> None:
    with pytest.raises(BadInput, match="text 2: the result is not finite; the weights are damaged"):
        embed(encoders.broken("bert", "Paris"), [Text("text 1", "whale"), Text("text 2", "Paris")], pool="mean")
