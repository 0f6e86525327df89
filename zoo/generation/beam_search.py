"""Beam search: the likeliest continuations of a prompt, found by extending the K best sequences of each length.

As in `transformers`, a prompt has K running sequences ("beams"), which may still grow, and K finished sequences. A sequence
finishes with an end token or at the limit of the length. The score of a running sequence is the sum of its tokens' log
probabilities. That of a finished one is the sum divided by (number of tokens) ** `Beams.length_penalty`, the end token included
(Wu et al. 2016, section 7, divides by another function of the length). All arrays but the cache's begin with [B, K], for B
prompts.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.batch import Batch
from zoo.generation.decoding_settings import UNCHANGED, Beams, Processors
from zoo.generation.logits_processors import EMPTY, Context, process_logits, start_context
from zoo.models import Model
from zoo.nn.kv_cache import Cache
from zoo.nn.task_heads import predicting_states
from zoo.sharding import BATCH, constrain

NEVER = -1e9
"""Score of a place without a sequence: far below every sum of log probabilities."""


class BeamSearchResult(NamedTuple):
    """The finished sequences of each prompt, the best first."""

    tokens: Int[Array, "B K limit"]
    """Zeros after the end."""
    score: Float[Array, "B K"]
    """About `NEVER` in the last places if fewer than K sequences finished."""
    finite: Bool[Array, " B"]
    """True if all logits were finite; otherwise the tokens mean nothing."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """The state of a search between two tokens."""

    length: Any
    """int32 []: number of generated tokens, which is that of every running sequence."""
    cache: Any
    """The keys and values of the running sequences; its rows are [B * K]."""
    running_tokens: Any
    """int32 [B, K, limit]."""
    running_score: Any
    """float32 [B, K]: sums of log probabilities."""
    finished_tokens: Any
    """int32 [B, K, limit], the best first."""
    finished_score: Any
    """float32 [B, K]."""
    can_improve: Any
    """bool [B]: True while a running sequence may still become one of the K best finished ones."""
    finite: Any
    """bool [B]: True if all logits have been finite."""


def beam_search(
    model: Model,
    params: Any,
    prompts: Batch,
    cache: Cache,
    beams: Beams,
    *,
    limit: int,
    vocabulary: int,
    ends: tuple[int, ...],
    processors: Processors = UNCHANGED,
) -> BeamSearchResult:
    """Return the K best continuations of `prompts`, [B, T], of at most `limit` tokens.

    Args:
        cache: an empty cache for B rows, with slots for the prompts and `limit` - 1 tokens.
        vocabulary: number of ids that may be generated, which is the tokenizer's.
        ends: ids of the end tokens; empty: only the limit ends a sequence.
        processors: changes of the log-probabilities of the next token.
    """
    rows, count = prompts.tokens.shape[0], beams.beams
    assert prompts.positions is not None and prompts.segments is not None
    last, real = prompts.positions[:, -1], prompts.segments[:, -1]
    axes = batch_axes(model, params, prompts, cache)
    out = model.apply(params, prompts, cache=cache)
    logits = _logits(model, params, predicting_states(out, prompts), vocabulary)
    empty = jnp.zeros((rows, count, limit), jnp.int32)
    cache = jax.tree.map(lambda leaf, axis: leaf if axis is None else jnp.repeat(leaf, count, axis=axis), out.cache, axes)
    # All beams of a prompt share its source, so that these arrays are never reordered.
    axes = dataclasses.replace(axes, source=jax.tree.map(lambda _: None, axes.source))
    start = _State(
        length=jnp.int32(0),
        cache=cache,
        running_tokens=empty,
        # All beams of a prompt are equal at first: only the first one may continue, or all would stay equal.
        running_score=jnp.broadcast_to(jnp.where(jnp.arange(count) == 0, 0.0, NEVER), (rows, count)),
        finished_tokens=empty,
        finished_score=jnp.full((rows, count), NEVER),
        can_improve=jnp.ones(rows, bool),
        finite=jnp.ones(rows, bool),
    )
    context = start_context(processors, prompts, prompts.tokens.shape[1] + limit, limit)
    context = jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=0), context)

    def append_token(state: _State, logits: Float[Array, "B K V"]) -> _State:
        def process(log_probs: Float[Array, "B K V"]) -> Float[Array, "B K V"]:
            if context is None:
                return log_probs
            flat = process_logits(log_probs.reshape(rows * count, -1), processors, ends, _with_output(context, state))
            return (jax.nn.log_softmax(flat) if processors.renormalize else flat).reshape(log_probs.shape)

        return _append_token(state, logits, process(jax.nn.log_softmax(logits)), beams, axes, limit, ends)

    start = append_token(start, jnp.repeat(logits[:, None], count, axis=1))

    def step(state: _State) -> _State:
        newest = jax.lax.dynamic_index_in_dim(state.running_tokens, state.length - 1, axis=2, keepdims=False)  # [B, K]
        per_beam = [jnp.repeat(column, count) for column in (real, last + state.length)]
        tokens, segments, positions = (column.reshape(-1, 1) for column in (newest, *per_beam))  # [B * K, 1]
        batch = Batch(tokens=tokens, segments=segments, positions=positions)
        out = model.apply(params, batch, cache=state.cache)
        logits = _logits(model, params, predicting_states(out, batch), vocabulary).reshape(rows, count, -1)  # [B, K, V]
        return append_token(dataclasses.replace(state, cache=out.cache), logits)

    state = jax.lax.while_loop(lambda state: (state.length < limit) & state.can_improve.any(), step, start)
    return BeamSearchResult(state.finished_tokens, state.finished_score, state.finite)


def batch_axes(model: Model, params: Any, prompts: Batch, cache: Cache) -> Any:
    """Return a cache that has, in place of each array, the axis whose size is the number of rows; None: no axis.

    An array's shape in a cache that contains the prompts is compared with its shape for a batch of twice as many rows. Nothing is
    computed on a device.
    """

    def cache_shapes(factor: int) -> Cache:
        """Return the shapes of a cache with `factor` times as many rows."""
        rows = factor * prompts.tokens.shape[0]
        batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), prompts)
        empty = functools.partial(model.init_cache, rows, cache.slots, cache.k.dtype)
        return jax.eval_shape(lambda *arguments: model.apply(*arguments, cache=empty()).cache, params, batch)

    def differing_axis(one: Any, two: Any) -> int | None:
        return next((axis for axis, sizes in enumerate(zip(one.shape, two.shape, strict=True)) if sizes[0] != sizes[1]), None)

    return jax.tree.map(differing_axis, cache_shapes(1), cache_shapes(2))


def _logits(model: Model, params: Any, hidden: Float[Array, "B T D"], vocabulary: int) -> Float[Array, "B V"]:
    return constrain(model.unembed(params, hidden[:, -1]), BATCH)[:, :vocabulary]


def _with_output(context: Context, state: _State) -> Context:
    """Return the context of the prompts of all beams [B * K] with the running sequences after them."""
    text, limit = context.text, state.running_tokens.shape[-1]
    if text is not None:
        output = jnp.where(jnp.arange(limit) < state.length, state.running_tokens.reshape(-1, limit), EMPTY)
        # The prompts stand at the end of `text`, whose first `limit` places are empty.
        text = jnp.roll(jnp.concatenate([text[:, limit:], output], axis=1), limit - state.length, axis=1)
    return dataclasses.replace(context, text=text, length=context.length + state.length, new=context.new + state.length)


def _append_token(
    state: _State,
    logits: Float[Array, "B K V"],
    log_probs: Float[Array, "B K V"],
    beams: Beams,
    axes: Any,
    limit: int,
    ends: tuple[int, ...],
) -> _State:
    """Return the state after one more token: the K best unfinished candidates keep running, and finished ones are ranked."""
    rows, count, vocabulary = logits.shape
    total = state.running_score[..., None] + log_probs  # [B, K, V]
    # These candidates leave at least K unfinished ones: each beam has one candidate with each end token.
    width = min(max(2, 1 + len(ends)) * count, count * vocabulary)
    score, chosen = jax.lax.top_k(total.reshape(rows, -1), width)  # [B, width]
    beam, token = chosen // vocabulary, (chosen % vocabulary).astype(jnp.int32)
    tokens = jnp.take_along_axis(state.running_tokens, beam[..., None], axis=1).at[:, :, state.length].set(token)
    length = state.length + 1
    stops = jnp.broadcast_to(length == limit, token.shape)
    for end in ends:
        stops |= token == end

    running_score, best = jax.lax.top_k(jnp.where(stops, score + NEVER, score), count)  # [B, K]
    parents = jnp.take_along_axis(beam, best, axis=1)

    # Only the first K candidates may finish; the others are there to replace those that do.
    finishes = stops & (score > NEVER / 2) & (jnp.arange(width) < count) & state.can_improve[:, None]
    final = jnp.where(finishes, score / length.astype(jnp.float32) ** beams.length_penalty, NEVER)
    finished_score, first = jax.lax.top_k(jnp.concatenate([state.finished_score, final], 1), count)
    finished_tokens = jnp.take_along_axis(jnp.concatenate([state.finished_tokens, tokens], 1), first[..., None], axis=1)

    worst = finished_score[:, -1]
    if beams.search_until == "full":
        can_improve = worst <= NEVER / 2
    else:
        # The sum of a running sequence can only fall, but with a length penalty its divisor may still grow.
        best_length = limit if beams.search_until == "impossible" and beams.length_penalty > 0 else length
        can_improve = running_score[:, 0] / jnp.float32(best_length) ** beams.length_penalty > worst
    return _State(
        length=length,
        cache=jax.tree.map(lambda leaf, axis: leaf if axis is None else _reorder(leaf, parents, axis), state.cache, axes),
        running_tokens=jnp.take_along_axis(tokens, best[..., None], axis=1),
        running_score=running_score,
        finished_tokens=finished_tokens,
        finished_score=finished_score,
        can_improve=state.can_improve & can_improve & (running_score[:, 0] > NEVER / 2),
        finite=state.finite & jnp.isfinite(logits).all((1, 2)),
    )


def _reorder(leaf: Array, parents: Int[Array, "B K"], axis: int) -> Array:
    """Return an array of the cache in which each beam has the row of the beam that it continues; both are of one prompt."""
    rows, count = parents.shape
    by_prompt = leaf.reshape(*leaf.shape[:axis], rows, count, *leaf.shape[axis + 1 :])  # [..., B, K, ...]
    index = parents.reshape(*(1,) * axis, rows, count, *(1,) * (leaf.ndim - axis - 1))
    return jnp.take_along_axis(by_prompt, index, axis=axis + 1).reshape(leaf.shape)  # [..., B * K, ...]
