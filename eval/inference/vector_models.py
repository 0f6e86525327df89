"""Models that are fitted to frozen vectors, in numpy: k-means and logistic regression."""

import numpy as np
from jaxtyping import Float64, Int64, Integer, Real

STEPS = 300
"""Most steps of k-means, as in scikit-learn's `KMeans`."""
ROUNDING = 1e-12
"""Squared distance of two vectors, relative to the largest square of a length, up to which they are equal but for rounding."""


def k_means(vectors: Real[np.ndarray, "N D"], clusters: int, seed: int) -> Int64[np.ndarray, " N"]:
    """Return the cluster of each vector: Lloyd's algorithm from the centres of k-means++ (Arthur and Vassilvitskii 2007).

    A cluster that becomes empty gets the vector that is farthest from its centre. Fewer different vectors than `clusters` make
    one cluster each.
    """
    rng, points = np.random.default_rng(seed), vectors.astype(np.float64)
    centres = points[[rng.integers(len(points))]]
    nearest = np.full(len(points), np.inf)
    while len(centres) < clusters:
        nearest = np.minimum(nearest, _squared_distances(points, centres[-1:])[:, 0])
        if nearest.max() <= ROUNDING * (points**2).sum(1).max():
            break
        centres = np.vstack([centres, points[rng.choice(len(points), p=nearest / nearest.sum())]])
    clusters = len(centres)
    assigned = np.full(len(points), -1)
    for _ in range(STEPS):
        distances = _squared_distances(points, centres)
        previous, assigned = assigned, distances.argmin(1)
        if (assigned == previous).all():
            break
        counts = np.bincount(assigned, minlength=clusters)
        own = distances[np.arange(len(points)), assigned]
        for empty in np.flatnonzero(counts == 0):
            farthest = own.argmax()
            assigned[farthest], own[farthest] = empty, -1.0
        counts = np.bincount(assigned, minlength=clusters)
        sums = np.zeros_like(centres)
        np.add.at(sums, assigned, points)
        # Moving a vector may have emptied a cluster of one; its centre stays.
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    return assigned


def _squared_distances(points: Float64[np.ndarray, "N D"], centres: Float64[np.ndarray, "K D"]) -> Float64[np.ndarray, "N K"]:
    squares = (points**2).sum(1)[:, None] - 2 * points @ centres.T + (centres**2).sum(1)
    return np.maximum(squares, 0)


def fit_logistic_regression(
    vectors: Real[np.ndarray, "N D"], classes: Integer[np.ndarray, " N"], count: int
) -> Float64[np.ndarray, "E C"]:
    """Return the weights of a softmax regression of `count` classes, the biases in the last row (E = D + 1).

    They minimize the sum of the cross-entropies plus half the sum of squares of the weights without the biases, by L-BFGS. That
    is the objective of scikit-learn's `LogisticRegression` with C = 1, which has one vector instead of two for two classes.
    """
    # Imported here, because the import takes a second.
    from scipy import optimize, special

    points = np.concatenate([vectors.astype(np.float64), np.ones((len(vectors), 1))], 1)  # [N, E]
    truth = np.eye(count)[classes]
    # Two opposite vectors w / 2 have half the squares of one vector w.
    decay = np.full((points.shape[1], 1), 2.0 if count == 2 else 1.0)
    decay[-1] = 0.0

    def objective(flat: Float64[np.ndarray, " P"]) -> tuple[float, Float64[np.ndarray, " P"]]:
        weights = flat.reshape(-1, count)
        log_p = special.log_softmax(points @ weights, axis=1)
        value = -(truth * log_p).sum() + 0.5 * (decay * weights**2).sum()
        return float(value), (points.T @ (np.exp(log_p) - truth) + decay * weights).ravel()

    start = np.zeros(points.shape[1] * count)
    fitted = optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 10_000, "gtol": 1e-6, "ftol": 0}
    )
    return fitted.x.reshape(-1, count)


def class_log_probabilities(weights: Float64[np.ndarray, "E C"], vectors: Real[np.ndarray, "N D"]) -> Float64[np.ndarray, "N C"]:
    """Return log p of each class by the weights of `fit_logistic_regression`."""
    logits = vectors.astype(np.float64) @ weights[:-1] + weights[-1]
    top = logits.max(1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
