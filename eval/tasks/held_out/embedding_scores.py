"""Scores of embedding models: how often a query finds its text among all held-out ones, and how well similarities rank pairs.

All vectors are computed first. Ranks and correlations are computed in float64 on the host, so that neither the batch size nor the
mesh matters; the loss is that of groups of `--data.batch` rows. Losses have the temperature of the options; a learned one belongs
to training alone.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int64

from eval.metrics import metric_functions
from eval.tasks.held_out.scoring_inputs import Score, ScoringInputs
from train.engine.embedding_losses import group_similarities
from train.inputs.labelled_inputs import LabelledRows
from train.objectives.contrastive import ContrastiveLearning
from train.objectives.embedding import EmbeddingObjective
from train.objectives.ranking import GroupRanking
from train.objectives.similarity import PairSimilarity
from train.run.item_outcomes import Outcomes
from zoo.batch import Batch
from zoo.nn.pooling import SMALLEST

QUERIES = 256
"""Queries that are compared with all candidates at a time."""


def score_contrastive(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return a function of parameters that scores the queries of the rows; see `positive_ranks`."""
    options = inputs.run.options.contrastive

    def metrics(vectors: Float32[np.ndarray, "N C D"], texts: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        return _rank_metrics(positive_ranks(vectors, texts, normalize=options.normalize))

    return _scorer(inputs, ContrastiveLearning(options), metrics)


def score_ranking(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return a function of parameters that scores the queries of the rows, each among its own positive and negatives.

    A negative that is as similar as the positive ranks before it.
    """
    options = inputs.run.options.ranking

    def metrics(vectors: Float32[np.ndarray, "N C D"], labels: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        compared = _unit(vectors) if options.similarity == "cosine" else vectors.astype(np.float64)
        similarities = np.asarray(group_similarities(compared, options.similarity))
        return _rank_metrics((~(similarities < similarities[:, :1])).sum(1))

    return _scorer(inputs, GroupRanking(options), metrics)


def score_similarity(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return a function of parameters that scores the pairs of the rows, by the correlations of cosine and score."""

    def metrics(vectors: Float32[np.ndarray, "N C D"], labels: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        scores, cosines = labels[:, 0].astype(np.float64), _unit(vectors).prod(1).sum(-1)
        return metric_functions.score_predictions(("pearson", "spearman"), scores, cosines), np.full(len(scores), np.nan)

    return _scorer(inputs, PairSimilarity(inputs.run.options.similarity), metrics)


def positive_ranks(vectors: Float32[np.ndarray, "N C D"], texts: np.ndarray, *, normalize: bool) -> Int64[np.ndarray, " N"]:
    """Return the rank of each query's positive among the different positives and negatives of all rows, from 1.

    A candidate that is as similar as the positive ranks before it.

    Args:
        texts: numbers of the texts, [N, C], which are equal for equal texts.
        normalize: compare by the cosine instead of the dot product.
    """
    compared = _unit(vectors) if normalize else vectors.astype(np.float64)
    _, first, place = np.unique(texts[:, 1:], return_index=True, return_inverse=True)
    candidates = compared[:, 1:].reshape(-1, compared.shape[-1])[first]  # [different texts, D]
    positives, ranks = place.reshape(len(texts), -1)[:, 0], []
    for start in range(0, len(texts), QUERIES):
        products = compared[start : start + QUERIES, 0] @ candidates.T
        own = np.take_along_axis(products, positives[start : start + QUERIES, None], 1)
        # The positive itself is among them, and all are where products are NaN.
        ranks.append((~(products < own)).sum(1))
    return np.concatenate(ranks)


def _rank_metrics(ranks: Int64[np.ndarray, " N"]) -> tuple[dict[str, float], np.ndarray]:
    """Return the metrics of the ranks of positives, and whether each is the first."""
    return {"accuracy": float((ranks == 1).mean()), "mrr": float((1 / ranks).mean())}, ranks == 1


def _scorer(
    inputs: ScoringInputs,
    objective: EmbeddingObjective,
    metrics: Callable[[np.ndarray, np.ndarray], tuple[dict[str, float], np.ndarray]],
) -> Callable[[Any], Score]:
    """Return the function of parameters that scores the rows of an objective.

    The loss is the mean over the rows, each in its group of `run.data.batch` rows in the order of the data; the last group may be
    smaller.

    Args:
        metrics: returns the metrics of vectors [N, C, D] and the labels of the rows, and whether each row is right.
    """
    rows, size = inputs.rows, inputs.run.data.batch
    assert isinstance(rows, LabelledRows)

    def compute(params: Any, batch: Batch, carry: Any) -> tuple[Array, Any]:
        return objective.vectors(inputs.model, params, batch), carry

    def summarize(results: Iterator[np.ndarray]) -> Score:
        # They were computed in float32.
        vectors = np.concatenate([part.astype(np.float32) for part in results])[: len(rows)]
        labels = np.stack([row.labels for row in rows.rows])
        groups = [slice(start, start + size) for start in range(0, len(rows), size)]
        losses = np.concatenate([_losses(objective, vectors[group], labels[group]) for group in groups])
        numbers, right = metrics(vectors, labels)
        outcomes = Outcomes.of((rows.examples[row.example].origin for row in rows.rows), right, losses)
        return Score(numbers={"loss": float(losses.mean()), **numbers, "examples": len(rows)}, outcomes=outcomes)

    return inputs.scorer(compute, summarize)


def _losses(objective: EmbeddingObjective, vectors: np.ndarray, labels: np.ndarray) -> Float64[np.ndarray, " N"]:
    """Return the losses of the rows of one group."""
    return np.asarray(jax.device_get(_row_losses(objective, *jax.device_put((vectors, labels)))), np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _row_losses(objective: EmbeddingObjective, vectors: Float[Array, "N C D"], labels: Array) -> Float[Array, " N"]:
    log_scale = jnp.float32(-math.log(objective.options.temperature))
    return objective.row_losses(vectors, log_scale, Batch(tokens=jnp.zeros((*vectors.shape[:2], 0), jnp.int32), labels=labels))


def _unit(vectors: Float32[np.ndarray, "N C D"]) -> Float64[np.ndarray, "N C D"]:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, SMALLEST)
