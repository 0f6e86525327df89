"""Metrics of rankings equal loops over ranks that follow their definitions, and values by hand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import ranking
from eval.metrics.ranking import binary_average_precision

METRICS = {"ndcg": ranking.ndcg, "map": ranking.average_precision, "mrr": ranking.reciprocal_rank, "recall": ranking.recall}


def by_loop(name: str, ranked: Sequence[int], judged: Sequence[int], k: int) -> float:
    """A metric of one query, rank by rank."""
    relevant, seen, total = sum(grade > 0 for grade in judged), 0, 0.0
    for rank, grade in enumerate(ranked[:k], 1):
        seen += grade > 0
        match name:
            case "ndcg":
                total += max(grade, 0) / math.log2(rank + 1)
            case "map":
                total += seen / rank if grade > 0 else 0
            case "mrr":
                total = total or (1 / rank if grade > 0 else 0)
            case _:
                total = seen
    if name == "ndcg":
        ideal = sum(max(grade, 0) / math.log2(rank + 1) for rank, grade in enumerate(sorted(judged, reverse=True)[:k], 1))
        return total / ideal if ideal else 0
    return total if name == "mrr" else total / relevant if relevant else 0


QUERIES = st.lists(
    st.tuples(st.lists(st.integers(-1, 3), max_size=6), st.lists(st.integers(-1, 3), max_size=4)), min_size=1, max_size=5
)


@given(QUERIES, st.integers(1, 8))
def test_metrics_of_each_query_are_those_of_their_definition(queries, k) -> None:
    table = np.zeros((len(queries), 6), np.int64)
    for row, (ranked, _) in zip(table, queries, strict=True):
        row[: len(ranked)] = ranked
    judged = [np.array([*ranked, *others], np.int64) for ranked, others in queries]
    for name, metric in METRICS.items():
        reference = [by_loop(name, ranked, grades.tolist(), k) for (ranked, _), grades in zip(queries, judged, strict=True)]
        np.testing.assert_allclose(metric(table, judged, k), reference, atol=1e-12, err_msg=name)


@pytest.mark.planted
def test_values_by_hand() -> None:
    # Ranks 1 to 4 have the grades 0, 2, 0, 1; another document of grade 1 is not ranked.
    grades, judged = np.array([[0, 2, 0, 1]]), [np.array([2, 1, 1])]
    ideal = 2 + 1 / math.log2(3) + 1 / 2
    assert ranking.ndcg(grades, judged, 10) == pytest.approx((2 / math.log2(3) + 1 / math.log2(5)) / ideal)
    assert ranking.average_precision(grades, judged, 10) == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert ranking.average_precision(grades, judged, 2) == pytest.approx((1 / 2) / 3)
    assert ranking.reciprocal_rank(grades, judged, 10) == 0.5 and ranking.reciprocal_rank(grades, judged, 1) == 0
    assert ranking.recall(grades, judged, 3) == pytest.approx(1 / 3)
    # With the gain 2**grade - 1 the value would be another one.
    exponential = (3 / math.log2(3) + 1 / math.log2(5)) / (3 + 1 / math.log2(3) + 1 / 2)
    assert abs(ranking.ndcg(grades, judged, 10)[0] - exponential) > 0.01


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=12))
def test_average_precision_of_pairs_is_that_of_every_threshold(items) -> None:
    labels, scores = np.array([label for label, _ in items]), np.array([score for _, score in items])
    if not labels.any():
        with pytest.raises(ValueError, match="at least one is 1"):
            binary_average_precision(labels, scores)
        return
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        accepted = labels[scores >= threshold]
        share = accepted.sum() / labels.sum()
        total, before = total + (share - before) * accepted.mean(), share
    assert binary_average_precision(labels, scores) == pytest.approx(total)
    with pytest.raises(ValueError, match="not finite"):
        binary_average_precision(labels, np.full(len(labels), np.nan))
