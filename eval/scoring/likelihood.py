"""Log-likelihoods of given continuations: what the tasks, the harness adapter and the choice between texts all stand on."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Integer

from train.engine import device_mesh
from train.engine.losses import token_losses
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.errors import BadInput, require
from zoo.models import Model

Ids = Integer[np.ndarray, " _"] | Sequence[int]
Pair = tuple[Ids, Ids]
"""(context, continuation), token ids; neither is empty."""
TooLong = Literal["refuse", "cut"]
"""What happens to a pair longer than the model's positions: it is refused, or its context loses its beginning."""

LOGITS = 1 << 26
"""Numbers in the logits that exist at a time on a device, 256 MiB."""


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How likely a model finds a continuation after its context."""

    nats: float
    """-log p(continuation | context), summed over its tokens."""
    tokens: int
    """Tokens of the continuation."""
    greedy: bool
    """Whether each of its tokens is the likeliest one after those before it."""
    cut: int = 0
    """Tokens cut off the beginning of the context."""


def likelihoods(
    net: Model,
    params: Any,
    mesh: Mesh,
    pairs: Iterable[Pair],
    *,
    batch: int,
    dtype: Any,
    too_long: TooLong = "refuse",
    name: Callable[[int], str] = "pair {}".format,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> list[Likelihood]:
    """The likelihood of each pair's continuation, in the order of the pairs.

    Pairs are gathered by length into a few shapes, so that few programs are compiled, and spread over the mesh. Equal pairs are
    computed once, so that they tie exactly; a pair's likelihood depends on the others, and on `batch`, by rounding alone.

    Args:
        batch: rows of the longest shape computed at a time; shorter rows come in batches of as many tokens.
        dtype: of the arithmetic; log-probabilities are float32 and are summed up in float64.
        too_long: for pairs with more than `positions(net)` + 1 tokens in all. "cut" is what lm-evaluation-harness does; what was
            cut is told in `Likelihood.cut`.
        name: how a message calls the pair of a number.
        progress: called with (pairs done, pairs in all).

    Raises:
        BadInput: a model that does not predict from left to right, a pair that is too long, or a likelihood that is not finite.
        ValueError: an empty context (begin it with end-of-text) or an empty continuation.
    """
    if "causal" not in net.module.OBJECTIVES:
        raise BadInput(f"{net.family} predicts no text from left to right, so it has no likelihood of a continuation; choose GPT")
    require(batch >= 1, "batch", batch, "choose 1 or more rows")
    room = positions(net)
    rows: dict[tuple[bytes, bytes], _Row] = {}
    for number, (context, continuation) in enumerate(pairs):
        row = _row(np.asarray(context, np.int32), np.asarray(continuation, np.int32), room, too_long, name, number)
        rows.setdefault((row.context.tobytes(), row.continuation.tobytes()), row).numbers.append((number, row.cut))
    found: dict[int, Likelihood] = {}
    count = sum(len(row.numbers) for row in rows.values())
    everything = _Program.of(net, mesh, np.dtype(dtype))
    with jax.set_mesh(mesh):
        ready = everything.cast(params)
        for length, targets, group in _batches(list(rows.values()), mesh, batch, room):
            arrays = _arrays(group, length, targets)
            local = device_mesh.local_rows(mesh, len(group))
            mine = jax.tree.map(lambda array, local=local: array[local], arrays)
            nats, hits = jax.device_get(everything.score(ready, device_mesh.place(mine, mesh, len(group))))
            for row, row_nats, row_hits in zip(group, nats.astype(np.float64), hits, strict=True):
                size = len(row.continuation)
                total, greedy = float(row_nats[:size].sum()), bool(row_hits[:size].all())
                if not math.isfinite(total) and row.numbers:
                    who = name(row.numbers[0][0])
                    raise BadInput(
                        f"{who}: its log-probability is not finite; the weights are damaged, or too large for bfloat16"
                    )
                found |= {number: Likelihood(total, size, greedy, cut) for number, cut in row.numbers}
            progress(len(found), count)
    return [found[number] for number in range(count)]


def positions(net: Model) -> int | None:
    """The most tokens a model reads at once; None where there is no limit."""
    return getattr(net.config, "context", None)


def encode(tokenizer: Tokenizer, texts: Sequence[tuple[str, str]]) -> list[Pair]:
    """Token ids of (context, continuation) texts, as lm-evaluation-harness divides them.

    White space at a context's end moves to its continuation, whose first word it belongs to in a byte-level vocabulary. An empty
    context is end-of-text, as at the beginning of a document; nothing is put before any other. The two texts are encoded as one.
    Where a token reaches over the border, it counts to the continuation, so that the tokens always spell the text.
    """
    moved = [(text.rstrip(), text[len(text.rstrip()) :] + continuation) for text, continuation in texts]
    contexts = tokenizer.encode_many(context for context, _ in moved)
    wholes = tokenizer.encode_many(context + continuation for context, continuation in moved)
    pairs: list[Pair] = []
    for before, whole in zip(contexts, wholes, strict=True):
        shared = min(len(before), len(whole))
        differing = np.flatnonzero(before[:shared] != whole[:shared])
        border = int(differing[0]) if differing.size else shared
        pairs.append((whole[:border] if border else np.array([tokenizer.end_of_text], np.int32), whole[border:]))
    return pairs


def chunk_of(rows: int, length: int, vocabulary: int, mesh: Mesh) -> int:
    """The most positions of `rows` rows, a divisor of `length`, whose logits are not too many at a time."""
    fitting = (size for size in range(length, 0, -1) if length % size == 0 and rows * size * vocabulary <= LOGITS * mesh.size)
    return next(fitting, 1)


def row_length(tokens: int, room: int | None) -> int:
    """A row's length rounded up to 8, 12, 16, 24, 32, 48, ...: at most a third of a row is padding."""
    size = 8
    while size < tokens:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size if room is None else min(size, room)


