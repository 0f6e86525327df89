"""Proximal policy optimization with a value head (Schulman et al. 2017; for text: Ziegler et al. 2019, Stiennon et al. 2020)."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from train.config.objectives import PpoOptions
from train.config.policy_gradient_options import Ppo
from train.engine.policy_losses import clipped_losses, probability_ratios
from train.engine.state_init import TrainedParams
from train.engine.value_head import token_values, value_head, value_losses
from train.objectives.feedback.policy_gradient import RolloutObjective
from train.rollouts.advantage_estimators import Estimator, ValueEstimator
from zoo.batch import Batch
from zoo.models import Model


@dataclasses.dataclass(frozen=True)
class ProximalPolicy(RolloutObjective):
    """The rewards of the tokens of responses, compared with their values; see `train.config.policy_gradient_options.Ppo`.

    The arrays of a response are those of `train.rows.feedback.response_rows`. `extra` has four numbers of each token, float32
    [T]: its log-probability and its value at the start of the rollout, its advantage, and its return.
    """

    OPTIONS = PpoOptions

    options: Ppo

    def estimator(self) -> Estimator:
        """Return generalized advantage estimation."""
        return ValueEstimator(self.options)

    @classmethod
    def no_numbers(cls, options: Ppo, length: int) -> dict[str, Float32[np.ndarray, "..."]]:
        """Return zeros in the shapes of the numbers of a response."""
        return {name: np.zeros(length, np.float32) for name in ("old", "advantage", "value", "return")}

    def added_params(self, model: Model) -> TrainedParams:
        """Return the value head."""
        return value_head(model)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the number of tokens of all responses, the divisor of both terms."""
        assert batch.weights is not None
        return dict.fromkeys(("ppo", "value"), batch.weights.sum())

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the summed losses of the tokens and, times their weight, of the values, and the model's carry.

        There is no dropout: it would make the ratios noise (`seeds` is not used).
        """
        assert batch.weights is not None and batch.extra is not None
        options, extra, counted = self.options, batch.extra, batch.weights
        hidden = model.apply(params, batch).hidden
        log_probs = self.log_probs(model, params, batch, chunk=chunk, hidden=hidden)
        losses = clipped_losses(
            probability_ratios(log_probs, extra["old"], counted, "token"), extra["advantage"], options.clip, options.clip
        )
        of_values = value_losses(token_values(params, hidden), extra["value"], extra["return"], options.value_clip)
        terms = {"ppo": (losses * counted).sum(), "value": options.value_weight * (of_values * counted).sum()}
        return terms, carry

    def forward_flops(self, model: Model, batch: Batch) -> float:
        """Return the matrix-product FLOPs of the forward pass with the value head."""
        rows, length = batch.tokens.shape
        return super().forward_flops(model, batch) + 2.0 * rows * length * model.config.width


OBJECTIVE = ProximalPolicy
