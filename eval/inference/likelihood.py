"""Log-likelihoods of continuations, used by the tasks, the harness adapter and the choice between texts."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Integer

from eval.inference.batch_loop import Progress, cast_to, no_progress
from train.engine import device_mesh
from train.engine.losses import token_losses
from train.tokenizers.continuations import encode_continuations
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import Loaded
from zoo.batch import Batch
from zoo.errors import BadInput, require
from zoo.models import Model

Ids = Integer[np.ndarray, " _"] | Sequence[int]
Pair = tuple[Ids, Ids]
"""(context, continuation), token ids; neither is empty."""
TooLong = Literal["refuse", "cut"]
"""Handling of a pair longer than the model's positions: an error, or its context is cut at its beginning."""

LOGITS = 1 << 26
"""Number of logits that are in a device's memory at a time, 256 MiB."""


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The log-likelihood of a continuation after its context."""

    nats: float
    """-log p(continuation | context), summed over its tokens."""
    tokens: int
    """Number of tokens of the continuation."""
    greedy: bool
    """True if each of its tokens is the likeliest one after those before it."""
    cut: int = 0
    """Number of tokens cut off the beginning of the context."""


def likelihoods(
    subject: Loaded,
    pairs: Iterable[Pair],
    *,
    batch: int,
    dtype: Any,
    sources: Sequence[Ids] | None = None,
    too_long: TooLong = "refuse",
    name: Callable[[int], str] = "pair {}".format,
    progress: Progress = no_progress,
) -> list[Likelihood]:
    """Return the likelihood of each pair's continuation, in the order of the pairs.

    Pairs are grouped by length into a few shapes, so that few programs are compiled, and sharded over the mesh. Equal pairs are
    computed once, so that they tie exactly; the other pairs, and `batch`, affect a pair's likelihood only through rounding.

    Args:
        batch: rows of the longest shape computed at a time; batches of shorter rows have as many tokens.
        dtype: dtype of the arithmetic; log-probabilities are float32 and are summed in float64.
        sources: what the encoder of an encoder-decoder reads, one for each pair; the pair is what its decoder reads. None for a
            decoder alone.
        too_long: handling of pairs with more than `positions(model)` + 1 tokens. "cut" is what lm-evaluation-harness does;
            `Likelihood.cut` has the number of tokens that were cut. With sources it is the source that is cut.
        name: returns the name of a pair in messages, from its number.
        progress: called with (pairs done, total pairs).

    Raises:
        BadInput: a model that does not predict from left to right, a pair that is too long, or a likelihood that is not finite.
        ValueError: an empty context (begin it with end-of-text) or an empty continuation.
    """
    model, mesh = subject.model, subject.mesh
    if "causal" not in model.definition.objectives and not (model.is_encoder_decoder and sources is not None):
        raise BadInput(
            f"{model.family} predicts no text from left to right, so it has no likelihood of a continuation; choose GPT"
        )
    require(batch >= 1, "batch", batch, "choose 1 or more rows")
    limit = positions(model)
    rows: dict[tuple[bytes, ...], _Row] = {}
    for number, (context, continuation) in enumerate(pairs):
        ids = np.asarray(context, np.int32), np.asarray(continuation, np.int32)
        row = _row(*ids, limit, "refuse" if sources else too_long, name, number)
        if sources is not None:
            row = _with_source(row, np.asarray(sources[number], np.int32), limit, too_long, name(number))
        rows.setdefault((row.context.tobytes(), row.continuation.tobytes(), row.source.tobytes()), row).numbers.append(
            (number, row.cut)
        )
    results: dict[int, Likelihood] = {}
    count = sum(len(row.numbers) for row in rows.values())
    compiled = _compiled(model, mesh)
    with jax.set_mesh(mesh):
        cast_params = cast_to(np.dtype(dtype))(subject.params)
        for length, targets, source, group in _batches(list(rows.values()), mesh, batch, limit):
            arrays = _arrays(group, length, targets, source, model.config.scales_with_length)
            local = device_mesh.local_rows(mesh, len(group))
            local_batch = jax.tree.map(lambda array, local=local: array[local], arrays)
            nats, hits = jax.device_get(compiled(cast_params, device_mesh.shard_batch(local_batch, mesh, len(group))))
            for row, row_nats, row_hits in zip(group, nats.astype(np.float64), hits, strict=True):
                size = len(row.continuation)
                total, greedy = float(row_nats[:size].sum()), bool(row_hits[:size].all())
                if not math.isfinite(total) and row.numbers:
                    pair_name = name(row.numbers[0][0])
                    raise BadInput(
                        f"{pair_name}: its log-probability is not finite; the weights are damaged, or too large for bfloat16"
                    )
                results |= {number: Likelihood(total, size, greedy, cut) for number, cut in row.numbers}
            progress(len(results), count)
    return [results[number] for number in range(count)]


def positions(model: Model) -> int | None:
    """Return the most tokens a model reads at once; None if there is no limit."""
    return getattr(model.config, "context", None)


def encode(tokenizer: Tokenizer, texts: Sequence[tuple[str, str]]) -> list[Pair]:
    """Return token ids of (context, continuation) texts, divided as lm-evaluation-harness does.

    White space at a context's end moves to its continuation, whose first word it belongs to in a byte-level vocabulary. An empty
    context becomes end-of-text, as at the beginning of a document; nothing is added before any other. The two texts are encoded
    as one. A token across the border belongs to the continuation, so that the tokens always spell the text.
    """
    return list(encode_continuations(tokenizer, texts))


def chunk_of(rows: int, length: int, vocabulary: int, mesh: Mesh) -> int:
    """Return the most positions of `rows` rows, a divisor of `length`, whose logits fit into `LOGITS` per device."""
    fitting = (size for size in range(length, 0, -1) if length % size == 0 and rows * size * vocabulary <= LOGITS * mesh.size)
    return next(fitting, 1)


def row_length(tokens: int, limit: int | None) -> int:
    """Return a row's length rounded up to 8, 12, 16, 24, 32, 48, ...: at most a third of a row is padding."""
    size = 8
    while size < tokens:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size if limit is None else min(size, limit)


