"""Reward functions that come with the zoo."""

import numpy as np
import pytest

from train.rollouts.reward_functions import exact_match, sentence_chrf, sentence_gleu


def test_exact_match_ignores_space_at_the_ends_only() -> None:
    completions = ["109", " 109\n", "1 09", "", "108"]
    assert exact_match(completions, ["109"] * 5, prompts=["07+894="] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.planted
def test_the_chrf_of_a_sentence_is_that_by_hand() -> None:
    """Means of precision P and recall R over the lengths that both have, and 5 P R / (4 P + R); exchanged sides are noticed."""
    texts, references = ["a b c", "abcd", "ab", ""], ["a b d", "ab", "ab", "ab"]
    values = sentence_chrf(texts, references, prompts=texts)
    # P = R = (2/3 + 1/2 + 0) / 3 without spaces; P = (2/4 + 1/3) / 2 and R = 1.
    assert values == pytest.approx([7 / 18, 25 / 32, 1, 0], abs=1e-12)
    assert sentence_chrf(references, texts)[1] == pytest.approx(25 / 53, abs=1e-12)


@pytest.mark.planted
def test_the_gleu_of_a_sentence_is_that_by_hand_and_wrong_words_lower_it() -> None:
    """Shared 1- to 4-grams / those of the longer text. A chrF2 in its place is noticed: it prefers the longer text."""
    reference = "Ein Hund läuft."
    texts = [reference, "Ein Hund", "Ein Hund schläft.", "Ein Hund läuft. läuft.", "", "ein hund läuft."]
    # The reference has 4 words, so 10 n-grams; two words have 3, and six words 18, of which the first 10 are shared. "läuft." is
    # a word and a mark.
    shared = [10, 3, 4, 10, 0, 3]
    values = sentence_gleu(texts, [reference] * 6, prompts=texts)
    assert values == pytest.approx([n / size for n, size in zip(shared, [10, 10, 10, 18, 10, 10], strict=True)], abs=1e-12)
    assert sentence_gleu([""], [""]) == [0.0]
    reference = "Drei Mädchen gehen am Strand entlang und singen."
    short, long = "Drei Mädchen gehen am Strand entlang.", "Drei Mädchen gehen am Strand entlang und ein Hund steht und singen."
    assert (np.diff(sentence_gleu([short, long], [reference] * 2)) < 0).all()
    assert (np.diff(sentence_chrf([short, long], [reference] * 2)) > 0).all()
