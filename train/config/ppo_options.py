"""Options of proximal policy optimization: how rewards and values of tokens become a loss."""

import dataclasses
import math

from zoo.errors import require


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
        # At a clip of 0 the first step, where every ratio is 1, would lose half of its gradient.
        require(0 < self.clip <= 1, "ppo.clip", self.clip, "choose a number above 0 and up to 1, such as 0.2")
        require(0 <= self.value_clip < math.inf, "ppo.value_clip", self.value_clip, "choose 0 (off) or a number, such as 0.2")
        fix = "the values would stay 0; choose a number above 0, such as 0.1"
        require(0 < self.value_weight < math.inf, "ppo.value_weight", self.value_weight, fix)
