"""The decode loop on devices: prompts are read into a key-value cache, then tokens are sampled and appended one at a time.

The programs are compiled once for each `Decoder` and settings, whoever calls them. They are functions of token ids; text,
batching of prompts and stop strings are in `eval.generation`.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from zoo.batch import Batch
from zoo.generation import beam_search, sampling
from zoo.generation.decoding_settings import UNCHANGED, Beams, Processors, Sampling
from zoo.generation.logits_processors import Context, process_logits, start_context
from zoo.generation.split_layers import split_cache, split_layers
from zoo.models import Model
from zoo.nn.kv_cache import Cache
from zoo.nn.task_heads import predicting_states
from zoo.ops import counter_rng
from zoo.precision import cast_params
from zoo.sharding import BATCH, constrain

FIRST = 64
"""Slots that the cache has at first after those of the prompts."""
GROWTH = 4
"""Factor by which a full cache grows. Each number of slots compiles the loop again."""


class Decoder(NamedTuple):
    """A model, and the constants that the programs are compiled for."""

    model: Model
    vocabulary: int
    """Number of ids that may be generated: those of the tokenizer. The model's vocabulary may be larger."""
    dtype: np.dtype
    """Dtype of the cache."""
    reread: int = 0
    """Cached tokens that each step reads again together with the newest one; all that are read together see each other."""
    log_probs: bool = False
    """Also return the log-probabilities of the sampled tokens, for which the sum over the vocabulary is computed."""
    processors: Processors = UNCHANGED
    """Changes of the logits before a token is sampled or searched."""
    ends: tuple[int, ...] = ()
    """Ids that end a text, for the processors and for beam search; sampling goes on after them."""


