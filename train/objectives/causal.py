"""Causal language modelling: predict each token from those before it (Radford et al. 2018, equation 1)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train.config.run_config import Run
from train.engine.losses import summed_loss
from train.rows import lm_rows
from train.rows.batches import Build
from train.rows.lm_rows import LmRow, LmRows
from train.rows.token_cache import Tokens
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.errors import require
from zoo.models import Model

DATA = "text"


def plan(tokens: Tokens, run: Run, tokenizer: Tokenizer) -> LmRows:
    """Return the rows of the training text: windows, or packed documents.

    Raises:
        BadInput: fewer tokens than one row, or a kind of rows that only encoders have.
    """
    allowed = ("windows", "packed")
    require(run.data.rows in allowed, "data.rows", run.data.rows, f"only encoders have such rows; choose {' or '.join(allowed)}")
    return lm_rows.training_rows(tokens, run.data)


def scored(tokens: Tokens, run: Run, tokenizer: Tokenizer, stride: int) -> LmRows:
    """Return rows that count every held-out token once, with `stride` new tokens each (packed documents have no stride)."""
    if run.data.rows == "packed":
        return lm_rows.packed(tokens, run.data.length)
    return lm_rows.windows(tokens, run.data.length, stride)


def builder(run: Run, tokenizer: Tokenizer, counts: Callable[[], np.ndarray]) -> Build:
    """Return `build`, which is the same for every run."""
    return build


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


def weights(batch: Batch) -> dict[str, jax.Array]:
    """Return the divisor of the loss: the number of counted predictions."""
    assert batch.weights is not None
    return {"causal": batch.weights.sum()}


def loss(
    model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
) -> tuple[dict[str, jax.Array], Any]:
    """Return the summed cross-entropy, in nats, of the counted predictions of a batch, and the model's carry."""
    nats, carry = summed_loss(model, params, batch, seeds=seeds, carry=carry, smoothing=smoothing, chunk=chunk)
    return {"causal": nats}, carry
