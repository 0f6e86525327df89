"""Generalized advantage estimation (Schulman et al. 2016; for text: Ziegler et al. 2019), on the host, in float64.

Arrays are [B, T]. The weights of a response's tokens, which
follow each other, are above 0. The value at a token is that of the position which predicts it.
"""

import numpy as np
from jaxtyping import Float64

WHITENING_EPS = 1e-8
Numbers = Float64[np.ndarray, "B T"]


def token_rewards(scores: Float64[np.ndarray, " B"], log_ratios: Numbers, weights: Numbers, beta: float) -> Numbers:
    """Return the reward of each token: -beta times its log-ratio to a reference. The last token also gets the score.

    The last token is that of the response, its end mark; padding after it gets no reward.

    Args:
        log_ratios: log-probabilities when the tokens were sampled, minus those under the reference.
    """
    counted = weights > 0
    following = np.pad(counted[:, 1:], ((0, 0), (0, 1)))
    return np.where(counted, -beta * log_ratios, 0.0) + np.where(counted & ~following, scores[:, None], 0.0)


def advantages_and_returns(
    rewards: Numbers, values: Numbers, weights: Numbers, *, gamma: float, lam: float
) -> tuple[Numbers, Numbers]:
    """Return generalized advantage estimates (Schulman et al. 2016, equation 16) and the returns that values should predict.

    A_t = r_t + gamma V_t+1 - V_t + gamma lambda A_t+1; V and A after the last token are 0. A return is A_t + V_t. Both are 0
    where the weight is 0.
    """
    counted = (weights > 0).astype(np.float64)
    advantages = np.zeros_like(rewards)
    following_value = following = np.zeros(len(rewards))
    for at in reversed(range(rewards.shape[1])):
        error = rewards[:, at] + gamma * following_value - values[:, at]
        following = advantages[:, at] = counted[:, at] * (error + gamma * lam * following)
        following_value = counted[:, at] * values[:, at]
    return advantages, advantages + counted * values


def whiten_advantages(advantages: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Return advantages with mean 0 and variance 1; 0 if all are equal."""
    return (advantages - advantages.mean()) / np.sqrt(advantages.var() + WHITENING_EPS)


def explained_variance(values: Float64[np.ndarray, " n"], returns: Float64[np.ndarray, " n"]) -> float:
    """Return 1 - variance of (returns - values) / variance of returns; 0 if all returns are equal.

    It is 1 for values that equal the returns, and at most 0 for values that predict no more than their mean.
    """
    variance = returns.var()
    # Equal returns have a variance of a few squared rounding errors.
    smallest = (1e-12 * np.abs(returns).max()) ** 2
    return float(1 - (returns - values).var() / variance) if variance > smallest else 0.0
