"""Scores of models that learn from preferences or labelled answers, on held-out ones.

A reward model is scored by how often, and by how much, the chosen completion scores higher; a model of dpo or kto by the rewards
that it implies for both answers of a pair, or for answers with a label, without a reward model.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from eval.tasks.held_out.scoring_inputs import Score, ScoringInputs
from train.config.kto_options import Kto
from train.engine.log_probs import pair_weights, sequence_log_probs
from train.engine.preference_losses import implicit_rewards, pair_losses
from train.engine.reward_scores import reward_scores
from train.inputs.preference_inputs import PreferenceRows
from train.objectives.feedback.dpo import DirectPreferences
from train.objectives.feedback.kto import KahnemanTversky
from train.run.item_outcomes import Outcomes
from zoo.batch import Batch


def score_reward_model(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return a function of parameters that scores every preference of the rows."""
    rows, centering = inputs.rows, inputs.run.options.preference.centering
    assert isinstance(rows, PreferenceRows)

    def compute(params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
        return reward_scores(inputs.model, params, batch), carry

    def summarize(results: Iterable[np.ndarray]) -> Score:
        return preference_metrics(rows, np.concatenate(list(results))[: len(rows)], centering)

    return inputs.scorer(compute, summarize)


def preference_metrics(rows: PreferenceRows, scores: Float64[np.ndarray, "N 2"], centering: float) -> Score:
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


SUMS = ("losses", "hits", "chosen", "rejected", "log_ratios", "chosen_tokens", "rejected_tokens", "chosen_nats", "pairs")
"""Numbers of a pair for dpo. hits: 1 if the chosen answer has the higher reward; a tie is no hit. chosen, rejected: the rewards,
see `train.engine.preference_losses.implicit_rewards`. log_ratios: the log-probability of the chosen answer minus that of the
reference; without a reference the log-probability."""


def score_dpo(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return the scorer of a run's pairs; sums are added in float64 on the host, so that the batch size does not matter."""
    run, model, options = inputs.run, inputs.model, inputs.run.options.dpo
    objective = DirectPreferences(options)

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
        counted = pair_weights(batch) > 0
        return jnp.stack([jnp.where(counted, sums[name], 0) for name in SUMS]), carry

    def summarize(results: Iterable[np.ndarray]) -> Score:
        totals = sum((sums.sum(-1) for sums in results), np.zeros(len(SUMS)))
        return dpo_metrics(dict(zip(SUMS, totals.tolist(), strict=True)), options.sft)

    return inputs.scorer(pair_sums, summarize)


def dpo_metrics(sums: Mapping[str, float], sft: float) -> Score:
    """Return the metrics of the `SUMS` over all pairs; `sft` is the weight of the loss per token of the chosen answers."""
    pairs = sums["pairs"]
    numbers: dict[str, float | int] = {
        "loss": sums["losses"] / pairs + (sft * sums["chosen_nats"] / sums["chosen_tokens"] if sft else 0.0),
        "accuracy": sums["hits"] / pairs,
        "reward_margin": (sums["chosen"] - sums["rejected"]) / pairs,
        "chosen_reward": sums["chosen"] / pairs,
        "rejected_reward": sums["rejected"] / pairs,
        "chosen_log_ratio": sums["log_ratios"] / pairs,
        "chosen_length": sums["chosen_tokens"] / pairs,
        "rejected_length": sums["rejected_tokens"] / pairs,
        "pairs": round(pairs),
    }
    return Score(numbers=numbers)


def score_kto(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return the scorer of a run's labelled answers; the reference point is that of all rows, whatever the batch size is."""
    run, model, options = inputs.run, inputs.model, inputs.run.options.kto
    objective = KahnemanTversky(options)

    def answer_numbers(params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
        """Return (counted, desired, own log-ratio, mismatched log-ratio, tokens) of each row, [5, rows], and the carry."""
        assert batch.extra is not None
        own, lengths = objective.log_ratios(model, params, batch, 0, chunk=run.loss_chunk)
        mismatched = jnp.zeros_like(own)
        if options.has_reference:
            mismatched, _ = objective.log_ratios(model, params, batch, 1, chunk=run.loss_chunk)
        return jnp.stack([pair_weights(batch), batch.extra["desired"], own, mismatched, lengths]), carry

    return inputs.scorer(answer_numbers, lambda results: kto_metrics(np.concatenate(list(results), 1), options))


def kto_metrics(rows: Float64[np.ndarray, "5 rows"], options: Kto) -> Score:
    """Return the metrics of the numbers of all rows; see `score_kto`.

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
