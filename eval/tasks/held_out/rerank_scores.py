"""Scores of cross-encoders: how often the positive has the highest score of a query's candidates, and its mean reciprocal rank.

A negative of the same score ranks before the positive, and so does each one where a score is NaN.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from eval.inference.head_logits import logits_loop
from eval.tasks.held_out.scoring_inputs import Score, ScoringInputs
from train.engine.group_losses import group_losses
from train.inputs.labelled_inputs import LabelledRows
from train.run.item_outcomes import Outcomes


def score_rerank(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return a function of parameters that scores the queries of the rows, `inputs.batch` rows at a time over the mesh."""
    rows, options = inputs.rows, inputs.run.options.rerank
    assert isinstance(rows, LabelledRows)
    loop = logits_loop(inputs.model, inputs.mesh, "rerank", np.dtype(inputs.dtype))
    losses_of = jax.jit(functools.partial(group_losses, options=options))

    def score(params: Any) -> Score:
        scores = loop.all_results(params, rows, inputs.build, inputs.batch, progress=inputs.progress)  # [N, C]
        losses = np.asarray(jax.device_get(losses_of(jax.device_put(scores.astype(np.float32)))), np.float64)
        ranks = 1 + (~(scores[:, 1:] < scores[:, :1])).sum(1)
        metrics = {"loss": float(losses.mean()), "accuracy": float((ranks == 1).mean()), "mrr": float((1 / ranks).mean())}
        outcomes = Outcomes.of((rows.examples[row.example].origin for row in rows.rows), ranks == 1, losses)
        return Score(numbers={**metrics, "examples": len(rows)}, outcomes=outcomes)

    return score
