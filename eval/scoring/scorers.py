"""The scorer of each objective: perplexity, bits per byte, accuracy, or the metrics of labels.

Causal objectives are scored by `language_model_scores` (bits per byte, perplexity, loss); masked, left-to-right, distilled and
permutation objectives by `masked_lm_scores` (perplexity and accuracy of predictions); denoising, text to text and instruction by
`seq2seq_likelihood` (perplexity); fine-tuning by `labelled_scores`; reward models by `preference_scores` (accuracy and margin);
the objectives dpo and kto by `dpo_scores` and `kto_scores`; policies, also those of ppo, by `policy_scores` (mean reward of
greedy responses).
"""

from collections.abc import Callable
from typing import Any

from eval.scoring import labelled_scores, language_model_scores, masked_lm_scores, seq2seq_likelihood
from eval.scoring.batch_loop import ScoringInputs
from eval.scoring.feedback import dpo_scores, kto_scores, policy_scores, preference_scores
from train.config import run_config
from train.config.objectives import scored_as

SCORERS: dict[str, Callable[[ScoringInputs], Callable[[Any], Any]]] = {
    "causal": language_model_scores.of_run,
    **dict.fromkeys(("masked", "left_to_right", "distilled", "permutation"), masked_lm_scores.of_run),
    **dict.fromkeys(("denoising", "text_to_text", "instruction"), seq2seq_likelihood.of_run),
    **dict.fromkeys(labelled_scores.TASKS, labelled_scores.of_run),
    "preference": preference_scores.of_run,
    "dpo": dpo_scores.of_run,
    "kto": kto_scores.of_run,
    **dict.fromkeys(("policy_gradient", "ppo"), policy_scores.of_run),
}
"""Objective -> function that returns the scorer, (parameters) -> score; a score has `record()`."""


def scorer(run: run_config.Run, *inputs: Any, **options: Any) -> Callable[[Any], Any]:
    """Return a function of parameters that scores rows by the run's objective; the arguments are those of `ScoringInputs`."""
    return SCORERS[scored_as(type(run.options))](ScoringInputs(run, *inputs, **options))
