"""Scores of preferences without a reward model: the rewards that a model implies for both answers of held-out pairs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.scoring.batch_loop import BatchLoop, ScoringInputs
from train.engine import device_mesh
from train.engine.log_probs import counted_pairs, sequence_log_probs
from train.engine.preference_losses import implicit_rewards, pair_losses
from train.objectives.feedback.dpo import DirectPreferences
from zoo.batch import Batch

SUMS = ("losses", "hits", "chosen", "rejected", "log_ratios", "chosen_tokens", "rejected_tokens", "chosen_nats", "pairs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Sums over held-out pairs."""

    losses: float
    hits: float
    """Pairs whose chosen answer has the higher reward; a tie is no hit."""
    chosen: float
    """Rewards of the chosen answers (see `train.engine.preference_losses.implicit_rewards`)."""
    rejected: float
    log_ratios: float
    """Log-probabilities of the chosen answers minus those of the reference; without a reference the log-probabilities."""
    chosen_tokens: float
    rejected_tokens: float
    chosen_nats: float
    pairs: float
    sft: float
    """Weight of the loss per token of the chosen answers."""

    def record(self) -> dict[str, float | int]:
        """Return the score as it is in metrics and JSON."""
        loss = self.losses / self.pairs + (self.sft * self.chosen_nats / self.chosen_tokens if self.sft else 0.0)
        return {
            "loss": loss,
            "accuracy": self.hits / self.pairs,
            "reward_margin": (self.chosen - self.rejected) / self.pairs,
            "chosen_reward": self.chosen / self.pairs,
            "rejected_reward": self.rejected / self.pairs,
            "chosen_log_ratio": self.log_ratios / self.pairs,
            "chosen_length": self.chosen_tokens / self.pairs,
            "rejected_length": self.rejected_tokens / self.pairs,
            "pairs": round(self.pairs),
        }


def of_run(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return the scorer of a run's pairs; sums are added in float64 on the host, so that the batch size does not matter."""
    run, model, options = inputs.run, inputs.model, inputs.run.options.dpo
    objective, size = DirectPreferences(options), device_mesh.round_up_rows(inputs.mesh, min(inputs.batch, len(inputs.rows)))

    def pair_sums(params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
        """Return the `SUMS` of each pair, [9, pairs], and the carry."""
        log_probs, lengths = sequence_log_probs(model, params, batch, chunk=run.loss_chunk)
        reference = objective.reference(batch)
        both = implicit_rewards(log_probs, reference, lengths, options)
        sums = {
            "losses": pair_losses(both, options),
            "hits": (both[:, 0] > both[:, 1]).astype(jnp.float32),
            "chosen": both[:, 0],
            "rejected": both[:, 1],
            "log_ratios": (log_probs if reference is None else log_probs - reference)[:, 0],
            "chosen_tokens": lengths[:, 0],
            "rejected_tokens": lengths[:, 1],
            "chosen_nats": -log_probs[:, 0],
            "pairs": jnp.ones(len(lengths)),
        }
        counted = counted_pairs(batch) > 0
        return jnp.stack([jnp.where(counted, sums[name], 0) for name in SUMS]), carry

    loop = BatchLoop(inputs.mesh, np.dtype(inputs.dtype), pair_sums)

    def score(params: Any) -> Score:
        totals = np.zeros(len(SUMS))
        for sums in loop.results(loop.cast(params), inputs.rows, inputs.build, size, progress=inputs.progress):
            totals += sums.sum(-1)
        return Score(**dict(zip(SUMS, totals.tolist(), strict=True)), sft=options.sft)

    return score
