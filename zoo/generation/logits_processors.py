"""Logits processors: pure functions that change the logits [B, V] of the next token by the tokens so far.

They have the order and meaning that `transformers` gives them for a row alone: padding takes part in nothing. Sampling passes
logits and beam search log-probabilities. An excluded token has -inf.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from zoo.batch import Batch
from zoo.generation.decoding_settings import UNCHANGED, Processors

EMPTY = -1
"""Entry of a place without a token."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """The tokens and counts of each row that processors read. Every array begins with the axis B."""

    text: Any
    """int32 [B, S]: the tokens of prompt and output, the newest last, `EMPTY` before them; None if no processor needs them."""
    source: Any
    """int32 [B, S']: the tokens of the source, or of a decoder's prompt, `EMPTY` for padding; None if no processor needs them."""
    length: Any
    """int32 [B]: number of tokens of prompt and output; an encoder-decoder's prompt is its first token."""
    new: Any
    """int32 [B]: number of new tokens."""
    limit: Any
    """int32 [B]: largest number of new tokens."""

    def append(self, tokens: Int[Array, " B"]) -> "Context":
        """Return the context after one more token of each row; the oldest place is dropped."""
        text = None if self.text is None else jnp.concatenate([self.text[:, 1:], tokens[:, None]], axis=1)
        return dataclasses.replace(self, text=text, length=self.length + 1, new=self.new + 1)

    def with_places(self, places: int) -> "Context":
        """Return the context with empty places before the text, `places` in total."""
        if self.text is None:
            return self
        return dataclasses.replace(
            self, text=jnp.pad(self.text, ((0, 0), (places - self.text.shape[1], 0)), constant_values=EMPTY)
        )


def start_context(processors: Processors, prompts: Batch, places: int, limit: Int[Any, ""] | int) -> Context | None:
    """Return the context of prompts [B, T], padded on the left; None if the processors change nothing.

    Args:
        places: number of tokens that the text may have, padding included, before the oldest is dropped.
        limit: largest number of new tokens.
    """
    if processors == UNCHANGED:
        return None
    assert prompts.segments is not None and prompts.positions is not None
    rows = prompts.tokens.shape[0]
    source = None
    if processors.source_no_repeat_ngram:
        source = _real_tokens(prompts if prompts.source is None else prompts.source)
    context = Context(
        text=_real_tokens(prompts) if processors.uses_text else None,
        source=source,
        length=prompts.positions[:, -1] + 1,
        new=jnp.zeros(rows, jnp.int32),
        limit=jnp.full(rows, limit, jnp.int32),
    )
    return context.with_places(places)


def process_logits(
    logits: Float[Array, "B V"], processors: Processors, ends: tuple[int, ...], context: Context | None
) -> Float[Array, "B V"]:
    """Return the logits that a token is selected by.

    Args:
        ends: ids that end a text; read only if `Processors.uses_ends`.
        context: None only for processors that change nothing.
    """
    if context is None:
        return logits
    size = logits.shape[-1]
    if processors.repetition_penalty != 1:
        logits = penalize_repetition(logits, occurring_ids(context.text, size), processors.repetition_penalty)
    excluded: list[Any] = []
    if n := processors.no_repeat_ngram:
        excluded.append(completes_ngram(context.text, context.text, n, size))
    if n := processors.source_no_repeat_ngram:
        excluded.append(completes_ngram(context.text, context.source, n, size))
    if words := tuple(word for word in processors.bad_words if word not in [(end,) for end in ends]):
        excluded.append(completes_word(context.text, words, size))
    is_end = id_mask(ends, size)
    if processors.min_length:
        excluded.append((context.length < processors.min_length)[:, None] & is_end)
    if processors.min_tokens:
        excluded.append((context.new < processors.min_tokens)[:, None] & is_end)
    if excluded:
        logits = jnp.where(functools.reduce(jnp.logical_or, excluded), -jnp.inf, logits)
    if processors.forced_first is not None:
        logits = _force(logits, context.length == 1, (processors.forced_first,))
    if processors.forced_end:
        logits = _force(logits, context.new == context.limit - 1, processors.forced_end)
    if processors.suppressed:
        logits = jnp.where(id_mask(processors.suppressed, size), -jnp.inf, logits)
    if processors.begin_suppressed:
        # After a prompt of one token, `forced_first` decides the first new one.
        late = jnp.int32(processors.forced_first is not None) * (context.length - context.new <= 1)
        logits = jnp.where((context.new == late)[:, None] & id_mask(processors.begin_suppressed, size), -jnp.inf, logits)
    return logits


def penalize_repetition(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: float) -> Float[Array, "B V"]:
    """Make tokens that were seen less likely, for a penalty above 1 (CTRL, Keskar et al. 2019, section 4.1).

    The paper divides the logit, which makes a token with a negative logit more likely; as in `transformers`, those are
    multiplied.
    """
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def occurring_ids(text: Int[Array, "B S"], size: int) -> Bool[Array, "B {size}"]:
    """Return which of the first `size` ids are in each row."""
    return _mark(text, text != EMPTY, size)


def completes_ngram(text: Int[Array, "B S"], other: Int[Array, "B S2"], n: int, size: int) -> Bool[Array, "B {size}"]:
    """Return the ids that, after `text`, would complete n tokens that are in this order in `other` (Paulus et al. 2017, 2.5)."""
    places = other.shape[1] - n + 1
    if places < 1 or text.shape[1] < n - 1:
        return jnp.zeros((len(text), size), bool)
    last = other[:, n - 1 :]  # [B, places]
    matches = last != EMPTY
    for number in range(n - 1):
        token = text[:, text.shape[1] - n + 1 + number, None]
        matches &= (other[:, number : number + places] == token) & (token != EMPTY)
    return _mark(last, matches, size)


def completes_word(text: Int[Array, "B S"] | None, words: Sequence[tuple[int, ...]], size: int) -> Bool[Array, "*B {size}"]:
    """Return the ids that would complete one of `words` after `text`; without longer words, of shape [1, V]."""
    mask = id_mask([word[0] for word in words if len(word) == 1], size)
    for length in sorted({len(word) for word in words} - {1}):
        assert text is not None
        if text.shape[1] < length - 1:
            continue
        group = np.array([word for word in words if len(word) == length], np.int32)  # [G, length]
        matches = (text[:, None, 1 - length :] == group[:, :-1]).all(-1)  # [B, G]
        completed = jnp.broadcast_to(group[:, -1], matches.shape)
        mask = mask | _mark(completed, matches, size)
    return mask


def id_mask(ids: Sequence[int], size: int) -> Bool[Array, "1 {size}"]:
    """Return a boolean row, [1, size], that is True at these ids; ids beyond `size` are ignored."""
    return jnp.asarray(np.isin(np.arange(size), np.array(ids, np.int64))[None])


def _force(logits: Float[Array, "B V"], now: Bool[Array, " B"], ids: Sequence[int]) -> Float[Array, "B V"]:
    """Leave only `ids`, equally likely, in the rows that are `now`."""
    return jnp.where(now[:, None], jnp.where(id_mask(ids, logits.shape[-1]), 0.0, -jnp.inf), logits)


def _mark(ids: Int[Array, "B N"], valid: Bool[Array, "B N"], size: int) -> Bool[Array, "B {size}"]:
    """Return which ids below `size` are among the valid ones of each row."""
    rows = jnp.arange(len(ids))[:, None]
    return jnp.zeros((len(ids), size), bool).at[rows, jnp.where(valid, ids, size)].set(True, mode="drop")


def _real_tokens(batch: Batch) -> Int[Array, "B T"]:
    """Return the tokens of a batch, `EMPTY` where they are padding."""
    return batch.tokens if batch.segments is None else jnp.where(batch.segments > 0, batch.tokens, EMPTY)
