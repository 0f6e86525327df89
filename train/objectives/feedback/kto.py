"""Kahneman-Tversky optimization: learn from single answers that are labelled as desired or undesired (Ethayarajh et al. 2024)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.config.kto_options import Kto
from train.config.objectives import KtoOptions
from train.engine.log_probs import one_side, pair_weights, sequence_log_probs, split_pairs
from train.engine.micro_batches import map_rows
from train.engine.preference_losses import unpaired_losses
from train.objectives.feedback.dpo import ReferenceObjective
from train.rows.feedback import kto_rows
from zoo.batch import Batch
from zoo.models import Model


@dataclasses.dataclass(frozen=True)
class KahnemanTversky(ReferenceObjective):
    """Training on single answers with labels, without a reward model and without sampling; see `train.config.kto_options.Kto`.

    The arrays of an example are those of `train.rows.feedback.kto_rows`, [C, T]: the prompt with its own answer, whose loss
    is computed, and if there is a reference (C = 2) with a mismatched one, for the reference point. extra["desired"] is 1 or 0;
    `complete_batch` adds extra["z"].
    """

    OPTIONS = KtoOptions
    ROWS = kto_rows

    options: Kto

    def complete_batch(
        self,
        model: Model,
        params: Callable[[], Any],
        batch: Batch,
        frozen: Any,
        *,
        seeds: Any,
        reduce: Callable[[Any], Any],
        num_micro: int,
        chunk: int,
    ) -> Batch:
        """Return the batch with extra["z"], float32 [B]: the `reference_point` of the global batch, the same for all rows."""
        ratios = jnp.zeros(len(batch.tokens))
        if self.options.has_reference:
            cast = params()
            ratios = map_rows(lambda rows: self.log_ratios(model, cast, rows, 1, chunk=chunk)[0], batch, num_micro)
        counted = pair_weights(batch)
        z = reference_point(*reduce(((ratios * counted).sum(), counted.sum())))
        return dataclasses.replace(batch, extra=(batch.extra or {}) | {"z": jnp.broadcast_to(z, ratios.shape)})

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the divisor of the loss: the number of examples."""
        return {"kto": pair_weights(batch).sum()}

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the summed losses of the examples, and the model's carry.

        Dropout is not applied, and `seeds` is unused: dropout would add noise to the log-ratios.
        """
        assert batch.extra is not None
        ratios, _ = self.log_ratios(model, params, batch, 0, chunk=chunk)
        losses = unpaired_losses(ratios, batch.extra["z"], batch.extra["desired"], self.options)
        return {"kto": (losses * pair_weights(batch)).sum()}, carry

    def log_ratios(
        self, model: Model, params: Any, batch: Batch, side: int, *, chunk: int
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """Return (the log-ratio of each example's answer, summed over its tokens; the number of its tokens), float32.

        Args:
            side: 0: the example's own answer; 1: the mismatched one.
        """
        log_probs, lengths = sequence_log_probs(model, params, one_side(batch, side), chunk=chunk)
        reference = self.reference(batch)
        return log_probs[:, 0] - (0 if reference is None else reference[:, side]), lengths[:, 0]

    def flops(self, model: Model, batch: Batch) -> float:
        """Return the FLOPs of a step: 3 forward passes over the own answers, and with a reference 1 over the mismatched."""
        return (4 if self.options.has_reference else 3) * self.forward_flops(model, batch)

    def forward_flops(self, model: Model, batch: Batch) -> float:
        """Return the matrix-product FLOPs of the forward pass that has a backward pass, over the own answers."""
        return model.flops(jax.eval_shape(lambda rows: split_pairs(one_side(rows, 0)), batch))


def reference_point(summed: Float[Array, ""], count: Float[Array, ""]) -> Float[Array, ""]:
    """Return z, the estimate of the KL divergence to the reference: the mean log-ratio of mismatched answers, at least 0.

    It takes no gradient (Ethayarajh et al. 2024).

    Args:
        summed: sum of the log-ratios of the mismatched answers of the global batch.
        count: their number.
    """
    return jnp.maximum(summed / count, 0)


OBJECTIVE = KahnemanTversky
