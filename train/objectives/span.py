"""Span extraction: predict the first and the last token of an answer (Devlin et al. 2019, sections 4.2 and 4.3)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from train.config.run_config import Run
from train.engine.losses import class_losses
from train.rows.batches import Build
from train.rows.example_rows import ExampleRow, is_typed, padded
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.models import Model

DATA = "labelled"


def builder(run: Run, tokenizer: Tokenizer, counts: Callable[[], np.ndarray]) -> Build:
    """Return `build(rng, row, length)`, which converts a row to the fields of `Batch`.

    tokens, segments, positions and types are int32 [length] (see `train.rows.example_rows.padded`); labels is int32 [2], the
    first and the last token, both [CLS] for a window without an answer; weights is float32 [1].
    """
    special_tokens = tokenizer.special_tokens
    assert special_tokens is not None, "rows are made with a tokenizer that has special tokens"
    typed = is_typed(run.model.types, special_tokens)

    def build(rng: np.random.Generator, row: ExampleRow, length: int) -> dict[str, np.ndarray]:
        return padded(row.inputs[0], length, special_tokens, typed=typed) | {"labels": row.labels, "weights": row.weights}

    return build


def weights(batch: Batch) -> dict[str, jax.Array]:
    """Return the divisor of the loss: the weights of the windows."""
    assert batch.weights is not None
    return {"span": batch.weights.sum()}


def loss(
    model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
) -> tuple[dict[str, jax.Array], Any]:
    """Return the sum over windows of the mean cross-entropy of both ends, in nats, and the model's carry."""
    assert batch.labels is not None and batch.weights is not None
    out = model.apply(params, batch, seeds=seeds, carry=carry)
    losses = class_losses(ends(model, params, out.hidden, batch, seeds), batch.labels, smoothing)
    return {"span": (losses.mean(-1) * batch.weights[:, 0]).sum()}, out.carry


def ends(model: Model, params: Any, hidden: Float[Array, "B T D"], batch: Batch, seeds: Any = None) -> Float[Array, "B 2 T"]:
    """Return the logits of the first and the last token of an answer; padding gets no probability."""
    logits = jnp.moveaxis(model.token_logits(params, hidden, seeds), -1, 1)  # [B, T, 2] -> [B, 2, T]
    return logits if batch.segments is None else jnp.where(batch.segments[:, None] > 0, logits, -1e30)
