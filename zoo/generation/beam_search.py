"""Beam search: the likeliest continuations, searched by keeping the best few of every length.

Sequences, scores and the rule that ends the search are those of `transformers`: a finished text's score is the sum of its tokens'
log probabilities, including its end token's, divided by its length to the power of `Beams.length_penalty` (Wu et al. 2016,
section 7, has another form of that divisor). All arrays but the cache's begin with [B, K]: K beams of each of B prompts.
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
"""Score of impossible texts: far below every sum of log probabilities."""


class BeamSearchResult(NamedTuple):
    """The finished texts of each prompt, the best first."""

    tokens: Int[Array, "B K limit"]
    """Zeros after the end."""
    score: Float[Array, "B K"]
    """About `NEVER` in the places beyond the finished texts, if there are fewer than K."""
    finite: Bool[Array, " B"]
    """True if all logits were finite; otherwise the tokens mean nothing."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Search:
    """The state of a search."""

    size: Any
    """int32 []: number of tokens of every running text."""
    cache: Any
    tokens: Any
    """int32 [B, K, limit]: the running texts."""
    score: Any
    """float32 [B, K]: sums of log probabilities of the running texts."""
    done: Any
    """int32 [B, K, limit]: the finished texts, the best first."""
    done_score: Any
    """float32 [B, K]: scores of the finished texts."""
    open: Any
    """bool [B]: True while a running text may still become one of the best."""
    finite: Any
    """bool [B]: True if all logits have been finite."""


def search(
    model: Model, params: Any, prompts: Batch, cache: dict[str, Any], beams: Beams, *, limit: int, entries: int, end: int | None
) -> BeamSearchResult:
    """Return the best continuations of `prompts`, [B, T], of at most `limit` tokens.

    Args:
        cache: an empty cache for B rows, with slots for the prompts and `limit` - 1 tokens.
        entries: number of ids that may be generated, which is the tokenizer's.
        end: id of the token that ends a text; None: only the limit ends it.
    """
    rows, count = prompts.tokens.shape[0], beams.beams
    assert prompts.positions is not None and prompts.segments is not None
    last, real = prompts.positions[:, -1], prompts.segments[:, -1]
    axes = batch_axes(model, params, prompts, cache)
    hidden, cache = model.decode(params, prompts, cache)
    logits = _logits(model, params, hidden, entries)
    empty = jnp.zeros((rows, count, limit), jnp.int32)
    cache = jax.tree.map(lambda leaf, axis: leaf if axis is None else jnp.repeat(leaf, count, axis=axis), cache, axes)
    # All beams of a prompt share its source.
    axes = {name: None if name.startswith("source") else axis for name, axis in axes.items()}
    start = _Search(
        size=jnp.int32(0),
        cache=cache,
        tokens=empty,
        # All beams of a prompt are equal at first: only the first one may continue, or all would stay equal.
        score=jnp.broadcast_to(jnp.where(jnp.arange(count) == 0, 0.0, NEVER), (rows, count)),
        done=empty,
        done_score=jnp.full((rows, count), NEVER),
        open=jnp.ones(rows, bool),
        finite=jnp.ones(rows, bool),
    )
    start = _append_token(start, jnp.repeat(logits[:, None], count, axis=1), beams, axes, limit, end)

    def step(state: _Search) -> _Search:
        newest = jax.lax.dynamic_index_in_dim(state.tokens, state.size - 1, axis=2, keepdims=False)  # [B, K]
        per_beam = [jnp.repeat(column, count) for column in (real, last + state.size)]
        tokens, segments, positions = (column.reshape(-1, 1) for column in (newest, *per_beam))  # [B * K, 1]
        hidden, cache = model.decode(params, Batch(tokens=tokens, segments=segments, positions=positions), state.cache)
        logits = _logits(model, params, hidden, entries).reshape(rows, count, -1)  # [B, K, V]
        return _append_token(dataclasses.replace(state, cache=cache), logits, beams, axes, limit, end)

    state = jax.lax.while_loop(lambda state: (state.size < limit) & state.open.any(), step, start)
    return BeamSearchResult(state.done, state.done_score, state.finite)


