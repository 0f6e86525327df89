"""`zoo bench embed`: vectors are timed, and those of a peer only if they agree."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.core import result_files
from benchmarks.core.guarded_trials import WrongResult
from benchmarks.core.options import EmbedOptions, Output
from benchmarks.core.peer_process import Kind
from benchmarks.embed import bench_embed, measure_embed
from benchmarks.step.programs import OURS
from eval.inference.encoder_runner import Encoder
from eval.inference.text_vectors import embed_texts
from tests.support import encoders
from tests.support.commands import call
from train.weights.load import load_model
from zoo.embedding_modules import EmbeddingModules


class OwnPeer:
    """Our own vectors as a peer, moved by what its module says."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self._moved, self._folder, self.resident = float(kind.module), folder, 1

    def begin(self) -> dict[str, Any]:
        return {"versions": {}}

    def run(self) -> dict[str, Any]:
        texts = np.load(self._folder / "arrays.npz")["texts"].tolist()
        encoder = Encoder.of(encoders.loaded("bert", "body"), batch=2, dtype=np.float32)
        vectors = embed_texts(encoder, encoders.texts(*texts), EmbeddingModules(), truncate=True)
        np.save(self._folder / "vectors.npy", vectors + np.float32(self._moved))
        return {"result": len(vectors)}

    def close(self) -> None:
        pass


@pytest.mark.planted
def test_vectors_are_timed_and_those_of_a_peer_only_if_they_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_embed, "Peer", OwnPeer)
    peers = {"the same": Kind("0", ()), "other numbers": Kind("0.01", ()), "absent": Kind("0", ("no_such_package",))}
    monkeypatch.setattr(measure_embed, "PEERS", peers)
    model = str(encoders.folder(tmp_path / "body", "bert", "body"))
    options = EmbedOptions(folder=model, texts=6, words=12, rounds=2, peers=True, output=Output(str(tmp_path / "out")))
    assert bench_embed.main(options, []) == 1
    cells = {cell["key"]["program"]: cell for cell in result_files.read_results(tmp_path / "out").cells}
    made, tokenizer = measure_embed.mixed_texts(6, 12), load_model(model).tokenizer
    assert sorted({len(text.split()) for text in made})[0] >= 3 and max(len(text.split()) for text in made) <= 12
    ours, same = cells[OURS], cells["the same"]
    assert ours["tokens"] == sum(min(len(tokenizer.encode(text)) + 2, encoders.POSITIONS) for text in made)
    assert ours["state"] == same["state"] == "timed" and ours["ratio"] == 1 and same["ratio"] > 0 and same["n"] == 2
    assert ours["tokens_per_s"] == pytest.approx(ours["tokens"] / ours["seconds"])
    assert same["texts_per_s"] == pytest.approx(6 / same["seconds"]) and same["difference"] < 1e-5
    assert cells["other numbers"]["state"] == "wrong" and "its vectors differ by 1.0e-02" in cells["other numbers"]["reason"]
    assert cells["absent"]["reason"] == "no_such_package not installed"
    assert "| the same |" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.planted(2)
def test_other_shapes_and_numbers_that_are_not_finite_are_wrong() -> None:
    vectors = np.ones((2, 3), np.float32)
    assert measure_embed.check_agreement(vectors, vectors + np.float32(1e-6)) == pytest.approx(1e-6, rel=0.1)
    for wrong in (vectors[:1], vectors * np.float32(np.nan)):
        with pytest.raises(WrongResult):
            measure_embed.check_agreement(vectors, wrong)


def test_options_are_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line, message in {
        "": "bench embed: name the folder of an encoder",
        f"{tmp_path}/none": "is no folder; zoo import or zoo export writes one",
        f"{tmp_path} --words 2": "--words 2: the shortest text has 3 words; choose at least as many",
        f"{tmp_path} --files {tmp_path}/none.txt": "there is no such file",
    }.items():
        ended = call(capsys, "bench", "embed", *line.split())
        assert (ended.code, ended.stdout) == (2, "") and message in ended.stderr, ended


@pytest.mark.parity
def test_sentence_transformers_has_the_same_vectors(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    model = str(encoders.folder(tmp_path / "body", "bert", "body"))
    options = EmbedOptions(folder=model, texts=6, words=12, rounds=1, peers=True, output=Output(str(tmp_path / "out")))
    assert bench_embed.main(options, []) == 0
    cells = {cell["key"]["program"]: cell for cell in result_files.read_results(tmp_path / "out").cells}
    assert cells["sentence-transformers"]["state"] == "timed", cells["sentence-transformers"]
