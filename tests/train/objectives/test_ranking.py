"""Triplets and distilled scores: against loops in float64, and their gradients however a batch is divided."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import preference_steps, tiny
from tests.support.small import small
from train.config import run_config
from train.config.data_options import LabelledData
from train.config.ranking_options import Ranking
from train.engine import embedding_losses
from train.objectives import ranking
from zoo.batch import Batch
from zoo.errors import BadInput

ROWS, TEXTS, WIDTH = 5, 4, 6
RANDOM = np.random.default_rng(2)
VECTORS = RANDOM.normal(size=(ROWS, TEXTS, WIDTH))
TEACHER = RANDOM.normal(size=(ROWS, TEXTS - 1)).astype(np.float32)
CASES = {
    "triplet": Ranking(negatives=3),
    "triplet of euclidean distances": Ranking(negatives=3, similarity="euclidean", margin=1.0),
    "triplet of manhattan distances": Ranking(negatives=3, similarity="manhattan", margin=1.5, dimensions=(2, 6)),
    "margin_mse": Ranking(negatives=3, loss="margin_mse", similarity="dot"),
    "margin_mse of cosines": Ranking(negatives=3, loss="margin_mse", dimensions=(3, 5)),
    "kl": Ranking(negatives=3, loss="kl", similarity="dot", temperature=2.0),
}


def similar(x: np.ndarray, y: np.ndarray, kind: str) -> float:
    if kind == "cosine":
        return float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))
    if kind == "dot":
        return float(x @ y)
    return -math.dist(x, y) if kind == "euclidean" else -sum(abs(a - b) for a, b in zip(x.tolist(), y.tolist(), strict=True))


def loss_of(scores: list[float], teacher: list[float], options: Ranking) -> float:
    """The loss of one query; its positive is the first."""
    others = range(1, len(scores))
    if options.loss == "triplet":
        return float(np.mean([max(0.0, options.margin - scores[0] + scores[other]) for other in others]))
    if options.loss == "margin_mse":
        return float(np.mean([((scores[0] - scores[other]) - (teacher[0] - teacher[other])) ** 2 for other in others]))
    p, q = (np.exp(np.array(values) / options.temperature) for values in (teacher, scores))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum()) * options.temperature**2


def defined(vectors: np.ndarray, options: Ranking) -> float:
    losses = [
        loss_of([similar(row[0, :size], text[:size], options.similarity) for text in row[1:]], teacher, options)
        for size in options.dimensions or (WIDTH,)
        for row, teacher in zip(vectors, TEACHER.tolist(), strict=True)
    ]
    return float(np.mean(losses))


def check_against_definition(case: str) -> None:
    options, objective = CASES[case], ranking.OBJECTIVE(CASES[case])
    batch = Batch(tokens=np.zeros((ROWS, TEXTS, 1), np.int32), labels=jnp.asarray(TEACHER))
    scale = jnp.float32(-math.log(options.temperature))
    value, gradient = jax.value_and_grad(lambda at: objective.row_losses(at, scale, batch).mean())(jnp.float32(VECTORS))
    assert float(value) == pytest.approx(defined(VECTORS, options), rel=1e-5)
    expected = np.zeros_like(VECTORS)
    for place in np.ndindex(VECTORS.shape):
        step = np.zeros_like(VECTORS)
        step[place] = 1e-5
        expected[place] = (defined(VECTORS + step, options) - defined(VECTORS - step, options)) / 2e-5
    np.testing.assert_allclose(gradient, expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_the_definition(case: str) -> None:
    check_against_definition(case)


losses, similarities = dict(embedding_losses.GROUP_LOSSES), embedding_losses.group_similarities


@pytest.mark.planted
@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        # The hardest negative alone; the scores without differences; the other direction of the divergence; no square of T.
        ("triplet", lambda scores, teacher, *, margin, scale: jax.nn.relu(margin - scores[:, :1] + scores[:, 1:]).max(-1)),
        ("margin_mse", lambda scores, teacher, *, margin, scale: jnp.square(scores - teacher)[:, 1:].mean(-1)),
        ("kl", lambda scores, teacher, *, margin, scale: losses["kl"](teacher, scores, margin=margin, scale=scale)),
        ("kl", lambda scores, teacher, **more: losses["kl"](scores, teacher, **more) * jnp.square(more["scale"])),
    ],
)
def test_wrong_losses_differ_from_the_definition(case: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ranking.GROUP_LOSSES, CASES[case].loss, wrong)
    with pytest.raises(AssertionError):
        check_against_definition(case)


@pytest.mark.planted
@pytest.mark.parametrize("other", ["dot", "cosine"])
def test_other_similarities_differ_from_the_definition(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "group_similarities", lambda vectors, kind: similarities(vectors, other))
    with pytest.raises(AssertionError):
        check_against_definition("triplet of euclidean distances")


def test_equal_texts_have_a_finite_gradient() -> None:
    """The distance of a text from itself has no derivative."""
    objective = ranking.OBJECTIVE(Ranking(similarity="euclidean", margin=1.0))
    batch = Batch(tokens=np.zeros((1, 3, 1), np.int32), labels=jnp.zeros((1, 2)))
    gradient = jax.grad(lambda at: objective.row_losses(at, jnp.float32(0), batch).sum())(jnp.ones((1, 3, 4)))
    np.testing.assert_array_equal(gradient, np.zeros((1, 3, 4)))


# --- Steps ---

NET = small("bert", task="body", layers=1, dropout=0.1, attention_dropout=0.1)
OPTIONS = Ranking(loss="margin_mse", negatives=2, dimensions=(8, 32), pool="weighted_mean")
DIVISIONS: dict[str, dict[str, Any]] = {
    "4 micro-batches": {"mesh": run_config.Mesh(data=1), "accumulate": 4},
    "data=2, fsdp=2, tensor=2, 2 micro-batches": {"mesh": run_config.Mesh(data=2, fsdp=2, tensor=2), "accumulate": 2},
    "pmap": {"mesh": run_config.Mesh(data=8), "engine": "pmap"},
}
STEP_CASES = [pytest.param(name, marks=() if name == "4 micro-batches" else pytest.mark.full) for name in DIVISIONS]


def batch() -> Batch:
    rng = np.random.default_rng(1)
    segments = (np.arange(8) < rng.integers(3, 9, (16, 4, 1))).astype(np.int32)
    tokens = rng.integers(2, 300, (16, 4, 8)).astype(np.int32) * segments
    labels = rng.normal(size=(16, 3)).astype(np.float32)
    index = np.arange(16, dtype=np.uint32)
    return Batch(tokens=tokens, segments=segments, labels=labels, weights=np.ones((16, 1), np.float32), index=index)


def first_steps(kind: type[ranking.GroupRanking] = ranking.OBJECTIVE, **changes: Any) -> Any:
    run = tiny.run("ranking", model=NET.config, data=LabelledData(length=8, batch=16), ranking=OPTIONS, **changes)
    return preference_steps.first_steps(run, kind(OPTIONS), batch())


@functools.cache
def alone() -> Any:
    return first_steps(mesh=run_config.Mesh(data=1))


def check_division(case: str, kind: type[ranking.GroupRanking] = ranking.OBJECTIVE) -> None:
    values, gradient = first_steps(kind, **DIVISIONS[case])
    np.testing.assert_allclose(values, alone()[0], rtol=1e-5)
    differences = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), gradient, alone()[1])
    lengths = [
        math.sqrt(sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(tree))) for tree in (differences, alone()[1])
    ]
    assert lengths[0] <= 1e-6 * lengths[1]
    assert values[-1] < values[0]


@pytest.mark.parametrize("case", STEP_CASES)
def test_losses_and_gradients_do_not_depend_on_the_division(case: str) -> None:
    check_division(case)


class OtherMean(ranking.GroupRanking):
    """Each micro-batch is divided by its own number of rows."""

    def row_losses(self, vectors: Any, log_scale: Any, batch: Batch) -> Any:
        return super().row_losses(vectors, log_scale, batch) / len(vectors)


@pytest.mark.planted
def test_a_wrong_division_is_noticed() -> None:
    with pytest.raises(AssertionError):
        check_division("4 micro-batches", OtherMean)


@pytest.mark.planted
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 0}, "--ranking.negatives 0: choose 1 to 64"),
        ({"margin": math.nan}, "--ranking.margin nan: choose 0 or a number above"),
        ({"margin": 5.0}, "--ranking.margin 5.0: cosines differ by at most 2; choose up to 2, or --ranking.similarity euclidean"),
        ({"temperature": 0.0}, "--ranking.temperature 0.0: choose a number above 0"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Ranking(**options)
