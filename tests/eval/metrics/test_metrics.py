"""Measures of fine-tuned models equal their definitions, counted one by one."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval.metrics import metric_functions
from eval.prediction.span_decoding import entities
from train.run import metric_definitions
from zoo.errors import BadInput

classes = st.sampled_from([2, 4]).flatmap(
    lambda count: st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), min_size=1, max_size=40)
)
few_values = st.sampled_from([-1.5, -0.0, 0.0, 0.1, 2.0, 2.5])
values = st.lists(st.tuples(few_values, few_values), min_size=2, max_size=30)
CLOSE = {"abs_tol": 1e-12}
"""A handful of float64 operations on numbers of at most 40."""


def series(pairs, dtype=np.int64) -> tuple[np.ndarray, np.ndarray]:
    both = np.array(pairs, dtype)
    return both[:, 0], both[:, 1]


def counted_f1(pairs, positive: int) -> float:
    right = sum(a == b == positive for a, b in pairs)
    found, true = sum(b == positive for _, b in pairs), sum(a == positive for a, _ in pairs)
    if not right:
        return 0.0
    precision, recall = right / found, right / true
    return 2 * precision * recall / (precision + recall)


@settings(deadline=None)
@given(classes)
def test_confusion_accuracy_and_f1_are_counted_as_they_are_defined(pairs) -> None:
    truth, found = series(pairs)
    table = metric_functions.confusion(truth, found, 5)
    assert {(a, b): table[a, b] for a, b in itertools.product(range(5), repeat=2) if table[a, b]} == Counter(pairs)
    assert metric_functions.accuracy(truth, found) == sum(a == b for a, b in pairs) / len(pairs)
    assert math.isclose(metric_functions.f1(truth, found, positive=2), counted_f1(pairs, 2), **CLOSE)
    each = [counted_f1(pairs, name) for name in {a for pair in pairs for a in pair}]
    assert math.isclose(metric_functions.f1_macro(truth, found), sum(each) / len(each), **CLOSE)


@settings(deadline=None)
@given(classes)
def test_matthews_of_many_classes_is_the_correlation_of_one_hot_matrices(pairs) -> None:
    """Gorodkin's definition: the summed covariances of the columns over the root of both variances."""
    left, right = (np.eye(4)[each] - np.eye(4)[each].mean(0) for each in series(pairs))
    spread = (left**2).sum() * (right**2).sum()
    expected = (left * right).sum() / math.sqrt(spread) if spread > 1e-12 else 0.0
    assert math.isclose(metric_functions.matthews(*series(pairs)), expected, abs_tol=1e-9)


@settings(deadline=None)
@given(values)
def test_correlations_are_those_of_the_values_and_of_their_counted_ranks(pairs) -> None:
    def ranks(x: np.ndarray) -> np.ndarray:
        """One more than the smaller values, and half of the other equal ones."""
        return (x[:, None] > x).sum(1) + ((x[:, None] == x).sum(1) + 1) / 2

    x, y = series(pairs, np.float64)
    constant = len(set(x)) == 1 or len(set(y)) == 1
    for measure, a, b in ((metric_functions.pearson, x, y), (metric_functions.spearman, ranks(x), ranks(y))):
        assert math.isclose(measure(x, y), 0.0 if constant else np.corrcoef(a, b)[0, 1], **CLOSE)


def test_measures_do_not_overflow_and_do_not_depend_on_the_unit(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(2, 50))
    for scale in (1e-300, 1e300):
        assert math.isclose(metric_functions.pearson(x * scale, y), np.corrcoef(x, y)[0, 1], rel_tol=1e-12)
    assert metric_functions.pearson(x, 3 * x + 1) <= 1.0
    truth = np.repeat(np.int32([0, 1, 0]), [1 << 17, 1 << 17, 1])
    assert math.isclose(metric_functions.matthews(truth, truth), 1.0)
    assert metric_functions.mean_squared_error(np.float32([1, 2, 4]), np.float32([1, 4, 3])) == pytest.approx(5 / 3)


TENTHS = np.full(10, 0.1)


