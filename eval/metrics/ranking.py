"""Metrics of rankings, for each query, with the conventions of trec_eval (the NIST program, whose values pytrec_eval returns).

A ranking is in descending order of score; documents of one score are in descending order of their id as a string.
Relevance grades are integers; a document is relevant at a grade of at least 1, and one without a judgement has grade 0. A metric
at k looks at the first k documents of a ranking. A query without a relevant document has the value 0, as in trec_eval.

Every function takes `grades`, int [Q, K], the grades of the ranked documents, 0 after the end of a shorter ranking, and `judged`,
the grades of all judged documents of each query, ranked or not; it returns float64 [Q].
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Integer, Real

Grades = Integer[np.ndarray, "Q K"]
PerQuery = Float64[np.ndarray, " Q"]
Judged = Sequence[Integer[np.ndarray, "_"]]


def ndcg(grades: Grades, judged: Judged, k: int) -> PerQuery:
    """Return nDCG@k: the sum of grade / log2(rank + 1), divided by that of the ideal ranking (Järvelin and Kekäläinen 2002).

    The gain is the grade itself, as in trec_eval, and not 2**grade - 1; grades below 0 count 0.
    """
    return _ratio(_dcg(grades, k), _dcg(_ideal(judged, k), k))


def average_precision(grades: Grades, judged: Judged, k: int) -> PerQuery:
    """Return AP@k: the sum of the precision at the rank of each relevant document, divided by the number of all relevant ones.

    Source: Buckley and Voorhees 2000; MAP is its mean over queries. The divisor is not limited to k, as in trec_eval's map_cut.
    """
    relevant = grades[:, :k] > 0
    precisions = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    return _ratio((precisions * relevant).sum(1), _counts(judged))


def reciprocal_rank(grades: Grades, judged: Judged, k: int) -> PerQuery:
    """Return 1 / rank of the first relevant document among the first k, else 0; MRR@k is its mean over queries."""
    relevant = grades[:, :k] > 0
    first = relevant.argmax(1) if relevant.shape[1] else np.zeros(len(relevant), int)
    return np.where(relevant.any(1), 1.0 / (first + 1), 0.0)


def recall(grades: Grades, judged: Judged, k: int) -> PerQuery:
    """Return the share of the relevant documents that are among the first k."""
    return _ratio((grades[:, :k] > 0).sum(1), _counts(judged))


def binary_average_precision(labels: Integer[np.ndarray, " N"], scores: Real[np.ndarray, " N"]) -> float:
    """Return the area under the steps of precision over recall, sum of (R_n - R_{n-1}) P_n over the distinct scores n.

    It is scikit-learn's `average_precision_score`: items of one score are accepted together, so that their order has no effect.

    Raises:
        ValueError: no label is 1, labels other than 0 and 1, or a score that is not finite.
    """
    if labels.shape != scores.shape or not np.isin(labels, (0, 1)).all() or not (labels == 1).any():
        raise ValueError("labels are 0 and 1, as many as scores, and at least one is 1")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    ordered = scores[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    right = np.cumsum(labels[order])[ends]
    return float((np.diff(right, prepend=0) / labels.sum() * (right / (ends + 1))).sum())


def _dcg(grades: Grades, k: int) -> PerQuery:
    gains = np.maximum(grades[:, :k], 0).astype(np.float64)
    return (gains / np.log2(np.arange(2, gains.shape[1] + 2))).sum(1)


def _ideal(judged: Judged, k: int) -> Grades:
    """Return the k highest grades of each query in descending order, int64 [Q, k]; 0 where there are fewer."""
    table = np.zeros((len(judged), k), np.int64)
    for row, grades in zip(table, judged, strict=True):
        highest = np.sort(grades)[::-1][:k]
        row[: len(highest)] = highest
    return table


def _counts(judged: Judged) -> Integer[np.ndarray, " Q"]:
    return np.array([int((grades > 0).sum()) for grades in judged], np.int64)


def _ratio(parts: Real[np.ndarray, " Q"], totals: Real[np.ndarray, " Q"]) -> PerQuery:
    """Return parts / totals; 0 where the total is 0."""
    return np.divide(parts, totals, out=np.zeros(len(parts)), where=totals > 0)
