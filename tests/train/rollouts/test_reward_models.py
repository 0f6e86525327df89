"""Reward models and classifiers as judges of responses: their scores, what is refused, and their digest."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from eval.commands.predict import predict
from eval.inference.completion_scores import PromptCompletion as Text
from eval.inference.completion_scores import reward_model_scores as evaluated
from tests.support import preferences, published, tiny
from tests.support.chat import chat_tokenizer
from tests.support.encoders import folder, loaded
from tests.support.small import random_params, small
from train.config import run_config
from train.config.data_options import PromptData
from train.config.option_groups import LabelledTexts, Prompts
from train.config.rollout_options import Rollout
from train.data.example_types import Message, Prompt
from train.data.text_files import Document
from train.engine import device_mesh
from train.inputs import prompt_inputs
from train.rollouts import reward_models, rollout_inputs
from train.rollouts.reward_models import Capacity, RewardModel, load_reward_model
from train.rollouts.rewards import Completion, ModelName, RewardFunction, score_completions
from train.rows.mixture import Component, Mixture
from train.run.run_identity import identity_differences
from train.tokenizers.chat_template import with_template
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import Loaded
from train.weights.reward_scale import RewardScale, write_scale
from zoo.errors import BadInput
from zoo.models import model

BYTES = Tokenizer.train([], 257)
MESH = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
PROMPTS = [Prompt(origin=f"p:{n}", prompt=text, columns={}) for n, text in enumerate(("the whale is ", "", "a"))]
TEXTS = ("white", "old", "", "ship", "seen the ship the ship")


def run(tokens: int = 6, truncate: bool = False, **changes: Any) -> run_config.Run:
    rollout, data = Rollout(tokens=tokens, reward_truncate=truncate), PromptData(length=16, batch=4)
    return tiny.run("policy_gradient", model=small("gpt").config, rollout=rollout, data=data, precision="float32", **changes)


def subject(family: str, mesh: Any = MESH) -> Loaded:
    model = preferences.net(family)
    scale = RewardScale(gain=2.0, bias=-1.0)
    return Loaded("small", model, random_params(model), preferences.tokenizer(family), mesh, reward_scale=scale)


def reward_model(monkeypatch: pytest.MonkeyPatch, of: Loaded, label: str | None = None, **options: Any) -> RewardModel:
    monkeypatch.setattr(reward_models, "load_model", lambda name, mesh: of)
    monkeypatch.setattr(reward_models, "digest_of_parameters", lambda name: "parameters")
    return load_reward_model(ModelName("judge", 1.0, label), Capacity.of_run(run(**options)), of.mesh, PROMPTS, BYTES)


def completions() -> list[Completion]:
    """Return completions of prompts of every kind, more than there are rows in a batch."""
    return [Completion(PROMPTS[n % len(PROMPTS)], text, []) for n, text in enumerate(TEXTS)]


def expected(of: Loaded) -> np.ndarray:
    """Return the normalized scores as `zoo eval --task rewards` computes them."""
    texts = [Text(item.prompt.origin, item.prompt.prompt, item.text) for item in completions()]
    raw = evaluated(of, texts, batch=len(texts), dtype=np.float32, progress=lambda *_: None)
    return 2.0 * raw - 1.0


ENCODERS = ("bert", "roberta", "distilbert", "modernbert", "xlnet")
OTHERS = (*ENCODERS, "ettin_decoder", "llama", "t5", "transformer")


@pytest.mark.parametrize("family", ["gpt", "bert", *(pytest.param(name, marks=pytest.mark.full) for name in OTHERS[1:])])
def test_scores_are_those_of_zoo_eval_in_batches_of_fixed_size(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = subject(family)
    judge = reward_model(monkeypatch, of)
    assert judge.rows == 4 < len(TEXTS)
    scores = judge.scores(completions()).values
    # Rows are padded to other lengths: float32 rounding of scores of order 1, times the gain.
    np.testing.assert_allclose(scores, expected(of), atol=4e-5)
    np.testing.assert_allclose(judge.scores(completions()[4:]).values, scores[4:], atol=4e-5)
    assert judge.own_tokenizer == (family not in ("gpt", "llama"))


@pytest.mark.planted(2)
def test_another_position_and_a_lost_normalization_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    of = subject("gpt")
    plain = reward_model(monkeypatch, dataclasses.replace(of, reward_scale=RewardScale()))
    assert np.abs(plain.scores(completions()).values - expected(of)).max() > 1e-3
    build = reward_models._row_builder

    def one_early(*arguments: Any) -> Any:
        def row(side: Any) -> dict[str, Any]:
            fields = build(*arguments)(side)
            return fields | {"summary_at": fields["summary_at"] - 1}

        return row

    monkeypatch.setattr(reward_models, "_row_builder", one_early)
    assert np.abs(reward_model(monkeypatch, of).scores(completions()).values - expected(of)).max() > 1e-3


def log_probabilities(of: Loaded, label: str, *, pair: bool = False) -> np.ndarray:
    """Return the logarithms of the probabilities of a label that `zoo predict` prints for `completions`, those with text."""
    items = [item for item in completions() if item.text]
    if pair:
        predicted = [next(iter(predict(of, texts=[item.prompt.prompt], pair=item.text))) for item in items]
    else:
        predicted = list(predict(of, texts=[item.prompt.prompt + item.text for item in items]))
    return np.log([prediction["probabilities"][label] for prediction in predicted])


def label_scores(judge: RewardModel) -> np.ndarray:
    return judge.scores([item for item in completions() if item.text]).values


@pytest.mark.parametrize("family", ["bert", *(pytest.param(name, marks=pytest.mark.full) for name in ENCODERS[1:])])
def test_a_classifier_gives_the_log_probability_that_zoo_predict_prints(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = loaded(family, "sequence")
    label = of.model.config.labels[1]
    judge = reward_model(monkeypatch, of, label)
    assert str(judge) == f"judge:{label} ({family}, log-probability of the label, with its own tokenizer)"
    np.testing.assert_allclose(label_scores(judge), log_probabilities(of, label), atol=1e-5)


def test_a_classifier_of_pairs_reads_prompt_and_completion_as_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    of = loaded("bert", "sequence")
    of = dataclasses.replace(of, run=tiny.run("classification", model=of.model.config, labelled=LabelledTexts(pair="second")))
    judge = reward_model(monkeypatch, of, "yes")
    # Without an empty prompt, which a pair does not have.
    monkeypatch.setitem(globals(), "PROMPTS", PROMPTS[::2])
    np.testing.assert_allclose(label_scores(judge), log_probabilities(of, "yes", pair=True), atol=1e-5)


def test_labels_of_a_classifier_of_several_have_probabilities_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    of = loaded("bert", "sequence")
    of = dataclasses.replace(of, model=model(dataclasses.replace(of.model.config, multi_label=True)))
    scores = label_scores(reward_model(monkeypatch, of, "no"))
    np.testing.assert_allclose(scores, log_probabilities(of, "no"), atol=1e-5)


@pytest.mark.planted(3)
def test_another_label_a_probability_and_two_texts_in_place_of_one_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    of = loaded("bert", "sequence")
    expected = log_probabilities(of, "perhaps")
    judge = reward_model(monkeypatch, of, "perhaps")
    for wrong in (dataclasses.replace(judge, label=0), dataclasses.replace(judge, joined=False)):
        assert np.abs(label_scores(wrong) - expected).max() > 1e-3
    log_probs = reward_models.label_log_probs
    monkeypatch.setattr(reward_models, "label_log_probs", lambda *arguments: jax.numpy.exp(log_probs(*arguments)))
    assert np.abs(label_scores(reward_model(monkeypatch, of, "perhaps")) - expected).max() > 1e-3


def test_a_classifier_cuts_or_refuses_long_prompts_as_other_models_do(monkeypatch: pytest.MonkeyPatch) -> None:
    of = loaded("bert", "sequence")
    monkeypatch.setitem(globals(), "PROMPTS", [dataclasses.replace(PROMPTS[0], prompt="the whale is seen")])
    where = r"--rollout\.reward judge:perhaps: p:0"
    with pytest.raises(BadInput, match=f"{where}: a prompt of 4 tokens, and the .* have room for 2 beside"):
        reward_model(monkeypatch, of, "perhaps", tokens=36)
    judge = reward_model(monkeypatch, of, "perhaps", tokens=36, labelled=Prompts(truncate=True))
    cut = dataclasses.replace(PROMPTS[0], prompt="is seen")
    scores = [judge.scores([Completion(prompt, " by the ship", [])]).values for prompt in (PROMPTS[0], cut)]
    np.testing.assert_array_equal(*scores)


@pytest.mark.full
def test_devices_and_micro_batches_change_scores_only_by_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    of = subject("gpt", device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:2]))
    scores = reward_model(monkeypatch, of, accumulate=2).scores(completions()).values
    np.testing.assert_allclose(scores, expected(of), atol=4e-5)


def test_most_batches_have_one_shape_and_longer_ones_double_it(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = reward_model(monkeypatch, subject("gpt"), tokens=5)
    sizes = judge.sizes
    # The longest prompt has 13 bytes, a response up to 5, and the end mark follows.
    assert (sizes.length, sizes.limit) == (13 + 5 + 1, 96)
    assert [sizes.fit(needed) for needed in (1, 19, 20, 77, 96)] == [19, 19, 38, 96, 96]
    shapes = []

    def score(params: Any, batch: Any) -> Any:
        shapes.append(batch.tokens.shape)
        return np.zeros(4)

    monkeypatch.setitem(judge.__dict__, "_program", score)
    judge.scores(completions())
    assert shapes == [(4, 1, 19), (4, 1, 38)]


def test_a_text_that_does_not_fit_is_refused_with_its_lengths_or_its_prompt_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("gpt", labels=("reward",), context=16)
    of = dataclasses.replace(subject("gpt"), model=model, params=random_params(model))
    where = "--rollout.reward judge: "
    with pytest.raises(BadInput, match=f"{where}p:0: a prompt of 13 tokens, and the reward model's 16 positions have room for 9"):
        reward_model(monkeypatch, of)
    with pytest.raises(BadInput, match=f"{where}the reward model has 16 positions, which leave no room .* --rollout.tokens 15"):
        reward_model(monkeypatch, of, tokens=15)
    judge = reward_model(monkeypatch, of, labelled=Prompts(truncate=True))
    cut = Completion(dataclasses.replace(PROMPTS[0], prompt=" whale is "), "old", [])
    fits = Completion(PROMPTS[0], "old", [])
    np.testing.assert_array_equal(judge.scores([fits]).values, judge.scores([cut]).values)
    # White space at the end of a prompt is read with the response, so that more of the prompt is cut, up to its last token.
    short = dataclasses.replace(PROMPTS[0], prompt="s ")
    longer = [judge.scores([Completion(prompt, "seen the ship", [])]).values for prompt in (PROMPTS[0], short)]
    np.testing.assert_array_equal(longer[0], longer[1])
    message = f"{where}p:0: 22 tokens with the completion 'seen the ship again', and .* has 16.* --rollout.reward-truncate to "
    with pytest.raises(BadInput, match=message):
        judge.scores([Completion(PROMPTS[0], "seen the ship again", [])])


def test_the_end_of_a_long_response_is_cut_and_counted_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prompt and its end mark remain."""
    model = small("gpt", labels=("reward",), context=21)
    of = dataclasses.replace(subject("gpt"), model=model, params=random_params(model))
    judge = reward_model(monkeypatch, of, truncate=True)
    texts = ["seen the ship again and again", "seen the ship again", "old"]
    scores = judge.scores([Completion(PROMPTS[2], text, []) for text in texts])
    assert scores.truncated.tolist() == [True, False, False] and scores.values[0] == scores.values[1] != scores.values[2]
    both = score_completions(
        [RewardFunction("f", lambda ids, **_: [1.0] * len(ids)), judge], [Completion(PROMPTS[2], texts[0], [])]
    )
    assert both.truncated.tolist() == [True] and both.values == 1 + scores.values[:1]
    # A run that met such a response continues with the option under the same name.
    assert not identity_differences(run(), run(truncate=True))


