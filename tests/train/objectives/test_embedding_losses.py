"""The losses of embedding models, against loops in float64, and their gradients however a batch is divided."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import preference_steps, tiny
from tests.support.small import random_params, small
from tests.support.unigram_text import xlnet
from train.config import run_config
from train.config.data_options import LabelledData
from train.config.embedding_options import Contrastive, Embedding, Similarity
from train.data.example_types import Ranked
from train.engine import embedding_losses
from train.inputs.labelled_inputs import rows_of_labels
from train.objectives import contrastive, embedding, similarity
from train.rows.batches import in_order
from zoo.batch import Batch
from zoo.errors import BadInput

ROWS, TEXTS, WIDTH = 5, 3, 6
RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.normal(size=(ROWS, TEXTS, WIDTH))
# Row 2 has the positive of row 0, row 3 the query of row 1, and the negative of row 4 is the positive of row 1.
NUMBERS = np.array([[0, 1, 2], [3, 4, 5], [6, 1, 7], [3, 8, 9], [10, 11, 4]], np.int32)
SCORES = np.array([[0.2], [0.9], [-0.5], [0.2], [0.7]], np.float32)

CASES: dict[str, Embedding] = {
    "plain": Contrastive(temperature=0.3, mask_duplicates=False),
    "negatives": Contrastive(temperature=0.3, negatives=1),
    "symmetric": Contrastive(temperature=0.3, negatives=1, symmetric=True),
    "dot product": Contrastive(temperature=2.0, normalize=False, symmetric=True, mask_duplicates=False),
    "sizes": Contrastive(temperature=0.3, negatives=1, dimensions=(2, 6, 3)),
    "cosent": Similarity(temperature=0.3),
    "angle": Similarity(temperature=0.3, loss="angle", dimensions=(4, 6)),
    "cosine": Similarity(loss="cosine", dimensions=(5,)),
}


def objective_of(options: Embedding) -> embedding.EmbeddingObjective:
    return contrastive.OBJECTIVE(options) if isinstance(options, Contrastive) else similarity.OBJECTIVE(options)


def texts_of(options: Embedding) -> int:
    return 2 + (options.negatives if isinstance(options, Contrastive) else 0)


# --- The definitions in float64 ---


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(sum(number**2 for number in vector))


def nats(positive: float, others: list[float]) -> float:
    return math.log(sum(math.exp(score - positive) for score in [positive, *others]))


def contrastive_loss(vectors: np.ndarray, options: Contrastive) -> float:
    """Mean over rows; the queries and documents one by one."""
    total = 0.0
    ways = 2 if options.symmetric else 1
    compared = np.apply_along_axis(unit, -1, vectors) if options.normalize else vectors
    for row in range(ROWS):
        query, positive = compared[row, 0], compared[row, 1]
        others = [
            query @ compared[i, j] / options.temperature
            for i in range(ROWS)
            for j in range(1, vectors.shape[1])
            if (i, j) != (row, 1) and not (options.mask_duplicates and NUMBERS[i, j] == NUMBERS[row, 1])
        ]
        total += nats(query @ positive / options.temperature, others) / ways
        if options.symmetric:
            others = [
                compared[i, 0] @ positive / options.temperature
                for i in range(ROWS)
                if i != row and not (options.mask_duplicates and (NUMBERS[i, :2] == NUMBERS[row, :2]).any())
            ]
            total += nats(query @ positive / options.temperature, others) / ways
    return total / ROWS


def similarity_loss(vectors: np.ndarray, options: Similarity) -> float:
    half = vectors.shape[-1] // 2

    def similar(x: np.ndarray, y: np.ndarray) -> float:
        if options.loss != "angle":
            return float(unit(x) @ unit(y))
        # The quotient of complex numbers, in each dimension, over the quotient of the lengths of the vectors.
        numerator, denominator = (
            [complex(*pair) / np.linalg.norm(part) for pair in zip(part[:half], part[half:], strict=True)] for part in (x, y)
        )
        products = [z * w.conjugate() for z, w in zip(numerator, denominator, strict=True)]
        return float(abs(sum(product.real + product.imag for product in products)))

    similarities = [similar(*pair) for pair in vectors]
    if options.loss == "cosine":
        return float(np.mean([(value - score) ** 2 for value, score in zip(similarities, SCORES[:, 0].tolist(), strict=True)]))
    pairs = [(i, j) for i in range(ROWS) for j in range(ROWS) if SCORES[i] < SCORES[j]]
    return math.log(1 + sum(math.exp((similarities[i] - similarities[j]) / options.temperature) for i, j in pairs))


def defined(vectors: np.ndarray, options: Embedding) -> float:
    one = contrastive_loss if isinstance(options, Contrastive) else similarity_loss
    return float(np.mean([one(vectors[..., :size], options) for size in options.dimensions or (WIDTH,)]))  # pyright: ignore


def slopes(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences."""
    result = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        change = np.zeros_like(at)
        change[place] = step
        result[place] = (function(at + change) - function(at - change)) / (2 * step)
    return result


