"""The scores of late interaction on held-out rows, against loops over the tokens of single texts."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from eval.tasks.held_out import late_interaction_scores
from eval.tasks.held_out.scoring_inputs import ScoringInputs
from tests.eval.tasks.test_embedding_scores import NET, WORDPIECE, hidden_of, ranked_examples
from tests.support import tiny
from tests.support.small import random_params
from train.config import run_config
from train.config.data_options import LabelledData
from train.config.late_interaction_options import LateInteraction
from train.engine import device_mesh
from train.engine.token_projection import PROJECTION
from train.inputs.labelled_inputs import LabelledRows, rows_of_labels
from train.objectives import objective
from train.rows.late_interaction_rows import PUNCTUATION
from train.run.metric_definitions import METRICS, validation_metrics

OPTIONS = LateInteraction(
    dimensions=6, negatives=1, temperature=0.5, query_length=14, query_expansion=False, document_prompt="the ship: "
)
RUN = tiny.run("late_interaction", model=NET.config, data=LabelledData(length=24, batch=4), late_interaction=OPTIONS)
KERNEL = np.random.default_rng(2).normal(size=(32, 6)).astype(np.float32)


def tokens_of(text: str, *, is_query: bool) -> np.ndarray:
    """The vectors that are compared, of length 1, in float64."""
    assert WORDPIECE.special_tokens is not None
    ids, _ = WORDPIECE.special_tokens.single(WORDPIECE.encode(("" if is_query else OPTIONS.document_prompt) + text))
    pad = (0, 24 - len(ids))
    hidden = hidden_of(random_params(NET), np.pad(ids, pad)[None], np.pad(np.ones_like(ids), pad)[None])
    vectors = np.asarray(hidden, np.float64)[0, : len(ids)] @ KERNEL.astype(np.float64)
    compared = [is_query or entry not in PUNCTUATION for entry in WORDPIECE.entries(ids)]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[compared]


def measured(rows: LabelledRows) -> Any:
    mesh = device_mesh.make_mesh(run_config.Mesh(data=1), jax.devices()[:1])
    build = objective("late_interaction").builder(RUN, WORDPIECE, lambda: np.zeros(0, np.int64))
    inputs = ScoringInputs(run=RUN, model=NET, mesh=mesh, data=None, rows=rows, build=build, batch=5, dtype=jnp.float32)
    params = random_params(NET) | {PROJECTION: {"kernel": KERNEL}}
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    # A run scores under this guard.
    with jax.transfer_guard("disallow"):
        return late_interaction_scores.score_late_interaction(inputs)(params)


def check() -> None:
    examples = ranked_examples()
    rows = rows_of_labels(examples, RUN, WORDPIECE)
    queries = [tokens_of(each.query, is_query=True) for each in examples]
    texts = {text for each in examples for text in (each.positive, *each.negatives)}
    documents = {text: tokens_of(text, is_query=False) for text in texts}
    ranks, losses = [], []
    for number, (query, each) in enumerate(zip(queries, examples, strict=True)):
        scores = {text: sum((document @ token).max() for token in query) for text, document in documents.items()}
        own = scores[each.positive]
        ranks.append(1 + sum(score > own for text, score in scores.items() if text != each.positive))
        group = examples[number // 4 * 4 :][:4]
        others = [text for other in group for text in (other.positive, *other.negatives) if text != each.positive]
        losses.append(math.log(sum(math.exp((scores[text] - own) / 0.5) for text in others) + 1))
    score = measured(rows)
    expected = {"loss": np.mean(losses), "accuracy": np.mean(np.array(ranks) == 1), "mrr": np.mean(1 / np.array(ranks))}
    assert score.record() == pytest.approx({**expected, "examples": 11}, rel=1e-5)
    np.testing.assert_allclose(score.outcomes.nats, losses, rtol=1e-5)
    assert {name for name in score.record() if name in METRICS and METRICS[name].better} == set(validation_metrics(RUN))


def test_queries_are_ranked_among_all_held_out_documents() -> None:
    check()


ranks_of = late_interaction_scores.positive_ranks


@pytest.mark.planted
@pytest.mark.parametrize(
    "wrong",
    [
        # Equal texts of different rows compete, and ties count.
        lambda vectors, texts, *more: ranks_of(vectors, np.arange(texts.size).reshape(texts.shape), *more),
        lambda vectors, texts, compared, length: ranks_of(vectors[:, : length + 24], texts[:, :2], compared[:, :2], length),
        lambda vectors, texts, compared, length: ranks_of(vectors[::-1], texts, compared, length),
    ],
)
def test_wrong_candidates_are_noticed(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_interaction_scores, "positive_ranks", wrong)
    with pytest.raises(AssertionError):
        check()


def test_equal_documents_rank_before_the_positive() -> None:
    vectors = np.ones((3, 4 + 5, 2), np.float32) / 2**0.5
    ranks = ranks_of(vectors, np.arange(6).reshape(3, 2), np.ones((3, 2, 5), bool), 4)
    assert ranks.tolist() == [3, 3, 3]