def batch_axes(model: Model, params: Any, prompts: Batch, cache: dict[str, Any]) -> dict[str, int | None]:
    """Return the batch axis of each array of a cache after the prompts; None if it has none. Only shapes are computed."""

    def cache_shapes(multiple: int) -> dict[str, Any]:
        """Return the shapes of a cache for a multiple of the rows."""
        rows = multiple * prompts.tokens.shape[0]
        batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), prompts)
        slots, dtype = cache["k"].shape[2], cache["k"].dtype
        shapes = jax.eval_shape(lambda: model.init_cache(rows, slots, dtype))
        return jax.eval_shape(model.decode, params, batch, shapes)[1]

    def differing_axis(one: Any, two: Any) -> int | None:
        return next((axis for axis, sizes in enumerate(zip(one.shape, two.shape, strict=True)) if sizes[0] != sizes[1]), None)

    single, double = cache_shapes(1), cache_shapes(2)
    return {name: differing_axis(single[name], double[name]) for name in single}


def _logits(model: Model, params: Any, hidden: Float[Array, "B T D"], entries: int) -> Float[Array, "B V"]:
    return constrain(model.unembed(params, hidden[:, -1]), BATCH)[:, :entries]


def _append_token(
    state: _Search, logits: Float[Array, "B K V"], beams: Beams, axes: dict[str, int | None], limit: int, end: int | None
) -> _Search:
    """Return the search with one more token: the best continuations run on, and those that end join the finished texts."""
    rows, count, entries = logits.shape
    total = state.score[..., None] + jax.nn.log_softmax(logits)  # [B, K, V]
    # Twice as many candidates as beams: at most half of them end, because there is one end token.
    score, chosen = jax.lax.top_k(total.reshape(rows, -1), 2 * count)  # [B, 2 K]
    beam, token = chosen // entries, (chosen % entries).astype(jnp.int32)
    tokens = jnp.take_along_axis(state.tokens, beam[..., None], axis=1).at[:, :, state.size].set(token)
    size = state.size + 1
    ends = jnp.broadcast_to(size == limit, token.shape)
    if end is not None:
        ends |= token == end

    running, best = jax.lax.top_k(jnp.where(ends, score + NEVER, score), count)  # [B, K]
    parents = jnp.take_along_axis(beam, best, axis=1)

    # Only the first K candidates may finish; the others are there to replace those that do.
    finishes = ends & (score > NEVER / 2) & (jnp.arange(2 * count) < count) & state.open[:, None]
    final = jnp.where(finishes, score / size.astype(jnp.float32) ** beams.length_penalty, NEVER)
    done_score, first = jax.lax.top_k(jnp.concatenate([state.done_score, final], 1), count)
    done = jnp.take_along_axis(jnp.concatenate([state.done, tokens], 1), first[..., None], axis=1)

    worst = done_score[:, -1]
    if beams.search_until == "full":
        can_improve = worst <= NEVER / 2
    else:
        # A running text's log probability can only fall, but with a length penalty it is divided by a length that may still grow.
        length = limit if beams.search_until == "impossible" and beams.length_penalty > 0 else size
        can_improve = running[:, 0] / jnp.float32(length) ** beams.length_penalty > worst
    return _Search(
        size=size,
        cache=jax.tree.map(lambda leaf, axis: leaf if axis is None else _reorder(leaf, parents, axis), state.cache, axes),
        tokens=jnp.take_along_axis(tokens, best[..., None], axis=1),
        score=running,
        done=done,
        done_score=done_score,
        open=state.open & can_improve & (running[:, 0] > NEVER / 2),
        finite=state.finite & jnp.isfinite(logits).all((1, 2)),
    )


def _reorder(leaf: Array, parents: Int[Array, "B K"], axis: int) -> Array:
    """Return the rows of a cache's array with the row of its parent for each beam; parents are beams of the same prompt."""
    rows, count = parents.shape
    by_prompt = leaf.reshape(*leaf.shape[:axis], rows, count, *leaf.shape[axis + 1 :])  # [..., B, K, ...]
    index = parents.reshape(*(1,) * axis, rows, count, *(1,) * (leaf.ndim - axis - 1))
    return jnp.take_along_axis(by_prompt, index, axis=axis + 1).reshape(leaf.shape)  # [..., B * K, ...]
