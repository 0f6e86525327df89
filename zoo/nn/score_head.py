"""The reward head of a decoder or an encoder-decoder: one score per sequence, in place of the language-model head.

It has the parts of the published classes of `transformers` with one label. GPT2ForSequenceClassification: `score`, a kernel
[D, 1] without bias. T5ForSequenceClassification: `dense`, a layer and tanh, then `classifier`, a layer with one output.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.nn.layers import Init, Linear, Seeds, apply_linear, params_of


def init_score(width: int, key: Array) -> dict[str, Any]:
    """Return a new `score`: normal with standard deviation 1/sqrt(D + 1), as in the code of Stiennon et al. 2020.

    Initial scores then have about the standard deviation of the normalized states.
    """
    init = jax.nn.initializers.normal((width + 1) ** -0.5)
    return {"score": params_of(Linear("...d,de->...e", (width, 1), None, init, nnx.Rngs(key)))}


def init_dense_score(width: int, init: Init, key: Array) -> dict[str, Any]:
    """Return a new `dense` and `classifier`."""
    rngs = nnx.Rngs(key)
    return {
        name: params_of(Linear("...d,de->...e", (width, size), (size,), init, rngs))
        for name, size in (("dense", width), ("classifier", 1))
    }


def sequence_logits(
    cfg: Any, params: dict[str, Any], hidden: Float[Array, "B Q D"], *, seeds: Seeds = None
) -> Float[Array, "B Q O"]:
    """Return the float32 score of each sequence, O = 1, from the hidden state that summarizes it; it has no dropout.

    Raises:
        ValueError: the model has no such head.
    """
    if "score" in params:
        return apply_linear(params["score"], hidden).astype(jnp.float32)
    if "classifier" not in params:
        raise ValueError("a model with an LM head has no score of a sequence; use one with a label")
    return apply_linear(params["classifier"], jnp.tanh(apply_linear(params["dense"], hidden))).astype(jnp.float32)
