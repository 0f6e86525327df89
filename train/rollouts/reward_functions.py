"""Reward functions that come with the zoo: `--rollout.reward train.rollouts.reward_functions:exact_match`."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from zoo.errors import import_optional

WORD = re.compile(r"\w+|[^\w\s]")
"""A word or a punctuation mark."""
LONGEST = 4
"""Number of words in the longest n-grams of GLEU."""


def exact_match(completions: Sequence[str], completion: Sequence[str], **columns: Any) -> list[float]:
    """Return 1 for each response that equals the right answer in the column `completion`, and 0 for the others.

    White space at both ends is ignored.
    """
    del columns
    return [float(text.strip() == right.strip()) for text, right in zip(completions, completion, strict=True)]


def sentence_chrf(completions: Sequence[str], completion: Sequence[str], **columns: Any) -> list[float]:
    """Return the chrF2 of each response with the reference in the column `completion`, 0 to 1 (Popović 2015).

    It is sacrebleu's score of a sentence, which averages over the lengths of n-grams that both texts have. It counts recall twice
    as much as precision, so that a longer text with more wrong words can have a higher score.

    Raises:
        BadInput: sacrebleu is not installed.
    """
    del columns
    metric = import_optional("sacrebleu.metrics", "eval", "for the reward sentence_chrf").CHRF()
    return [metric.sentence_score(text, [right]).score / 100 for text, right in zip(completions, completion, strict=True)]


def sentence_gleu(completions: Sequence[str], completion: Sequence[str], **columns: Any) -> list[float]:
    """Return the GLEU of each response with the reference in the column `completion`, 0 to 1 (Wu et al. 2016, section 5.2).

    It is the smaller of precision and recall over all n-grams of 1 to 4 words, so that neither longer nor shorter texts have an
    advantage. Words and punctuation marks count, with their case.
    """
    del columns
    return [_gleu(_ngrams(text), _ngrams(right)) for text, right in zip(completions, completion, strict=True)]


def _gleu(text: Counter[tuple[str, ...]], reference: Counter[tuple[str, ...]]) -> float:
    # With the same numerator, the smaller quotient has the larger divisor.
    return (text & reference).total() / max(text.total(), reference.total(), 1)


def _ngrams(text: str) -> Counter[tuple[str, ...]]:
    words = WORD.findall(text)
    return Counter(tuple(words[at : at + n]) for n in range(1, LONGEST + 1) for at in range(len(words) - n + 1))
