"""Which words of a source an encoder-decoder looks at while it writes each word of its text.

The attention of the decoder over the source, averaged over layers and heads; `eval.report.charts.alignment` draws it.
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


def weights(
    net: Model, params: Any, source: Integer[np.ndarray, " S"], written: Integer[np.ndarray, " T"], start: int
) -> Float[np.ndarray, "T S"]:
    """The mean weight of each token of a source in the writing of each of a text's; each row sums to 1.

    Args:
        params: on one device.
        start: what every text begins with.
    """
    given = np.append(source, np.full(int(len(written) == len(source)), start)).astype(np.int32)
    segments = (np.arange(len(given)) < len(source)).astype(np.int32)
    tokens = np.concatenate([[start], written[:-1]]).astype(np.int32)
    batch = Batch(
        tokens=jnp.asarray(tokens)[None],
        segments=jnp.ones((1, len(tokens)), jnp.int32),
        source=Batch(tokens=jnp.asarray(given)[None], segments=jnp.asarray(segments)[None]),
    )
    with attention.watched() as seen:
        net.apply(params, batch)
    # Of a text that is as long as its source, the attention to itself would have the same shape: so the source was made longer.
    crossing = [each[0] for each in seen if each.shape[2:] == (len(tokens), len(given))]
    return np.mean([each.mean(0) for each in crossing], axis=0)[:, : len(source)]


def record(
    net: Model, params: Any, tokenizer: Tokenizer, source: Integer[np.ndarray, " S"], written: Sequence[int]
) -> dict[str, Any]:
    """{"source", "text", "weights"} as JSON carries them: the tokens of both, the text's end mark being its last one, and for
    each of the text's a weight for each of the source's."""
    assert tokenizer.text_marks is not None
    start, ids = tokenizer.text_marks.pad, np.append(np.asarray(written, np.int32), tokenizer.end_of_text)
    found = weights(net, params, source, ids, start)
    return {"source": tokenizer.entries(source), "text": tokenizer.entries(ids), "weights": found.round(4).tolist()}