def test_prompts_that_were_left_out_have_no_part_in_the_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(labelled=Prompts(skip_bad=True))
    rows = prompt_inputs.rows_of_prompts(PROMPTS, made, BYTES)
    seen: list[Any] = []
    monkeypatch.setattr(rollout_inputs, "find_rewards", lambda names: (ModelName("judge", 1.0),))

    def load(judge: ModelName, capacity: Capacity, mesh: Any, prompts: Any, tokenizer: Tokenizer) -> RewardFunction:
        seen.extend(prompts)
        return RewardFunction("judge", len)

    monkeypatch.setattr(rollout_inputs, "load_reward_model", load)
    mixture = Mixture((Component("p", 1.0, [Document("p", "")], rows),))
    rollout_inputs.with_judges(made, MESH, prompt_inputs.PromptInputs(BYTES, mixture, rows))
    assert seen == PROMPTS[1:] * 2


@pytest.mark.planted
@pytest.mark.parametrize("family", ["gpt", pytest.param("bert", marks=pytest.mark.full)])
def test_a_conversation_has_the_score_of_its_row_in_training(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end mark of another template would give another score."""
    of = subject(family)
    if family == "gpt":
        net = small("gpt", labels=("reward",), context=96, vocab=300)
        of = dataclasses.replace(of, model=net, params=random_params(net), tokenizer=chat_tokenizer())
    else:
        of = dataclasses.replace(of, tokenizer=with_template(of.tokenizer, "builtin"))
    messages = (Message("user", "the old ship"),)
    monkeypatch.setitem(globals(), "PROMPTS", [Prompt(origin="p:0", prompt="", columns={}, messages=messages)])
    judge, answer = reward_model(monkeypatch, of, tokens=9), [Completion(PROMPTS[0], "is white", [])]
    text = Text("p:0", messages, (Message("assistant", "is white"),))
    raw = evaluated(of, [text], batch=1, dtype=np.float32, progress=lambda *_: None)
    np.testing.assert_allclose(judge.scores(answer).values, 2.0 * raw - 1.0, atol=4e-5)
    if family == "gpt":
        assert abs(dataclasses.replace(judge, end=None).scores(answer).values - 2.0 * raw + 1.0) > 1e-3
        assert judge.digest != reward_model(monkeypatch, dataclasses.replace(of, tokenizer=chat_tokenizer("x"))).digest


def test_a_message_that_spells_a_special_token_of_the_reward_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    of, message = subject("bert"), Message("user", "Who [SEP] is it?")
    conversation = Prompt(origin="p:0", prompt="", columns={}, messages=(message,))
    monkeypatch.setitem(globals(), "PROMPTS", [conversation])
    with pytest.raises(BadInput, match=r"--rollout\.reward judge: p:0: message 1 spells the special token \[SEP\]; write"):
        reward_model(monkeypatch, of)


@pytest.mark.parametrize(
    ("of", "label", "message"),
    [
        (lambda: subject("gpt", MESH), None, ""),
        (
            lambda: subject("gpt", MESH),
            "reward",
            ":reward: a gpt for the task sequence gives one score and has no labels .* write judge",
        ),
        (
            lambda: loaded("bert"),
            None,
            ": a bert for the task masked gives no single score; name a run of the recipe reward-model",
        ),
        (
            lambda: loaded("bert"),
            "1",
            ":1: a bert for the task masked gives no single score; name a run of the recipe reward-model",
        ),
        (
            lambda: loaded("bert", "sequence"),
            None,
            r": a bert for the task sequence with 3 labels \(.*\) gives no single score; name the label .* such as judge:yes",
        ),
        (lambda: loaded("bert", "sequence"), "", ":: the classifier has no label ''; choose one of no, perhaps, yes"),
        (lambda: loaded("bert", "sequence"), "good", ":good: the classifier has no label 'good'; choose one of no, perhaps, yes"),
    ],
)
def test_a_model_without_one_score_is_refused_by_name(
    of: Any, label: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not message:
        assert str(reward_model(monkeypatch, of())) == "judge (gpt, normalized)"
        return
    with pytest.raises(BadInput, match=f"--rollout.reward judge{message}"):
        reward_model(monkeypatch, of(), label)


def test_folders_are_loaded_and_their_digest_changes_with_weights_and_normalization(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    numbers = published.GPT2 | {"vocab_size": 257, "n_positions": 32}
    for name, task, factor in (("judge", "sequence", 1.0), ("other", "sequence", 2.0), ("words", "causal", 1.0)):
        published.write(tmp_path / name, published.config("gpt", task, numbers), factors={"score.weight": factor})
        BYTES.save(tmp_path / name)
    published.write(tmp_path / "nan", published.config("gpt", "sequence", numbers), factors={"score.weight": float("nan")})
    BYTES.save(tmp_path / "nan")
    (tmp_path / "empty").mkdir()

    def digest(name: str) -> str:
        return load_reward_model(ModelName(name, 1.0), Capacity.of_run(run()), MESH, PROMPTS, BYTES).digest

    digests = [digest("judge"), digest("judge"), digest("other")]
    write_scale(tmp_path / "judge", RewardScale(gain=2.0, bias=0.5))
    digests.append(digest("judge"))
    assert digests[0] == digests[1] and len(set(digests)) == 3
    for name, message in (
        ("words", "a gpt for the task causal gives no single score"),
        ("nan", ".*score.weight.*"),
        ("empty", ".*config.json"),
    ):
        with pytest.raises(BadInput, match=f"--rollout.reward {name}: {message}") as refusal:
            digest(name)
        assert "\n" not in str(refusal.value)
    folder(tmp_path / "classifier", "bert", "sequence")
    labels = [
        load_reward_model(ModelName("classifier", 1.0, label), Capacity.of_run(run()), MESH, PROMPTS, BYTES).digest
        for label in ("no", "yes")
    ]
    assert len(set(labels)) == 2
    content = json.loads((tmp_path / "judge" / "config.json").read_text()) | {"id2label": {"0": "a", "1": "b"}}
    (tmp_path / "judge" / "config.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"--rollout\.reward judge: .*id2label"):
        digest("judge")
