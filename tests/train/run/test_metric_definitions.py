"""What a score says of a model in words, beside what is reached without learning anything."""

from typing import Any

import numpy as np
import pytest

from eval.tasks.held_out import language_model_scores, masked_lm_scores, policy_scores, preference_scores
from tests.support import tiny
from tests.support.small import small
from train.config.kto_options import Kto
from train.config.objectives import OPTIONS
from train.objectives import objectives
from train.run.metric_definitions import METRICS, score_notices, validation_metrics

LEARNED = {"accuracy": 0.9, "majority_share": 0.6, "predicted_share": 0.62, "examples": 100}
DOUBTS: list[tuple[dict[str, Any], str]] = [
    ({"predicted_share": 1.0}, "one class is predicted for 100.0% of the examples, and no class has more than 60.0% of them"),
    ({"predicted_share": 0.98}, "one class is predicted for 98.0% of the examples"),
    ({"accuracy": 0.6}, "accuracy 0.6000 is not above the share of the most frequent class, 0.6000; try another --optim.lr"),
    ({"f1_micro": 0.0}, "no label is predicted correctly"),
    ({"entity_f1": 0.0}, "no entity is predicted correctly"),
]


@pytest.mark.planted(len(DOUBTS))
@pytest.mark.parametrize(("changes", "message"), DOUBTS)
def test_a_model_that_learned_nothing_is_noticed(changes: dict[str, Any], message: str) -> None:
    (line,) = score_notices(LEARNED | changes)
    assert line.startswith(message)


def test_a_model_that_learned_something_is_not() -> None:
    alone = {"majority_share": 1.0, "accuracy": 1.0, "predicted_share": 1.0}
    for numbers in (LEARNED, LEARNED | {"predicted_share": 0.97}, LEARNED | alone, {"loss": 1.0, "accuracy": 0.1}):
        assert score_notices(numbers) == []


WORDS = dict(masked_nats=1.0, hits=1.0, unigram_nats=1.0, predictions=1.0, next_nats=1.0, next_hits=1.0)
TEXT = dict(nats=1.0, tokens=1, bytes=1)
SCORES: list[tuple[str, str, str, Any]] = [
    ("causal", "gpt", "", language_model_scores.TextScore(**TEXT)),
    ("masked", "bert", "masked", masked_lm_scores.MaskedScore(**WORDS, pairs=0.0)),
    ("masked", "bert", "pretraining", masked_lm_scores.MaskedScore(**WORDS, pairs=1.0)),
    ("permutation", "xlnet", "masked", masked_lm_scores.MaskedScore(**WORDS, pairs=0.0)),
    ("distilled", "distilbert", "masked", masked_lm_scores.MaskedScore(**WORDS, pairs=0.0)),
    ("denoising", "t5", "", language_model_scores.TargetScore(**TEXT)),
    ("text_to_text", "t5", "", language_model_scores.TargetScore(**TEXT)),
    ("instruction", "gpt", "", language_model_scores.TargetScore(**TEXT)),
    *(
        (name, "gpt", "", policy_scores.policy_metrics(rewards=1.0, tokens=1, unended=0, prompts=1))
        for name in ("policy_gradient", "ppo")
    ),
    ("dpo", "gpt", "", preference_scores.dpo_metrics(dict.fromkeys(preference_scores.SUMS, 1.0), sft=0.0)),
    ("kto", "gpt", "", preference_scores.kto_metrics(np.array([[1, 1], [0, 1], [0, 1], [0, 1], [2, 2]], np.float64), Kto())),
]


def test_the_metrics_that_may_select_a_checkpoint_are_those_that_are_measured() -> None:
    """Those of labelled examples are compared where these are scored."""
    for objective, family, task, measured in SCORES:
        run = tiny.run(objective=objective, model=small(family, **({"task": task} if task else {})).config)
        judged = [name for name in measured.record() if name in METRICS and METRICS[name].better]
        assert set(validation_metrics(run)) == set(judged)
    assert {name for name in objectives() if not OPTIONS[name].metrics} == {"classification", "tagging"}
