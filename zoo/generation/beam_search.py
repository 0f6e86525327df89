"""Beam search: the likeliest continuations found by keeping the best few of every length.

Sequences, scores and the rule that ends the search are those of `transformers`: a finished text's score is the sum of its tokens'
log probabilities, its end mark's included, over its length to the power of `Beams.length_penalty` (Wu et al. 2016, section 7, has
another form of that divisor). Everything but the cache has the shape [B, K]: K beams of each of B prompts.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.batch import Batch
from zoo.generation.settings import Beams
from zoo.models import Model
from zoo.sharding import BATCH, constrain

NEVER = -1e9
"""Score of what cannot be: far below every sum of log probabilities."""


class Found(NamedTuple):
    """The finished texts of each prompt, the best first."""

    tokens: Int[Array, "B K limit"]
    """Zeros after the end."""
    score: Float[Array, "B K"]
    """`NEVER`, about, where fewer than K texts were found."""
    finite: Bool[Array, " B"]
    """Whether all logits were: where they were not, the tokens mean nothing."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Search:
    """A search under way."""

    size: Any
    """int32 []: tokens of each running text."""
    cache: Any
    tokens: Any
    """int32 [B, K, limit], of the running texts."""
    score: Any
    """float32 [B, K]: sums of log probabilities."""
    done: Any
    """int32 [B, K, limit], of the finished texts, the best first."""
    done_score: Any
    open: Any
    """bool [B]: whether a running text may still become one of the best."""
    finite: Any


def search(
    net: Model, params: Any, prompts: Batch, cache: dict[str, Any], beams: Beams, *, limit: int, entries: int, end: int | None
) -> Found:
    """The best continuations of `prompts`, [B, T], of at most `limit` tokens.

    Args:
        cache: an empty one, for B rows, with slots for the prompts and `limit` - 1 tokens.
        entries: ids that may be given: the tokenizer's.
        end: the mark that finishes a text; None = only the limit does.
    """
    rows, count = prompts.tokens.shape[0], beams.beams
    assert prompts.positions is not None and prompts.segments is not None
    last, real = prompts.positions[:, -1], prompts.segments[:, -1]
    axes = batch_axes(net, params, prompts, cache)
    hidden, cache = net.decode(params, prompts, cache)
    logits = _logits(net, params, hidden, entries)
    empty = jnp.zeros((rows, count, limit), jnp.int32)
    cache = jax.tree.map(lambda leaf, axis: leaf if axis is None else jnp.repeat(leaf, count, axis=axis), cache, axes)
    # All beams of a prompt have its one source.
    axes = {name: None if name.startswith("source") else axis for name, axis in axes.items()}
    start = _Search(
        size=jnp.int32(0),
        cache=cache,
        tokens=empty,
        # All beams of a prompt begin alike: only the first one may be continued, or all would be.
        score=jnp.broadcast_to(jnp.where(jnp.arange(count) == 0, 0.0, NEVER), (rows, count)),
        done=empty,
        done_score=jnp.full((rows, count), NEVER),
        open=jnp.ones(rows, bool),
        finite=jnp.ones(rows, bool),
    )
    start = _grown(start, jnp.repeat(logits[:, None], count, axis=1), beams, axes, limit, end)

    def one(state: _Search) -> _Search:
        newest = jax.lax.dynamic_index_in_dim(state.tokens, state.size - 1, axis=2, keepdims=False)
        each = [jnp.repeat(column, count) for column in (real, last + state.size)]
        tokens, segments, positions = (column.reshape(-1, 1) for column in (newest, *each))
        hidden, cache = net.decode(params, Batch(tokens=tokens, segments=segments, positions=positions), state.cache)
        logits = _logits(net, params, hidden, entries).reshape(rows, count, -1)
        return _grown(dataclasses.replace(state, cache=cache), logits, beams, axes, limit, end)

    state = jax.lax.while_loop(lambda state: (state.size < limit) & state.open.any(), one, start)
    return Found(state.done, state.done_score, state.finite)


