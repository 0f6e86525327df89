"""Scores of late interaction: how often a query finds its document among all held-out ones by MaxSim.

The vectors of all tokens are computed first; they need 4 bytes for each dimension of each token, padding included. The loss is
that of groups of `--data.batch` rows.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64

from eval.inference.token_vectors import TokenVectors, max_sim_scores
from eval.tasks.held_out.scoring_inputs import Score, ScoringInputs
from train.inputs.labelled_inputs import LabelledRows
from train.objectives.late_interaction import LateInteractionObjective
from train.run.item_outcomes import Outcomes
from zoo.batch import Batch


def score_late_interaction(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return a function of parameters that scores the queries of the rows; see `positive_ranks`."""
    rows, size, options = inputs.rows, inputs.run.data.batch, inputs.run.options.late_interaction
    assert isinstance(rows, LabelledRows)
    objective = LateInteractionObjective(options)

    def compute(params: Any, batch: Batch, carry: Any) -> tuple[Array, Any]:
        return objective.vectors(inputs.model, params, batch), carry

    def summarize(results: Iterator[np.ndarray]) -> Score:
        # They were computed in float32.
        vectors = np.concatenate([part.astype(np.float32) for part in results])[: len(rows)]
        labels = np.stack([row.labels for row in rows.rows])
        built = (inputs.build(np.random.default_rng(0), row, rows.length) for row in rows.rows)
        compared = np.stack([fields["extra"]["compared"] for fields in built])
        groups = [slice(start, start + size) for start in range(0, len(rows), size)]
        losses = np.concatenate(
            [
                np.asarray(
                    jax.device_get(_row_losses(objective, *jax.device_put((vectors[g], labels[g], compared[g])))), np.float64
                )
                for g in groups
            ]
        )
        ranks = positive_ranks(vectors, labels, compared > 0, options.query_length)
        numbers = {"loss": float(losses.mean()), "accuracy": float((ranks == 1).mean()), "mrr": float((1 / ranks).mean())}
        outcomes = Outcomes.of((rows.examples[row.example].origin for row in rows.rows), ranks == 1, losses)
        return Score(numbers={**numbers, "examples": len(rows)}, outcomes=outcomes)

    return inputs.scorer(compute, summarize)


def positive_ranks(vectors: np.ndarray, texts: np.ndarray, compared: np.ndarray, query_length: int) -> Int64[np.ndarray, " N"]:
    """Return the rank of each query's positive among the different positives and negatives of all rows, from 1.

    A candidate of the same score as the positive ranks before it.

    Args:
        vectors: see `LateInteractionObjective`, [N, tokens, E].
        texts: numbers of the texts, [N, C], which are equal for equal texts.
        compared: [N, C, T].
    """
    length = compared.shape[-1]
    _, first, place = np.unique(texts[:, 1:], return_index=True, return_inverse=True)
    tokens = vectors[:, query_length:].reshape(-1, length, vectors.shape[-1])
    in_document = compared[:, 1:].reshape(-1, length)
    queries: TokenVectors = [row[:query_length][own[0, :query_length]] for row, own in zip(vectors, compared, strict=True)]
    scores = max_sim_scores(queries, [tokens[number][in_document[number]] for number in first])
    own = np.take_along_axis(scores, place.reshape(len(texts), -1)[:, :1], 1)
    # The positive itself is among them, and all are where scores are NaN.
    return (~(scores < own)).sum(1)


@functools.partial(jax.jit, static_argnums=0)
def _row_losses(
    objective: LateInteractionObjective, vectors: Float[Array, "N tokens E"], labels: Array, compared: Float[Array, "N C T"]
) -> Float[Array, " N"]:
    log_scale = jnp.float32(-math.log(objective.options.temperature))
    batch = Batch(tokens=jnp.zeros((*compared.shape[:2], 0), jnp.int32), labels=labels, extra={"compared": compared})
    return objective.row_losses(vectors, log_scale, batch)
