"""Tell classes of texts or of pairs apart, or give them a number (Devlin et al. 2019, section 4.1)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.config.run_config import Run
from train.engine.losses import class_losses
from train.rows.batches import Build
from train.rows.example_rows import Row, is_typed, padded
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.models import Model
from zoo.nn import heads

DATA = "labelled"


def builder(run: Run, tokenizer: Tokenizer, counts: Callable[[], np.ndarray]) -> Build:
    """`build(rng, row, length)`: tokens, segments, positions and types int32 [length]; labels [1], int32 or, of a regression,
    float32; weights float32 [1]; and see `train.rows.example_rows.padded`."""
    marks = tokenizer.marks
    assert marks is not None, "rows are made with a tokenizer that has marks"
    typed = is_typed(run.model.types, marks)

    def build(rng: np.random.Generator, row: Row, length: int) -> dict[str, np.ndarray]:
        return padded(row.inputs[0], length, marks, typed=typed) | {"labels": row.labels, "weights": row.weights}

    return build


def weights(batch: Batch) -> dict[str, jax.Array]:
    """What the loss is divided by: the weights of the examples."""
    assert batch.weights is not None
    return {"classification": batch.weights.sum()}


def loss(
    model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
) -> tuple[dict[str, jax.Array], Any]:
    """Summed cross-entropy in nats, or squared error of a single output; and the model's carry."""
    assert batch.labels is not None and batch.weights is not None
    out = model.apply(params, batch, seeds=seeds, carry=carry)
    logits = model.sequence_logits(params, heads.summaries(out.hidden, batch.summary_at), seeds)
    if jnp.issubdtype(batch.labels.dtype, jnp.floating):
        each = jnp.square(logits[..., 0] - batch.labels)
    else:
        each = class_losses(logits, batch.labels, smoothing)
    return {"classification": (each * batch.weights).sum()}, out.carry
