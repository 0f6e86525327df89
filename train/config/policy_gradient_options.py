"""Options of policy gradients and of proximal policy optimization: how rewards of responses become a loss."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ppo:
    """Loss of sampled responses, whose rewards are compared with the values that the model itself predicts."""

    beta: float = 0.05
    """Coefficient of the KL divergence to the model of --init, which lowers the reward of each token; 0 = none."""
    gamma: float = 1.0
    """Discount of the rewards of later tokens; 1 = none."""
    lam: float = 0.95
    """Weight of later errors in an advantage (generalized advantage estimation). 1: the advantage is the return minus the
    value, which has no bias; less: it has less variance, and the bias of the values."""
    whiten: bool = True
    """Scale the advantages of all tokens of a rollout to mean 0 and variance 1."""
    clip: float = 0.2
    """Clipping range: a ratio outside [1 - clip, 1 + clip] has no gradient if it moved in the advantage's direction."""
    value_clip: float = 0.2
    """Values are limited to this distance from those at the start of the rollout; the larger of both errors counts. 0 = off."""
    value_weight: float = 0.1
    """Weight of the loss of the values, which reaches the body of the model too."""

    def __post_init__(self) -> None:
        require(0 <= self.beta < math.inf, "ppo.beta", self.beta, "choose 0 (no KL divergence) or a coefficient, such as 0.05")
        require(0 <= self.gamma <= 1, "ppo.gamma", self.gamma, "choose a number of 0 to 1 (1 = no discount)")
        require(0 <= self.lam <= 1, "ppo.lam", self.lam, "choose a number of 0 to 1, such as 0.95")
        require(0 < self.clip <= 1, "ppo.clip", self.clip, "choose a number above 0 and up to 1, such as 0.2")
        require(0 <= self.value_clip < math.inf, "ppo.value_clip", self.value_clip, "choose 0 (off) or a number, such as 0.2")
        fix = "the values would stay 0; choose a number above 0, such as 0.1"
        require(0 < self.value_weight < math.inf, "ppo.value_weight", self.value_weight, fix)
