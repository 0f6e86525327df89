"""Predict each token from those before it (Radford et al. 2018, equation 1)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train.config.run_config import Run
from train.engine.losses import summed
from train.rows import lm_rows
from train.rows.batches import Build
from train.rows.lm_rows import Row, Rows
from train.rows.token_cache import Tokens
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.errors import require
from zoo.models import Model

DATA = "text"


def plan(tokens: Tokens, run: Run, tokenizer: Tokenizer) -> Rows:
    """The rows of the training text: windows, or documents packed.

    Raises:
        BadInput: fewer tokens than one row, or rows that only an encoder has.
    """
    known = ("windows", "packed")
    require(run.data.rows in known, "data.rows", run.data.rows, f"these rows are an encoder's; choose {' or '.join(known)}")
    return lm_rows.training_rows(tokens, run.data)


def scored(tokens: Tokens, run: Run, tokenizer: Tokenizer, stride: int) -> Rows:
    """Rows that count every held-out token once; `stride` new tokens each (isolated documents have no stride)."""
    if run.data.rows == "packed":
        return lm_rows.packed(tokens, run.data.length)
    return lm_rows.windows(tokens, run.data.length, stride)


def builder(run: Run, tokenizer: Tokenizer, counts: Callable[[], np.ndarray]) -> Build:
    """`build`, whatever the run."""
    return build


def build(rng: np.random.Generator, row: Row, length: int) -> dict[str, np.ndarray]:
    """One row as the fields of `Batch`, each [length]; draws nothing from `rng`.

    tokens: inputs, int32: before each target the id before it in its document, end-of-text at the document's start; 0 after the
    row's end. targets: int32, 0 after the row's end. weights: float32, 1, but 0 for the row's context and after its end. Where
    documents are isolated also segments (1, 2, ...; 0 after the end) and positions (from 0 in each piece), int32.
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
    """What each term of the loss is divided by: here the number of counted predictions."""
    assert batch.weights is not None
    return {"causal": batch.weights.sum()}


def loss(
    model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
) -> tuple[dict[str, jax.Array], Any]:
    """Summed cross-entropy, in nats, of the counted predictions of a batch; and the model's carry."""
    nats, carry = summed(model, params, batch, seeds=seeds, carry=carry, smoothing=smoothing, chunk=chunk)
    return {"causal": nats}, carry