def test_value_is_defined_where_its_formula_divides_by_zero() -> None:
    rising = np.arange(10)
    for measure, truth, found, expected in (
        ("pearson", TENTHS, rising, 0.0),
        ("spearman", rising, TENTHS, 0.0),
        ("pearson", np.zeros(1), np.ones(1), 0.0),
    ):
        assert metric_functions.score_predictions([measure], truth, found) == {measure: expected}
    # The third label is neither in the truth nor predicted.
    metrics = metric_functions.multi_label(np.array([[1, 0, 0], [1, 1, 0]]), np.array([[1, 0, 0], [0, 1, 0]]))
    assert metrics == pytest.approx({"f1_micro": 4 / 5, "f1_macro": (2 / 3 + 1 + 0) / 3, "subset_accuracy": 1 / 2})


def test_empty_series_values_that_are_not_finite_classes_out_of_range_and_unknown_names_are_refused() -> None:
    for measure in metric_functions.MEASURES:
        with pytest.raises(ValueError, match="same size, at least 1"):
            metric_functions.score_predictions([measure], np.zeros(0, np.int64), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="not finite"):
        metric_functions.pearson(np.arange(2.0), np.array([1, np.nan]))
    with pytest.raises(ValueError, match="classes are 0 to 1, and there are 0 to 2"):
        metric_functions.confusion(np.array([0, 1]), np.array([0, 2]), 2)
    with pytest.raises(BadInput, match=r"^f1_marco: no measure .* the nearest is f1_macro \(all: accuracy, "):
        metric_functions.score_predictions(["f1_marco"], *np.zeros((2, 10), np.int64))


TAGS = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])


def walked(tags: list[str]) -> list[tuple[str, int, int]]:
    """Return the entities as `conlleval` ends and begins them, from each pair of neighbouring tags."""
    found, begun = [], 0
    for place, (before, tag) in enumerate(itertools.pairwise(["O", *tags, "O"])):
        changed = before[2:] != tag[2:]
        if before != "O" and (tag[0] in "BO" or changed):
            found.append((before[2:], begun, place))
        if tag[0] == "B" or (tag[0] == "I" and (before == "O" or changed)):
            begun = place
    return found


@settings(deadline=None)
@example([[("B", "B"), ("I", "I"), ("B", "I")]])
@given(st.lists(st.lists(st.tuples(TAGS, TAGS), max_size=6), min_size=1, max_size=5))
def test_entities_are_those_of_conlleval_and_agree_where_type_and_both_ends_do(sentences) -> None:
    truth, found = ([[pair[side] for pair in sentence] for sentence in sentences] for side in (0, 1))
    assert [entities(tags) for tags in truth] == [walked(tags) for tags in truth]
    a, b = (Counter((n, *each) for n, tags in enumerate(side) for each in walked(tags)) for side in (truth, found))
    right, predicted, true = (a & b).total(), b.total(), a.total()
    agreement = metric_functions.entity_f1(truth, found)
    assert agreement.precision == (right / predicted if predicted else 0)
    assert agreement.recall == (right / true if true else 0)
    assert math.isclose(agreement.f1, 2 / (predicted / right + true / right) if right else 0)


def test_tags_of_another_scheme_and_sentences_of_another_length_are_refused() -> None:
    for tag in ("E-PER", "B_PER", "b-PER", "B-", "", "O-PER", "PER"):
        with pytest.raises(BadInput, match="not IOB; write O, B-TYPE or I-TYPE"):
            entities(["O", tag])
    with pytest.raises(ValueError, match="sentence 1: 2 tags, and 1 predicted"):
        metric_functions.entity_f1([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="no sentences"):
        metric_functions.entity_f1([], [])


def test_every_task_of_glue_has_measures_and_every_measure_is_a_known_metric() -> None:
    assert len(metric_functions.GLUE) == 9
    assert {name for task in metric_functions.GLUE for name in metric_functions.glue(task)} <= metric_functions.MEASURES.keys()
    assert metric_functions.MEASURES.keys() | {"entity_f1"} <= metric_definitions.METRICS.keys()
