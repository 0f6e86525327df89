"""Measures of fine-tuned models, against their definitions counted out one by one and against scipy."""

import itertools
import math
import warnings
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from eval import measures
from train import quantities
from zoo.errors import BadInput

classes = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)
binary = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)
few_values = st.sampled_from([-1.5, -0.0, 0.0, 0.1, 2.0, 2.5])
values = st.lists(st.tuples(few_values, few_values), min_size=2, max_size=30)


def series(pairs, dtype=np.int64) -> tuple[np.ndarray, np.ndarray]:
    both = np.array(pairs, dtype)
    return both[:, 0], both[:, 1]


def counted_f1(pairs, positive: int) -> float:
    """Harmonic mean of precision and recall, from the words of its definition."""
    right = sum(a == b == positive for a, b in pairs)
    found, true = sum(b == positive for _, b in pairs), sum(a == positive for a, _ in pairs)
    if not right:
        return 0.0
    precision, recall = right / found, right / true
    return 2 * precision * recall / (precision + recall)


@given(classes)
def test_classes_are_counted_as_they_are_defined(pairs) -> None:
    truth, found = series(pairs)
    table = measures.confusion(truth, found, 5)
    assert {(a, b): table[a, b] for a, b in itertools.product(range(5), repeat=2) if table[a, b]} == Counter(pairs)
    assert measures.accuracy(truth, found) == sum(a == b for a, b in pairs) / len(pairs)
    assert math.isclose(measures.f1(truth, found, positive=2), counted_f1(pairs, 2), abs_tol=1e-12)
    every = sorted({a for pair in pairs for a in pair})
    assert math.isclose(
        measures.f1_macro(truth, found), sum(counted_f1(pairs, each) for each in every) / len(every), abs_tol=1e-12
    )


@given(binary)
def test_matthews_of_two_classes_is_his_fraction(pairs) -> None:
    counts = Counter(pairs)
    tp, fp, fn, tn = (counts[pair] for pair in ((1, 1), (0, 1), (1, 0), (0, 0)))
    under = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    expected = (tp * tn - fp * fn) / math.sqrt(under) if under else 0.0
    assert math.isclose(measures.matthews(*series(pairs)), expected, abs_tol=1e-12)


@given(classes)
def test_matthews_of_many_classes_is_the_correlation_of_one_hot_matrices(pairs) -> None:
    """Gorodkin's definition, before he simplifies it: the summed covariances of the columns over the root of both variances."""
    left, right = (np.eye(4)[each] - np.eye(4)[each].mean(0) for each in series(pairs))
    spread = (left**2).sum() * (right**2).sum()
    expected = (left * right).sum() / math.sqrt(spread) if spread > 1e-12 else 0.0
    assert math.isclose(measures.matthews(*series(pairs)), expected, abs_tol=1e-9)


def test_matthews_does_not_overflow() -> None:
    truth = np.repeat(np.int32([0, 1, 0]), [1 << 17, 1 << 17, 1])
    assert math.isclose(measures.matthews(truth, truth), 1.0)


@given(values)
def test_correlations_are_those_of_scipy(pairs) -> None:
    x, y = series(pairs, np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
        expected = scipy.stats.pearsonr(x, y).statistic, scipy.stats.spearmanr(x, y).statistic
    constant = len(set(x)) == 1 or len(set(y)) == 1
    for measure, value in zip((measures.pearson, measures.spearman), expected, strict=True):
        # The correlations of unrounded inputs: 30 values, and the rounding of a handful of operations.
        assert math.isclose(measure(x, y), 0.0 if constant else value, abs_tol=1e-12)
    np.testing.assert_array_equal(measures.ranks(x), scipy.stats.rankdata(x))


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_a_correlation_does_not_depend_on_the_unit(scale: float, rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(2, 50))
    assert math.isclose(measures.pearson(x * scale, y), scipy.stats.pearsonr(x, y).statistic, rel_tol=1e-12)
    assert measures.pearson(x, 3 * x + 1) <= 1.0
    assert measures.pearson(x.astype(np.float32), np.arange(50)) != 0


def test_a_squared_error() -> None:
    assert measures.mean_squared_error(np.float32([1, 2, 4]), np.float32([1, 4, 3])) == pytest.approx(5 / 3)


ONE, OTHER = np.zeros(10, np.int64), np.ones(10, np.int64)
TENTHS = np.full(10, 0.1)


@pytest.mark.parametrize(
    ("measure", "truth", "found", "expected"),
    [
        ("f1", ONE, ONE, 0.0),
        ("f1", ONE, OTHER, 0.0),
        ("f1_macro", ONE, ONE, 1.0),
        ("f1_macro", ONE, OTHER, 0.0),
        ("matthews", ONE, ONE, 0.0),
        ("matthews", np.arange(10) % 2, OTHER, 0.0),
        ("accuracy", ONE, ONE, 1.0),
        ("pearson", np.arange(10), TENTHS, 0.0),
        ("pearson", TENTHS, np.arange(10), 0.0),
        ("spearman", np.arange(10), TENTHS, 0.0),
        ("pearson", np.zeros(1), np.ones(1), 0.0),
        ("pearson", np.zeros(5), np.arange(5), 0.0),
    ],
)
def test_where_a_definition_divides_by_zero_the_value_is_stated(measure: str, truth, found, expected: float) -> None:
    assert measures.score([measure], truth, found) == {measure: expected}


@pytest.mark.parametrize("measure", measures.MEASURES)
def test_what_is_no_measurement_is_refused(measure: str) -> None:
    with pytest.raises(ValueError, match="one at least"):
        measures.score([measure], np.zeros(0, np.int64), np.zeros(0, np.int64))


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        measures.pearson(np.arange(2.0), np.array([1, np.nan]))
    with pytest.raises(ValueError, match="classes are 0 to 1, and there are 0 to 2"):
        measures.confusion(np.array([0, 1]), np.array([0, 2]), 2)


# --- entities -------------------------------------------------------------------------------------------------------------------

TAGS = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])


