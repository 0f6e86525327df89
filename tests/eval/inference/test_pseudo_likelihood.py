"""Pseudo-log-likelihoods equal their definition, and the tasks score encoders on texts and minimal pairs with them."""

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

from eval.inference.encoder_likelihoods import pseudo_nats
from eval.tasks import blimp, masked, perplexity, task_table
from eval.tasks.task import Result, Settings
from tests.support import encoders
from tests.support.small import random_params, small
from train.weights.load import Loaded
from zoo.errors import BadInput

LENGTH = 12
"""Tokens in a row, of which 10 are the text's. Texts of 17 to 32 tokens in all, each in 12, share a program."""


def quiet(done: int, count: int) -> None:
    pass


@functools.cache
def nll(family: str, text: tuple[int, ...]) -> float:
    """Sum -log p of each token when it alone is masked, in a row of its own without padding. Of a text that is longer than a row
    the window counts that has the token nearest to its middle, the earlier one of two."""
    made, room = encoders.loaded(family), LENGTH - 2
    special_tokens = made.tokenizer.special_tokens
    total = 0.0
    for place, token in enumerate(text):
        starts = range(max(1, len(text) - room + 1))
        start = min((abs(place - start - min(room, len(text)) // 2), start) for start in starts)[1]
        row = [special_tokens.cls, *text[start : start + room], special_tokens.sep]
        row[place - start + 1] = special_tokens.mask
        total -= float(encoders.logs(made, row, place - start + 1)[token])
    return total


@pytest.mark.parametrize(
    ("family", "machine"),
    [
        ("bert", {"batch": Settings().batch}),
        pytest.param("roberta", {"batch": 1}, marks=pytest.mark.full),
        pytest.param("bert", {"shape": (2, 2, 2)}, marks=pytest.mark.full),
    ],
    ids=["bert", "roberta, batch of 1", "bert, mesh"],
)
def test_token_is_predicted_from_all_others_of_its_window(family: str, machine: dict[str, Any], rng: np.random.Generator) -> None:
    some = [rng.integers(5, 80, size) for size in (10, 20)]
    some = [*some, some[0]]
    progress: list[tuple[int, int]] = []
    encoder = encoders.encoder(family, **machine)
    result = pseudo_nats(encoder, some, length=LENGTH, progress=lambda *each: progress.append(each))
    for number in (0, 1):
        assert result[number] == pytest.approx(nll(family, tuple(some[number].tolist())), rel=1e-5)
    assert result[2] == result[0] and progress[-1] == (30, 30)


def test_pseudo_perplexity_of_documents(tmp_path: Path) -> None:
    texts = ["The whale sleeps; naïve. The old men of the ship is seen.", "The old men of the white ship sleeps by the ship, 鯨"]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings, subject = Settings(length=LENGTH), encoders.loaded("bert")
    result = perplexity.PSEUDO_PERPLEXITY.score(
        subject, perplexity.PSEUDO_PERPLEXITY.read([str(file)], settings), settings, quiet
    )
    ids = [tuple(subject.tokenizer.encode(text).tolist()) for text in texts]
    nats, count, words = sum(nll("bert", each) for each in ids), sum(map(len, ids)), sum(len(text.split()) for text in texts)
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


def test_minimal_pairs_compare_whole_sentences_and_ties_count_half(tmp_path: Path) -> None:
    sentences = ["The old white whale sleeps by the ship.", "The old men of the white ship sleeps."]
    ids = [tuple(encoders.tokenizer("wordpiece").encode(each).tolist()) for each in sentences]
    assert max(map(len, ids)) <= LENGTH - 2
    nats = [nll("bert", each) for each in ids]
    likely, unlikely = sentences[int(np.argmin(nats))], sentences[int(np.argmax(nats))]
    file = tmp_path / "a.jsonl"
    pairs = [(likely, unlikely), (unlikely, likely), (likely, likely)]
    file.write_text("".join(json.dumps({"sentence_good": good, "sentence_bad": bad}) + "\n" for good, bad in pairs))
    result = blimp.TASK.score(encoders.loaded("bert"), blimp.TASK.read([str(file)], Settings()), Settings(), quiet)
    assert result.metrics["accuracy"] == pytest.approx(0.5) and result.metrics["ties"] == 1
    only = blimp.TASK.score(encoders.loaded("bert"), blimp.TASK.read([str(file)], Settings())[:1], Settings(), quiet)
    assert only.metrics["accuracy"] == 1


def test_a_decoder_with_the_tokenizer_of_an_encoder_reads_minimal_pairs_from_left_to_right(tmp_path: Path) -> None:
    """Ettin's decoders have ModernBERT's tokenizer, with which pseudo-likelihoods of encoders are computed."""
    words = encoders.tokenizer("modernbert")
    net = small("ettin_decoder", vocab=words.vocab_size + 5, context=encoders.POSITIONS)
    subject = Loaded("ettin", net, random_params(net), words, encoders.loaded("bert").mesh)
    file, pair = tmp_path / "a.jsonl", ["The old white whale sleeps by the ship.", "The old men of the white ship sleeps."]
    lines = ({"sentence_good": good, "sentence_bad": bad} for good, bad in (pair, pair[::-1]))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = blimp.TASK.score(subject, blimp.TASK.read([str(file)], Settings()), Settings(), quiet)
    assert result.metrics["accuracy"] == pytest.approx(0.5) and result.metrics["ties"] == 0


@pytest.mark.full
def test_masked_task_masks_and_scores_as_in_training(tmp_path: Path) -> None:
    """A model whose head predicts "whale" everywhere is right for masked whales and nothing else, at a known loss."""
    subject = encoders.loaded("roberta")
    (whale,) = subject.tokenizer.encode(" whale").tolist()
    params = jax.tree.map(jnp.zeros_like, subject.params)
    params["masked"]["bias"] = params["masked"]["bias"].at[whale].set(5.0)
    certain = dataclasses.replace(subject, params=params)

    def score(text: str, batch: int = 8) -> Result:
        (tmp_path / "a.txt").write_text(text)
        settings = Settings(length=LENGTH, batch=batch)
        return masked.TASK.score(certain, masked.TASK.read([str(tmp_path / "a.txt")], settings), settings, quiet)

    result = score("a" + " whale" * 500)
    loss, count = math.log(math.exp(5) + subject.model.config.vocab - 1) - 5, result.metrics["predictions"]
    wrong = round(count * (1 - result.metrics["accuracy"]))
    assert result.metrics["loss"] == pytest.approx(loss + 5 * wrong / count, rel=1e-5)
    assert wrong <= 1 and result.examples == 1 and result.details == {"length": LENGTH}
    # 15% of the 12 tokens of each of 51 rows are predicted: 1 or, seldom, 2.
    assert 51 <= count <= 102
    assert result.metrics["perplexity"] == pytest.approx(math.exp(result.metrics["loss"]))
    assert score("a" + " whale" * 500, batch=3).metrics == pytest.approx(result.metrics)
    assert score("a whale").metrics["predictions"] == 1


@pytest.mark.parametrize("task", ["masked", "pseudo_perplexity"])
def test_lengths_texts_and_models_that_cannot_be_scored_are_refused(task: str, tmp_path: Path) -> None:
    module, _ = task_table.find_task(task)
    (tmp_path / "a.txt").write_text("The whale.")
    # Control characters are no white space, and BERT's tokenizer drops them.
    (tmp_path / "c.txt").write_text("\x01\x02")
    text, nothing = (module.read([str(tmp_path / name)], Settings()) for name in ("a.txt", "c.txt"))
    for subject, documents, settings, message in (
        (encoders.loaded("bert"), text, Settings(length=41), "--length 41: choose 3 to the model's 40 positions"),
        (encoders.loaded("bert"), text, Settings(length=2), "--length 2: choose 3 to"),
        (encoders.loaded("bert"), nothing, Settings(), "--files: they have no tokens"),
        (encoders.loaded("bert", "body"), text, Settings(), "a bert for the task body has no head for masked words"),
        (encoders.gpt(), text, Settings(), "gpt reads from left to right; choose an encoder"),
    ):
        with pytest.raises(BadInput, match=message):
            module.score(subject, documents, settings, quiet)
