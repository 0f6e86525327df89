"""Classification of texts or pairs of texts, into one class or several labels, or regression (Devlin et al. 2019, 4.1)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.config.run_config import Run
from train.engine.losses import class_losses, multi_label_losses
from train.rows.batches import Build
from train.rows.example_rows import ExampleRow, is_typed, padded
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.models import Model
from zoo.nn import heads

DATA = "labelled"


def builder(run: Run, tokenizer: Tokenizer, counts: Callable[[], np.ndarray]) -> Build:
    """Return `build(rng, row, length)`, which converts a row to the fields of `Batch`.

    tokens, segments, positions and types are int32 [length] (see `train.rows.example_rows.padded`); labels [1] is int32, or
    float32 for regression, or int32 [O] if a text may have several labels; weights is float32 [1].
    """
    marks = tokenizer.special_tokens
    assert marks is not None, "rows are made with a tokenizer that has marks"
    typed = is_typed(run.model.types, marks)

    def build(rng: np.random.Generator, row: ExampleRow, length: int) -> dict[str, np.ndarray]:
        return padded(row.inputs[0], length, marks, typed=typed) | {"labels": row.labels, "weights": row.weights}

    return build


def weights(batch: Batch) -> dict[str, jax.Array]:
    """Return the divisor of the loss: the weights of the examples."""
    assert batch.weights is not None
    return {"classification": batch.weights.sum()}


def loss(
    model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
) -> tuple[dict[str, jax.Array], Any]:
    """Return the summed loss of the examples, and the model's carry.

    It is the cross-entropy in nats, the mean over labels of the binary cross-entropy if a text may have several, or the squared
    error of a single output.
    """
    assert batch.labels is not None and batch.weights is not None
    out = model.apply(params, batch, seeds=seeds, carry=carry)
    logits = model.sequence_logits(params, heads.summaries(out.hidden, batch.summary_at), seeds)  # [B, 1, O]
    if model.config.multi_label:
        losses = multi_label_losses(logits, batch.labels[:, None])
    elif jnp.issubdtype(batch.labels.dtype, jnp.floating):
        losses = jnp.square(logits[..., 0] - batch.labels)
    else:
        losses = class_losses(logits, batch.labels, smoothing)
    return {"classification": (losses * batch.weights).sum()}, out.carry