def walked(tags: list[str]) -> list[tuple[str, int, int]]:
    """Entities as `conlleval` ends and begins them, from each pair of neighbouring tags."""
    found, begun = [], 0
    for place, (before, tag) in enumerate(itertools.pairwise(["O", *tags, "O"])):
        changed = before[2:] != tag[2:]
        if before != "O" and (tag[0] in "BO" or changed):
            found.append((before[2:], begun, place))
        if tag[0] == "B" or (tag[0] == "I" and (before == "O" or changed)):
            begun = place
    return found


@given(st.lists(TAGS, max_size=12))
def test_entities_end_and_begin_as_conlleval_says(tags: list[str]) -> None:
    assert measures.entities(tags) == walked(tags)


@given(st.lists(st.lists(st.tuples(TAGS, TAGS), max_size=6), min_size=1, max_size=5))
def test_entities_agree_where_type_and_both_ends_do(sentences) -> None:
    truth, found = ([[pair[side] for pair in sentence] for sentence in sentences] for side in (0, 1))
    a, b = (Counter((n, *each) for n, tags in enumerate(side) for each in walked(tags)) for side in (truth, found))
    right, told, true = (a & b).total(), b.total(), a.total()
    got = measures.entity_f1(truth, found)
    assert got.precision == (right / told if told else 0)
    assert got.recall == (right / true if true else 0)
    assert math.isclose(got.f1, 2 / (told / right + true / right) if right else 0)


@pytest.mark.parametrize(
    ("truth", "found", "expected"),
    [
        (["B-PER", "I-PER", "O"], ["B-PER", "I-PER", "O"], (1, 1, 1)),
        # An end too early is wrong altogether; so is another type.
        (["B-PER", "I-PER", "O"], ["B-PER", "O", "O"], (0, 0, 0)),
        (["B-PER", "O", "B-LOC"], ["B-PER", "O", "B-PER"], (1 / 2, 1 / 2, 1 / 2)),
        (["B-PER", "O", "O"], ["B-PER", "O", "B-LOC"], (1 / 2, 1, 2 / 3)),
        # An I with nothing to continue begins an entity.
        (["B-PER", "O"], ["I-PER", "O"], (1, 1, 1)),
        (["B", "I", "B"], ["B", "I", "I"], (0, 0, 0)),
        (["O", "O"], ["O", "O"], (0, 0, 0)),
        (["O", "O"], ["B-PER", "O"], (0, 0, 0)),
        ([], [], (0, 0, 0)),
    ],
)
def test_entities_by_hand(truth: list[str], found: list[str], expected: tuple[float, float, float]) -> None:
    assert measures.entity_f1([truth], [found]) == pytest.approx(expected)


def test_an_entity_does_not_reach_into_the_next_sentence() -> None:
    assert measures.entity_f1([["B-PER"], ["I-PER"]], [["B-PER"], ["O"]]).recall == 0.5


def test_tags_of_another_scheme_and_sentences_of_another_length_are_refused() -> None:
    for tag in ("E-PER", "S-PER", "B_PER", "b-PER", "B-", "", "O-PER", "PER"):
        with pytest.raises(BadInput, match="not IOB; write O, B-TYPE or I-TYPE"):
            measures.entities(["O", tag])
    with pytest.raises(ValueError, match="sentence 1: 2 tags, and 1 found"):
        measures.entity_f1([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="no sentences"):
        measures.entity_f1([], [])


# --- names ----------------------------------------------------------------------------------------------------------------------


def test_every_task_of_glue_has_measures_and_every_measure_is_a_known_quantity() -> None:
    assert len(measures.GLUE) == 9
    for task in measures.GLUE:
        assert set(measures.glue(task)) <= measures.MEASURES.keys()
    assert measures.MEASURES.keys() | {"entity_f1"} <= quantities.QUANTITIES.keys()
    truth, found = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    assert measures.score(measures.glue("mrpc"), truth, found) == {"accuracy": 0.75, "f1": pytest.approx(2 / 3)}


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"^sst-2: no task of GLUE is called so; the nearest is sst2 \(all: cola, sst2, "):
        measures.glue("sst-2")
    with pytest.raises(BadInput, match=r"^f1_marco: no measure is called so; the nearest is f1_macro \(all: accuracy, "):
        measures.score(["f1_marco"], ONE, ONE)
    with pytest.raises(BadInput, match=r"^--metric acuracy: not measured here; the nearest is accuracy \(all: loss, accuracy\)$"):
        quantities.find("acuracy", ("loss", "accuracy", "tokens"))
    with pytest.raises(BadInput, match=r"^--metric loss: not measured here; nothing is$"):
        quantities.find("loss", ())
