"""Losses of embedding models and their gradients are those of sentence-transformers, on random vectors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.config.embedding_options import Contrastive, Embedding, Similarity
from train.config.ranking_options import Ranking
from train.objectives import contrastive, ranking, similarity
from zoo.batch import Batch

ROWS, WIDTH, SEEDS = 6, 16, 10


class LossCase(NamedTuple):
    """A loss of the zoo, and the same one of sentence-transformers."""

    options: Embedding
    texts: int
    """Number of texts of a row."""
    peer: Callable[[Any, Any], Any]
    """Returns their loss from (sentence_transformers, a model)."""
    divisor: int = 1
    """Their loss is a sum of this many terms, and that of the zoo their mean."""


def distances(name: str) -> Callable[[Any, Any], Any]:
    def loss(library: Any, model: Any) -> Any:
        metric = getattr(library.sentence_transformer.losses.TripletDistanceMetric, name)
        margin = {"COSINE": 0.2, "EUCLIDEAN": 5.0, "MANHATTAN": 2.0}[name]
        return library.sentence_transformer.losses.TripletLoss(model, metric, margin)

    return loss


def peer(name: str, **options: Any) -> Callable[[Any, Any], Any]:
    return lambda library, model: getattr(library.sentence_transformer.losses, name)(model, **options)


def matryoshka(inner: Callable[[Any, Any], Any], sizes: tuple[int, ...]) -> Callable[[Any, Any], Any]:
    return lambda library, model: library.sentence_transformer.losses.MatryoshkaLoss(model, inner(library, model), sizes)


def cosine_margins(library: Any, model: Any) -> Any:
    return library.sentence_transformer.losses.MarginMSELoss(model, library.util.pairwise_cos_sim)


BOTH = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
SIZES = (16, 8, 4)
IN_BATCH = peer("MultipleNegativesRankingLoss")
CASES = {
    "MultipleNegativesRankingLoss": LossCase(Contrastive(mask_duplicates=False), 2, IN_BATCH),
    "MultipleNegativesRankingLoss, negatives": LossCase(Contrastive(negatives=2), 4, IN_BATCH),
    "MultipleNegativesRankingLoss, both directions": LossCase(
        Contrastive(symmetric=True), 2, peer("MultipleNegativesRankingLoss", **BOTH)
    ),
    "CoSENTLoss": LossCase(Similarity(), 2, peer("CoSENTLoss")),
    "AnglELoss": LossCase(Similarity(loss="angle"), 2, peer("AnglELoss")),
    "CosineSimilarityLoss": LossCase(Similarity(loss="cosine"), 2, peer("CosineSimilarityLoss")),
    "TripletLoss": LossCase(Ranking(similarity="euclidean", margin=5.0), 3, distances("EUCLIDEAN")),
    "TripletLoss, cosine": LossCase(Ranking(margin=0.2), 3, distances("COSINE")),
    "TripletLoss, Manhattan": LossCase(Ranking(similarity="manhattan", margin=2.0), 3, distances("MANHATTAN")),
    "MarginMSELoss": LossCase(Ranking(loss="margin_mse", similarity="dot"), 3, peer("MarginMSELoss")),
    "MarginMSELoss, 3 negatives": LossCase(Ranking(loss="margin_mse", similarity="dot", negatives=3), 5, peer("MarginMSELoss")),
    "MarginMSELoss, cosine": LossCase(Ranking(loss="margin_mse"), 3, cosine_margins),
    "DistillKLDivLoss": LossCase(
        Ranking(loss="kl", similarity="dot", temperature=2.0, negatives=3), 5, peer("DistillKLDivLoss", temperature=2.0)
    ),
    "MatryoshkaLoss of MultipleNegativesRankingLoss": LossCase(
        Contrastive(dimensions=SIZES), 2, matryoshka(IN_BATCH, SIZES), divisor=3
    ),
    "MatryoshkaLoss of CoSENTLoss": LossCase(Similarity(dimensions=SIZES), 2, matryoshka(peer("CoSENTLoss"), SIZES), divisor=3),
    "MatryoshkaLoss of MarginMSELoss, cosine": LossCase(
        Ranking(loss="margin_mse", dimensions=SIZES), 3, matryoshka(cosine_margins, SIZES), divisor=3
    ),
}


def of_zoo(case: LossCase, vectors: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Return (loss, gradient of the vectors)."""
    kind = next(
        module.OBJECTIVE
        for module, options in ((contrastive, Contrastive), (ranking, Ranking), (similarity, Similarity))
        if isinstance(case.options, options)
    )
    objective: Any = kind(case.options)
    if isinstance(case.options, Contrastive):
        labels = np.arange(vectors.shape[0] * vectors.shape[1], dtype=np.int32).reshape(vectors.shape[:2])
    batch = Batch(tokens=np.zeros((*vectors.shape[:2], 1), np.int32), labels=jnp.asarray(labels))
    scale = objective.log_scale({})
    value, gradient = jax.value_and_grad(lambda at: objective.row_losses(at, scale, batch).mean())(jnp.asarray(vectors))
    return float(value), np.asarray(gradient)


def of_peer(case: LossCase, vectors: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Return (loss, gradient of the vectors), of sentence-transformers."""
    import sentence_transformers
    import torch

    class Model(torch.nn.Module):
        """In place of their model, which makes the vectors of a column of texts: the vectors themselves."""

        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            return {"sentence_embedding": features["vectors"]}

        def get_embedding_dimension(self) -> int:
            return WIDTH

    columns = [torch.tensor(vectors[:, number], requires_grad=True) for number in range(case.texts)]
    scores = torch.tensor(labels[:, 0] if isinstance(case.options, Similarity) else labels)
    value = case.peer(sentence_transformers, Model())([{"vectors": column} for column in columns], scores) / case.divisor
    value.backward()
    gradients = [column.grad.numpy() for column in columns]  # pyright: ignore[reportOptionalMemberAccess]
    return value.item(), np.stack(gradients, axis=1)


def differences(case: LossCase, seed: int) -> tuple[float, float]:
    """Return the differences of the losses and of the gradients, relative to the greater of 1 and their own size."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(ROWS, case.texts, WIDTH)).astype(np.float32)
    columns = 1 if isinstance(case.options, Similarity) else case.texts - 1
    labels = rng.uniform(-1, 1, (ROWS, columns)).astype(np.float32)
    (value, gradient), (expected, slopes) = (of(case, vectors, labels) for of in (of_zoo, of_peer))
    assert np.abs(slopes).max() > 1e-3, "this case teaches nothing"
    return abs(value - expected) / max(1, abs(expected)), float(np.abs(gradient - slopes).max()) / max(
        1, float(np.abs(slopes).max())
    )


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_sentence_transformers(name: str) -> None:
    pytest.importorskip("sentence_transformers")
    assert max(max(differences(CASES[name], seed)) for seed in range(SEEDS)) < 1e-5


@pytest.mark.parity
@pytest.mark.planted
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("TripletLoss", Ranking(similarity="euclidean", margin=4.9)),
        ("MarginMSELoss", Ranking(loss="margin_mse")),
        ("DistillKLDivLoss", Ranking(loss="kl", similarity="dot", temperature=1.0, negatives=3)),
        ("MultipleNegativesRankingLoss, both directions", Contrastive()),
    ],
)
def test_other_losses_differ_from_them(name: str, wrong: Embedding) -> None:
    pytest.importorskip("sentence_transformers")
    assert max(differences(CASES[name]._replace(options=wrong), 0)) > 1e-3
