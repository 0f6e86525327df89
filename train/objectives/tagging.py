"""Tagging: predict a tag for each word, at its first token (Devlin et al. 2019, section 5.3)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train.config.run_config import Run
from train.engine.losses import class_losses
from train.rows.batches import Build
from train.rows.example_rows import ExampleRow, is_typed, padded
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import IGNORED, Batch
from zoo.models import Model

DATA = "labelled"


def builder(run: Run, tokenizer: Tokenizer, counts: Callable[[], np.ndarray]) -> Build:
    """Return `build(rng, row, length)`, which converts a row to the fields of `Batch`.

    tokens, segments, positions, types and labels are int32 [length], weights is float32 [length]. A label is `IGNORED`, with
    weight 0, at special tokens, at the further tokens of a word and at padding.
    """
    special_tokens = tokenizer.special_tokens
    assert special_tokens is not None, "rows are made with a tokenizer that has special tokens"
    typed = is_typed(run.model.types, special_tokens)

    def build(rng: np.random.Generator, row: ExampleRow, length: int) -> dict[str, np.ndarray]:
        labels, weights = np.full(length, IGNORED, np.int32), np.zeros(length, np.float32)
        labels[: len(row.labels)], weights[: len(row.weights)] = row.labels, row.weights
        return padded(row.inputs[0], length, special_tokens, typed=typed) | {"labels": labels, "weights": weights}

    return build


def weights(batch: Batch) -> dict[str, jax.Array]:
    """Return the divisor of the loss: the weights of the tags."""
    assert batch.weights is not None
    return {"tagging": batch.weights.sum()}


def loss(
    model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
) -> tuple[dict[str, jax.Array], Any]:
    """Return the summed cross-entropy of the tags, in nats, and the model's carry."""
    assert batch.labels is not None and batch.weights is not None
    out = model.apply(params, batch, seeds=seeds, carry=carry)
    losses = class_losses(model.token_logits(params, out.hidden, seeds), batch.labels, smoothing)
    return {"tagging": (losses * batch.weights).sum()}, out.carry
