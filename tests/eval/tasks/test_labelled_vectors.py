"""Clusters and regressions of frozen vectors: values of scikit-learn, an optimum found in another way, and plain loops."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.inference.vector_models import class_log_probabilities, fit_logistic_regression, k_means
from eval.metrics.clusters import v_measure
from tests.eval.tasks.test_embedding_tasks import score, sentences, unit
from tests.support.text_tasks import write
from zoo.errors import BadInput

CLASSES = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])


@pytest.mark.planted
def test_v_measure_equals_scikit_learn() -> None:
    clusters = np.array([0, 0, 1, 1, 1, 1, 1, 1, 1, 2])
    # scikit-learn 1.9.1, homogeneity_completeness_v_measure.
    expected = (0.35442212594872685, 0.48131867613092094, 0.4082365920837025)
    assert v_measure(CLASSES, clusters) == pytest.approx(expected, abs=1e-12)
    assert v_measure(CLASSES, 5 - clusters) == pytest.approx(expected, abs=1e-12)
    assert v_measure(clusters, CLASSES) == pytest.approx((expected[1], expected[0], expected[2]), abs=1e-12)
    assert v_measure(clusters, CLASSES).homogeneity != pytest.approx(expected[0], abs=1e-3)
    assert v_measure(CLASSES, np.zeros_like(CLASSES)) == (0, 1, 0) and v_measure(CLASSES, CLASSES) == (1, 1, 1)


def test_k_means_finds_separate_groups_and_a_fixed_point_elsewhere() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(5), 20)
    apart = rng.normal(size=(5, 8))[groups] * 20 + rng.normal(size=(100, 8))
    assert all(v_measure(groups, k_means(apart, 5, seed)).v_measure == 1 for seed in range(3))
    points = rng.normal(size=(60, 3)).astype(np.float32)
    assigned = k_means(points, 4, 0)
    centres = np.stack([points[assigned == number].mean(0) for number in range(4)])
    np.testing.assert_array_equal(np.linalg.norm(points[:, None] - centres, axis=2).argmin(1), assigned)
    np.testing.assert_array_equal(k_means(points, 4, 0), assigned)
    # Fewer different points than clusters, up to rounding.
    repeated = np.repeat(points[:2], 5, 0) * (1 + 1e-7 * rng.normal(size=(10, 1)))
    assert all(v_measure(np.repeat([0, 1], 5), k_means(repeated, 4, seed)) == (1, 1, 1) for seed in range(10))
    assert not k_means(np.zeros((3, 2)), 2, 0).any()


@pytest.mark.parametrize(
    ("count", "first"),
    [(2, (0.48617405, 0.51382595)), (3, (0.9166933, 0.08043118, 0.00287552))],
)
def test_logistic_regression_is_the_optimum_and_scikit_learns(count: int, first: tuple[float, ...]) -> None:
    rng = np.random.default_rng(count)
    points, classes = np.round(rng.normal(size=(12, 3)), 2), np.arange(12) % count
    weights = fit_logistic_regression(points, classes, count)
    # scikit-learn 1.9.1, LogisticRegression(tol=1e-12, max_iter=10000).predict_proba.
    assert np.exp(class_log_probabilities(weights, points))[0] == pytest.approx(first, abs=1e-6)
    decay = jnp.array([1.0, 1.0, 1.0, 0.0])[:, None] * (2 if count == 2 else 1)

    def objective(w: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(jnp.c_[points, jnp.ones(12)] @ w)
        return 0.5 * (decay * w**2).sum() - log_p[jnp.arange(12), classes].sum()

    # The gradient of a convex function is 0 at its optimum alone.
    assert float(jnp.abs(jax.grad(objective)(jnp.asarray(weights))).max()) < 1e-5
    assert float(jnp.abs(jax.grad(objective)(jnp.asarray(0.99 * weights))).max()) > 1e-3


def test_tasks_equal_the_same_on_vectors_of_each_text_alone(tmp_path: Path) -> None:
    texts = sentences(12)
    rows = [{"text": text, "label": f"word {i % 3}"} for i, text in enumerate(texts)]
    vectors, labels = np.stack([unit(text) for text in texts]), np.arange(12) % 3
    runs = [v_measure(labels, k_means(vectors, 3, seed)) for seed in range(10)]
    result = score("clustering", write(tmp_path / "a.jsonl", *rows))
    assert [*result.metrics.values()] == pytest.approx([run[i] for i in (2, 0, 1) for run in [np.mean(runs, axis=0)]], abs=1e-9)
    train = write(tmp_path / "train.jsonl", *rows[:8])
    test = write(tmp_path / "test.tsv", "label\ttext", *[f"{row['label']}\t{row['text']}" for row in rows[8:]])
    weights = fit_logistic_regression(vectors[:8], labels[:8], 3)
    log_p = class_log_probabilities(weights, vectors[8:])
    result = score("classification_probe", train, test)
    assert result.metrics["accuracy"] == (log_p.argmax(1) == labels[8:]).mean() and result.examples == 4
    assert result.outcomes is not None and result.outcomes.id[0] == "test.tsv:2"
    np.testing.assert_allclose(result.outcomes.nats, -log_p[np.arange(4), labels[8:]], atol=1e-4)
    assert score("classification_probe:1", train, test).metrics.keys() == {"accuracy", "accuracy_stderr", "f1_macro"}


def test_outcomes_of_pairs_have_the_metric_as_their_mean(tmp_path: Path) -> None:
    texts = sentences(12)
    pairs = [{"sentence1": texts[i], "sentence2": texts[(5 * i + 1) % 12]} for i in range(12)]
    result = score("sts", write(tmp_path / "s.jsonl", *[pair | {"score": i * 7 % 5} for i, pair in enumerate(pairs)]))
    assert result.outcomes is not None
    assert 1 - result.outcomes.nats.mean() == pytest.approx(result.metrics["spearman"])
    result = score(
        "pair_classification", write(tmp_path / "p.jsonl", *[pair | {"label": i % 3 // 2} for i, pair in enumerate(pairs)])
    )
    assert result.outcomes is not None and result.outcomes.id[0] == "p.jsonl:3"
    assert result.outcomes.right.mean() == pytest.approx(result.metrics["average_precision"])


LINE = '{"text": "a", "label": "x"}'
WRONG: list[tuple[str, list[str], str]] = [
    ("clustering", [LINE], "0.jsonl:1: every text from here on has the label 'x'; add texts of another one"),
    ("clustering", ['{"text": " ", "label": "x"}'], "0.jsonl:1: field text has no text"),
    ("clustering", ['{"text": "a", "label": 1.5}'], "0.jsonl:1: field label is 1.5; write a string or a whole number"),
    ("clustering", ['{"text": "a"}'], "0.jsonl:1: no field label"),
    ("classification_probe", [LINE], "name the file to learn from, then the file to predict"),
    ("classification_probe:0", [LINE, LINE], "choose a number of texts for each label"),
    (
        "classification_probe",
        [f"{LINE}\n" + LINE.replace('"x"', '"y"'), LINE.replace('"x"', '"z"')],
        "has no label 'z'; add texts of it",
    ),
]


@pytest.mark.planted(len(WRONG))
def test_wrong_files_are_refused(tmp_path: Path) -> None:
    for task, contents, message in WRONG:
        files = [write(tmp_path / f"{number}.jsonl", content) for number, content in enumerate(contents)]
        with pytest.raises(BadInput, match=re.escape(message)):
            score(task, *files)