def check_against_definition(case: str) -> None:
    options = CASES[case]
    vectors = VECTORS[:, : texts_of(options)]
    labels = NUMBERS[:, : texts_of(options)] if isinstance(options, Contrastive) else SCORES
    batch, objective = Batch(tokens=np.zeros((ROWS, 2, 1), np.int32), labels=jnp.asarray(labels)), objective_of(options)

    def mean(vectors: Any, scale: Any) -> Any:
        return objective.row_losses(vectors, scale, batch).mean()

    scale = -math.log(options.temperature)
    value, (gradient, of_scale) = jax.value_and_grad(mean, (0, 1))(jnp.float32(vectors), jnp.float32(scale))
    assert float(value) == pytest.approx(defined(vectors, options), rel=1e-5)
    np.testing.assert_allclose(gradient, slopes(lambda at: defined(at, options), vectors), rtol=2e-4, atol=2e-6)

    def of_temperature(log_scale: np.ndarray) -> float:
        return defined(vectors, dataclasses.replace(options, temperature=math.exp(-log_scale)))

    np.testing.assert_allclose(of_scale, slopes(of_temperature, np.array(scale)), rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_the_definition(case: str) -> None:
    check_against_definition(case)


cross_entropy, angles = embedding_losses._cross_entropy, embedding_losses.angle_similarities


def shifted(scores: Any, positives: Any, same: Any) -> Any:
    return cross_entropy(scores, (positives + 1) % scores.shape[1], same)


def without_positive(scores: Any, positives: Any, same: Any) -> Any:
    return jax.nn.logsumexp(jnp.where(same, -jnp.inf, scores), axis=-1) - jnp.take_along_axis(scores, positives[:, None], 1)[:, 0]


def unmasked(scores: Any, positives: Any, same: Any) -> Any:
    return cross_entropy(scores, positives, same & False)


@pytest.mark.planted
@pytest.mark.parametrize(
    ("case", "name", "wrong"),
    [
        ("negatives", "_cross_entropy", shifted),
        ("negatives", "_cross_entropy", without_positive),
        ("symmetric", "_cross_entropy", unmasked),
        ("cosent", "ranking_losses", lambda values, scores, scale: embedding_losses.jnp.square(values - scores)),
        ("angle", "angle_similarities", lambda vectors: angles(vectors[:, ::-1])),
    ],
)
def test_wrong_losses_differ_from_the_definition(case: str, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (embedding_losses, similarity):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError):
        check_against_definition(case)


# --- Steps ---

NET = small("bert", task="body", layers=1, dropout=0.1, attention_dropout=0.1)
LEARNED = Contrastive(
    temperature=0.3, negatives=1, symmetric=True, learned_temperature=True, dimensions=(8, 32), pool="weighted_mean"
)
DIVISIONS: dict[str, dict[str, Any]] = {
    "2 micro-batches": {"mesh": run_config.Mesh(data=1), "accumulate": 2},
    "4 micro-batches": {"mesh": run_config.Mesh(data=1), "accumulate": 4},
    "data=2": {"mesh": run_config.Mesh(data=2)},
    "data=2, fsdp=2, tensor=2, 2 micro-batches": {"mesh": run_config.Mesh(data=2, fsdp=2, tensor=2), "accumulate": 2},
    "data=8, 2 micro-batches": {"mesh": run_config.Mesh(data=8), "accumulate": 2},
    "data=8": {"mesh": run_config.Mesh(data=8)},
}
FAST = ("4 micro-batches", "data=8, 2 micro-batches")
STEP_CASES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in DIVISIONS]


