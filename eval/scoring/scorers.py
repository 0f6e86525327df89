"""The scorers of held-out data: perplexity, bits per byte, accuracy, or the metrics of labels.

Objectives name their scorers (`train.config.objectives`): causal `language_model_scores` (bits per byte, perplexity, loss);
masked, left-to-right, distilled and permutation `masked_lm_scores` (perplexity and accuracy of predictions); denoising, text to
text and instruction `seq2seq_likelihood` (perplexity); fine-tuning `labelled_scores`; reward models `preference_scores` (accuracy
and margin); dpo and kto `dpo_scores` and `kto_scores`; policy_gradient and ppo `policy_scores` (mean reward of greedy responses).
"""

from collections.abc import Callable
from typing import Any

from eval.scoring import labelled_scores, language_model_scores, masked_lm_scores, seq2seq_likelihood
from eval.scoring.batch_loop import ScoringInputs
from eval.scoring.feedback import dpo_scores, kto_scores, policy_scores, preference_scores
from train.config import run_config

SCORERS: dict[str, Callable[[ScoringInputs], Callable[[Any], Any]]] = {
    "language_model": language_model_scores.of_run,
    "masked_lm": masked_lm_scores.of_run,
    "seq2seq": seq2seq_likelihood.of_run,
    "labelled": labelled_scores.of_run,
    "preference": preference_scores.of_run,
    "dpo": dpo_scores.of_run,
    "kto": kto_scores.of_run,
    "responses": policy_scores.of_run,
}
"""Name in the declaration of an objective -> function that returns the scorer, (parameters) -> score; a score has `record()`."""


def scorer(run: run_config.Run, *inputs: Any, **options: Any) -> Callable[[Any], Any]:
    """Return a function of parameters that scores rows by the run's objective; the arguments are those of `ScoringInputs`."""
    return SCORERS[run.options.scorer](ScoringInputs(run, *inputs, **options))
