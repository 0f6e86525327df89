"""Options of policy gradients: how rewards of responses become a loss."""

import dataclasses
import math
from typing import Literal

from zoo.errors import require

Advantage = Literal["group", "group_std", "leave_one_out"]
Ratio = Literal["token", "sequence", "product"]
Aggregation = Literal["tokens", "sequences", "limit"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyGradientLoss:
    """Loss of sampled responses, whose rewards are compared with those of the other responses to the same prompt."""

    advantage: Advantage = "group"
    """Advantage of a response: its reward minus a baseline. group: the mean of all responses to the prompt (Dr. GRPO).
    group_std: the same, divided by their standard deviation (GRPO). leave_one_out: the mean of the others (RLOO)."""
    ratio: Ratio = "token"
    """Ratio of the probability now to that at the start of the rollout. token: of each token (GRPO).
    sequence: the geometric mean over the tokens of a response (GSPO). product: of a response; it needs sequences (RLOO)."""
    aggregation: Aggregation = "tokens"
    """Mean of the losses. tokens: over all tokens of the batch (DAPO). sequences: over the tokens of each response, then over
    responses (GRPO). limit: the sum over tokens, divided by responses times --rollout.tokens (Dr. GRPO)."""
    clip_low: float = 0.2
    """Lower clipping range: a ratio below 1 - clip_low has no gradient if the advantage is negative."""
    clip_high: float = 0.2
    """Upper clipping range: a ratio above 1 + clip_high has no gradient if the advantage is positive (DAPO: 0.28)."""
    beta: float = 0.0
    """Coefficient of the KL divergence to the model of --init; 0 = none."""
    kl: Literal["reward", "loss"] = "reward"
    """reward: the log-ratio to that model, summed over a response, is subtracted from its reward; this is exact in expectation.
    loss: TRL's term of each token is added, which has another optimum."""

    def __post_init__(self) -> None:
        fix = "the ratio is that of a response, not of a token; choose --policy-gradient.aggregation sequences"
        require(self.ratio != "product" or self.aggregation == "sequences", "policy_gradient.aggregation", self.aggregation, fix)
        # At a clip of 0 the first step, where every ratio is 1, would lose half of its gradient.
        require(
            0 < self.clip_low <= 1,
            "policy_gradient.clip_low",
            self.clip_low,
            "choose a number above 0 and up to 1 (off), such as 0.2",
        )
        fix = "choose a number above 0, such as 0.2"
        require(0 < self.clip_high < math.inf, "policy_gradient.clip_high", self.clip_high, fix)
        require(
            0 <= self.beta < math.inf,
            "policy_gradient.beta",
            self.beta,
            "choose 0 (no KL divergence) or a coefficient, such as 0.05",
        )
        fix = "it has no effect without --policy-gradient.beta; remove it, or choose a coefficient"
        require(self.beta > 0 or self.kl == "reward", "policy_gradient.kl", self.kl, fix)
        fix = "the term of a token has no meaning for --policy-gradient.ratio product; choose reward"
        require(self.ratio != "product" or self.kl == "reward", "policy_gradient.kl", self.kl, fix)

    @property
    def kl_in_loss(self) -> bool:
        """True if the loss reads log-probabilities of the reference."""
        return self.beta > 0 and self.kl == "loss"
