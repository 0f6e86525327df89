"""Numbers about a rollout: rewards, divergence from the reference, lengths, and whether there is a learning signal."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from train.rollouts.rewards import Completion

MOST_EQUAL = 20
"""Consecutive rollouts without a learning signal after which the run ends, see `EqualRewards`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutPart:
    """The responses of a training batch; the `samples` responses to a prompt follow each other."""

    completions: Sequence[Completion]
    samples: int
    lengths: Int64[np.ndarray, " B"]
    """Tokens of each response, its end mark included."""
    ended: Any
    """bool [B]: True for responses with an end mark."""
    rewards: Float64[np.ndarray, " B"]
    """Sum of the rewards that functions and reward models give each response, without a KL divergence."""
    advantages: Float64[np.ndarray, " B"]
    """Advantage of each response; where each token has an advantage of its own, the mean over the tokens of the response."""
    log_ratios: Float64[np.ndarray, " B"] | None
    """Log-probability of each response minus that under the reference, in nats; None without a reference."""
    log_probs: Float64[np.ndarray, " B"]
    """Log-probability of each response in nats, at the temperature of sampling."""
    truncated: Any = None
    """bool [B]: True for responses that a reward model has read only in part; None: reward models truncate none."""
    ratio_error: float
    """Largest |probability in training / probability when sampled - 1| of a token."""


def rollout_numbers(parts: Sequence[RolloutPart]) -> dict[str, float]:
    """Return the numbers of a rollout by name, all but `ratio_error` as in `train.run.metric_definitions`.

    reward and reward_deviation: mean and standard deviation over responses. kl: mean log-ratio to the reference, an unbiased
    estimate of the KL divergence in nats, if there is one. entropy: minus the mean log-probability of a token, an estimate of the
    mean entropy in nats of the distributions that tokens are sampled from. equal_groups: share of prompts whose responses have
    equal rewards, if there are several to each. truncated_share: share of responses that a reward model has truncated, if it may.
    """
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("lengths", "ended", "rewards")}
    by_prompt = np.concatenate([part.rewards.reshape(-1, part.samples) for part in parts])
    ratios = [part.log_ratios for part in parts if part.log_ratios is not None]
    truncated = [part.truncated for part in parts if part.truncated is not None]
    return {
        "reward": float(joined["rewards"].mean()),
        # Exactly 0 for equal rewards, whose mean may be rounded.
        "reward_deviation": float(joined["rewards"].std()) if np.ptp(joined["rewards"]) else 0.0,
        **({"kl": float(np.concatenate(ratios).mean())} if ratios else {}),
        "entropy": -float(np.concatenate([part.log_probs for part in parts]).sum() / joined["lengths"].sum()),
        "response_length": float(joined["lengths"].mean()),
        "unended_share": float(1 - joined["ended"].mean()),
        **({"truncated_share": float(np.concatenate(truncated).mean())} if truncated else {}),
        **({"equal_groups": float((by_prompt == by_prompt[:, :1]).all(1).mean())} if by_prompt.shape[1] > 1 else {}),
        "ratio_error": max(part.ratio_error for part in parts),
    }


class EqualRewards:
    """Counter of consecutive rollouts from whose rewards nothing is learned: they are all equal, or all advantages are 0.

    Equal rewards still move the values of PPO, and a KL divergence is learned from at any rewards.
    """

    def __init__(self, notify: Callable[[str], None], equal: str, count: int = 0) -> None:
        """Store the function that shows a line, and the condition under which all advantages are 0, in words.

        Args:
            equal: the condition; "" = advantages of 0 do not mean that nothing is learned.
            count: number of such rollouts just before the first one that is counted here.
        """
        self._notify, self._equal, self.count, self._reason = notify, equal, count, ""

    def count_rollout(self, values: Mapping[str, float], parts: Sequence[RolloutPart]) -> None:
        """Count a rollout with the numbers of `rollout_numbers`; the first in a row is reported."""
        no_advantage = bool(self._equal) and not any(np.any(part.advantages != 0) for part in parts)
        self.count = self.count + 1 if no_advantage or values["reward_deviation"] == 0 else 0
        reason = self._equal if no_advantage else "all responses have the same reward"
        self._reason = f"{reason} (mean {values['reward']:g})"
        if self.count == 1:
            self._notify(f"{self._reason} in this rollout, so nothing is learned from {'it' if no_advantage else 'the rewards'}")

    def exhausted(self) -> str:
        """Return the reason to end the run after too many rollouts in a row; "" = there were fewer."""
        return f"{MOST_EQUAL} rollouts in a row: {self._reason}" if self.count >= MOST_EQUAL else ""
