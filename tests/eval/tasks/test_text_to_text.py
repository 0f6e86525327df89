"""`zoo eval --task text_to_text`: what is read, written and measured, and what is refused."""

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest

from eval.commands import run_task
from eval.generation.generation_options import Decoding
from eval.metrics import text_overlap
from eval.tasks import text_to_text
from eval.tasks.task import Settings
from tests.support.generation import gpt, gpt_generator, gpt_tokenizer, seq2seq_generator, seq2seq_loaded, seq2seq_tokenizer
from tests.support.small import small
from train.weights.load import Loaded
from zoo.errors import BadInput
from zoo.generation.decoding_settings import GREEDY, Beams

SOURCES, TARGETS = ["Call me Ishmael.", "Some years ago", "never mind how long"], ["little money", "my purse", "Some years"]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    """Parallel files, one of them compressed."""
    with gzip.open(tmp_path / "a.en.gz", "wt") as stream:
        stream.write("".join(f"{text}\n" for text in SOURCES))
    (tmp_path / "a.de").write_text("".join(f"{text}\n" for text in TARGETS))
    return str(tmp_path / "a.en.gz"), str(tmp_path / "a.de")


@pytest.mark.parametrize(("beams", "asked"), [(1, "exact,chrf"), pytest.param(3, "", marks=pytest.mark.full)])
def test_scores_are_of_the_texts_that_the_generator_writes(beams: int, asked: str, files: tuple[str, ...]) -> None:
    search = Beams(beams=beams) if beams > 1 else Beams()
    settings, words = Settings(argument=asked, tokens=6, search=search, prefix="say:"), seq2seq_tokenizer()
    result = text_to_text.TASK.score(seq2seq_loaded("t5"), text_to_text.TASK.read(files, settings), settings, lambda *_: None)
    ids = [np.append(words.encode(f"say: {text}"), words.end_of_text) for text in SOURCES]
    generated = seq2seq_generator("t5").generate(ids, Decoding(limit=6, sampling=GREEDY, search=search))
    texts = [each.text for each in generated]
    measures = [text_overlap.MEASURES[name] for name in asked.split(",")] if asked else list(text_overlap.MEASURES.values())
    expected = {name: value for measure in measures for name, value in measure(texts, TARGETS)[0].items()}
    assert result.metrics == pytest.approx(expected)
    assert (result.examples, result.details["beams"], result.details["tokens"]) == (3, beams, 6)
    assert result.outcomes is not None and result.outcomes.id == ("a.en.gz:1", "a.en.gz:2", "a.en.gz:3")
    assert result.outcomes.right.mean() == expected["exact"]
    shown = [(row["source"], row["wanted"], row["written"]) for row in result.details["texts"].values()]
    assert shown == list(zip(SOURCES, TARGETS, texts, strict=True))
    # Texts are for the report: the terminal has the numbers alone.
    assert SOURCES[0] not in run_task.task_result_text(result) and "chrf" in run_task.task_result_text(result)


def test_files_that_cannot_be_read_and_models_that_cannot_generate_are_refused(files: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="there is no measure 'blue'; choose from bleu"):
        text_to_text.TASK.read(("a.tsv",), Settings(argument="blue"))
    with pytest.raises(BadInput, match="--tokens -1: choose 0"):
        text_to_text.TASK.read(files, Settings(tokens=-1))
    with pytest.raises(BadInput, match=r"--files a\.en: give two parallel files"):
        text_to_text.TASK.read(("a.en",), Settings())
    subject = dataclasses.replace(decoder(), model=small("xlnet"))
    with pytest.raises(BadInput, match="xlnet; choose an encoder-decoder or a GPT"):
        text_to_text.TASK.score(subject, text_to_text.TASK.read(files, Settings()), Settings(), lambda *_: None)


def decoder() -> Loaded:
    return Loaded("gpt", *gpt(), gpt_tokenizer(), gpt_generator().mesh)


def test_a_decoder_continues_prompts_and_conversations_up_to_their_end_marks(tmp_path: Path) -> None:
    words = gpt_tokenizer().with_files({}, "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    subject = dataclasses.replace(decoder(), tokenizer=words)
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "Call me", "completion": " Ishmael. "}\n'
        '{"messages": [{"role": "user", "content": "Some"}, {"role": "assistant", "content": "years"}]}\n'
        '{"prompt": "Some years", "completion": " ago"}\n'
    )
    settings = Settings(argument="exact", tokens=6)
    result = text_to_text.TASK.score(
        subject, text_to_text.TASK.read((str(tmp_path / "a.jsonl"),), settings), settings, lambda *_: None
    )
    mark = np.array([words.end_of_text], np.int32)
    ids = [words.encode("Call me"), np.concatenate([words.encode("Some"), mark]), words.encode("Some years")]
    texts = [each.text.strip() for each in gpt_generator().generate(ids, Decoding(limit=6, sampling=GREEDY))]
    shown = [(row["source"], row["wanted"], row["written"]) for row in result.details["texts"].values()]
    (name,) = words.special_names
    assert shown == list(zip(("Call me", f"Some{name}", "Some years"), ("Ishmael.", "years", "ago"), texts, strict=True))