class _Row(NamedTuple):
    """A distinct pair of context and continuation; `numbers` has (its index in the input, tokens cut) for each occurrence."""

    context: np.ndarray
    continuation: np.ndarray
    cut: int
    numbers: list[tuple[int, int]]
    source: np.ndarray = np.zeros(0, np.int32)
    """Ids that an encoder reads; empty for a decoder alone."""


def _row(
    context: np.ndarray, continuation: np.ndarray, limit: int | None, too_long: TooLong, name: Callable[[int], str], number: int
) -> _Row:
    if not len(context) or not len(continuation):
        raise ValueError(f"{name(number)}: {len(context)} tokens of context, {len(continuation)} of continuation; both need one")
    # The last token is predicted, not read.
    total = len(context) + len(continuation)
    over = 0 if limit is None else max(0, total - 1 - limit)
    if over and too_long == "refuse":
        raise BadInput(f"{name(number)}: {total} tokens, but the model has {limit} positions; shorten the text")
    if over >= len(context):
        raise BadInput(
            f"{name(number)}: {len(continuation)} tokens to be scored, but the model has {limit} positions; shorten them"
        )
    return _Row(context[over:], continuation, over, [])


def _with_source(row: _Row, source: np.ndarray, limit: int | None, too_long: TooLong, where: str) -> _Row:
    over = 0 if limit is None else max(0, len(source) - limit)
    if over and too_long == "refuse":
        raise BadInput(f"{where}: a source of {len(source)} tokens, but the model has {limit} positions; shorten the text")
    return row._replace(source=source[over:], cut=over)


