"""The held-out scores of cross-encoders, against loops over logits of single pairs."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from eval.tasks.held_out import rerank_scores
from eval.tasks.held_out.scoring_inputs import ScoringInputs
from tests.eval.tasks.test_embedding_scores import MESHES, WORDPIECE, ranked_examples
from tests.support import tiny
from tests.support.small import random_params, small
from train.config.data_options import LabelledData
from train.config.rerank_options import Rerank
from train.engine import device_mesh
from train.inputs.labelled_inputs import rows_of_labels
from train.objectives import objective
from train.run.metric_definitions import METRICS, validation_metrics
from zoo.batch import Batch
from zoo.models import model
from zoo.nn import task_heads

NET = small("bert", task="sequence", labels=("score",), layers=1, vocab=WORDPIECE.vocab_size)
RUN = tiny.run("rerank", model=NET.config, data=LabelledData(length=32, batch=4), rerank=Rerank(loss="pairwise"))


def score(batch: int, devices: int) -> Any:
    mesh = device_mesh.make_mesh(MESHES[devices], jax.devices()[:devices])
    build = objective("rerank").builder(RUN, WORDPIECE, lambda: np.zeros(0, np.int64))
    rows = rows_of_labels(ranked_examples(), RUN, WORDPIECE)
    options: dict[str, Any] = {"build": build, "batch": batch, "dtype": jnp.float32}
    inputs = ScoringInputs(run=RUN, model=model(RUN.model), mesh=mesh, data=None, rows=rows, **options)
    params = jax.device_put(random_params(NET), NamedSharding(mesh, PartitionSpec()))
    score_of = rerank_scores.score_rerank(inputs)
    # A run scores under this guard.
    with jax.transfer_guard("disallow"):
        return score_of(params)


@jax.jit
def logit_of(tokens: Any, types: Any) -> Any:
    batch = Batch(tokens=tokens, types=types)
    summaries = task_heads.sequence_summaries(NET.apply(random_params(NET), batch), batch)
    return NET.sequence_logits(random_params(NET), summaries)[0, 0, 0]


def logit(query: str, text: str) -> float:
    ids, types = WORDPIECE.special_tokens.pair(WORDPIECE.encode(query), WORDPIECE.encode(text))  # pyright: ignore
    return float(logit_of(ids[None], types[None]))


def test_positives_are_ranked_among_the_candidates_of_their_query() -> None:
    pairs = [(logit(each.query, each.positive), logit(each.query, each.negatives[0])) for each in ranked_examples()]
    losses = [math.log(1 + math.exp(negative - positive)) for positive, negative in pairs]
    right = np.array([positive > negative for positive, negative in pairs])
    expected = {"loss": np.mean(losses), "accuracy": right.mean(), "mrr": np.where(right, 1, 0.5).mean(), "examples": 11}
    for batch, devices in ((16, 1), (3, 1), (8, 4)):
        measured = score(batch, devices)
        assert measured.record() == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(measured.outcomes.nats, losses, rtol=1e-4)
        assert measured.outcomes.right.tolist() == right.tolist()
    assert 0 < expected["accuracy"] < 1
    assert {name for name in measured.record() if name in METRICS and METRICS[name].better} == set(validation_metrics(RUN))


@pytest.mark.planted
def test_equal_scores_rank_the_positive_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that scores all candidates alike, or by NaN, has no right answer."""

    class Equal:
        def __init__(self, value: float) -> None:
            self.value = value

        def all_results(self, params: Any, rows: Any, *rest: Any, **options: Any) -> np.ndarray:
            return np.full((len(rows), 2), self.value)

    for value in (1, np.nan):
        loop = Equal(value)
        monkeypatch.setattr(rerank_scores, "logits_loop", lambda *arguments, loop=loop: loop)
        numbers = score(16, 1).record()
        assert (numbers["accuracy"], numbers["mrr"]) == (0, 0.5)
