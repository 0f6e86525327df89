"""Scores of reward models on preferences: how often, and by how much, the chosen completion scores higher."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64

from eval.scoring.batch_loop import BatchLoop, ScoringInputs
from train.engine import device_mesh
from train.engine.reward_scores import reward_scores
from train.inputs.preference_inputs import PreferenceRows
from train.run.item_outcomes import Outcomes
from zoo.batch import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """The metrics of a reward model, and the outcome of each preference."""

    numbers: dict[str, float | int]
    outcomes: Outcomes
    """Correctness of each preference, a tie being wrong, and its loss in nats."""

    def record(self) -> dict[str, float | int]:
        """Return the metrics by name, as they are logged and written as JSON."""
        return self.numbers


def of_run(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return a function of parameters that scores every preference of the rows, `inputs.batch` at a time over the mesh."""
    batch = device_mesh.round_up_rows(inputs.mesh, min(inputs.batch, len(inputs.rows)))

    def compute(params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
        return reward_scores(inputs.model, params, batch), carry

    loop, centering = BatchLoop(inputs.mesh, np.dtype(inputs.dtype), compute), inputs.run.options.preference.centering

    def score(params: Any) -> Score:
        results = loop.results(loop.cast(params), inputs.rows, inputs.build, batch, progress=inputs.progress)
        scores = np.concatenate(list(results))[: len(inputs.rows)]
        assert isinstance(inputs.rows, PreferenceRows)
        return summary(inputs.rows, scores, centering)

    return score


def summary(rows: PreferenceRows, scores: Float64[np.ndarray, "N 2"], centering: float) -> Score:
    """Return the metrics of the scores of chosen and rejected completions.

    loss: the mean of what training minimizes (see `train.objectives.feedback.preference.pair_losses`). accuracy: the share
    whose chosen completion scores higher; a tie is wrong. reward_margin: the mean difference of the two scores.
    """
    difference = scores[:, 0] - scores[:, 1]
    losses = np.logaddexp(0, np.array([row.margin for row in rows.rows]) - difference) + centering * np.square(scores.sum(-1))
    right = difference > 0
    numbers = {
        "loss": float(losses.mean()),
        "accuracy": float(right.mean()),
        "reward_margin": float(difference.mean()),
        "pairs": len(right),
    }
    return Score(numbers=numbers, outcomes=Outcomes.of((rows.examples[row.example].origin for row in rows.rows), right, losses))
