"""Losses of sampled responses as functions of the log-probabilities of their tokens.

Log-probabilities are [B, T] in nats, and weights [B, T] are above 0 where a token counts. A ratio and an advantage are [B, T], or
[B, 1] if all tokens of a response have the same value.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from train.config.policy_gradient_options import Aggregation, Ratio


def probability_ratios(
    log_probs: Float[Array, "B T"], old: Float[Array, "B T"], weights: Float[Array, "B T"], kind: Ratio
) -> Float[Array, "B R"]:
    """Return the ratios of the probabilities of responses now to those at the start of their rollout.

    token: of each token (Shao et al. 2024, equation 3). sequence: their geometric mean (Zheng et al. 2025, GSPO, equation 7).
    product: of the response, as in TRL's RLOO.
    """
    logs = jnp.where(weights > 0, log_probs - old, 0)
    if kind == "token":
        return jnp.exp(logs)
    summed = logs.sum(1, keepdims=True)
    return jnp.exp(summed / token_counts(weights) if kind == "sequence" else summed)


def clipped_losses(
    ratio: Float[Array, "B R"], advantage: Float[Array, "B A"], clip_low: float, clip_high: float
) -> Float[Array, "B C"]:
    """Return -min(r A, clip(r, 1 - low, 1 + high) A) (Schulman et al. 2017, equation 7; two sides: Yu et al. 2025, 3.1)."""
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)


def kl_losses(log_probs: Float[Array, "B T"], reference: Float[Array, "B T"], ratio: Float[Array, "B R"]) -> Float[Array, "B T"]:
    """Return r (e^d - d - 1), with d the log-probability under the reference minus the present one and r the ratio.

    It is k3 (Schulman 2020, "Approximating KL divergence") times the ratio of DeepSeek-V3.2 (2025), as in TRL 1.16.
    """
    difference = reference - log_probs
    return (jnp.expm1(difference) - difference) * ratio


def token_counts(weights: Float[Array, "B T"]) -> Float[Array, "B 1"]:
    """Return the number of counted tokens of each response, at least 1."""
    return jnp.maximum((weights > 0).astype(weights.dtype).sum(1, keepdims=True), 1)


def loss_weights(weights: Float[Array, "B T"], aggregation: Aggregation) -> Float[Array, "B T"]:
    """Return the factor of each token in the sum of the losses, which `loss_divisor` divides."""
    return weights / token_counts(weights) if aggregation == "sequences" else weights


def loss_divisor(weights: Float[Array, "B T"], aggregation: Aggregation, limit: int) -> Float[Array, ""]:
    """Return the divisor of the sum over a batch: itself a sum over rows, so that batches may be summed in parts.

    tokens: the number of tokens (Yu et al. 2025, DAPO, section 3.3). sequences: that of responses (Shao et al. 2024, equation 3).
    limit: that of responses times `limit`, the most tokens of one (Liu et al. 2025, Dr. GRPO, section 3.2).
    """
    if aggregation == "tokens":
        return weights.sum()
    responses = (weights / token_counts(weights)).sum()
    return responses if aggregation == "sequences" else responses * limit
