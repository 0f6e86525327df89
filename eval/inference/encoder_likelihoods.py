"""Likelihoods of the tokens of texts under an encoder: each masked alone, or predicted in random orders.

Pseudo-log-likelihoods: Salazar et al. 2020, "Masked Language Model Scoring", section 2.2. The unmasked tokens of a word reveal
the masked one, so that a word of several tokens looks likelier than it is (Kauf and Ivanova 2023, "A Better Way to Do Masked
Language Model Scoring").

Permutation likelihoods: along an order z, -log p of a text is the sum over its positions of -log p(token z_t | tokens z_1 ...
z_t-1 and their positions). A permutation language model minimizes its mean over all orders (Yang et al. 2019, section 2.2).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64, Integer

from eval.inference.batch_loop import Progress, no_progress
from eval.inference.encoder_runner import Encoder, EncoderRow
from train.engine.losses import token_losses
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import Model
from zoo.nn import task_heads

Texts = Sequence[Integer[np.ndarray, " _"]]
"""Ids of texts, without special tokens."""


def pseudo_nats(
    encoder: Encoder,
    texts: Texts,
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
    rows = (row for number in unique for row in _masked_rows(encoder, texts[number], room, number, name(number)))
    count, nats = sum(len(texts[number]) for number in unique), np.zeros(len(texts))
    for done, (row, (nll,)) in enumerate(encoder.run(rows, _target_nll), 1):
        nats[row.number] += float(nll)
        progress(done, count)
    return nats[[first[key] for key in keys]]


def permuted_nats(
    encoder: Encoder,
    texts: Texts,
    *,
    orders: int,
    length: int = 0,
    name: Callable[[int], str] = "text {}".format,
    progress: Progress = no_progress,
) -> Float64[np.ndarray, "texts orders"]:
    """Return, for each text and order, the sum over its tokens of -log p(token | those before it in the order).

    A text longer than a row is cut into chunks that do not see each other. An order is a function of the text's number, the
    chunk and the order's number. There are no special tokens around a text.

    Args:
        orders: orders sampled for each text, 1 or more.
        length: tokens in a row; 0 = `encoder.room`.
        progress: called with (rows done, total rows).

    Raises:
        BadInput: a model without a query stream, or a result that is not finite.
    """
    model, room, nats = encoder.loaded.model, length or encoder.room, np.zeros((len(texts), orders))
    if "permutation" not in model.definition.objectives:
        raise BadInput(f"{encoder.loaded.where}: a {model.family} does not predict tokens in any order; choose an XLNet")
    encoder.check_masked()
    count = orders * sum(-(-len(text) // room) for text in texts)
    rows = (row for number, text in enumerate(texts) for row in _ordered_rows(text, room, orders, number, name(number)))
    for done, (row, (row_nll,)) in enumerate(encoder.run(rows, _token_nll), 1):
        nats[row.number, row.at] += row_nll[: len(row.tokens)].astype(np.float64).sum()
        progress(done, count)
    return nats


def _masked_rows(encoder: Encoder, ids: Integer[np.ndarray, " n"], room: int, number: int, where: str) -> Iterator[EncoderRow]:
    """Yield a row for each token, in which it is masked."""
    size = min(len(ids), room)
    for place in range(len(ids)):
        start = min(max(0, place - size // 2), len(ids) - size)
        tokens = encoder.with_special_tokens(ids[start : start + size], where)
        at = place - start + encoder.special_tokens.before
        tokens[at] = encoder.special_tokens.mask
        yield EncoderRow(number, where, tokens, at, int(ids[place]))


def _ordered_rows(ids: Integer[np.ndarray, " n"], room: int, orders: int, number: int, where: str) -> Iterator[EncoderRow]:
    """Yield a row for each order of each chunk; `at` is the order's number."""
    for order_number in range(orders):
        for start in range(0, len(ids), room):
            tokens = ids[start : start + room].astype(np.int32)
            order = np.random.default_rng([number, start, order_number]).permutation(len(tokens)).astype(np.int32)
            yield EncoderRow(number, where, tokens, at=order_number, order=order)


def _target_nll(model: Model, params: Any, batch: Batch) -> tuple[jax.Array]:
    """Return -log p of the targets, [B]."""
    assert batch.targets is not None
    return (_nll(model, params, batch, batch.targets)[:, 0],)


def _token_nll(model: Model, params: Any, batch: Batch) -> tuple[jax.Array]:
    """Return -log p of every token, [B, T]; a finite value for padding."""
    return (_nll(model, params, batch, batch.tokens),)


def _nll(model: Model, params: Any, batch: Batch, targets: Any) -> jax.Array:
    hidden = task_heads.predicting_states(model.apply(params, batch), batch)
    return token_losses(lambda states: model.unembed(params, states), hidden, targets, vocabulary=model.config.vocab)
