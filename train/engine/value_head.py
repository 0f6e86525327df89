"""The value head, a linear layer that predicts at each token the rewards which are still to come, and the loss of its values.

It reads the hidden state that predicts the token, so policy and values share the body of the model. It belongs to training alone:
the leaf `value/kernel` [D, 1] lies beside those of the model, in checkpoints too, and no export has it.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from train.engine.state_init import TrainedParams
from zoo.models import Model
from zoo.ops.products import product

VALUE = "value"


def value_head(model: Model) -> TrainedParams:
    """Return a new head, whose values are 0 (as in the code of Ziegler et al. 2019), with its sharding."""
    width = model.config.width
    return TrainedParams(
        lambda key: {VALUE: {"kernel": jnp.zeros((width, 1), jnp.float32)}}, ((f"{VALUE}/kernel", ("fsdp", None)),)
    )


def token_values(params: Any, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
    """Return the float32 value at each position, from the hidden states of the model."""
    return product(hidden, params[VALUE]["kernel"], 1).astype(jnp.float32)[..., 0]


def value_losses(
    values: Float[Array, "B T"], old: Float[Array, "B T"], returns: Float[Array, "B T"], clip: float
) -> Float[Array, "B T"]:
    """Return half the larger squared error of the values, and of the values within `clip` of those at the rollout's start.

    The larger one is taken, as in the code of Ziegler et al. 2019, so that a value that has moved away too far stays where it is
    unless that is worse. `clip` 0: the squared error of the values alone.
    """
    errors = jnp.square(values - returns)
    if clip:
        errors = jnp.maximum(errors, jnp.square(jnp.clip(values, old - clip, old + clip) - returns))
    return 0.5 * errors
