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
from jaxtyping import Bool, Float64, Integer

from eval.inference.batch_loop import Progress, no_progress
from eval.inference.encoder_runner import Encoder, EncoderRow
from eval.inference.likelihood import Likelihood, TooLong
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
    begins = [0] * len(texts)
    results = pseudo_likelihoods(encoder, texts, begins, length=length, name=name, progress=progress)
    return np.array([result.nats for result in results])


def pseudo_likelihoods(
    encoder: Encoder,
    texts: Texts,
    begins: Sequence[int],
    *,
    within_word: bool = False,
    length: int = 0,
    name: Callable[[int], str] = "text {}".format,
    progress: Progress = no_progress,
) -> list[Likelihood]:
    """Return the pseudo-likelihood of the tokens of each text from `begins` on; those before are never masked.

    Args:
        begins: number of tokens of each text that are only read.
        within_word: with a token also the later ones of its word are masked (Kauf and Ivanova 2023); words begin where the
            tokenizer says so, and at the beginning of a text.
        length, name, progress: see `pseudo_nats`.

    Raises:
        BadInput: see `pseudo_nats`.
    """
    encoder.check_masked()
    keys = [(text.tobytes(), begin) for text, begin in zip(texts, begins, strict=True)]
    first = {key: number for number, key in reversed([*enumerate(keys)])}
    unique = sorted(first.values())
    room = (length or encoder.room) - len(encoder.with_special_tokens(texts[0][:0], ""))
    starts = encoder.loaded.tokenizer.word_starts() if within_word else None
    rows = (
        row
        for number in unique
        for row in _masked_rows(encoder, texts[number], begins[number], starts, room, number, name(number))
    )
    count = sum(len(texts[number]) - begins[number] for number in unique)
    nats, hits = np.zeros((2, len(texts)))
    for done, (row, (nll, hit)) in enumerate(encoder.run(rows, _target_nll), 1):
        nats[row.number] += float(nll)
        hits[row.number] += float(hit)
        progress(done, count)
    return [_likelihood(nats[first[key]], hits[first[key]], len(text) - key[1]) for text, key in zip(texts, keys, strict=True)]


def ordered_likelihoods(
    encoder: Encoder,
    texts: Texts,
    begins: Sequence[int],
    *,
    orders: int,
    too_long: TooLong = "refuse",
    name: Callable[[int], str] = "text {}".format,
    progress: Progress = no_progress,
) -> list[Likelihood]:
    """Return the likelihood of the tokens of each text from `begins` on, after those before, which all see each other.

    Args:
        begins: number of tokens of each text that are only read.
        orders: number of random orders, over which log-likelihoods are averaged; 0 = one order, from left to right.
        too_long: handling of a text longer than a row: an error, or its beginning is cut.
        name, progress: see `pseudo_nats`.

    Raises:
        BadInput: a model without a query stream, a text that is too long, or a result that is not finite.
    """
    check_orders(encoder)
    rows: list[EncoderRow] = []
    keys, cuts = [], []
    seen: dict[tuple[bytes, int], int] = {}
    for number, (text, begin) in enumerate(zip(texts, begins, strict=True)):
        over = max(0, len(text) - encoder.room)
        if over and (too_long == "refuse" or over > begin):
            part = "" if over <= begin else " to be scored"
            size = len(text) - (begin if part else 0)
            raise BadInput(f"{name(number)}: {size} tokens{part}, but a row has {encoder.room}; shorten the text")
        keys.append((text[over:].tobytes(), begin - over))
        cuts.append(over)
        if seen.setdefault(keys[-1], number) == number:
            rows += _continued_rows(text[over:], begin - over, orders, number, name(number))
    nats, hits = np.zeros((2, len(texts)))
    for done, (row, (row_nll, row_hits)) in enumerate(encoder.run(rows, _token_nll), 1):
        scored = slice(row.at, len(row.tokens))
        nats[row.number] += row_nll[scored].astype(np.float64).sum() / max(orders, 1)
        hits[row.number] += row_hits[scored].sum() / max(orders, 1)
        progress(done, len(rows))
    return [
        _likelihood(nats[seen[key]], hits[seen[key]], len(text) - begin, cut)
        for key, text, begin, cut in zip(keys, texts, begins, cuts, strict=True)
    ]


