"""The scores of embedding models, against loops over vectors of single texts."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec

from eval.tasks.held_out import embedding_scores
from eval.tasks.held_out.scoring_inputs import ScoringInputs
from tests.support import tiny
from tests.support.encoders import KINDS, tokenizer
from tests.support.finetuned import WORDS
from tests.support.small import random_params, small
from train.config import run_config
from train.config.data_options import LabelledData
from train.config.embedding_options import Contrastive, Similarity
from train.config.ranking_options import Ranking
from train.config.run_config import Run
from train.data.example_types import Ranked, ScoredPair, TaughtRanked
from train.engine import device_mesh
from train.inputs.labelled_inputs import LabelledRows, rows_of_labels
from train.objectives import objective
from train.run.metric_definitions import METRICS, validation_metrics
from zoo.batch import Batch
from zoo.models import Model, model

WORDPIECE = tokenizer(KINDS["bert"])
NET = small("bert", task="body", layers=1, vocab=WORDPIECE.vocab_size)
MESHES = {1: run_config.Mesh(data=1), 4: run_config.Mesh(data=2, fsdp=2)}


def run_of(name: str, **options: Any) -> Run:
    return tiny.run(name, model=NET.config, data=LabelledData(length=16, batch=4), **options)


@functools.cache
def ranked_examples() -> list[Ranked]:
    """Eleven queries, the first three of the same positive, which a later row has as its negative; some resemble the query."""
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(40)]
    positives = [f"the ship of {texts[n]}" if n % 2 == 0 else texts[12 + n] for n in range(11)]
    return [
        Ranked(
            origin=f"f:{n}", query=texts[n], positive=positives[max(n, 2)], negatives=(positives[2] if n == 9 else texts[26 + n],)
        )
        for n in range(11)
    ]


RANKED = run_of("contrastive", contrastive=Contrastive(negatives=1, temperature=0.5, query_prompt="the ship: "))


@functools.cache
def vector_of(text: str) -> np.ndarray:
    ids, _ = WORDPIECE.special_tokens.single(WORDPIECE.encode(text))  # pyright: ignore[reportOptionalMemberAccess]
    pad = (0, 24 - len(ids))
    hidden = hidden_of(random_params(NET), np.pad(ids, pad)[None], np.pad(np.ones_like(ids), pad)[None])
    vector = np.asarray(hidden, np.float64)[0, : len(ids)].mean(0)
    return vector / np.linalg.norm(vector)


@jax.jit
def hidden_of(params: Any, tokens: Any, segments: Any) -> Any:
    return NET.apply(params, Batch(tokens=tokens, segments=segments)).hidden


def score(run: Run, rows: LabelledRows, batch: int = 16, devices: int = 1) -> Any:
    net: Model = model(run.model)
    mesh = device_mesh.make_mesh(MESHES[devices], jax.devices()[:devices])
    build = objective(run.objective).builder(run, WORDPIECE, lambda: np.zeros(0, np.int64))
    inputs = ScoringInputs(run=run, model=net, mesh=mesh, data=None, rows=rows, build=build, batch=batch, dtype=jnp.float32)
    score_of = getattr(embedding_scores, f"score_{run.objective}")(inputs)
    params = jax.device_put(random_params(net), NamedSharding(mesh, PartitionSpec()))
    # A run scores under this guard.
    with jax.transfer_guard("disallow"):
        return score_of(params)


def check_ranked(*ways: tuple[int, int]) -> None:
    """Compare the scores in batches of a size, on a number of devices."""
    rows = rows_of_labels(ranked_examples(), RANKED, WORDPIECE)
    queries = [vector_of(RANKED.options.contrastive.query_prompt + each.query) for each in ranked_examples()]
    candidates = {text for each in ranked_examples() for text in (each.positive, *each.negatives)}
    ranks, losses = [], []
    for number, (query, each) in enumerate(zip(queries, ranked_examples(), strict=True)):
        own = query @ vector_of(each.positive)
        ranks.append(1 + sum(query @ vector_of(text) > own for text in candidates if text != each.positive))
        group = ranked_examples()[number // 4 * 4 :][:4]
        texts = [text for other in group for text in (other.positive, *other.negatives) if text != each.positive]
        losses.append(math.log(sum(math.exp((query @ vector_of(text) - own) / 0.5) for text in texts) + 1))
    for batch, devices in ways:
        measured = score(RANKED, rows, batch, devices)
        expected = {"loss": np.mean(losses), "accuracy": np.mean(np.array(ranks) == 1), "mrr": np.mean(1 / np.array(ranks))}
        assert measured.record() == pytest.approx({**expected, "examples": 11}, rel=1e-5)
        np.testing.assert_allclose(measured.outcomes.nats, losses, rtol=1e-5)
        assert measured.outcomes.right.tolist() == [rank == 1 for rank in ranks] and measured.outcomes.id[0] == "f:0"
        assert 0 < expected["accuracy"] < 1
        judged = {name for name in measured.record() if name in METRICS and METRICS[name].better}
        assert judged == set(validation_metrics(RANKED))


def test_queries_are_ranked_among_all_held_out_texts() -> None:
    check_ranked((16, 1), (3, 1), (8, 4))


ranks_of = embedding_scores.positive_ranks


@pytest.mark.planted
@pytest.mark.parametrize(
    "wrong",
    [
        # Equal texts of different rows compete, and ties count.
        lambda vectors, texts, **options: ranks_of(vectors, np.arange(texts.size).reshape(texts.shape), **options),
        lambda vectors, texts, **options: ranks_of(vectors[:, :2], texts[:, :2], **options),
        lambda vectors, texts, **options: ranks_of(vectors, texts, normalize=False),
    ],
)
def test_wrong_candidates_are_noticed(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_scores, "positive_ranks", wrong)
    with pytest.raises(AssertionError):
        check_ranked((16, 1))


def test_equal_vectors_find_nothing() -> None:
    """A model whose vectors are all the same has the worst rank, not the best."""
    ranks = ranks_of(np.ones((3, 2, 4), np.float32), np.arange(6).reshape(3, 2), normalize=True)
    assert ranks.tolist() == [3, 3, 3]


@pytest.mark.parametrize("kind", ["cosine", "euclidean"])
def test_queries_are_ranked_among_their_own_texts(kind: Any) -> None:
    options = Ranking(similarity=kind, margin=0.1, document_prompt="the ship: ")
    run = run_of("ranking", ranking=options)
    measured = score(run, rows_of_labels([TaughtRanked(**vars(each)) for each in ranked_examples()], run, WORDPIECE))
    ranks, losses = [], []
    for each in ranked_examples():
        query, *texts = (vector_of(text) for text in (each.query, *("the ship: " + t for t in (each.positive, *each.negatives))))
        if kind == "cosine":
            own, other = (float(query @ text) for text in texts)
        else:
            lengths = [length_of(text) for text in (each.query, *("the ship: " + t for t in (each.positive, *each.negatives)))]
            vectors = [length * vector for length, vector in zip(lengths, (query, *texts), strict=True)]
            own, other = (-math.dist(vectors[0], vector) for vector in vectors[1:])
        ranks.append(1 + (other >= own))
        losses.append(max(0.0, 0.1 - own + other))
    expected = {"loss": np.mean(losses), "accuracy": np.mean(np.array(ranks) == 1), "mrr": np.mean(1 / np.array(ranks))}
    assert measured.record() == pytest.approx({**expected, "examples": 11}, rel=1e-4, abs=1e-5)
    assert measured.outcomes.right.tolist() == [rank == 1 for rank in ranks] and 0 < expected["accuracy"] < 1
    assert {name for name in measured.record() if name in METRICS and METRICS[name].better} == set(validation_metrics(run))


def length_of(text: str) -> float:
    """Return the length of the vector of a text before it is normalized."""
    ids, _ = WORDPIECE.special_tokens.single(WORDPIECE.encode(text))  # pyright: ignore[reportOptionalMemberAccess]
    pad = (0, 24 - len(ids))
    hidden = hidden_of(random_params(NET), np.pad(ids, pad)[None], np.pad(np.ones_like(ids), pad)[None])
    return float(np.linalg.norm(np.asarray(hidden, np.float64)[0, : len(ids)].mean(0)))


@pytest.mark.parametrize("loss", ["cosine", "cosent"])
def test_similarities_are_correlated_with_the_scores(loss: Any) -> None:
    rng = np.random.default_rng(5)
    examples = [
        ScoredPair(origin=f"f:{n}", first=each.query, second=each.positive, score=round(float(rng.uniform(-1, 1)), 1))
        for n, each in enumerate(ranked_examples())
    ]
    run = run_of("similarity", similarity=Similarity(loss=loss, temperature=0.5))
    cosines = np.array([vector_of(each.first) @ vector_of(each.second) for each in examples])
    scores = np.array([each.score for each in examples])
    losses = np.square(cosines - scores)
    if loss == "cosent":
        groups = [slice(0, 4), slice(4, 8), slice(8, 11)]
        terms = [np.exp((cosines[g][:, None] - cosines[g]) / 0.5)[scores[g][:, None] < scores[g]] for g in groups]
        losses = np.repeat([math.log(1 + part.sum()) for part in terms], [4, 4, 3])
    measured = score(run, rows_of_labels(examples, run, WORDPIECE))
    expected = {"pearson": scipy.stats.pearsonr(scores, cosines)[0], "spearman": scipy.stats.spearmanr(scores, cosines)[0]}
    assert measured.record() == pytest.approx({"loss": losses.mean(), **expected, "examples": 11}, rel=1e-5)
    assert np.isnan(measured.outcomes.right).all()
    judged = {name for name in measured.record() if name in METRICS and METRICS[name].better}
    assert judged == set(validation_metrics(run))


def test_the_negatives_of_a_row_are_its_first_ones() -> None:
    """And unsupervised rows have the query twice, with one number."""
    examples = [dataclasses.replace(each, negatives=(*each.negatives, "old men")) for each in ranked_examples()]
    (row, *_) = rows_of_labels(examples, RANKED, WORDPIECE).rows
    assert len(row.inputs) == 3 and row.labels.tolist() == [0, 1, 2]
    unsupervised = run_of("contrastive", contrastive=Contrastive(unsupervised=True))
    (row, *_) = rows_of_labels(examples, unsupervised, WORDPIECE).rows
    assert row.labels.tolist() == [0, 0] and row.inputs[0].ids.tolist() == row.inputs[1].ids.tolist()
