"""Reward functions that come with the zoo: `--rollout.reward train.rollouts.reward_functions:exact_match`."""

from collections.abc import Sequence
from typing import Any


def exact_match(completions: Sequence[str], completion: Sequence[str], **columns: Any) -> list[float]:
    """Return 1 for each response that equals the right answer in the column `completion`, and 0 for the others.

    White space at both ends is ignored.
    """
    del columns
    return [float(text.strip() == right.strip()) for text, right in zip(completions, completion, strict=True)]
