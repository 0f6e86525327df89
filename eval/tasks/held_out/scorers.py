"""The scorers of held-out data: perplexity, bits per byte, accuracy, or the metrics of labels.

Objectives name their scorers (`train.config.objectives`): causal `language_model_scores.score_text` (bits per byte, perplexity,
loss); masked, left-to-right, distilled and permutation `masked_lm_scores` (perplexity and accuracy of predictions); denoising,
text to text and instruction `language_model_scores.score_targets` (perplexity); fine-tuning `labelled_scores`; reward models, dpo
and kto `preference_scores` (accuracy and margin); contrastive, ranking and similarity `embedding_scores` (accuracy and mean
reciprocal rank of retrieval, correlations of similarities); rerank `rerank_scores` (the same of a query's candidates); late
interaction `late_interaction_scores` (the same of MaxSim); sentence denoising `sentence_denoising_scores` (perplexity);
policy_gradient and ppo `policy_scores` (mean reward of greedy responses).
"""

import functools
from collections.abc import Callable
from typing import Any

from eval.tasks.held_out import (
    embedding_scores,
    labelled_scores,
    language_model_scores,
    late_interaction_scores,
    masked_lm_scores,
    policy_scores,
    preference_scores,
    rerank_scores,
    sentence_denoising_scores,
)
from eval.tasks.held_out.scoring_inputs import ScoringInputs
from train.config import run_config

SCORERS: dict[str, Callable[[ScoringInputs], Callable[[Any], Any]]] = {
    "language_model": language_model_scores.score_text,
    "masked_lm": masked_lm_scores.score_predictions,
    "seq2seq": language_model_scores.score_targets,
    "labelled": labelled_scores.score_labelled,
    "preference": preference_scores.score_reward_model,
    "dpo": preference_scores.score_dpo,
    "kto": preference_scores.score_kto,
    "contrastive": embedding_scores.score_contrastive,
    "ranking": embedding_scores.score_ranking,
    "sentence_denoising": sentence_denoising_scores.score_sentences,
    "similarity": embedding_scores.score_similarity,
    "rerank": rerank_scores.score_rerank,
    "late_interaction": late_interaction_scores.score_late_interaction,
    "responses": policy_scores.score_policy,
}
"""Name in the declaration of an objective -> function that returns the scorer, (parameters) -> score; a score has `record()`."""


def scorer(run: run_config.Run, model: Any, mesh: Any, data: Any, rows: Any, build: Any, **options: Any) -> Callable[[Any], Any]:
    """Return a function of parameters that scores rows by the run's objective; the arguments are those of `ScoringInputs`."""
    names = {"origins": functools.partial(data.row_origins, rows)}
    inputs = ScoringInputs(run=run, model=model, mesh=mesh, data=data, rows=rows, build=build, **names, **options)
    return SCORERS[run.options.scorer](inputs)
