"""Losses of preferences as functions of the log-probabilities of answers; the chosen answer of a pair is the first."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.config.dpo_options import Dpo
from train.config.kto_options import Kto


def implicit_rewards(
    log_probs: Float[Array, "B 2"], reference: Float[Array, "B 2"] | None, lengths: Float[Array, "B 2"], options: Dpo
) -> Float[Array, "B 2"]:
    """Return the implicit reward of each answer: the loss of a pair depends on the difference of its two rewards.

    The reward is beta times the log-ratio to the reference (Rafailov et al. 2023, section 5.1), a sum over tokens, or for ipo,
    length_normalised and simpo the mean per token; for orpo it is the log of the odds of the mean.

    Args:
        log_probs: summed log-probabilities in nats of both answers.
        reference: those of the reference; None: a reference of probability 1.
        lengths: number of tokens of both answers.
    """
    ratios = log_probs if reference is None else log_probs - reference
    means = ratios / jnp.maximum(lengths, 1)
    if options.kind == "orpo":
        # A mean that rounds to 0 has infinite odds; those of the largest probability below 1 are used instead.
        means = jnp.minimum(means, -jnp.finfo(means.dtype).eps)
        return means - jax.nn.log1mexp(-means)
    return options.beta * (means if options.kind in ("ipo", "length_normalised", "simpo") else ratios)


def pair_losses(rewards: Float[Array, "B 2"], options: Dpo) -> Float[Array, " B"]:
    """Return the loss of each pair from its `rewards`.

    sigmoid: Rafailov et al. 2023, equation 7; with `smoothing`, Mitchell's conservative DPO. robust: Chowdhury et al. 2024.
    hinge: Zhao et al. 2023 (SLiC-HF). ipo: Azar et al. 2023, equation 17, of means per token as its authors use it.
    length_normalised: Lambert et al. 2024 (Tulu 3). simpo: Meng et al. 2024, equation 6. orpo: Hong et al. 2024, equation 7,
    times beta.
    """
    margins, beta, smoothing = rewards[:, 0] - rewards[:, 1], options.beta, options.smoothing
    match options.kind:
        case "hinge":
            return jax.nn.relu(1 - margins)
        case "ipo":
            return jnp.square(margins / beta - 1 / (2 * beta))
        case "simpo":
            return jax.nn.softplus(options.gamma - margins)
        case "orpo":
            return beta * jax.nn.softplus(-margins)
        case "robust":
            correct, flipped = jax.nn.softplus(-margins), jax.nn.softplus(margins)
            return ((1 - smoothing) * correct - smoothing * flipped) / (1 - 2 * smoothing)
        case "sigmoid" | "length_normalised":
            correct = jax.nn.softplus(-margins)
            return (1 - smoothing) * correct + smoothing * jax.nn.softplus(margins) if smoothing else correct


def unpaired_losses(
    ratios: Float[Array, " B"], z: Float[Array, " B"], desired: Float[Array, " B"], options: Kto
) -> Float[Array, " B"]:
    """Return the loss of each labelled answer (Ethayarajh et al. 2024, equation 7 as TRL 1.16 cites it).

    weight_D (1 - sigmoid(beta (ratio - z))) for a desired answer, weight_U (1 - sigmoid(beta (z - ratio))) for an undesired one.

    Args:
        ratios: log-ratios of the answers to the reference, in nats, summed over their tokens.
        z: reference point, in nats.
        desired: 1 for desired answers, 0 for undesired ones.
    """
    is_desired, gains = desired > 0.5, options.beta * (ratios - z)
    # 1 - sigmoid(x) is sigmoid(-x), without the cancellation.
    losses = jax.nn.sigmoid(jnp.where(is_desired, -gains, gains))
    return jnp.where(is_desired, options.desired_weight, options.undesired_weight) * losses
