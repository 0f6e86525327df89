"""Causal language modelling: predict each token from those before it (Radford et al. 2018, equation 1)."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from train.config.objectives import CausalOptions
from train.config.run_config import Run
from train.objectives.student import StudentObjective
from train.rows import lm_rows
from train.rows.batches import Build
from train.rows.lm_rows import LmRow, LmRows
from train.rows.token_cache import Tokens
from train.tokenizers.tokenizer import Tokenizer


class Causal(StudentObjective):
    """Prediction of the next token at each token of a text."""

    OPTIONS = CausalOptions

    @classmethod
    def plan_rows(cls, tokens: Tokens, run: Run, tokenizer: Tokenizer) -> LmRows:
        """Return the rows of the training text: windows, or packed documents.

        Raises:
            BadInput: fewer tokens than one row.
        """
        return lm_rows.training_rows(tokens, run.data)

    @classmethod
    def scored_rows(cls, tokens: Tokens, run: Run, tokenizer: Tokenizer, stride: int) -> LmRows:
        """Return rows that count every held-out token once, with `stride` new tokens each (packed documents have no stride)."""
        if run.data.rows == "packed":
            return lm_rows.packed_documents(tokens, run.data.length)
        return lm_rows.stream_windows(tokens, run.data.length, stride)

    @classmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build`, which is the same for every run."""
        return build


OBJECTIVE = Causal


def build(rng: np.random.Generator, row: LmRow, length: int) -> dict[str, np.ndarray]:
    """Return one row as the fields of `Batch`, each [length]; `rng` is not used.

    tokens: int32 inputs, for each target the id before it in its document, or end-of-text at the document's start; 0 after the
    end of the row. targets: int32, 0 after the end of the row. weights: float32, 1, but 0 for the context and after the end of
    the row. For isolated documents also int32 segments (1, 2, ...; 0 after the end) and positions (from 0 in each piece).
    """
    del rng
    tokens, targets, segments, positions = np.zeros((4, length), np.int32)
    start = 0
    for number, piece in enumerate(row.pieces, 1):
        end = start + len(piece.ids)
        tokens[start] = piece.before
        tokens[start + 1 : end] = piece.ids[:-1]
        targets[start:end] = piece.ids
        segments[start:end] = number
        positions[start:end] = np.arange(end - start)
        start = end
    weights = np.zeros(length, np.float32)
    weights[row.context : start] = 1
    arrays = {"tokens": tokens, "targets": targets, "weights": weights}
    return {**arrays, "segments": segments, "positions": positions} if row.isolated else arrays