def batch_axes(net: Model, params: Any, prompts: Batch, cache: dict[str, Any]) -> dict[str, int | None]:
    """Where each array of a filled cache numbers the rows; None where it has no rows. Only shapes are computed."""

    def filled(times: int) -> dict[str, Any]:
        """The shapes of a cache for so many times the rows."""
        rows = times * prompts.tokens.shape[0]
        more = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), prompts)
        slots, dtype = cache["k"].shape[2], cache["k"].dtype
        shapes = jax.eval_shape(lambda: net.init_cache(rows, slots, dtype))
        return jax.eval_shape(net.decode, params, more, shapes)[1]

    def differing(one: Any, two: Any) -> int | None:
        return next((axis for axis, sizes in enumerate(zip(one.shape, two.shape, strict=True)) if sizes[0] != sizes[1]), None)

    one, two = filled(1), filled(2)
    return {name: differing(one[name], two[name]) for name in one}


def _logits(net: Model, params: Any, hidden: Float[Array, "B T D"], entries: int) -> Float[Array, "B V"]:
    return constrain(net.unembed(params, hidden[:, -1]), BATCH)[:, :entries]


def _grown(
    state: _Search, logits: Float[Array, "B K V"], beams: Beams, axes: dict[str, int | None], limit: int, end: int | None
) -> _Search:
    """The search with one more token: the best continuations go on, and those that end join the finished texts."""
    rows, count, entries = logits.shape
    total = state.score[..., None] + jax.nn.log_softmax(logits)
    # Twice as many as go on: at most half of them end, as there is one end mark.
    score, chosen = jax.lax.top_k(total.reshape(rows, -1), 2 * count)
    beam, token = chosen // entries, (chosen % entries).astype(jnp.int32)
    tokens = jnp.take_along_axis(state.tokens, beam[..., None], axis=1).at[:, :, state.size].set(token)
    size = state.size + 1
    ends = jnp.broadcast_to(size == limit, token.shape)
    if end is not None:
        ends |= token == end

    going, best = jax.lax.top_k(jnp.where(ends, score + NEVER, score), count)
    kept = jnp.take_along_axis(beam, best, axis=1)

    # Of the candidates only those that would have gone on may finish: the others are there to take their places.
    may = ends & (score > NEVER / 2) & (jnp.arange(2 * count) < count) & state.open[:, None]
    final = jnp.where(may, score / size.astype(jnp.float32) ** beams.length_penalty, NEVER)
    done_score, first = jax.lax.top_k(jnp.concatenate([state.done_score, final], 1), count)
    done = jnp.take_along_axis(jnp.concatenate([state.done, tokens], 1), first[..., None], axis=1)

    worst = done_score[:, -1]
    if beams.search_until == "full":
        going_on = worst <= NEVER / 2
    else:
        # A running text's score can only fall, but with a penalty of length it is divided by a length that may still grow.
        reached = limit if beams.search_until == "impossible" and beams.length_penalty > 0 else size
        going_on = going[:, 0] / jnp.float32(reached) ** beams.length_penalty > worst
    return _Search(
        size=size,
        cache=jax.tree.map(lambda leaf, axis: leaf if axis is None else _reordered(leaf, kept, axis), state.cache, axes),
        tokens=jnp.take_along_axis(tokens, best[..., None], axis=1),
        score=going,
        done=done,
        done_score=done_score,
        open=state.open & going_on & (going[:, 0] > NEVER / 2),
        finite=state.finite & jnp.isfinite(logits).all((1, 2)),
    )


def _reordered(leaf: Array, kept: Int[Array, "B K"], axis: int) -> Array:
    """Rows of a cache in a new order, each from among the beams of its own prompt."""
    rows, count = kept.shape
    apart = leaf.reshape(*leaf.shape[:axis], rows, count, *leaf.shape[axis + 1 :])
    index = kept.reshape(*(1,) * axis, rows, count, *(1,) * (leaf.ndim - axis - 1))
    return jnp.take_along_axis(apart, index, axis=axis + 1).reshape(leaf.shape)