class _Row(NamedTuple):
    """A pair and the numbers it has in the input, each with the tokens cut there."""

    context: np.ndarray
    continuation: np.ndarray
    cut: int
    numbers: list[tuple[int, int]]


def _row(
    context: np.ndarray, continuation: np.ndarray, room: int | None, too_long: TooLong, name: Callable[[int], str], number: int
) -> _Row:
    if not len(context) or not len(continuation):
        raise ValueError(f"{name(number)}: {len(context)} tokens of context, {len(continuation)} of continuation; both need one")
    # The last token is predicted, not read.
    total = len(context) + len(continuation)
    over = 0 if room is None else max(0, total - 1 - room)
    if over and too_long == "refuse":
        raise BadInput(f"{name(number)}: {total} tokens, but the model has {room} positions; give it shorter text")
    if over >= len(context):
        raise BadInput(
            f"{name(number)}: {len(continuation)} tokens to be scored, but the model has {room} positions; shorten them"
        )
    return _Row(context[over:], continuation, over, [])


def _batches(rows: list[_Row], mesh: Mesh, batch: int, room: int | None) -> Iterator[tuple[int, int, list[_Row]]]:
    """(positions, targets, rows), one shape after the other; the last batch of a shape is filled up with rows seen before."""
    shapes: dict[tuple[int, int], list[_Row]] = {}
    for row in rows:
        length = row_length(len(row.context) + len(row.continuation) - 1, room)
        shapes.setdefault((length, _targets(len(row.continuation), length)), []).append(row)
    longest = room or max((length for length, _ in shapes), default=1)
    for (length, targets), group in sorted(shapes.items()):
        # Rounded up where there are few, so that calls with some more or fewer pairs share a program.
        few = 1 << (len(group) - 1).bit_length()
        size = device_mesh.fitting(mesh, min(few, max(batch, batch * longest // length)))
        for first in range(0, len(group), size):
            chosen = group[first : first + size]
            # A filling row has no numbers: nobody asked for it.
            yield length, targets, chosen + [chosen[0]._replace(numbers=[])] * (size - len(chosen))


def _targets(tokens: int, length: int) -> int:
    """Room for a continuation, 8, 64, 512, ...: only there are logits computed."""
    size = 8
    while size < tokens:
        size *= 8
    return min(size, length)


def _arrays(rows: list[_Row], length: int, targets: int) -> Batch:
    """Rows padded on the right, where no token before them looks: neither segments nor a mask are needed."""
    tokens = np.zeros((len(rows), length), np.int32)
    wanted, at = np.zeros((2, len(rows), targets), np.int32)
    for i, row in enumerate(rows):
        ids = np.concatenate([row.context, row.continuation])
        size = len(row.continuation)
        tokens[i, : len(ids) - 1] = ids[:-1]
        wanted[i, :size] = row.continuation
        at[i, :size] = np.arange(len(ids) - 1 - size, len(ids) - 1)
    return Batch(tokens=tokens, targets=wanted, predict_at=at)


@dataclasses.dataclass(frozen=True)
class _Program:
    """What is computed on the devices, kept between calls."""

    cast: Callable[[Any], Any]
    score: Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
    """(parameters, batch) -> nats of each target [B, P], whether it is the likeliest [B, P]; the same on all devices."""

    @staticmethod
    @functools.lru_cache(maxsize=4)
    def of(net: Model, mesh: Mesh, dtype: np.dtype) -> "_Program":
        everywhere = NamedSharding(mesh, PartitionSpec())

        def score(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
            assert batch.targets is not None and batch.predict_at is not None
            hidden = net.apply(params, batch).hidden
            chosen = jax.numpy.take_along_axis(hidden, batch.predict_at[..., None], axis=1)
            rows, targets = batch.targets.shape
            chunk = chunk_of(rows, targets, net.config.vocab, mesh)

            def piece(both: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                hidden, wanted = both
                logits = net.unembed(params, hidden)
                return token_losses(lambda _: logits, hidden, wanted, vocabulary=net.config.vocab), logits.argmax(-1) == wanted

            def split(x: jax.Array) -> jax.Array:
                return jax.numpy.moveaxis(x.reshape(rows, targets // chunk, chunk, *x.shape[2:]), 1, 0)

            def joined(x: jax.Array) -> jax.Array:
                return jax.numpy.moveaxis(x, 0, 1).reshape(rows, targets)

            nats, hits = jax.lax.map(piece, (split(chosen), split(batch.targets)))
            return joined(nats), joined(hits)

        return _Program(
            cast=jax.jit(lambda params: jax.tree.map(lambda leaf: leaf.astype(dtype), params)),
            score=jax.jit(score, out_shardings=everywhere),
        )