def batch_of(options: Embedding, rows: int = 16) -> Batch:
    rng, texts = np.random.default_rng(1), texts_of(options)
    sizes = rng.integers(3, 9, (rows, texts, 1))
    segments = (np.arange(8) < sizes).astype(np.int32)
    tokens = rng.integers(2, 300, (rows, texts, 8)).astype(np.int32) * segments
    labels = rng.integers(0, 20, (rows, texts)).astype(np.int32)
    if isinstance(options, Similarity):
        labels = rng.uniform(-1, 1, (rows, 1)).astype(np.float32)
    index = np.arange(rows, dtype=np.uint32)
    return Batch(tokens=tokens, segments=segments, labels=labels, weights=np.ones((rows, 1), np.float32), index=index)


def first_steps(options: Embedding, kind: type[embedding.EmbeddingObjective] | None = None, **changes: Any) -> Any:
    """Return the losses of three steps and the first gradient."""
    objective = objective_of(options) if kind is None else kind(options)
    run = tiny.run(objective.OPTIONS.objective, model=NET.config, data=LabelledData(length=8, batch=16), **changes)
    return preference_steps.first_steps(run, objective, batch_of(options))


@functools.cache
def alone(options: Embedding) -> Any:
    return first_steps(options, mesh=run_config.Mesh(data=1))


def check_division(options: Embedding, kind: Any, case: str, bound: float = 1e-6) -> None:
    """Compare three losses and the first gradient with those of one device and one micro-batch."""
    losses, gradient = first_steps(options, kind, **DIVISIONS[case])
    np.testing.assert_allclose(losses, alone(options)[0], rtol=1e-5)
    expected = alone(options)[1]
    differences = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), gradient, expected)
    lengths = [math.sqrt(sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(tree))) for tree in (differences, expected)]
    assert lengths[0] <= bound * lengths[1]


@pytest.mark.parametrize("case", STEP_CASES)
def test_losses_and_gradients_do_not_depend_on_the_division(case: str) -> None:
    check_division(LEARNED, None, case)
    losses, gradient = alone(LEARNED)
    assert losses[-1] < losses[0] and abs(float(gradient["temperature"]["log_scale"])) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cosent", "angle", "cosine"])
def test_scores_of_pairs_are_learned_alike_from_micro_batches(loss: Any) -> None:
    # An angle is a difference of sums, whose rounding is greater than theirs.
    check_division(Similarity(loss=loss), None, "4 micro-batches", bound=1e-5 if loss == "angle" else 1e-6)


class OwnRows(contrastive.OBJECTIVE):
    """Each micro-batch compares its own rows only."""

    def complete_batch(self, model: Any, params: Any, batch: Any, frozen: Any, **options: Any) -> Any:
        return batch


class OtherDropout(contrastive.OBJECTIVE):
    """The two passes have different dropout."""

    def complete_batch(self, model: Any, params: Any, batch: Any, frozen: Any, *, seeds: Any, **options: Any) -> Any:
        return super().complete_batch(model, params, batch, frozen, seeds=seeds + 1, **options)


@pytest.mark.planted
@pytest.mark.parametrize("wrong", [OwnRows, OtherDropout])
def test_wrong_micro_batches_are_noticed(wrong: Any) -> None:
    with pytest.raises(AssertionError):
        check_division(LEARNED, wrong, "4 micro-batches")


