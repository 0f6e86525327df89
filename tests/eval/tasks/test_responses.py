"""Sampled responses: their rewards, the best of several, and the KL divergence from a reference."""

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.tasks import responses
from eval.tasks.task import Result, Settings
from tests.support import preferences, published
from tests.support.encoders import folder
from tests.support.labelled_files import put
from tests.support.small import random_params, small
from train.config import run_config
from train.config.rollout_options import JudgedResponses
from train.engine import device_mesh
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import Loaded
from zoo.batch import Batch
from zoo.errors import BadInput

MESH = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
BYTES = Tokenizer.train([], 257)
PROMPTS = [{"prompt": text, "bonus": n} for n, text in enumerate(("the ", "a whale ", "", "old"))]


def length_and_bonus(completions: list[str], ids: list[list[int]], bonus: list[int], **_: Any) -> list[float]:
    assert len(completions) == len(ids)
    return [len(tokens) + 0.1 * number for tokens, number in zip(ids, bonus, strict=True)]


def first_id(ids: list[list[int]], **_: Any) -> list[float]:
    return [float(tokens[0]) if tokens else 0.0 for tokens in ids]


@pytest.fixture(autouse=True)
def judging(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("judging")
    module.length_and_bonus, module.first_id = length_and_bonus, first_id
    monkeypatch.setitem(sys.modules, "judging", module)


def subject(family: str = "gpt", seed: int = 0) -> Loaded:
    words = BYTES if family == "gpt" else preferences.tokenizer(family)
    model = small(family, vocab=words.vocab_size)
    params = jax.tree.map(lambda leaf: leaf * (1 + seed), random_params(model))
    return Loaded("small", model, params, words, MESH)


def result(of: Loaded, tmp_path: Path, *, batch: int = 3, **options: Any) -> Result:
    file = put(tmp_path / "p.jsonl", PROMPTS)
    values = {"reward": ("judging:length_and_bonus", "judging:first_id@0"), "samples": 5, "tokens": 6}
    settings = Settings(batch=batch, rollout=JudgedResponses(**{**values, **options}))
    return responses.TASK.score(of, responses.TASK.read([str(file)], settings), settings, lambda *_: None)


@pytest.mark.parametrize("family", ["gpt", pytest.param("t5", marks=pytest.mark.full)])
def test_rewards_and_the_divergence(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rewards are those of the functions, in batches of any size; a model has no divergence from itself."""
    of = subject(family)
    monkeypatch.setattr(responses, "load_model", lambda name, mesh: of)
    one, other = (result(of, tmp_path, batch=batch, reference="ref") for batch in (3, 20))
    assert one.metrics == other.metrics and one.details == other.details and one.examples == 4
    assert one.metrics["kl"] == 0
    assert one.metrics["reward"] == pytest.approx(one.details["best of n"]["1"]["reward"])
    # The lengths are those without end marks; the bonus of the four prompts has the mean 0.15.
    tokens = one.metrics["response_length"] - (1 - one.metrics["unended_share"])
    assert one.metrics["reward"] == pytest.approx(tokens + 0.15)
    assert result(of, tmp_path, seed=1).details["texts"] != one.details["texts"]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_divergence_is_the_mean_log_ratio_at_the_temperature(
    temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is computed again from the logits of each text, without batches and padding, in float64."""
    of, reference = subject(), subject(seed=1)
    monkeypatch.setattr(responses, "load_model", lambda name, mesh: reference)
    texts: list[Any] = []
    original = responses.sample_responses

    def sample(*arguments: Any) -> Any:
        sampled = original(*arguments)
        texts.extend(response.row.with_response(response.ids) for response in sampled)
        return sampled

    monkeypatch.setattr(responses, "sample_responses", sample)
    value = result(of, tmp_path, reference="ref", temperature=temperature).metrics["kl"]

    def log_prob(loaded: Loaded, side: Any) -> float:
        hidden = loaded.model.apply(loaded.params, Batch(tokens=jnp.asarray(side.ids)[None])).hidden
        logits = np.asarray(loaded.model.unembed(loaded.params, hidden)[0, :, : BYTES.vocab_size], np.float64) / temperature
        logs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        return float(logs[np.arange(side.first - 1, len(side.ids) - 1), side.ids[side.first :]].sum())

    expected = np.mean([log_prob(of, side) - log_prob(reference, side) for side in texts])
    assert len(texts) == 20 and value == pytest.approx(expected, abs=1e-4) and value > 0.1


def test_the_best_of_n() -> None:
    rng = np.random.default_rng(0)
    total, other = rng.standard_normal((2, 50, 5))
    table = responses.best_of(total, {"a": total, "b": -np.abs(other)}, {"b"})
    assert list(table) == ["1", "2", "4"]
    pairs = [(row, start + int(np.argmax(total[row, start : start + 2]))) for row in range(50) for start in (0, 2)]
    chosen = tuple(np.array(pairs).T)
    assert table["2"]["reward"] == table["2"]["a"] == pytest.approx(total[chosen].mean())
    assert table["2"]["b"] == pytest.approx(-np.abs(other)[chosen].mean())
    assert table["2"]["b > 1/2"] == (-np.abs(other)[chosen] > np.log(0.5)).mean()
    assert table["1"]["reward"] == pytest.approx(total.mean()) and table["1"]["kl bound"] == 0
    # The divergence of the better of two from one, log 2 - 1/2, is reached if no two responses are equal.
    assert table["2"]["kl bound"] == pytest.approx(np.log(2) - 0.5) and "a > 1/2" not in table["4"]


@pytest.mark.planted(2)
def test_a_choice_by_another_judge_and_by_the_least_are_noticed() -> None:
    rng = np.random.default_rng(1)
    total, other = rng.standard_normal((2, 200, 4))
    right = responses.best_of(total, {"b": other}, set())["4"]
    # The expected maximum of four normal numbers is 1.03; the other judge is independent of the choice.
    assert right["reward"] == pytest.approx(1.03, abs=0.15) and abs(right["b"]) < 0.25
    assert abs(responses.best_of(other, {"b": total}, set())["4"]["b"] - right["reward"]) > 0.5
    assert abs(-responses.best_of(-total, {"b": other}, set())["4"]["reward"] - right["reward"]) > 0.5


def test_a_classifier_has_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "judge", "bert", "sequence")
    made = result(subject(), tmp_path, reward=("./judge:yes", "./judge:no@0"))
    row = made.details["best of n"]["4"]
    assert {"./judge:yes > 1/2", "./judge:no > 1/2"} <= row.keys() and row["reward"] == row["./judge:yes"] < 0
    assert list(made.items) == ["judge ./judge:yes", "judge ./judge:no"]
    json.dumps(dataclasses.asdict(made)["details"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": ()}, "--rollout.reward : .* name a judge, or a --rollout.reference"),
        ({"reward": ("judging:absent",)}, "--rollout.reward judging:absent: .* has no function absent"),
        ({"tokens": 30}, r"p\.jsonl:2: a prompt of 8 tokens, .* --rollout.tokens 30 more than the model's 32 positions; shorten"),
        ({"samples": 0}, "--rollout.samples 0: choose 1"),
        ({"temperature": 0.0}, "--rollout.temperature 0.0: responses are sampled"),
    ],
)
def test_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        result(subject(), tmp_path, **options)


def test_models_and_references_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert = Loaded("small", small("bert"), {}, preferences.tokenizer("bert"), MESH)
    with pytest.raises(
        BadInput, match=r"--task responses: small is a bert for the task pretraining, which does not generate; choose"
    ):
        result(bert, tmp_path)
    monkeypatch.chdir(tmp_path)
    published.write(tmp_path / "other", published.config("gpt", "causal", published.GPT2 | {"vocab_size": 300}))
    Tokenizer.train(["the whale " * 50], 300).save(tmp_path / "other")
    with pytest.raises(BadInput, match=r"--rollout.reference other: it has another tokenizer"):
        result(subject(), tmp_path, reference="other")
    short = dataclasses.replace(subject(), model=small("gpt", vocab=BYTES.vocab_size, context=12))
    monkeypatch.setattr(responses, "load_model", lambda folder, mesh: short)
    with pytest.raises(BadInput, match=r"p\.jsonl:2: a prompt of 8 tokens, .* more than the reference's 12 positions"):
        result(subject(), tmp_path, reference="short")
    for name, of in (("bert", bert), ("t5", subject("t5"))):
        monkeypatch.setattr(responses, "load_model", lambda folder, mesh, of=of: of)
        with pytest.raises(BadInput, match=rf"--rollout.reference {name}: a {name} for .*; choose a model like small"):
            result(subject(), tmp_path, reference=name)
