"""The linear layer without bias from hidden states to the vectors of tokens (Khattab and Zaharia 2020, section 3.2).

The leaf `token_projection/kernel` [D, E] lies beside those of the model, in checkpoints too; an export has it as `1_Dense`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from train.engine.state_init import TrainedParams
from zoo.nn.pooling import unit_vectors

PROJECTION = "token_projection"


def token_projection(
    width: int, dimensions: int, read: Callable[[], Float32[np.ndarray, "D E"] | None] | None = None
) -> TrainedParams:
    """Return the layer, with its sharding.

    Args:
        read: returns its kernel before the first step; None, or if it does: normal with the variance 1 / D.
    """

    def init(key: jax.Array) -> Any:
        # The model's own parameters are sampled from the same key.
        key = jax.random.fold_in(key, dimensions)
        return {PROJECTION: {"kernel": jax.random.normal(key, (width, dimensions), jnp.float32) / math.sqrt(width)}}

    def read_layer() -> Any:
        kernel = None if read is None else read()
        return None if kernel is None else {PROJECTION: {"kernel": kernel}}

    return TrainedParams(init, ((f"{PROJECTION}/kernel", ("fsdp", None)),), has_use=True, read=read_layer)


def projected_tokens(params: Any, hidden: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
    """Return the vector of each token, float32, of length 1."""
    kernel = params[PROJECTION]["kernel"].astype(jnp.float32)
    products = jnp.einsum("btd,de->bte", hidden.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)
    return unit_vectors(products)
