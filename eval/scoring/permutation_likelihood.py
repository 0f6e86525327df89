"""Permutation likelihoods: the likelihood of a text whose tokens are predicted in random orders.

Along an order z, -log p of a text is the sum over its positions of -log p(token z_t | tokens z_1 ... z_t-1 and their positions).
A permutation language model minimizes its mean over all orders (Yang et al. 2019, section 2.2).
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
from zoo.errors import BadInput
from zoo.models import Model
from zoo.nn import task_heads


def permuted_nats(
    encoder: Encoder,
    texts: Sequence[Integer[np.ndarray, " _"]],
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
        texts: ids, without special tokens.
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
    rows = (row for number, text in enumerate(texts) for row in _rows(text, room, orders, number, name(number)))
    for done, (row, (row_nll,)) in enumerate(encoder.run(rows, _token_nll), 1):
        nats[row.number, row.at] += row_nll[: len(row.tokens)].astype(np.float64).sum()
        progress(done, count)
    return nats


def _rows(ids: Integer[np.ndarray, " n"], room: int, orders: int, number: int, where: str) -> Iterator[EncoderRow]:
    """Yield a row for each order of each chunk; `at` is the order's number."""
    for order_number in range(orders):
        for start in range(0, len(ids), room):
            tokens = ids[start : start + room].astype(np.int32)
            order = np.random.default_rng([number, start, order_number]).permutation(len(tokens)).astype(np.int32)
            yield EncoderRow(number, where, tokens, at=order_number, order=order)


def _token_nll(model: Model, params: Any, batch: Batch) -> tuple[jax.Array]:
    """Return -log p of every token, [B, T]; a finite value for padding."""
    hidden = task_heads.predictions(model.apply(params, batch), batch)
    return (token_losses(lambda states: model.unembed(params, states), hidden, batch.tokens, vocabulary=model.config.vocab),)
