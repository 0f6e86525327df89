"""Find the first and the last token of an answer in a text (Devlin et al. 2019, sections 4.2 and 4.3)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from train.config.run_config import Run
from train.engine.losses import class_losses
from train.rows.batches import Build
from train.rows.example_rows import Row, is_typed, padded
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.models import Model

DATA = "labelled"


def builder(run: Run, tokenizer: Tokenizer, counts: Callable[[], np.ndarray]) -> Build:
    """`build(rng, row, length)`: tokens, segments, positions and types int32 [length]; labels int32 [2], the first and the last
    token, both CLS for a window without an answer; weights float32 [1]; and see `train.rows.example_rows.padded`."""
    marks = tokenizer.marks
    assert marks is not None, "rows are made with a tokenizer that has marks"
    typed = is_typed(run.model.types, marks)

    def build(rng: np.random.Generator, row: Row, length: int) -> dict[str, np.ndarray]:
        return padded(row.inputs[0], length, marks, typed=typed) | {"labels": row.labels, "weights": row.weights}

    return build


def weights(batch: Batch) -> dict[str, jax.Array]:
    """What the loss is divided by: the weights of the windows."""
    assert batch.weights is not None
    return {"span": batch.weights.sum()}


def loss(
    model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
) -> tuple[dict[str, jax.Array], Any]:
    """Summed mean of both ends' cross-entropies, in nats, each over the tokens of a window; and the model's carry."""
    assert batch.labels is not None and batch.weights is not None
    out = model.apply(params, batch, seeds=seeds, carry=carry)
    each = class_losses(ends(model, params, out.hidden, batch, seeds), batch.labels, smoothing)
    return {"span": (each.mean(-1) * batch.weights[:, 0]).sum()}, out.carry


def ends(model: Model, params: Any, hidden: Float[Array, "B T D"], batch: Batch, seeds: Any = None) -> Float[Array, "B 2 T"]:
    """Logits of the first token of an answer and of its last one; padding gets no probability."""
    logits = jnp.moveaxis(model.token_logits(params, hidden, seeds), -1, 1)
    return logits if batch.segments is None else jnp.where(batch.segments[:, None] > 0, logits, -1e30)
