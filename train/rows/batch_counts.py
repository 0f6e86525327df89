"""Counts of the tokens, predictions and text bytes of training batches, on the host; `train.run.costs.COUNTS` defines them."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int, Int64

from train.run.costs import COUNTS
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.runtime.progress import this_process


def text_ids(batch: Batch) -> list[Int[np.ndarray, " _"]]:
    """Return the ids of the original text of the rows of a batch, without padding; special tokens may be among them.

    Encoders: the inputs, with the targets where the inputs are masked. Decoders: the targets, and a source before them.
    Encoder-decoders: the source and the targets.
    """
    tokens, at = np.asarray(batch.tokens), batch.predicted_positions
    if batch.source is not None:
        return [_unpadded(batch.source.tokens, batch.source.segments), counted_targets(batch)]
    if batch.targets is None:
        return [_unpadded(tokens, batch.segments)]
    if at is None:
        return [counted_targets(batch) if batch.segments is None else _unpadded(batch.targets, batch.segments)]
    assert batch.weights is not None
    row, place = np.nonzero(batch.weights)
    tokens = tokens.copy()
    tokens[row, at[row, place]] = batch.targets[row, place]
    return [_unpadded(tokens, batch.segments)]


def counted_targets(batch: Batch) -> Int[np.ndarray, " n"]:
    """Return the targets of a batch with a weight above 0."""
    assert batch.targets is not None and batch.weights is not None
    return batch.targets[batch.weights > 0]


def _unpadded(tokens: Any, segments: Any) -> Int[np.ndarray, " n"]:
    return tokens.ravel() if segments is None else tokens[segments > 0]


class TextCounts:
    """The counts of all batches that a run has trained on, over all processes and all of its starts."""

    def __init__(
        self, tokenizer: Tokenizer, owned: Mapping[int, Int64[np.ndarray, " _"]], saved: Mapping[str, int] | None
    ) -> None:
        """Begin with the counts of the checkpoint that the run continues from.

        Args:
            owned: number of this process's rows of a batch -> the places among them of the rows that it counts; no other process
                counts them.
            saved: result of `total` at that step; None if it has none.
        """
        own = tokenizer.special_tokens or tokenizer.text_special_tokens
        special = {tokenizer.end_of_text} if own is None else {*own.special} - {own.unk}
        self._bytes, self._is_text = tokenizer.token_bytes(), np.ones(tokenizer.vocab_size, bool)
        self._is_text[[*special]] = False
        self._owned, self._saved, self._sums = owned, saved, np.zeros(len(COUNTS), np.int64)

    def add(self, batch: Batch, ids: Iterable[Int[np.ndarray, " _"]]) -> None:
        """Count a batch on the host, given the ids of its text; `owned_part` selects the rows of both."""
        assert batch.weights is not None
        inputs = batch if batch.source is None else batch.source
        texts = [part[self._is_text[part]] for part in ids]
        self._sums += [
            np.size(inputs.tokens) if inputs.segments is None else np.count_nonzero(inputs.segments),
            sum(map(len, texts)),
            np.count_nonzero(batch.weights),
            sum(int(self._bytes[part].sum()) for part in texts),
        ]

    def owned_part(self, batch: Batch) -> Batch:
        """Return the rows of this process's part of a batch that it counts."""
        rows = len(batch.tokens)
        owned = self._owned[rows]
        return batch if len(owned) == rows else jax.tree.map(lambda array: array[owned], batch)

    def total(self) -> dict[str, int] | None:
        """Return the counts of all processes by `COUNTS`; None if the checkpoint that the run continues from had none.

        All processes call it together.
        """
        sums = self._sums
        if jax.process_count() > 1:
            # As two halves, because JAX would make int32 of int64.
            halves = np.stack([sums >> 31, sums & ((1 << 31) - 1)]).astype(np.int32)
            with jax.transfer_guard("allow"), this_process.stage("waiting for the other processes", waiting=True):
                high, low = np.asarray(multihost_utils.process_allgather(halves), np.int64).sum(0)
            sums = (high << 31) + low
        if self._saved is None:
            return None
        return {name: self._saved[name] + count for name, count in zip(COUNTS, sums.tolist(), strict=True)}
