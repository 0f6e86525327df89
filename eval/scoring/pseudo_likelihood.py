"""Pseudo-log-likelihoods: the likelihood of each token of a text when that token alone is masked.

Source: Salazar et al. 2020, "Masked Language Model Scoring", section 2.2. The unmasked tokens of a word reveal the masked one, so
that a word of several tokens looks likelier than it is (Kauf and Ivanova 2023, "A Better Way to Do Masked Language Model
Scoring").
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64, Integer

from eval.scoring.batch_loop import Progress, no_progress
from eval.scoring.encoder_runner import Encoder, EncoderRow
from train.engine.losses import token_losses
from zoo.batch import Batch
from zoo.models import Model
from zoo.nn import task_heads


def pseudo_nats(
    encoder: Encoder,
    texts: Sequence[Integer[np.ndarray, " _"]],
    *,
    length: int = 0,
    name: Callable[[int], str] = "text {}".format,
    progress: Progress = no_progress,
) -> Float64[np.ndarray, " texts"]:
    """Return, for each text, the sum over its tokens of -log p(token | the others); special tokens are not masked or counted.

    In a text longer than the model's positions each token has a window of its own, as wide as possible: as many tokens before it
    as after it, and more on one side where the text ends on the other. That costs as much as one window for all tokens would.
    Equal texts are computed once, so that they tie exactly.

    Args:
        texts: ids, without special tokens.
        length: tokens in a row, special tokens included; 0 = the model's positions.
        name: returns the name of a text in messages, from its number.
        progress: called with (tokens done, total tokens).

    Raises:
        BadInput: a model without a head for masked words, or a result that is not finite.
    """
    encoder.check_masked()
    keys = [text.tobytes() for text in texts]
    first = {key: number for number, key in reversed([*enumerate(keys)])}
    unique = sorted(first.values())
    room = (length or encoder.room) - len(encoder.with_special_tokens(texts[0][:0], ""))
    rows = (row for number in unique for row in _rows(encoder, texts[number], room, number, name(number)))
    count, nats = sum(len(texts[number]) for number in unique), np.zeros(len(texts))
    for done, (row, (nll,)) in enumerate(encoder.run(rows, _target_nll), 1):
        nats[row.number] += float(nll)
        progress(done, count)
    return nats[[first[key] for key in keys]]


def _rows(encoder: Encoder, ids: Integer[np.ndarray, " n"], room: int, number: int, where: str) -> Iterator[EncoderRow]:
    """Yield a row for each token, in which it is masked."""
    size = min(len(ids), room)
    for place in range(len(ids)):
        start = min(max(0, place - size // 2), len(ids) - size)
        tokens = encoder.with_special_tokens(ids[start : start + size], where)
        at = place - start + encoder.special_tokens.before
        tokens[at] = encoder.special_tokens.mask
        yield EncoderRow(number, where, tokens, at, int(ids[place]))


def _target_nll(model: Model, params: Any, batch: Batch) -> tuple[jax.Array]:
    """Return -log p of the targets, [B]."""
    assert batch.targets is not None
    hidden = task_heads.predictions(model.apply(params, batch), batch)
    return (
        token_losses(lambda states: model.unembed(params, states), hidden, batch.targets, vocabulary=model.config.vocab)[:, 0],
    )
