"""Attention of an encoder-decoder's decoder over the source, for each token that it generates.

It is averaged over layers and heads; `eval.report.run_charts.attention_chart` draws it.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from train.tokenizers.tokenizer import Tokenizer
from zoo.attention import attention
from zoo.batch import Batch
from zoo.models import Model


def cross_attention_weights(
    model: Model, params: Any, source: Integer[np.ndarray, " S"], written: Integer[np.ndarray, " T"], start: int
) -> Float[np.ndarray, "T S"]:
    """Return the mean attention weights of each token of a text over the tokens of its source; each row sums to 1.

    Args:
        params: on one device.
        start: id of the token that every text begins with.
    """
    padded_source = np.append(source, np.full(int(len(written) == len(source)), start)).astype(np.int32)
    segments = (np.arange(len(padded_source)) < len(source)).astype(np.int32)
    tokens = np.concatenate([[start], written[:-1]]).astype(np.int32)
    batch = Batch(
        tokens=jnp.asarray(tokens)[None],
        segments=jnp.ones((1, len(tokens)), jnp.int32),
        source=Batch(tokens=jnp.asarray(padded_source)[None], segments=jnp.asarray(segments)[None]),
    )
    with attention.record_weights() as seen:
        model.apply(params, batch)
    # A source as long as the text is padded by one token, because self-attention would otherwise have the same shape.
    crossing = [layer[0] for layer in seen if layer.shape[2:] == (len(tokens), len(padded_source))]
    return np.mean([layer.mean(0) for layer in crossing], axis=0)[:, : len(source)]


def cross_attention_record(
    model: Model, params: Any, tokenizer: Tokenizer, source: Integer[np.ndarray, " S"], written: Sequence[int]
) -> dict[str, Any]:
    """Return {"source", "text", "weights"} as JSON.

    "source" and "text" are lists of tokens, including the text's end-of-text; "weights" is [text tokens][source tokens].
    """
    assert tokenizer.text_special_tokens is not None
    start, ids = tokenizer.text_special_tokens.pad, np.append(np.asarray(written, np.int32), tokenizer.end_of_text)
    mean_weights = cross_attention_weights(model, params, source, ids, start)
    return {"source": tokenizer.entries(source), "text": tokenizer.entries(ids), "weights": mean_weights.round(4).tolist()}
