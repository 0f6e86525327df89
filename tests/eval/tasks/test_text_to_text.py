"""`zoo eval --task text_to_text`: what is read, written and measured, and what is refused."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from eval import overlap, run_task, tasks
from eval.settings import GREEDY, Beams, Decoding
from eval.tasks import Settings, text_to_text
from tests.support.generation import (
    gpt,
    gpt_generator,
    gpt_tokenizer,
    quickly_compiled,
    seq2seq_generator,
    seq2seq_loaded,
    seq2seq_tokenizer,
)
from train.load import Loaded
from zoo.errors import BadInput

__all__ = ["quickly_compiled"]

SOURCES, TARGETS = ["Call me Ishmael.", "Some years ago", "never mind how long"], ["little money", "my purse", "Some years"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    """The same pairs as parallel files, one of them compressed, and as a table."""
    with gzip.open(tmp_path / "a.en.gz", "wt") as stream:
        stream.write("".join(f"{text}\n" for text in SOURCES))
    (tmp_path / "a.de").write_text("".join(f"{text}\n" for text in TARGETS))
    table = "".join(f"{source}\t{target}\n" for source, target in zip(SOURCES, TARGETS, strict=True))
    (tmp_path / "a.tsv").write_text("source\ttarget\n" + table)
    return {"parallel": (str(tmp_path / "a.en.gz"), str(tmp_path / "a.de")), "table": (str(tmp_path / "a.tsv"),)}


@pytest.mark.parametrize("kind", ["parallel", "table"])
def test_pairs_are_read_in_order(kind: str, files: dict[str, tuple[str, ...]]) -> None:
    found = text_to_text.read(files[kind], Settings())
    assert [(pair.source, pair.target) for pair in found] == list(zip(SOURCES, TARGETS, strict=True))


@pytest.mark.full
@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_measured_is_what_the_generator_writes(beams: int, files: dict[str, tuple[str, ...]]) -> None:
    search = Beams(beams=beams) if beams > 1 else Beams()
    settings, words = Settings(limit=6, search=search, prefix="say:"), seq2seq_tokenizer()
    result = text_to_text.score(seq2seq_loaded("t5"), text_to_text.read(files["table"], settings), settings, lambda *_: None)
    ids = [np.append(words.encode(f"say: {text}"), words.end_of_text) for text in SOURCES]
    generated = seq2seq_generator("t5").generate(ids, Decoding(limit=6, sampling=GREEDY, search=search))
    texts = [each.text for each in generated]
    expected = {name: value for measure in overlap.MEASURES.values() for name, value in measure(texts, TARGETS)[0].items()}
    assert result.metrics == pytest.approx(expected)
    assert (result.examples, result.details["beams"], result.details["limit"]) == (3, beams, 6)
    shown = [(row["source"], row["wanted"], row["written"]) for row in result.details["texts"].values()]
    assert shown == list(zip(SOURCES, TARGETS, texts, strict=True))
    # Texts are for the report: the terminal has the numbers alone.
    assert SOURCES[0] not in run_task.table(result) and "bleu" in run_task.table(result)


def test_only_what_is_asked_is_measured(files: dict[str, tuple[str, ...]]) -> None:
    settings = Settings(argument="exact,chrf", limit=6)
    result = text_to_text.score(seq2seq_loaded("t5"), text_to_text.read(files["table"], settings), settings, lambda *_: None)
    assert list(result.metrics) == ["exact", "f1", "chrf"]


REFUSED = {
    "there is no measure 'blue'; choose from bleu": (("a.tsv",), Settings(argument="blue")),
    "--files a.en: give two parallel files": (("a.en",), Settings()),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_read_is_refused(said: str) -> None:
    with pytest.raises(BadInput, match=said):
        text_to_text.read(*REFUSED[said])


def test_files_of_different_lengths_are_refused(files: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
    (tmp_path / "b.de").write_text("one\n")
    with pytest.raises(BadInput, match=r"has 3 lines and .*b\.de 1"):
        text_to_text.read((files["parallel"][0], str(tmp_path / "b.de")), Settings())


def test_a_model_without_an_encoder_is_refused(files: dict[str, tuple[str, ...]]) -> None:
    subject = Loaded("gpt", *gpt(), gpt_tokenizer(), gpt_generator().mesh)
    with pytest.raises(BadInput, match="gpt without an encoder"):
        text_to_text.score(subject, text_to_text.read(files["table"], Settings()), Settings(), lambda *_: None)


def test_it_is_found_by_its_name() -> None:
    assert tasks.find("text_to_text:bleu") == (text_to_text, "bleu")