def check_orders(encoder: Encoder) -> None:
    """Refuse a model without a query stream.

    Raises:
        BadInput: it predicts no tokens, or not in any order.
    """
    model = encoder.loaded.model
    if "permutation" not in model.definition.objectives:
        raise BadInput(f"{encoder.loaded.where}: a {model.family} does not predict tokens in any order; choose an XLNet")
    encoder.check_masked()


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
    room, nats = length or encoder.room, np.zeros((len(texts), orders))
    check_orders(encoder)
    count = orders * sum(-(-len(text) // room) for text in texts)
    rows = (row for number, text in enumerate(texts) for row in _ordered_rows(text, room, orders, number, name(number)))
    for done, (row, (row_nll, _)) in enumerate(encoder.run(rows, _token_nll), 1):
        nats[row.number, row.at] += row_nll[: len(row.tokens)].astype(np.float64).sum()
        progress(done, count)
    return nats


def _masked_rows(
    encoder: Encoder,
    ids: Integer[np.ndarray, " n"],
    begin: int,
    starts: Bool[np.ndarray, " V"] | None,
    room: int,
    number: int,
    where: str,
) -> Iterator[EncoderRow]:
    """Yield a row for each token from `begin` on, in which it is masked; with `starts` also the later tokens of its word."""
    size, before, mask = min(len(ids), room), encoder.special_tokens.before, encoder.special_tokens.mask
    for place in range(begin, len(ids)):
        start = min(max(0, place - size // 2), len(ids) - size)
        tokens = encoder.with_special_tokens(ids[start : start + size], where)
        at, end = place - start + before, place + 1
        while starts is not None and end < start + size and not starts[ids[end]]:
            end += 1
        tokens[at : end - start + before] = mask
        yield EncoderRow(number, where, tokens, at, int(ids[place]))


def _continued_rows(ids: Integer[np.ndarray, " n"], begin: int, orders: int, number: int, where: str) -> Iterator[EncoderRow]:
    """Yield a row for each order of the tokens from `begin` on, or for the one from left to right; `at` is `begin`."""
    size = len(ids) - begin
    for order_number in range(max(orders, 1)):
        order = np.arange(size) if not orders else np.random.default_rng([begin, size, order_number]).permutation(size)
        # Tokens of rank -1 are visible to all, and see each other.
        ranks = np.concatenate([np.full(begin, -1), order]).astype(np.int32)
        yield EncoderRow(number, where, ids.astype(np.int32), at=begin, order=ranks)


def _likelihood(nats: float, hits: float, tokens: int, cut: int = 0) -> Likelihood:
    """Return a likelihood; it is the greedy one if every token was the likeliest in every order."""
    return Likelihood(float(nats), tokens, bool(round(hits, 6) == tokens), cut)


def _ordered_rows(ids: Integer[np.ndarray, " n"], room: int, orders: int, number: int, where: str) -> Iterator[EncoderRow]:
    """Yield a row for each order of each chunk; `at` is the order's number."""
    for order_number in range(orders):
        for start in range(0, len(ids), room):
            tokens = ids[start : start + room].astype(np.int32)
            order = np.random.default_rng([number, start, order_number]).permutation(len(tokens)).astype(np.int32)
            yield EncoderRow(number, where, tokens, at=order_number, order=order)


def _target_nll(model: Model, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return -log p of the targets, and whether each is the likeliest token, [B]."""
    assert batch.targets is not None
    nll, hits = _nll(model, params, batch, batch.targets)
    return nll[:, 0], hits[:, 0]


def _token_nll(model: Model, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return -log p of every token, finite for padding too, and whether each is the likeliest, [B, T]."""
    return _nll(model, params, batch, batch.tokens)


def _nll(model: Model, params: Any, batch: Batch, targets: Any) -> tuple[jax.Array, jax.Array]:
    hidden = task_heads.predicting_states(model.apply(params, batch), batch)
    logits = model.unembed(params, hidden)
    return token_losses(lambda _: logits, hidden, targets, vocabulary=model.config.vocab), logits.argmax(-1) == targets
