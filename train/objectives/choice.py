"""Multiple choice: score each option together with the question (Radford et al. 2018, section 3.3)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from train.config.objectives import ChoiceOptions
from train.engine.losses import class_losses
from train.objectives.base import LabelledObjective
from zoo.batch import Batch
from zoo.models import Model
from zoo.nn import task_heads
from zoo.ops import counter_rng


class MultipleChoice(LabelledObjective):
    """Prediction of the correct option of a question.

    tokens, segments, positions and types are int32 [C, T], with XLNet's special tokens also summary_at, int32 [C, 1]. labels is
    the number of the correct option, int32 []; weights is float32 [1].
    """

    OPTIONS = ChoiceOptions

    @classmethod
    def join_options(cls, options: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the fields of all options, stacked on a first axis C."""
        return stacked_options(options)

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the summed cross-entropy of the options, in nats, and the model's carry."""
        assert batch.labels is not None and batch.weights is not None
        logits = option_logits(model, params, batch, seeds)
        return {"choice": (class_losses(logits, batch.labels, smoothing) * batch.weights[:, 0]).sum()}, carry


OBJECTIVE = MultipleChoice


def option_logits(model: Model, params: Any, batch: Batch, seeds: Any = None) -> Float[Array, "B C"]:
    """Return a logit for each option. Options are separate rows of the model, with different dropout."""
    rows, seeds = option_rows(batch, seeds)
    summaries = task_heads.sequence_summaries(model.apply(params, rows, seeds=seeds), rows)
    return model.sequence_logits(params, summaries, seeds)[:, 0, 0].reshape(-1, batch.tokens.shape[1])  # [B, C]


def stacked_options(options: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the fields of the options of a row, stacked on a first axis C."""
    return {name: np.stack([option[name] for option in options]) for name in options[0]}


def option_rows(batch: Batch, seeds: Any) -> tuple[Batch, Any]:
    """Return the options of a batch as rows [B * C, T] without labels, and the seeds of each, [B * C, 2]; None = no dropout."""
    count = batch.tokens.shape[1]

    def flat(x: Any) -> Any:
        return None if x is None else x.reshape(-1, *x.shape[2:])  # [B, C, ...] -> [B * C, ...]

    fields = {
        name: flat(getattr(batch, name)) for name in ("tokens", "segments", "key_segments", "positions", "types", "summary_at")
    }
    rows = dataclasses.replace(batch, **fields, labels=None, weights=None, index=None, extra=None)
    if seeds is not None:
        indices = jnp.broadcast_to(jnp.arange(count, dtype=jnp.uint32), (len(seeds), count))  # [B, C]
        seeds = counter_rng.fold(jnp.repeat(seeds, count, axis=0), flat(indices))
    return rows, seeds
