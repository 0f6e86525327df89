"""Preferences and rewards: scores and log-probabilities of completions, ties, and the normalization beside the weights."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.inference.completion_scores import PromptCompletion
from eval.tasks import preferences
from eval.tasks.task import Settings
from tests.support import tiny
from tests.support.chat import chat_tokenizer
from tests.support.encoders import loaded
from tests.support.labelled_files import put
from tests.support.preferences import batch, examples, net, tokenizer
from tests.support.small import random_params, small
from train.config import run_config
from train.config.data_options import PreferenceData
from train.data.example_types import Message, Preference
from train.engine import device_mesh
from train.engine.reward_scores import reward_scores
from train.inputs import preference_inputs
from train.rows.seq2seq_rows import SourceTarget, encoder_decoder_row
from train.weights.load import Loaded
from train.weights.reward_scale import RewardScale, read_scale, write_scale
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import Model

MESH = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])


def subject(model: Model, **changes: Any) -> Loaded:
    return Loaded("small", model, random_params(model), tokenizer(model.family), MESH, **changes)


def score(of: Loaded, pairs: Any = None) -> Any:
    return preferences.PREFERENCES.score(of, pairs or examples(), Settings(batch=2), lambda *_: None)


@pytest.mark.parametrize("family", ["gpt", *(pytest.param(name, marks=pytest.mark.full) for name in ("bert", "t5"))])
def test_a_reward_model_prefers_the_higher_score(family: str) -> None:
    of, which = subject(net(family)), batch(family)
    values = np.asarray(reward_scores(of.model, of.params, jax.tree.map(jnp.asarray, which)))
    result = score(of)
    difference = values[:, 0] - values[:, 1]
    assert result.metrics["accuracy"] == (difference > 0).mean() and result.metrics["ties"] == 0
    assert result.metrics["reward_margin"] == pytest.approx(difference.mean(), abs=1e-5)
    assert result.outcomes.right.tolist() == (difference > 0).tolist() and result.outcomes.id[1] == "a.jsonl:1"
    np.testing.assert_allclose(result.outcomes.nats, np.log1p(np.exp(-difference)), atol=1e-5)
    scaled = score(dataclasses.replace(of, reward_scale=RewardScale(gain=2.0, bias=7.0)))
    assert scaled.metrics["reward_margin"] == pytest.approx(2 * result.metrics["reward_margin"])


@pytest.mark.planted
def test_a_tie_is_wrong() -> None:
    of = subject(net("gpt"))
    result = score(dataclasses.replace(of, params=of.params | {"score": {"kernel": jnp.zeros((32, 1))}}))
    assert (result.metrics["accuracy"], result.metrics["ties"], result.metrics["accuracy_stderr"]) == (0.0, 3, 0.0)


def row_nats(of: Loaded, fields: dict[str, Any]) -> float:
    """-log p of the targets that count, in float64."""
    one = jax.tree.map(lambda array: jnp.asarray(array)[None], fields)
    logits = jax.jit(lambda params, one: of.model.unembed(params, of.model.apply(params, Batch(**one)).hidden))(of.params, one)
    logs = np.asarray(jax.nn.log_softmax(logits[0]), np.float64)
    return -float((np.take_along_axis(logs, fields["targets"][:, None], 1)[:, 0] * fields["weights"]).sum())


def test_a_language_model_prefers_the_more_likely_completion() -> None:
    of, expected = subject(small("gpt", context=96)), []
    for pair in examples():
        for text in (pair.chosen, pair.rejected):
            prompt, ids = pair.prompt, of.tokenizer.encode(pair.prompt + text)
            first = len(of.tokenizer.encode(prompt))
            ids = np.append(ids, of.tokenizer.end_of_text).astype(np.int32)
            weights = np.float32(np.arange(1, len(ids)) >= first)
            expected.append(-row_nats(of, {"tokens": ids[:-1], "targets": ids[1:], "weights": weights}))
    differences = np.subtract(*np.reshape(expected, (-1, 2)).T)
    result = score(of)
    assert result.metrics["log_prob_margin"] == pytest.approx(differences.mean(), rel=1e-4)
    assert result.outcomes.right.tolist() == (differences > 0).tolist()
    np.testing.assert_allclose(result.outcomes.nats, -np.array(expected[::2]), rtol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("family", ["t5", "transformer"])
def test_an_encoder_decoder_prefers_the_more_likely_target(family: str) -> None:
    of, expected = subject(small(family)), []
    end = of.tokenizer.end_of_text
    for pair in examples():
        for text in (pair.chosen, pair.rejected):
            sides = SourceTarget(*(np.append(of.tokenizer.encode(side), end).astype(np.int32) for side in (pair.prompt, text)))
            expected.append(row_nats(of, encoder_decoder_row([sides], len(sides.source), len(sides.target), 0)))
    result = score(of)
    assert of.model.task == "text_to_text"
    np.testing.assert_allclose(result.outcomes.nats, expected[::2], rtol=1e-4)
    assert result.metrics["log_prob_margin"] == pytest.approx(np.mean(np.subtract(expected[1::2], expected[::2])), rel=1e-3)


@pytest.mark.parametrize("objective", ["preference", "dpo"])
def test_conversations_are_the_rows_of_training(objective: str) -> None:
    """The pairs are rendered, not their texts joined; a model without a template cannot read them."""
    net = small("gpt", context=96, vocab=300, **({"labels": ("reward",)} if objective == "preference" else {}))
    of = Loaded("small", net, random_params(net), chat_tokenizer(), MESH)
    sides = ((Message("assistant", text),) for text in ("The whale.", "A ship."))
    pair = Preference(origin="a:1", prompt=(Message("user", "What is white?"),), chosen=next(sides), rejected=next(sides))
    rows = preference_inputs.rows_of_preferences(
        [pair], tiny.run(objective, model=net.config, data=PreferenceData(length=64)), chat_tokenizer()
    )
    result, ids = score(of, [pair]), [side.ids for side in rows.rows[0].sides]
    if objective == "preference":
        values = [
            float(reward_scores(net, of.params, Batch(tokens=jnp.asarray(one[None, None]), **_alone(one)))[0, 0]) for one in ids
        ]
        assert result.metrics["reward_margin"] == pytest.approx(values[0] - values[1], abs=1e-5)
    else:
        first = rows.rows[0].sides[0].first
        nats = [
            row_nats(of, {"tokens": one[:-1], "targets": one[1:], "weights": np.float32(np.arange(1, len(one)) >= first)})
            for one in ids
        ]
        assert result.metrics["log_prob_margin"] == pytest.approx(nats[1] - nats[0], rel=1e-4)
    with pytest.raises(BadInput, match=r"^small: no chat template; put the model's chat_template.jinja"):
        score(dataclasses.replace(of, tokenizer=chat_tokenizer(None)), [pair])


def _alone(ids: np.ndarray) -> dict[str, Any]:
    """Return the other fields of a row of one completion, [1, 1, T]."""
    size = len(ids)
    fields = {
        "segments": np.ones(size, np.int32),
        "positions": np.arange(size, dtype=np.int32),
        "summary_at": np.array([size - 1]),
    }
    return {name: jnp.asarray(value[None, None]) for name, value in fields.items()}


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (lambda: loaded("bert"), "--task preferences: a bert for the task masked is neither a reward model nor a"),
        (lambda: loaded("bert", "sequence"), "--task preferences: a bert for the task sequence is neither a reward model"),
        (lambda: subject(small("gpt", labels=("reward",), context=8)), "a.jsonl:.: .* tokens, but the model has 8 positions"),
    ],
)
def test_other_models_and_long_texts_are_refused(of: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        score(of())


def test_scores_are_normalized_over_texts_and_stored(tmp_path: Path) -> None:
    texts = [PromptCompletion(f"a:{n}", "the ", text) for n, text in enumerate(("whale", "ship is old", "white"))]
    of = subject(net("gpt"))

    def run(argument: str, of: Loaded) -> Any:
        return preferences.REWARDS.score(of, texts, Settings(argument=argument), lambda *_: None)

    raw, stored = run("", of), run("normalize", of).reward_scale
    assert raw.reward_scale is None and (raw.metrics["gain"], raw.metrics["bias"]) == (1.0, 0.0)
    write_scale(tmp_path, stored)
    again = run("", dataclasses.replace(of, reward_scale=read_scale(tmp_path, None)))
    assert again.metrics["reward_mean"] == pytest.approx(0, abs=1e-9)
    assert again.metrics["reward_deviation"] == pytest.approx(1, rel=1e-9)
    assert raw.metrics["reward_mean"] * stored.gain + stored.bias == pytest.approx(0, abs=1e-9)
    # Of other parameters it is not used; damaged it is refused.
    assert read_scale(tmp_path, 7) == RewardScale()
    for content in ('{"gain": "1"}', "{", '{"gain": NaN, "bias": 0.0}', '{"gain": 1.0, "other": 2}'):
        (tmp_path / "reward_scale.json").write_text(content)
        with pytest.raises(BadInput, match=r"reward_scale\.json: .*; remove it, or normalize again"):
            read_scale(tmp_path, None)
    with pytest.raises(BadInput, match="all 3 scores are equal"):
        run("normalize", dataclasses.replace(of, params=of.params | {"score": {"kernel": jnp.zeros((32, 1))}}))
    with pytest.raises(BadInput, match="small is not a reward model"):
        run("", subject(small("gpt")))


def test_files_of_the_tasks_are_checked_before_a_model_is_read(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}, {"completion": "c"}])
    assert [(item.prompt, item.completion) for item in preferences.REWARDS.read([str(file)], Settings())] == [
        ("a", "b"),
        ("", "c"),
    ]
    turns = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
    (conversation,) = preferences.REWARDS.read([str(put(tmp_path / "b.jsonl", [turns]))], Settings())
    assert (conversation.prompt, conversation.completion) == ((Message("user", "a"),), (Message("assistant", "b"),))
    file.write_text(json.dumps({"prompt": "a", "completion": " "}))
    for task, settings, message in (
        (preferences.REWARDS, Settings(), "a.jsonl:1: the completion is empty; write one"),
        (preferences.REWARDS, Settings(argument="x"), "task rewards:x: choose rewards:normalize"),
        (preferences.PREFERENCES, Settings(), 'a.jsonl:1: no "chosen"'),
    ):
        with pytest.raises(BadInput, match=message):
            task.read([str(file)], settings)
