"""The logits of a fine-tuned model's head for all rows, by objective."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from eval.inference.batch_loop import BatchLoop
from train.objectives import choice, span
from zoo.batch import Batch
from zoo.models import Model
from zoo.nn import task_heads


@functools.lru_cache(maxsize=4)
def logits_loop(model: Model, mesh: Mesh, objective: str, dtype: np.dtype) -> BatchLoop:
    """Return the loop that computes a model's logits of rows; equal arguments give the same loop and its compiled programs."""
    head = LOGITS[objective]
    return BatchLoop(mesh, dtype, lambda params, batch, carry: (head(model, params, batch), carry))


def _sequence_logits(model: Model, params: Any, batch: Batch) -> Float[Array, "B O"]:
    return model.sequence_logits(params, task_heads.sequence_summaries(model.apply(params, batch), batch))[:, 0]


def _token_logits(model: Model, params: Any, batch: Batch) -> Float[Array, "B T O"]:
    return model.token_logits(params, model.apply(params, batch).hidden)


def _span_logits(model: Model, params: Any, batch: Batch) -> Float[Array, "B 2 T"]:
    return span.span_logits(model, params, model.apply(params, batch).hidden, batch)


LOGITS: dict[str, Callable[[Model, Any, Batch], Any]] = {
    "classification": _sequence_logits,
    "tagging": _token_logits,
    "span": _span_logits,
    "choice": choice.option_logits,
    "rerank": choice.option_logits,
}
"""Objective -> function that returns the logits of a batch: [B, O], [B, T, O], start and end logits [B, 2, T], or [B, C]."""
