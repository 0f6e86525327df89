"""Reward functions that come with the zoo."""

import pytest

from train.rollouts.reward_functions import exact_match, sentence_chrf


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
