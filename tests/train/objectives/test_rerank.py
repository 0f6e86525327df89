"""The losses of groups of candidates, against loops in float64 and numbers of sentence-transformers."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import preference_steps, tiny
from tests.support.small import small
from tests.train.objectives.test_embedding_losses import slopes
from train.config import run_config
from train.config.data_options import LabelledData
from train.config.rerank_options import Rerank, RerankLoss
from train.engine import group_losses as losses_module
from train.objectives import rerank
from zoo.batch import Batch
from zoo.errors import BadInput

SCORES = np.random.default_rng(0).normal(size=(4, 3)) * 2
CASES = {
    "listwise": Rerank(negatives=2),
    "pairwise": Rerank(loss="pairwise", negatives=2),
    "pointwise": Rerank(loss="pointwise", negatives=2),
    "weighted": Rerank(loss="pointwise", negatives=2, positive_weight=3.0),
}


def defined(scores: np.ndarray, options: Rerank) -> float:
    """The mean over the rows."""
    total = 0.0
    for positive, *negatives in scores.tolist():
        if options.loss == "listwise":
            total += math.log(sum(math.exp(score) for score in (positive, *negatives))) - positive
        elif options.loss == "pairwise":
            total += sum(math.log(1 + math.exp(score - positive)) for score in negatives) / len(negatives)
        else:
            sigmoids = [1 / (1 + math.exp(-score)) for score in (positive, *negatives)]
            weighted = options.positive_weight * math.log(sigmoids[0]) + sum(math.log(1 - value) for value in sigmoids[1:])
            total -= weighted / len(sigmoids)
    return total / len(scores)


def check_against_definition(case: str) -> None:
    options = CASES[case]
    value, gradient = jax.value_and_grad(lambda at: losses_module.group_losses(at, options).mean())(jnp.float32(SCORES))
    assert float(value) == pytest.approx(defined(SCORES, options), rel=1e-5)
    np.testing.assert_allclose(gradient, slopes(lambda at: defined(at, options), SCORES), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_the_definition(case: str) -> None:
    check_against_definition(case)


@pytest.mark.planted
@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ("listwise", lambda scores, options: losses_of(scores[:, ::-1], options)),
        ("pairwise", lambda scores, options: losses_of(-scores, options)),
        ("pairwise", lambda scores, options: losses_of(scores, options) * 2),
        ("pointwise", lambda scores, options: losses_of(scores, CASES["weighted"])),
        ("weighted", lambda scores, options: losses_of(scores, CASES["pointwise"])),
    ],
)
def test_wrong_losses_differ_from_the_definition(case: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses_module, "group_losses", wrong)
    with pytest.raises(AssertionError):
        check_against_definition(case)


losses_of = losses_module.group_losses


LIBRARY = {
    "listwise": 1.4693608283996582,
    "pairwise": 0.9574896693229675,
    "pointwise": 0.8831565976142883,
    "weighted": 1.524416446685791,
}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_sentence_transformers(case: str) -> None:
    """Version 6.2.0 on SCORES: ListNetLoss, RankNetLoss, BinaryCrossEntropyLoss, and the last one with pos_weight 3.

    ListNetLoss takes the softmax of the labels as probabilities: here of (10000, 0, 0), which is one-hot; with (1, 0, 0) it
    returns 1.526880. RankNetLoss has reduction_log="natural" here; its default, the binary logarithm, is 1 / log(2) times as
    much.
    """
    assert float(losses_of(jnp.float32(SCORES), CASES[case]).mean()) == pytest.approx(LIBRARY[case], rel=1e-6)


def test_losses_stay_finite_at_large_scores() -> None:
    far = jnp.float32([[-200.0, 200.0], [200.0, -200.0]])
    values = {name: np.asarray(losses_of(far, Rerank(loss=name))) for name in ("listwise", "pairwise", "pointwise")}
    np.testing.assert_allclose([values[name][0] for name in values], [400, 400, 200], rtol=1e-6)
    np.testing.assert_allclose([values[name][1] for name in values], 0, atol=1e-6)


# --- Steps ---

NET = small("bert", task="sequence", labels=("score",), layers=1, dropout=0.1, attention_dropout=0.1)


def batch_of(rows: int = 8) -> Batch:
    rng = np.random.default_rng(1)
    sizes = rng.integers(3, 9, (rows, 3, 1))
    segments = (np.arange(8) < sizes).astype(np.int32)
    tokens = rng.integers(2, 300, (rows, 3, 8)).astype(np.int32) * segments
    types = ((np.arange(8) >= 3) * segments).astype(np.int32)
    index, weights = np.arange(rows, dtype=np.uint32), np.ones((rows, 1), np.float32)
    return Batch(tokens=tokens, segments=segments, types=types, labels=np.zeros(rows, np.int32), weights=weights, index=index)


def first_steps(loss: RerankLoss, **changes: Any) -> Any:
    """Return the losses of three steps and the first gradient."""
    options = Rerank(loss=loss, negatives=2)
    run = tiny.run("rerank", model=NET.config, data=LabelledData(length=8, batch=8), rerank=options, **changes)
    return preference_steps.first_steps(run, rerank.OBJECTIVE(options), batch_of())


@pytest.mark.parametrize(
    "loss", ["listwise", *(pytest.param(name, marks=pytest.mark.full) for name in ("pairwise", "pointwise"))]
)
def test_steps_learn_and_do_not_depend_on_the_division(loss: RerankLoss) -> None:
    losses, gradient = first_steps(loss, mesh=run_config.Mesh(data=1))
    divided, other = first_steps(loss, mesh=run_config.Mesh(data=2, fsdp=2), accumulate=2)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(divided, losses, rtol=1e-5)
    for leaf, expected in zip(jax.tree.leaves(other), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=2e-6 * max(1, float(np.abs(expected).max())))


# --- Options ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 0}, "--rerank.negatives 0: choose 1 to 64"),
        ({"positive_weight": 0.0, "loss": "pointwise"}, "--rerank.positive-weight 0.0: choose a number above 0"),
        ({"positive_weight": math.nan, "loss": "pointwise"}, "--rerank.positive-weight nan: choose a number above 0"),
        ({"positive_weight": 2.0}, "--rerank.positive-weight 2.0: it has no effect on --rerank.loss listwise"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Rerank(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": small("bert", task="body").config}, "model.task body: the score of a pair is that of a sequence"),
        ({"model": small("bert", task="sequence", labels=("no", "yes")).config}, "model.labels no yes: a cross-encoder has one"),
        ({"model": dataclasses.replace(NET.config, multi_label=True)}, "model.multi-label True: a cross-encoder has one score"),
        ({"model": dataclasses.replace(NET.config, causal=True)}, "model.causal True: the score of a pair"),
        ({"label_smoothing": 0.1}, "label-smoothing 0.1: it has no effect on scores"),
    ],
)
def test_runs_without_one_score_are_refused(changes: dict[str, Any], message: str) -> None:
    run = tiny.run("rerank", **{"model": NET.config, **changes})
    with pytest.raises(BadInput, match=message):
        run.options.check_run(run)