class Sampled(NamedTuple):
    """The tokens that a program sampled for each row."""

    tokens: Int[Array, "count B"]
    finite: Bool[Array, "count B"]
    """True if the token's logits are finite and the processors leave a token; otherwise the token means nothing."""
    log_probs: Float[Array, "count B"] | None = None
    """Log-probability in nats with which the token was sampled, after processors, temperature and filters; None unless
    `Decoder.log_probs`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """The rows of a batch between two steps."""

    cache: Cache
    tokens: Any
    """int32 [B, R], the input of the next step: the tokens that are read again, then the last sampled one, which is not in the
    cache yet."""
    position: Any
    """int32 [B], the position of the last sampled token."""
    segment: Any
    """int32 [B]: 1, or 0 in a padding row."""
    seeds: Any
    """uint32 [B, 2]."""
    context: Context | None
    """The tokens and counts that processors read; None without processors."""
    values: Any = None
    """float32 [4], the numbers of the sampling settings; None if they are constants of the program."""


def decoding_params(params: Any, dtype: Any) -> Any:
    """Return the parameters in the dtype of the arithmetic and the form that decoding reads fastest.

    They are a copy if `split_layers` splits them; otherwise `params` themselves if they have that dtype. All programs of this
    module take either form.
    """
    return split_layers(cast_params(params, dtype))


def unroll_layers(model: Model) -> Model:
    """Return the model for decoding, with its loop over layers unrolled.

    A scan over the layers copies each one's weights out of their stack for every token; unrolled, accelerators read them in
    place. Without stacks (`split_layers`) this makes no difference.
    """
    layers = getattr(model.config, "decoder_layers", model.config.layers)
    compute = dataclasses.replace(model.config.compute, unroll=layers)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, compute=compute))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def start_decoding(
    decoder: Decoder,
    settings: Sampling,
    slots: int,
    params: Any,
    prompts: Batch,
    seed: UInt32[Any, ""],
    numbers: UInt32[Any, "2 B"],
    limit: Int[Any, ""] | int = 0,
    values: Float[Any, " 4"] | None = None,
) -> tuple[DecodeState, Sampled]:
    """Read the prompts and sample the first token of each row.

    Args:
        slots: slots of the cache after those of the prompts: the tokens that will be sampled after the first one.
        prompts: rows of one length, padded on the left, with segments and positions.
        numbers: the indices of prompt and sample of each row, on which sampling depends.
        limit: number of tokens of a continuation, at which `Processors.forced_end` acts; used only with processors.
        values: the numbers of `settings`, see `zoo.generation.sampling.sampling_values`; None = they are constants.
    """
    assert prompts.segments is not None and prompts.positions is not None
    size, length = prompts.tokens.shape
    state = DecodeState(
        cache=split_cache(decoder.model.init_cache(size, length + slots, decoder.dtype), params),
        tokens=prompts.tokens[:, -1 - decoder.reread :],
        position=prompts.positions[:, -1],
        segment=prompts.segments[:, -1],
        seeds=sampling.row_seeds(seed, *numbers),
        context=start_context(decoder.processors, prompts, length + slots, limit),
        values=values,
    )
    state, sampled = _step(decoder, settings, params, prompts, state)
    # The step has added the keys and values of a source.
    state = dataclasses.replace(state, cache=split_cache(state.cache, params))
    return state, jax.tree.map(lambda leaf: leaf[None], sampled)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def sample_tokens(
    decoder: Decoder, settings: Sampling, count: int, params: Any, state: DecodeState
) -> tuple[DecodeState, Sampled]:
    """Sample `count` more tokens of each row; the state is donated."""

    def step(state: DecodeState, _: None) -> tuple[DecodeState, Sampled]:
        batch = Batch(
            tokens=state.tokens,
            segments=jnp.broadcast_to(state.segment[:, None], state.tokens.shape),
            positions=state.position[:, None] + jnp.arange(-decoder.reread, 1),
        )
        cache = dataclasses.replace(state.cache, at=state.cache.at - decoder.reread)
        return _step(decoder, settings, params, batch, dataclasses.replace(state, cache=cache))

    return jax.lax.scan(step, state, None, length=count)


def decode_continuation(
    decoder: Decoder,
    settings: Sampling,
    params: Any,
    prompts: Batch,
    seed: UInt32[Any, ""],
    numbers: UInt32[Any, "2 B"],
    *,
    limit: int,
    chunk: int,
    shared: bool = False,
) -> Iterator[Sampled]:
    """Yield the tokens of each row as they are sampled: the first one, then `chunk` at a time until there are `limit` or more.

    Every token reads all slots of the cache. It begins with those of the prompt and of `FIRST` tokens, and has `GROWTH` times as
    many for the text whenever they are full, so that the time of a token depends on the length of its text and not on `limit`.

    Args:
        prompts, seed, numbers: see `start_decoding`.
        shared: use the programs of other limits and other numbers in `settings`, at the price of slots that are not needed.
    """
    count = chunk if shared else tokens_per_dispatch(limit, chunk)
    needed = slots_after_prompt(limit, chunk)
    largest = sys.maxsize if shared else needed
    prompt_slots = prompts.tokens.shape[1]
    slots = min(largest, math.ceil(FIRST / count) * count)
    # The program is the same for every limit if no processor depends on it.
    last = np.int32(limit if decoder.processors.forced_end else 0)
    settings, values = sampling.sampling_values(settings) if shared else (settings, None)
    state, sampled = start_decoding(decoder, settings, slots, params, prompts, seed, numbers, last, values)
    yield sampled
    for filled in range(0, needed, count):
        if filled == slots:
            slots = min(largest, GROWTH * slots)
            state = _grow(decoder, prompt_slots + slots, params, state)
        state, sampled = sample_tokens(decoder, settings, count, params, state)
        yield sampled


@functools.partial(jax.jit, static_argnums=(0, 1))
def _grow(decoder: Decoder, slots: int, params: Any, state: DecodeState) -> DecodeState:
    """Return the state with `slots` slots in the cache, and as many places for the text that processors read."""
    context = None if state.context is None else state.context.with_places(slots)
    return dataclasses.replace(state, cache=decoder.model.grow_cache(params, state.cache, slots), context=context)


def tokens_per_dispatch(limit: int, chunk: int) -> int:
    """Return the tokens sampled by one dispatch after the first token."""
    return max(1, min(chunk, limit - 1))


def slots_after_prompt(limit: int, chunk: int) -> int:
    """Return the slots of the cache for `limit` tokens after the prompt, the last of which is not stored."""
    count = tokens_per_dispatch(limit, chunk)
    return math.ceil((limit - 1) / count) * count


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def decode_beams(decoder: Decoder, beams: Beams, limit: int, params: Any, prompts: Batch) -> beam_search.BeamSearchResult:
    """Return the best continuations of the prompts, replicated on all devices; see `zoo.generation.beam_search`."""
    rows, length = prompts.tokens.shape
    cache = decoder.model.init_cache(rows, length + limit - 1, decoder.dtype)
    rules = {"vocabulary": decoder.vocabulary, "ends": decoder.ends, "processors": decoder.processors}
    results = beam_search.beam_search(decoder.model, params, prompts, cache, beams, limit=limit, **rules)
    return jax.tree.map(lambda leaf: constrain(leaf, None), results)


def _step(decoder: Decoder, settings: Sampling, params: Any, batch: Batch, state: DecodeState) -> tuple[DecodeState, Sampled]:
    """Append a batch's tokens to the cache and sample the token after its last column.

    The arrays of the result are [B], without the leading axis of `Sampled`, which counts tokens.
    """
    if decoder.reread:
        batch = dataclasses.replace(batch, order=jnp.zeros_like(batch.tokens))
    out = decoder.model.apply(params, batch, cache=state.cache)
    hidden = predicting_states(out, batch)
    # The tokenizer may have fewer entries than the model: an id without text is never sampled.
    logits = constrain(decoder.model.unembed(params, hidden[:, -1]), BATCH)[:, : decoder.vocabulary]
    position = state.position + 1
    seeds = counter_rng.fold(state.seeds, position.astype(jnp.uint32))
    processed = process_logits(logits, decoder.processors, decoder.ends, state.context)
    token, finite, remaining = sampling.sample_token(logits, settings, seeds, processed, state.values)
    log_probs = constrain(sampling.log_probs(remaining, settings, token), None) if decoder.log_probs else None
    context = None if state.context is None else state.context.append(token)
    tokens = jnp.concatenate([state.tokens[:, 1:], token[:, None]], axis=1)
    small = jax.tree.map(lambda leaf: constrain(leaf, BATCH), (tokens, position, state.segment, state.seeds, context))
    return DecodeState(out.cache, *small, values=state.values), Sampled(
        constrain(token, None), constrain(finite, None), log_probs
    )
