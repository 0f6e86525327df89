"""Pseudo-log-likelihoods, and the tasks that score encoders on text and on minimal pairs."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval import tasks
from eval.pseudo import pseudo_nats
from eval.tasks import Settings, blimp, masked, pseudo_perplexity
from tests.support import encoders
from tests.support.commands import call
from zoo.errors import BadInput

LENGTH = 12


def quiet(done: int, count: int) -> None:
    pass


@functools.cache
def surprises(family: str, text: tuple[int, ...], room: int) -> list[float]:
    """-log p of each token, masked alone, by its definition: a row for each, alone and without padding. Of a text longer than
    `room` the window of that many tokens is taken that has the token nearest to its middle, the earlier one of two."""
    made = encoders.loaded(family)
    marks = made.tokenizer.marks
    found = []
    for place, token in enumerate(text):
        starts = range(max(1, len(text) - room + 1))
        start = min((abs(place - start - min(room, len(text)) // 2), start) for start in starts)[1]
        row = [marks.cls, *text[start : start + room], marks.sep]
        row[place - start + 1] = marks.mask
        found.append(-float(encoders.logs(made, row, place - start + 1)[token]))
    return found


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_token_is_judged_by_all_others_of_its_window(family: str, rng: np.random.Generator) -> None:
    some = [rng.integers(5, 80, size) for size in (LENGTH - 2, 3 * LENGTH, 1, LENGTH - 2)]
    some = [*some, some[0]]
    told: list[tuple[int, int]] = []
    found = pseudo_nats(encoders.encoder(family), some, length=LENGTH, progress=lambda *each: told.append(each))
    for number in (0, 1, 3):
        wanted = sum(surprises(family, tuple(some[number].tolist()), LENGTH - 2))
        assert found[number] == pytest.approx(wanted, rel=1e-5)
    assert found[4] == found[0] != found[3]
    # Equal texts are computed once.
    assert told[-1] == (sum(map(len, some[:4])),) * 2


@pytest.mark.parametrize("how", [{"batch": 1}, {"shape": (2, 2, 2)}], ids=["batch", "mesh"])
def test_neither_the_batch_nor_the_mesh_matters(how: dict[str, Any], rng: np.random.Generator) -> None:
    some = [rng.integers(5, 80, size) for size in (7, 10, 9)]
    found, other = (pseudo_nats(encoders.encoder("bert", **each), some) for each in ({}, how))
    np.testing.assert_allclose(other, found, rtol=1e-5)


def test_pseudo_perplexity_of_documents(tmp_path: Path) -> None:
    texts = ["The whale sleeps; naïve. The old men of the ship is seen.", "Paris, 鯨 the whale."]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = Settings(length=LENGTH)
    subject = encoders.loaded("bert")
    result = pseudo_perplexity.score(subject, pseudo_perplexity.read([str(file)], settings), settings, quiet)
    ids = [subject.tokenizer.encode(text) for text in texts]
    nats = sum(sum(surprises("bert", tuple(each.tolist()), LENGTH - 2)) for each in ids)
    count, words = sum(map(len, ids)), sum(len(text.split()) for text in texts)
    assert result.metrics == {
        "loss": pytest.approx(nats / count, rel=1e-5),
        "pseudo_perplexity": pytest.approx(math.exp(nats / count), rel=1e-4),
        "word_pseudo_perplexity": pytest.approx(math.exp(nats / words), rel=1e-3),
        "tokens": count,
        "words": words,
        "unknown": 1,
    }
    assert result.examples == 2 and result.details == {"length": LENGTH}
    assert len(ids[0]) > LENGTH


def test_minimal_pairs_of_an_encoder_compare_whole_sentences_and_ties_count_half(tmp_path: Path) -> None:
    sentences = ["The whale sleeps.", "The men sleeps by the ship"]
    ids = [tuple(encoders.tokenizer("wordpiece").encode(each).tolist()) for each in sentences]
    nats = [sum(surprises("bert", each, encoders.POSITIONS)) for each in ids]
    likely, unlikely = sentences[int(np.argmin(nats))], sentences[int(np.argmax(nats))]
    file = tmp_path / "a.jsonl"
    pairs = [(likely, unlikely), (unlikely, likely), (likely, likely)]
    file.write_text("".join(json.dumps({"sentence_good": good, "sentence_bad": bad}) + "\n" for good, bad in pairs))
    result = blimp.score(encoders.loaded("bert"), blimp.read([str(file)], Settings()), Settings(), quiet)
    assert result.metrics["accuracy"] == pytest.approx(0.5) and result.metrics["ties"] == 1
    only = blimp.score(encoders.loaded("bert"), blimp.read([str(file)], Settings())[:1], Settings(), quiet)
    assert only.metrics["accuracy"] == 1


def test_masked_tokens_are_told_as_in_training(tmp_path: Path) -> None:
    """A model whose head says "whale" everywhere tells the masked whales and nothing else, at a surprise that is known."""
    subject = encoders.loaded("roberta")
    (whale,) = subject.tokenizer.encode(" whale").tolist()
    params = jax.tree.map(jnp.zeros_like, subject.params)
    params["masked"]["bias"] = params["masked"]["bias"].at[whale].set(5.0)
    (tmp_path / "a.txt").write_text("a" + " whale" * 500)
    settings, certain = Settings(length=LENGTH), dataclasses.replace(subject, params=params)
    result = masked.score(certain, masked.read([str(tmp_path / "a.txt")], settings), settings, quiet)
    surprise = math.log(math.exp(5) + subject.net.config.vocab - 1) - 5
    count = result.metrics["predictions"]
    wrong = round(count * (1 - result.metrics["accuracy"]))
    assert result.metrics["loss"] == pytest.approx(surprise + 5 * wrong / count, rel=1e-5)
    assert wrong <= 1 and result.examples == 1 and result.details == {"length": LENGTH}
    # 51 rows of 10 tokens, of which 15% of 12 or so are predicted: 1 or, seldom, 2.
    assert 51 <= count <= 102
    assert result.metrics["perplexity"] == pytest.approx(math.exp(result.metrics["loss"]))
    # In another batch; and a text that is shorter than a row.
    again = masked.score(certain, masked.read([str(tmp_path / "a.txt")], settings), dataclasses.replace(settings, batch=3), quiet)
    assert again.metrics == pytest.approx(result.metrics)
    (tmp_path / "b.txt").write_text("a whale")
    assert masked.score(certain, masked.read([str(tmp_path / "b.txt")], settings), settings, quiet).metrics["predictions"] == 1


@pytest.mark.parametrize("task", ["masked", "pseudo_perplexity"])
def test_what_cannot_be_scored_is_refused(task: str, tmp_path: Path) -> None:
    module, _ = tasks.find(task)
    (tmp_path / "a.txt").write_text("The whale.")
    # Control characters, which are no white space, and which BERT drops.
    (tmp_path / "c.txt").write_text("\x01\x02")
    text, nothing = (module.read([str(tmp_path / name)], Settings()) for name in ("a.txt", "c.txt"))
    for subject, documents, settings, said in (
        (encoders.loaded("bert"), text, Settings(length=41), "--length 41: choose 3 to the model's 40 positions"),
        (encoders.loaded("bert"), text, Settings(length=2), "--length 2: choose 3 to"),
        (encoders.loaded("bert"), nothing, Settings(), "--files: they hold no token"),
        (encoders.loaded("bert", "body"), text, Settings(), "a bert for the task body has no head for masked words"),
        (encoders.gpt(), text, Settings(), "gpt reads from left to right; choose an encoder"),
    ):
        with pytest.raises(BadInput, match=said):
            module.score(subject, documents, settings, quiet)


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = encoders.folder(tmp_path / "model", "bert")
    (tmp_path / "a.txt").write_text("The whale sleeps.")
    ended = call(capsys, "eval", str(model), "--task", "pseudo_perplexity", "--files", str(tmp_path / "a.txt"), "--batch", "2")
    assert ended.code == 0
    told = dict(line.split() for line in ended.stdout.splitlines())
    assert told["tokens"] == "4" and told["words"] == "3"
    assert float(told["pseudo_perplexity"]) == pytest.approx(math.exp(float(told["loss"])), rel=1e-3)
