"""Advantages of sampled responses over the other responses to the same prompt: numpy, on the host, in float64."""

import numpy as np
from jaxtyping import Float64

from train.config.policy_gradient_options import Advantage

STD_EPS = 1e-4
"""Is added to the standard deviation of a group, as in TRL 1.16."""


def group_advantages(rewards: Float64[np.ndarray, "P G"], kind: Advantage) -> Float64[np.ndarray, "P G"]:
    """Return the advantages of G responses to each of P prompts; exactly 0 where all rewards of a prompt are equal.

    group: the reward minus the mean of the group (Liu et al. 2025, Dr. GRPO, section 3.2). group_std: the same, divided by the
    standard deviation of the group, with G - 1 in its denominator, plus `STD_EPS` (Shao et al. 2024, section 4.1.2).
    leave_one_out: the reward minus the mean of the other G - 1 (Ahmadian et al. 2024, RLOO).

    Raises:
        ValueError: a group of one response, which has nothing to be compared with.
    """
    size = rewards.shape[1]
    if size < 2:
        raise ValueError(f"a group has {size} responses; it needs 2 or more")
    # Differences of equal rewards are exactly 0; their mean itself may round to another number.
    relative = rewards - rewards[:, :1]
    total = relative.sum(1, keepdims=True)
    if kind == "leave_one_out":
        return relative - (total - relative) / (size - 1)
    centred = relative - total / size
    return centred / (relative.std(1, ddof=1, keepdims=True) + STD_EPS) if kind == "group_std" else centred
