"""Reward functions that come with the zoo: `--rollout.reward train.rollouts.reward_functions:exact_match`."""

from collections.abc import Sequence
from typing import Any

from zoo.errors import import_optional


def exact_match(completions: Sequence[str], completion: Sequence[str], **columns: Any) -> list[float]:
    """Return 1 for each response that equals the right answer in the column `completion`, and 0 for the others.

    White space at both ends is ignored.
    """
    del columns
    return [float(text.strip() == right.strip()) for text, right in zip(completions, completion, strict=True)]


def sentence_chrf(completions: Sequence[str], completion: Sequence[str], **columns: Any) -> list[float]:
    """Return the chrF2 of each response with the reference in the column `completion`, 0 to 1 (Popović 2015).

    It is sacrebleu's score of a sentence, which averages over the lengths of n-grams that both texts have.

    Raises:
        BadInput: sacrebleu is not installed.
    """
    del columns
    metric = import_optional("sacrebleu.metrics", "eval", "for the reward sentence_chrf").CHRF()
    return [metric.sentence_score(text, [right]).score / 100 for text, right in zip(completions, completion, strict=True)]