def test_texts_of_a_row_have_different_dropout() -> None:
    """So that a text is not its own positive in unsupervised learning."""
    objective, params = contrastive.OBJECTIVE(Contrastive()), jax.jit(NET.init)(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, batch_of(Contrastive()))
    twice = dataclasses.replace(batch, **{name: getattr(batch, name)[:, [0, 0]] for name in ("tokens", "segments")})
    seeds = jnp.arange(32, dtype=jnp.uint32).reshape(16, 2)
    vectors, still = (objective.vectors(NET, params, twice, of) for of in (seeds, None))
    assert np.abs(vectors[:, 0] - vectors[:, 1]).max() > 1e-2
    np.testing.assert_array_equal(still[:, 0], still[:, 1])


def test_vectors_of_xlnet_are_those_of_its_last_token_whatever_the_padding_is() -> None:
    """Its CLS is the last token of each text, and not of a row."""
    words = xlnet(["the", "whale", "men", "sees", "who"])
    net = small("xlnet", task="body", layers=1, vocab=words.vocab_size)
    examples = [Ranked(origin="", query="the whale " + "sees " * n, positive="who men " * (3 - n)) for n in range(3)]
    params = random_params(net)

    def vectors(pool: Any, length: int) -> np.ndarray:
        run = tiny.run("contrastive", model=net.config, data=LabelledData(length=length, batch=3))
        rows = rows_of_labels(examples, run, words)
        (batch,) = in_order(rows, contrastive.OBJECTIVE.builder(run, words, lambda: np.zeros(0, np.int64)), 3, np.arange(3))
        objective = contrastive.OBJECTIVE(Contrastive(pool=pool))
        return np.asarray(jax.jit(functools.partial(objective.vectors, net))(params, jax.tree.map(jnp.asarray, batch)))

    short = vectors("cls", 9)
    np.testing.assert_allclose(vectors("cls", 12), short, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(vectors("last", 9), short)
    assert short.shape == (3, 2, 32) and np.abs(np.diff(short, axis=1)).min() > 0


# --- Options ---


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (lambda: Contrastive(temperature=0.0), "contrastive.temperature"),
        (lambda: Contrastive(temperature=math.nan), "contrastive.temperature"),
        (lambda: Contrastive(temperature=0.005, learned_temperature=True), "contrastive.temperature"),
        (lambda: Contrastive(negatives=-1), "contrastive.negatives"),
        (lambda: Similarity(temperature=math.inf), "similarity.temperature"),
    ],
)
def test_options_without_a_meaning_are_refused(options: Callable[[], Any], name: str) -> None:
    with pytest.raises(BadInput, match=f"--{name} "):
        options()


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        ("contrastive", {"contrastive": Contrastive(dimensions=(8, 33))}, "contrastive.dimensions 8 33: vectors have 32 dim"),
        ("contrastive", {"contrastive": Contrastive(dimensions=(8, 8))}, "contrastive.dimensions 8 8: choose each size once"),
        ("contrastive", {"engine": "pmap"}, "engine pmap: the loss compares all rows of the batch"),
        ("contrastive", {"data": LabelledData(length=8, batch=1)}, "data.batch 1: the negatives of a query"),
        ("contrastive", {"label_smoothing": 0.1}, "label-smoothing 0.1: it has no effect"),
        ("contrastive", {"model": small("bert", task="masked").config}, "model.task masked: contrastive trains the body"),
        ("contrastive", {"model": small("bert", task="body", causal=True).config}, "model.causal"),
        (
            "contrastive",
            {"model": small("bert", task="body").config, "contrastive": Contrastive(unsupervised=True)},
            "model.drop",
        ),
        ("similarity", {"data": LabelledData(length=8, batch=1)}, "data.batch 1: cosent compares pairs"),
        ("similarity", {"similarity": Similarity(loss="angle", dimensions=(3,))}, "similarity.loss angle: its complex numbers"),
    ],
)
def test_runs_that_compare_nothing_are_refused(objective: str, changes: dict[str, Any], message: str) -> None:
    run = tiny.run(objective, **{"model": NET.config, **changes})
    with pytest.raises(BadInput, match=message):
        run.options.check_run(run)
