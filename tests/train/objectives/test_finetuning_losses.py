"""The losses of fine-tuning, against cross-entropies in float64, and what must not change them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import finetuned
from tests.support.finetuned import IOB, LABELS, TASKS, entropy, examples, logits, rows, run
from tests.support.small import random_params, seeds
from train.config.run_config import Run
from train.engine import losses
from train.inputs import labelled_inputs
from train.objectives import choice, classification, objective, span, tagging
from zoo import models, sharding
from zoo.batch import IGNORED, Batch

CASES = [
    *((goal, "bert", "", 0.2 if goal == "span" else 0.0) for goal in TASKS),
    ("classification", "bert", "multi_label", 0.0),
    pytest.param("classification", "bert", "regression", 0.0, marks=pytest.mark.full),
    pytest.param("classification", "distilbert", "", 0.2, marks=pytest.mark.full),
    pytest.param("tagging", "roberta", "", 0.2, marks=pytest.mark.full),
]
"""Objective, family, "regression", "multi_label" or nothing, and label smoothing."""


def setting(goal: str, family: str = "bert", kind: str = "", **changes: Any) -> tuple[Run, Batch]:
    """A run, and its rows in a batch, weighted at random; one of them weighs nothing."""
    labels = ("score",) if kind == "regression" else IOB if goal == "tagging" else LABELS
    cfg = run(goal, family=family, labels=labels, **({kind: True} if kind else {}), **changes)
    texts = examples(goal, labels=labels, pairs=family == "bert" and not kind, several=kind == "multi_label")
    batch = finetuned.batch(cfg, rows(cfg, texts))
    random = np.random.default_rng(0).uniform(0.5, 2, batch.weights.shape).astype(np.float32)
    random[3] = 0
    return cfg, dataclasses.replace(batch, weights=random * batch.weights)


def loss(cfg: Run, params: Any, batch: Batch, *, smoothing: float = 0.0, seeds: Any = None) -> jax.Array:
    net, options = finetuned.net(cfg), dict(seeds=seeds, carry={}, smoothing=smoothing, chunk=0)
    terms, carry = objective(cfg.objective)().loss(net, params, batch, {}, **options)
    assert terms.keys() == {cfg.objective}
    assert carry == {}
    return terms[cfg.objective]


@functools.cache
def sloped(cfg: Run, smoothing: float = 0.0) -> Callable[..., Any]:
    """The loss of parameters and a batch, and its gradient."""
    return jax.jit(jax.value_and_grad(lambda params, batch: loss(cfg, params, batch, smoothing=smoothing)))


def computed(cfg: Run, batch: Batch) -> float:
    return float(jax.jit(lambda params, batch: loss(cfg, params, batch))(random_params(finetuned.net(cfg)), batch))


def defined(cfg: Run, batch: Batch, smoothing: float = 0.0) -> tuple[float, float]:
    """(weighted sum of the losses, sum of the weights), an example after the other."""
    found, labels, real = logits(cfg, batch), np.asarray(batch.labels), np.asarray(batch.segments) > 0
    total = weight = 0.0
    for row, weights in enumerate(np.asarray(batch.weights, np.float64)):
        match cfg.objective:
            case "classification" if labelled_inputs.outputs(cfg)[0]:
                nats = [(found[row, 0] - float(labels[row, 0])) ** 2]
            case "classification" if labelled_inputs.outputs(cfg)[1]:
                p = 1 / (1 + np.exp(-found[row]))
                nats = [-np.log(np.where(labels[row] == 1, p, 1 - p)).mean()]
            case "classification":
                nats = [entropy(found[row], labels[row, 0], smoothing)]
            case "tagging":
                nats = [
                    0.0 if label == IGNORED else entropy(at, label, smoothing)
                    for at, label in zip(found[row], labels[row].tolist(), strict=True)
                ]
            case "span":
                ends = [entropy(found[row, real[row], end], labels[row, end], smoothing) for end in (0, 1)]
                nats = [sum(ends) / 2]
            case _:
                nats = [entropy(found[row], labels[row], smoothing)]
        total, weight = total + float(np.dot(nats, weights)), weight + float(weights.sum())
    return total, weight


@pytest.mark.parametrize(("goal", "family", "kind", "smoothing"), CASES)
def test_the_loss_is_its_definition_and_every_parameter_learns(goal: str, family: str, kind: str, smoothing: float) -> None:
    """Smoothing mixes in what is possible: of the ends of a span every token of the window, but no padding.

    What does not learn are the biases of keys and, where options or tokens compete, that of the classifier, which a softmax does
    not see; and a pooler that only sequences have a use for.
    """
    cfg, batch = setting(goal, family, kind)
    total, weight = defined(cfg, batch, smoothing)
    found, slopes = sloped(cfg, smoothing)(random_params(finetuned.net(cfg)), batch)
    # float32 sums of a few hundred logits of order 1.
    assert float(found) == pytest.approx(total, rel=1e-5)
    assert float(objective(goal)().weights(jax.tree.map(jnp.asarray, batch))[goal]) == pytest.approx(weight, rel=1e-6)
    assert not smoothing or abs(total - defined(cfg, batch)[0]) > 1e-3 * total
    norms = {sharding.path_of(keys): float(jnp.linalg.norm(leaf)) for keys, leaf in jax.tree_util.tree_leaves_with_path(slopes)}
    assert all(np.isfinite(norm) for norm in norms.values())
    still = {path for path, norm in norms.items() if norm < 1e-4}
    unseen = {path for path in norms if "key" in path and path.endswith("bias")}
    unseen |= {"classifier/bias"} if goal in ("span", "choice") else set()
    assert still == unseen


def test_the_loss_of_several_labels_by_hand() -> None:
    """The probabilities are 1/2, 3/4 and 1/4; and the loss of an extreme logit is its distance to 0."""
    logits, labels = jnp.array([[0.0, np.log(3), -np.log(3)], [0.0, 1e4, -1e4]]), jnp.array([[1, 0, 0], [0, 0, 0]])
    expected = [-np.log([0.5, 0.25, 0.75]).mean(), (np.log(2) + 1e4) / 3]
    np.testing.assert_allclose(losses.multi_label_losses(logits, labels), expected, rtol=1e-6)


MISTAKES: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], Any]]] = {
    "tags are shifted": (
        "tagging",
        lambda patch: patch.setattr(tagging, "class_losses", lambda x, y, s: losses.class_losses(x, jnp.roll(y, 1, -1), s)),
    ),
    "padding is an end": (
        "span",
        lambda patch: patch.setattr(
            span, "span_logits", lambda net, params, hidden, batch, seeds: jnp.moveaxis(net.token_logits(params, hidden), -1, 1)
        ),
    ),
    "the summary is the second token": (
        "classification",
        lambda patch: patch.setattr(classification.task_heads, "sequence_summaries", lambda out, batch: out.hidden[:, 1:2]),
    ),
    "options compete with other questions'": (
        "choice",
        lambda patch: patch.setattr(choice, "class_losses", lambda x, y, s: losses.class_losses(x.reshape(3, -1).T, y, s)),
    ),
}


@pytest.mark.full
@pytest.mark.parametrize(("goal", "mistake"), MISTAKES.values(), ids=MISTAKES.keys())
@pytest.mark.planted
def test_a_mistaken_loss_is_not_the_definition(
    goal: str, mistake: Callable[[pytest.MonkeyPatch], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, batch = setting(goal)
    total, _ = defined(cfg, batch)
    mistake(monkeypatch)
    assert computed(cfg, batch) != pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("goal", TASKS)
def test_examples_of_weight_0_do_not_change_loss_or_gradient(goal: str) -> None:
    """Neither the loss nor its gradient; what fills a batch up has labels that are ignored, too."""
    cfg, batch = setting(goal)
    params = random_params(finetuned.net(cfg))
    labels = np.array(batch.labels)
    filled = labels.copy()
    filled[3] = IGNORED
    other = np.where(labels >= 0, (labels + 1) % 3, labels)
    other[np.arange(len(other)) != 3] = labels[np.arange(len(labels)) != 3]
    assert (other != labels).any()
    value = sloped(cfg, 0.2 if goal == "span" else 0.0)
    base, slope = value(params, batch)
    for changed in (filled, other):
        total, slopes = value(params, dataclasses.replace(batch, labels=changed))
        assert total == base
        for one, two in zip(jax.tree.leaves(slope), jax.tree.leaves(slopes), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.full
def test_dropout_is_another_in_each_option_and_the_same_in_every_batch() -> None:
    """Of questions whose options are all the first one."""
    cfg, batch = setting("choice")
    net = models.model(dataclasses.replace(cfg.model, dropout=0.2, attention_dropout=0.2, head_dropout=0.2))
    fields = {name: getattr(batch, name) for name in ("tokens", "segments", "positions", "types")}
    batch = dataclasses.replace(batch, **{name: np.repeat(array[:, :1], 3, 1) for name, array in fields.items()})
    params, count = random_params(net), len(batch.tokens)
    options = jax.jit(lambda params, batch, seeds: choice.option_logits(net, params, batch, seeds))
    plain, dropped = np.asarray(options(params, batch, None)), np.asarray(options(params, batch, seeds(count)))
    np.testing.assert_allclose(plain, np.repeat(plain[:, :1], 3, 1), rtol=1e-5)
    assert (np.abs(dropped - np.roll(dropped, 1, 1)) > 1e-3).all()
    order = np.arange(count)[::-1]
    turned = jax.tree.map(lambda leaf: leaf[order], batch)
    np.testing.assert_allclose(np.asarray(options(params, turned, seeds(count)[order])), dropped[order], rtol=1e-5)
    assert (np.abs(np.asarray(options(params, batch, seeds(count, 1))) - dropped) > 1e-4).any()


@pytest.mark.full
def test_the_summary_of_a_packed_sequence_is_where_it_is_said_to_be() -> None:
    """[B, Q]: a row may hold several sequences, each with a label and a weight."""
    cfg, batch = setting("classification")
    at = np.array([[0, 4]] * len(batch.tokens), np.int32)
    labels = np.stack([batch.labels[:, 0], np.full(len(at), IGNORED, np.int32)], 1)
    weights = np.concatenate([batch.weights, np.ones_like(batch.weights)], 1)
    several = dataclasses.replace(batch, summary_at=at, labels=labels, weights=weights)
    assert computed(cfg, several) == pytest.approx(defined(cfg, batch)[0], rel=1e-5)
