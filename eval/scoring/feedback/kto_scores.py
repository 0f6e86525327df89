"""Scores of labelled answers without a reward model: the rewards that a model implies for held-out answers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from eval.scoring.batch_loop import BatchLoop, ScoringInputs
from train.config.kto_options import Kto
from train.engine import device_mesh
from train.engine.log_probs import counted_pairs
from train.objectives.feedback.kto import KahnemanTversky
from zoo.batch import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Means over held-out answers."""

    numbers: dict[str, float | int]

    def record(self) -> dict[str, float | int]:
        """Return the score as it is in metrics and JSON."""
        return self.numbers


def of_run(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return the scorer of a run's labelled answers; the reference point is that of all rows, whatever the batch size is."""
    run, model, options = inputs.run, inputs.model, inputs.run.options.kto
    objective, size = KahnemanTversky(options), device_mesh.round_up_rows(inputs.mesh, min(inputs.batch, len(inputs.rows)))

    def numbers(params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
        """Return (counted, desired, own log-ratio, mismatched log-ratio, tokens) of each row, [5, rows], and the carry."""
        assert batch.extra is not None
        own, lengths = objective.log_ratios(model, params, batch, 0, chunk=run.loss_chunk)
        mismatched = jnp.zeros_like(own)
        if options.has_reference:
            mismatched, _ = objective.log_ratios(model, params, batch, 1, chunk=run.loss_chunk)
        return jnp.stack([counted_pairs(batch), batch.extra["desired"], own, mismatched, lengths]), carry

    loop = BatchLoop(inputs.mesh, np.dtype(inputs.dtype), numbers)

    def score(params: Any) -> Score:
        results = loop.results(loop.cast(params), inputs.rows, inputs.build, size, progress=inputs.progress)
        return summary(np.concatenate(list(results), 1), options)

    return score


def summary(rows: Float64[np.ndarray, "5 rows"], options: Kto) -> Score:
    """Return the metrics of the numbers of all rows; see `of_run`.

    loss: the mean of what training minimizes. desired_reward, undesired_reward: beta times the mean log-ratio of the answers with
    this label. reward_margin: their difference. desired_length, undesired_length: mean number of tokens.
    """
    _, labels, own, mismatched, lengths = rows[:, rows[0] > 0]
    desired, z = labels > 0.5, max(float(mismatched.mean()), 0.0) if options.has_reference else 0.0
    gains = options.beta * np.where(desired, own - z, z - own)
    # 1 - sigmoid(gain), without overflow.
    losses = np.where(desired, options.desired_weight, options.undesired_weight) * (1 - np.tanh(gains / 2)) / 2
    rewards = [options.beta * float(own[of_label].mean()) for of_label in (desired, ~desired)]
    numbers: dict[str, float | int] = {
        "loss": float(losses.mean()),
        "reward_margin": rewards[0] - rewards[1],
        "desired_reward": rewards[0],
        "undesired_reward": rewards[1],
        "reference_point": z,
        "desired_length": float(lengths[desired].mean()),
        "undesired_length": float(lengths[~desired].mean()),
        "examples": len(own),
        "desired": int(desired.sum()),
    }
    return Score(numbers=numbers)