def _batches(rows: list[_Row], mesh: Mesh, batch: int, limit: int | None) -> Iterator[tuple[int, int, int, list[_Row]]]:
    """Yield (positions, targets, positions of the source, rows), one shape after the other.

    The last batch of a shape is padded with one of its rows. Without a source its positions are 0.
    """
    shapes: dict[tuple[int, int, int], list[_Row]] = {}
    for row in rows:
        length = row_length(len(row.context) + len(row.continuation) - 1, limit)
        source = row_length(len(row.source), limit) if len(row.source) else 0
        shapes.setdefault((length, _targets(len(row.continuation), length), source), []).append(row)
    longest = limit or max((length + source for length, _, source in shapes), default=1)
    for (length, targets, source), group in sorted(shapes.items()):
        # A small group is rounded up to a power of two, so that calls with slightly different numbers of pairs share a program.
        rounded = 1 << (len(group) - 1).bit_length()
        size = device_mesh.round_up_rows(mesh, min(rounded, max(batch, batch * longest // (length + source))))
        for first in range(0, len(group), size):
            chunk = group[first : first + size]
            # A padding row has no numbers: its result is not used.
            yield length, targets, source, chunk + [chunk[0]._replace(numbers=[])] * (size - len(chunk))


def _targets(tokens: int, length: int) -> int:
    """Return the number of targets for a continuation, 8, 64, 512, ...: logits are computed only for these."""
    size = 8
    while size < tokens:
        size *= 8
    return min(size, length)


def _arrays(rows: list[_Row], length: int, targets: int, source: int, counts_length: bool) -> Batch:
    """Return rows padded on the right, where no token before sees the padding: neither segments nor a mask are needed.

    Except between a decoder and its source, whose padding is of segment 0.

    Args:
        counts_length: the positions depend on the length of a text.
    """
    tokens = np.zeros((len(rows), length), np.int32)
    target_ids, predict_at = np.zeros((2, len(rows), targets), np.int32)
    for i, row in enumerate(rows):
        ids = np.concatenate([row.context, row.continuation])
        size = len(row.continuation)
        tokens[i, : len(ids) - 1] = ids[:-1]
        target_ids[i, :size] = row.continuation
        predict_at[i, :size] = np.arange(len(ids) - 1 - size, len(ids) - 1)
    batch = Batch(tokens=tokens, targets=target_ids, predict_at=predict_at)
    if counts_length:
        # The padding has the position of the last token, so that a row is as long as its text.
        sizes = np.array([len(row.context) + len(row.continuation) - 1 for row in rows], np.int32)
        return dataclasses.replace(batch, positions=np.minimum(np.arange(length, dtype=np.int32), sizes[:, None] - 1))
    if not source:
        return batch
    source_tokens, source_segments = np.zeros((2, len(rows), source), np.int32)
    for i, row in enumerate(rows):
        source_tokens[i, : len(row.source)], source_segments[i, : len(row.source)] = row.source, 1
    encoder = Batch(tokens=source_tokens, segments=source_segments)
    return dataclasses.replace(batch, segments=np.ones_like(tokens), source=encoder)


@functools.lru_cache(maxsize=4)
def _compiled(model: Model, mesh: Mesh) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array]]:
    """Return the compiled function of (parameters, batch), the same one for the same arguments.

    It returns the nats of each target, [B, P], and whether each is the likeliest, [B, P], replicated on all devices.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def score(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        assert batch.targets is not None and batch.predict_at is not None
        hidden = model.apply(params, batch).hidden
        predictors = jax.numpy.take_along_axis(hidden, batch.predict_at[..., None], axis=1)  # [B, P, D]
        rows, targets = batch.targets.shape
        chunk = chunk_of(rows, targets, model.config.vocab, mesh)

        def score_chunk(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            hidden, ids = inputs
            logits = model.unembed(params, hidden)
            return token_losses(lambda _: logits, hidden, ids, vocabulary=model.config.vocab), logits.argmax(-1) == ids

        def split(x: jax.Array) -> jax.Array:
            return jax.numpy.moveaxis(x.reshape(rows, targets // chunk, chunk, *x.shape[2:]), 1, 0)  # [P / C, B, C, ...]

        def join(x: jax.Array) -> jax.Array:
            return jax.numpy.moveaxis(x, 0, 1).reshape(rows, targets)  # [B, P]

        nats, hits = jax.lax.map(score_chunk, (split(predictors), split(batch.targets)))
        return join(nats), join(hits)

    return jax.jit(score, out_shardings=replicated)
