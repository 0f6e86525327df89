"""Classification of texts or pairs of texts, into one class or several labels, or regression (Devlin et al. 2019, 4.1)."""

from typing import Any

import jax
import jax.numpy as jnp

from train.config.objectives import ClassificationOptions
from train.engine.losses import class_losses, multi_label_losses
from train.objectives.base import LabelledObjective
from zoo.batch import Batch
from zoo.models import Model
from zoo.nn import task_heads


class Classification(LabelledObjective):
    """Prediction of the class of a text or a pair of texts, of its labels, or of a number.

    labels is int32 [1], float32 [1] for regression, or int32 [O] if a text may have several labels; weights is float32 [1].
    """

    OPTIONS = ClassificationOptions

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the summed loss of the examples, and the model's carry.

        It is the cross-entropy in nats, the mean over labels of the binary cross-entropy if a text may have several, or the
        squared error of a single output.
        """
        assert batch.labels is not None and batch.weights is not None
        out = model.apply(params, batch, seeds=seeds, carry=carry)
        logits = model.sequence_logits(params, task_heads.sequence_summaries(out, batch), seeds)  # [B, 1, O]
        if model.config.multi_label:
            losses = multi_label_losses(logits, batch.labels[:, None])
        elif jnp.issubdtype(batch.labels.dtype, jnp.floating):
            losses = jnp.square(logits[..., 0] - batch.labels)
        else:
            losses = class_losses(logits, batch.labels, smoothing)
        return {"classification": (losses * batch.weights).sum()}, out.carry


OBJECTIVE = Classification
