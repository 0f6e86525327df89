"""Reward models: the chosen completion of a prompt scores higher than the rejected one (Bradley-Terry).

Sources: Ouyang et al. 2022, equation 1; the margin: Touvron et al. 2023, equation 2; the centering: Eisenstein et al. 2023,
equation 2.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int64

from train.config.objectives import PreferenceOptions
from train.config.run_config import Run
from train.engine.log_probs import split_pairs
from train.engine.reward_scores import reward_scores
from train.objectives.base import Objective
from train.rows.batches import Build
from train.rows.feedback import preference_rows
from train.rows.feedback.preference_rows import PreferenceRow
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.models import Model


class RewardModel(Objective):
    """Scoring of both completions of a prompt, the chosen one above the rejected one.

    The fields of a row are those of `preference_rows.builder` without targets; weights is float32 [1].
    """

    OPTIONS = PreferenceOptions

    def __init__(self, centering: float) -> None:
        """Store the weight of the squared sum of both scores."""
        self._centering = centering

    @classmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build(rng, row, length)`, which converts a `PreferenceRow` to the fields of `Batch`; `rng` is not used.

        Raises:
            BadInput: the tokenizer does not fit the model.
        """
        both = preference_rows.builder(run.model, tokenizer, run.data.target_length)

        def build(rng: np.random.Generator, row: PreferenceRow, length: int) -> dict[str, Any]:
            fields = both(rng, row, length)
            fields.pop("targets", None)
            return fields | {"weights": np.ones(1, np.float32)}

        return build

    @classmethod
    def text_ids(cls, run: Run, batch: Batch) -> list[Int[np.ndarray, " _"]]:
        """Return the ids that are not padding, of the decoder or encoder, and of the source."""
        sides = [batch] if batch.source is None else [batch.source, batch]
        return [np.asarray(side.tokens)[np.asarray(side.segments) > 0] for side in sides]

    @classmethod
    def bind(cls, run: Run, mesh: Mesh) -> "RewardModel":
        """Return the objective of a run."""
        return cls(run.options.preference.centering)

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the summed losses of the preferences, in nats, and the carry unchanged."""
        assert batch.weights is not None and batch.extra is not None
        losses = pair_losses(reward_scores(model, params, batch, seeds), batch.extra["margin"], self._centering)
        return {self.OPTIONS.objective: (losses * batch.weights[:, 0]).sum()}, carry

    def forward_flops(self, model: Model, batch: Batch) -> float:
        """Return the matrix-product FLOPs of the forward pass over both completions."""
        return model.flops(jax.eval_shape(split_pairs, batch))


OBJECTIVE = RewardModel


def pair_losses(scores: Float[Array, "B 2"], margin: Float[Array, " B"], centering: float) -> Float[Array, " B"]:
    """Return -log sigmoid(s_w - s_l - margin) + centering (s_w + s_l)^2 of scores of a chosen and a rejected completion.

    The first term depends only on the difference of the scores; the second one keeps their mean near 0.
    """
    chosen, rejected = scores[:, 0], scores[:, 1]
    return jax.nn.softplus(margin - (chosen - rejected)) + centering * jnp.square(chosen + rejected)
