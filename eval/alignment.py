"""Which words of a source an encoder-decoder looks at while it writes each word of its text, as numbers and as a picture.

The attention of the decoder over the source, as Bahdanau et al. 2015 draw it (figure 3), averaged over layers and heads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from eval.page import text
from train.tokenizer import Tokenizer
from zoo import attention
from zoo.batch import Batch
from zoo.models import Model

SHAPE: dict[str, Any] = {"source": [str], "text": [str], "weights": [[int | float]]}
"""What is kept: the tokens of the source and of the text, and for each of the text's a weight for each of the source's."""
CELL, LETTER = 16, 7.2
"""Pixels of a square, and about those that a letter is wide."""


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
    """What `draw` shows, as JSON carries it; the text's end mark is its last token."""
    assert tokenizer.text_marks is not None
    start, ids = tokenizer.text_marks.pad, np.append(np.asarray(written, np.int32), tokenizer.end_of_text)
    found = weights(net, params, source, ids, start)
    return {"source": tokenizer.entries(source), "text": tokenizer.entries(ids), "weights": found.round(4).tolist()}


def draw(found: Mapping[str, Any]) -> str:
    """A picture of it: a row for each token of the text, a column for each of the source, the darker the more it is looked at."""
    source, said, table = found["source"], found["text"], found["weights"]
    left, top = 12 + LETTER * max(map(len, said)), 12 + LETTER * max(map(len, source))
    wide, high = left + CELL * len(source) + 4, top + CELL * len(said) + 4
    squares = "".join(
        f'<rect x="{left + CELL * column:.0f}" y="{top + CELL * row:.0f}" width="{CELL - 1}" height="{CELL - 1}" '
        f'fill="var(--one)" fill-opacity="{min(1.0, weight):.3f}"><title>{text(said[row])}, {text(source[column])}: {weight:.2f}'
        "</title></rect>"
        for row, line in enumerate(table)
        for column, weight in enumerate(line)
        if weight >= 0.005
    )
    rows = "".join(
        f'<text x="{left - 6:.0f}" y="{top + CELL * (row + 0.75):.0f}" text-anchor="end">{text(token)}</text>'
        for row, token in enumerate(said)
    )
    columns = "".join(
        f'<text transform="translate({left + CELL * (column + 0.75):.0f} {top - 6:.0f}) rotate(-90)">{text(token)}</text>'
        for column, token in enumerate(source)
    )
    frame = (
        f'<rect x="{left - 1:.0f}" y="{top - 1:.0f}" width="{CELL * len(source) + 1}" height="{CELL * len(said) + 1}" '
        'fill="none" stroke="var(--grid)"/>'
    )
    label = "attention of each token of the text, a row, over those of its source, a column"
    style = f'style="width:{wide:.0f}px;max-width:none" font-size="12" fill="var(--ink)"'
    return (
        f'<figure class=scroll><svg viewBox="0 0 {wide:.0f} {high:.0f}" {style} role="img" aria-label="{label}">'
        f"<title>{label}</title>{frame}{squares}{rows}{columns}</svg></figure>"
    )
