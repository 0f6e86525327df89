"""BLEU, chrF, ROUGE and exact match, against values worked out by hand."""

import math
import re
import sys

import numpy as np
import pytest

from eval.metrics import text_overlap
from train.run.metric_definitions import METRICS
from zoo.errors import BadInput, install_advice

WANTED = ["the cat sat on the mat today", "a dog runs"]
FOUND = ["the cat sat on a mat today", "a dog runs"]


def test_bleu_is_the_mean_of_precisions_and_the_penalty_of_short_texts() -> None:
    # Words in common of 7 + 3: 6 + 3; pairs 4 + 2 of 6 + 2; triples 2 + 1 of 5 + 1; fours 1 of 4.
    logs = [math.log(share) for share in (9 / 10, 6 / 8, 3 / 6, 1 / 4)]
    numbers, said = text_overlap.bleu(FOUND, WANTED)
    assert numbers == {"bleu": pytest.approx(100 * math.exp(sum(logs) / 4))}
    assert "tok:13a" in said["BLEU"] and "case:mixed" in said["BLEU"]
    # Half of the words are missing: e^(1 - 20/10).
    double = [f"{text} {text}" for text in FOUND]
    assert text_overlap.bleu(FOUND, double)[0]["bleu"] == pytest.approx(100 * math.exp(-1))


def test_chrf_is_100_for_the_same_text_and_0_for_another() -> None:
    assert text_overlap.chrf(WANTED, WANTED)[0] == {"chrf": pytest.approx(100)}
    assert text_overlap.chrf(["xyz"], ["abc"])[0] == {"chrf": pytest.approx(0)}


@pytest.mark.full
def test_rouge_is_the_f_of_words_pairs_and_the_longest_subsequence() -> None:
    # Of 7 and 7 words 6 are common, of 6 and 6 pairs 4, and 6 in order; the second text is right.
    assert text_overlap.rouge(FOUND, WANTED)[0] == {
        "rouge1": pytest.approx((6 / 7 + 1) / 2),
        "rouge2": pytest.approx((4 / 6 + 1) / 2),
        "rougeL": pytest.approx((6 / 7 + 1) / 2),
    }


def test_exact_match_is_of_normalized_texts() -> None:
    assert text_overlap.exact(["The cat!", "dog runs far"], ["cat", "a dog"])[0] == {
        "exact": 0.5,
        "f1": pytest.approx((1 + 0.5) / 2),
    }


def test_every_score_has_a_metric_definition() -> None:
    for measure in text_overlap.MEASURES.values():
        assert measure(FOUND, WANTED)[0].keys() <= METRICS.keys()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(BadInput, match=re.escape(install_advice("eval"))):
        text_overlap.bleu(FOUND, WANTED)


@pytest.mark.planted(2)
def test_contributions_to_bleu_are_its_derivatives() -> None:
    """The oracle is a corpus of many copies, to which one text is added."""
    texts = [f"{FOUND[number % len(FOUND)]} and the whale {number % 3} sleeps in the sea" for number in range(6)]
    references = [f"the whale {number % 2} sleeps in the sea {WANTED[number % len(WANTED)]}" for number in range(6)]
    texts[0], copies = " ".join(texts[0].split()[:5]), 500
    corpus = [texts * copies, references * copies]

    def is_derivative(values: np.ndarray, references: list[str]) -> bool:
        whole = text_overlap.bleu(texts, references)[0]["bleu"]
        more = [
            text_overlap.bleu([*corpus[0], texts[item]], [*(references * copies), references[item]])[0]["bleu"] for item in (0, 4)
        ]
        changes = [(score - whole) * (len(texts) * copies + 1) for score in more]
        return bool(np.allclose(values[[0, 4]] - whole, changes, rtol=2e-2) and np.isclose(values.mean(), whole))

    longer = [f"{reference} for a year and a day" for reference in references]
    # With and without the penalty of short texts.
    for wanted in (longer, [" ".join(reference.split()[:6]) for reference in references]):
        values = text_overlap.bleu_contributions(texts, wanted)
        assert is_derivative(values, wanted)
        assert not is_derivative(values[::-1], wanted)
    assert np.isnan(text_overlap.bleu_contributions(["a b"], ["c d"])).all()
