"""PPO: exact gradients over all texts, the known optimum, and plain numpy for advantages, losses and clips."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import preferences, responses, tiny
from tests.support.enumeration import PREFIXES, TEXTS, float64
from tests.support.small import random_params, small
from tests.support.toy_policy import BETA, LIMIT, OPTIONS, REWARDS, distance, error, exact, tabular, toy
from train.config import run_config
from train.config.data_options import PromptData
from train.config.policy_gradient_options import Ppo
from train.config.rollout_options import Rollout
from train.engine import device_mesh, state_init
from train.engine.log_probs import token_log_probs
from train.engine.policy_losses import clipped_losses
from train.engine.value_head import token_values, value_head, value_losses
from train.objectives.feedback.ppo import ProximalPolicy
from train.parametrization import parametrization_of
from train.rollouts import generalized_advantages
from train.rollouts.advantage_estimators import ScoredBatch, ValueEstimator
from train.rows.feedback.preference_rows import Side
from train.rows.feedback.response_rows import ResponseRow
from train.step.assembly import assemble
from zoo.batch import Batch
from zoo.errors import BadInput

FIELDS = ("old", "advantage", "value", "return")
PLAIN = Ppo(beta=BETA, lam=1.0, whiten=False)
log_probs = jax.jit(token_log_probs, static_argnums=0)


@pytest.fixture
def in_float64() -> Iterator[None]:
    with float64():
        yield


# --- Exact gradients ---

WRONG = np.random.default_rng(2).standard_normal(len(PREFIXES))
"""Values of the prefixes of texts that have nothing to do with the rewards."""


def scored(net: Any, params: Any, reference: Any, batch: Batch, values: np.ndarray | None) -> ScoredBatch:
    """Return all texts with the values of their prefixes; None = the expected rewards to come."""
    old, of_reference = (np.asarray(log_probs(net, which, batch)) for which in (params, reference))
    weights = np.asarray(batch.weights)
    prefixes = np.zeros(weights.shape, int)
    prefixes[weights > 0] = [PREFIXES.index(text[:at]) for text in TEXTS for at in range(len(text))]
    if values is None:
        rewards = generalized_advantages.token_rewards(REWARDS, old - of_reference, weights, BETA)
        to_come, share = np.cumsum(rewards[:, ::-1], 1)[:, ::-1], np.exp(old.sum(1, keepdims=True)) * weights
        values = np.array([(share * to_come)[prefixes == n].sum() / share[prefixes == n].sum() for n in range(len(PREFIXES))])
    ended = np.array([text[-1] == 2 for text in TEXTS])
    return ScoredBatch(REWARDS, ended, 1, weights, old, of_reference, values[prefixes])  # pyright: ignore[reportArgumentType]


def gradient(net: Any, params: Any, reference: Any, batch: Batch, options: Ppo, values: np.ndarray | None) -> Any:
    """Return the gradient of the expected loss, times minus the expected length: an ascent direction of the reward."""
    texts = scored(net, params, reference, batch, values)
    numbers = (texts.old, *ValueEstimator(options).of_tokens(texts))
    extra = {name: jnp.asarray(array) for name, array in zip(FIELDS, numbers, strict=True)}
    weights = batch.weights * np.exp(texts.old.sum(1, keepdims=True))
    batch = dataclasses.replace(batch, weights=weights, extra=extra)
    objective = ProximalPolicy(options, Rollout(samples=1, tokens=LIMIT))

    @jax.jit
    def loss(params: Any, head: Any) -> jax.Array:
        terms, _ = objective.loss(net, {**params, **head}, batch, {}, **OPTIONS)
        divisors = objective.weights(batch)
        return sum((terms[name] / divisors[name] for name in terms), jnp.zeros(()))

    width = 3 if "table" in params else net.config.width
    head = {"value": {"kernel": jnp.zeros((width, 1))}}
    return jax.tree.map(lambda leaf: -weights.sum() * leaf, jax.grad(loss)(params, head))


FAMILIES = ["gpt", *(pytest.param(name, marks=pytest.mark.full) for name in ("ettin_decoder", "llama", "t5"))]


@pytest.mark.planted
@pytest.mark.parametrize("family", FAMILIES)
def test_the_expectation_over_all_texts_is_the_exact_gradient(family: str, in_float64: None) -> None:
    """With lambda 1 and any values, or exact values and any lambda. Wrong values with a smaller lambda are a mistake."""
    true = exact(family, REWARDS, BETA)
    assert error(gradient(*toy(family), PLAIN, WRONG), true, 1) <= 1e-10
    if family == "gpt":
        biased = dataclasses.replace(PLAIN, lam=0.5)
        assert error(gradient(*toy(family), biased, None), true, 1) <= 1e-10
        assert error(gradient(*toy(family), biased, WRONG), true, 1) > 1e-2


@pytest.mark.full
def test_the_optimum_is_reached(in_float64: None) -> None:
    net, texts = tabular()

    def ascent(table: Any, reference: Any) -> Any:
        return gradient(net, {"table": table}, {"table": reference}, texts, PLAIN, WRONG)["table"]

    assert distance(ascent, 20 * [0.7]) <= 1e-3


# --- Advantages ---

SPANS = ((0, 4), (2, 6), (5, 6), (1, 2))
"""First token of the response and the place after its last one, of each row."""


def numbers(pad: int = 0) -> tuple[np.ndarray, ...]:
    """Return (scores, log-ratios, values, weights)."""
    rng = np.random.default_rng(0)
    log_ratios, values = (np.pad(rng.standard_normal((len(SPANS), 6)), ((0, 0), (0, pad))) for _ in range(2))
    weights = np.array([[float(first <= at < end) for at in range(6 + pad)] for first, end in SPANS])
    return rng.standard_normal(len(SPANS)), log_ratios, values, weights


def differs(estimate: Callable[..., Any]) -> bool:
    """Return whether advantages or returns differ from those of a plain loop over the definition."""
    scores, log_ratios, values, weights = numbers()
    results = estimate(
        generalized_advantages.token_rewards(scores, log_ratios, weights, BETA), values, weights, gamma=0.9, lam=0.8
    )
    expected = np.zeros((2, *weights.shape))
    for row, (first, end) in enumerate(SPANS):
        tokens = [-BETA * log_ratios[row, at] + (scores[row] if at == end - 1 else 0) for at in range(first, end)]
        for at in range(first, end):
            errors = []
            for later in range(at, end):
                after = values[row, later + 1] if later + 1 < end else 0.0
                errors.append(tokens[later - first] + 0.9 * after - values[row, later])
            expected[0, row, at] = sum((0.9 * 0.8) ** steps * one for steps, one in enumerate(errors))
            expected[1, row, at] = expected[0, row, at] + values[row, at]
    return bool(np.abs(np.array(results) - expected).max() > 1e-14)


def test_advantages_and_returns_are_those_of_a_plain_loop_whatever_the_padding() -> None:
    assert not differs(generalized_advantages.advantages_and_returns)
    narrow, padded = (
        generalized_advantages.advantages_and_returns(
            generalized_advantages.token_rewards(*of[:2], of[3], BETA), *of[2:], gamma=0.9, lam=0.8
        )
        for of in (numbers(), numbers(pad=3))
    )
    assert all((wide[:, :6] == one).all() and not wide[:, 6:].any() for wide, one in zip(padded, narrow, strict=True))


MISTAKES = {
    "the value of the token itself": ("gamma * following_value", "gamma * values[:, at]"),
    "no mask": ("counted[:, at] * (error", "(error"),
    "no mask of values": ("following_value = counted[:, at] * values[:, at]", "following_value = values[:, at]"),
    "from the first token on": ("reversed(range(rewards.shape[1]))", "range(rewards.shape[1])"),
}


@pytest.mark.planted(4)
def test_mistakes_in_advantages_are_noticed() -> None:
    source = inspect.getsource(generalized_advantages.advantages_and_returns)
    for name, (right, wrong) in MISTAKES.items():
        assert right in source, name
        scope = dict(vars(generalized_advantages))
        exec(source.replace(right, wrong), scope)
        assert differs(scope["advantages_and_returns"]), name


def batches() -> list[ScoredBatch]:
    """Return a rollout of two batches, whose advantages differ in mean and deviation."""
    scores, log_ratios, values, weights = numbers()
    ended = np.array([True, False, True, True])
    return [
        ScoredBatch(
            rewards=shift + scale * scores,
            ended=ended,
            samples=1,
            weights=np.float32(weights),
            old=np.float32(log_ratios * weights),
            reference=np.zeros(weights.shape, np.float32),
            values=np.float32(values),
        )
        for shift, scale in ((0.0, 1.0), (3.0, 5.0))
    ]


def test_a_rollout_has_whitened_advantages_and_returns_before_whitening() -> None:
    rollout, options = batches(), Ppo(beta=BETA)
    estimates, metrics = ValueEstimator(options).estimate(rollout)
    plain, _ = ValueEstimator(dataclasses.replace(options, whiten=False)).estimate(rollout)
    counted = rollout[0].weights > 0
    for of_batch in (*estimates, *plain):
        assert all(array.dtype == np.float32 and not array[~counted].any() for array in of_batch.extra.values())
        np.testing.assert_allclose(of_batch.extra["value"], np.where(counted, rollout[0].values, 0))
    white, before = (np.concatenate([one.extra["advantage"][counted] for one in kind]) for kind in (estimates, plain))
    np.testing.assert_allclose(white, (before - before.mean()) / before.std(), rtol=1e-5)
    future = np.concatenate([one.extra["return"][counted] for one in plain])
    values = np.concatenate([one.extra["value"][counted] for one in plain])
    np.testing.assert_allclose(future, before + values, rtol=1e-5)
    assert metrics["explained_variance"] == pytest.approx(1 - np.var(future - values) / np.var(future), rel=1e-5)
    assert metrics["mean_return"] == pytest.approx(future.mean(), rel=1e-5)
    for one, batch in zip(plain, rollout, strict=True):
        np.testing.assert_allclose(one.advantages, one.extra["advantage"].sum(1) / counted.sum(1), rtol=1e-5)
        # The last token of the second response is the sixth.
        last = batch.rewards[1] - BETA * batch.old[1, 5]
        assert one.extra["return"][1, 5] == pytest.approx(last, rel=1e-5)
    assert (
        generalized_advantages.explained_variance(np.arange(3.0), np.full(7, 0.7)[:3])
        == 0
        == generalized_advantages.explained_variance(np.arange(7.0), np.full(7, 0.7))
        and not generalized_advantages.whiten_advantages(np.full(4, 0.5)).any()
    )


# --- Losses ---


def test_clips_of_ratios_and_values() -> None:
    """A clip acts only if it makes the loss larger."""
    cases = {(1.3, 1.0): (-1.2, 0.0), (1.3, -1.0): (1.3, 1.0), (0.7, 1.0): (-0.7, -1.0), (0.7, -1.0): (0.8, 0.0)}
    for (ratio, advantage), (loss, slope) in cases.items():
        found = jax.value_and_grad(lambda r, a=advantage: clipped_losses(r, jnp.array([[a]]), 0.2, 0.2).sum())(
            jnp.array([[ratio]])
        )
        assert float(found[0]) == pytest.approx(loss) and float(found[1].sum()) == pytest.approx(slope)
    # Value and return; the value at the rollout's start is 0.
    of_values = {(0.5, 2.0): (1.62, 0.0), (0.5, 0.0): (0.125, 0.5), (0.1, 2.0): (1.805, -1.9), (-0.5, 2.0): (3.125, -2.5)}
    for (value, future), (loss, slope) in of_values.items():
        found = jax.value_and_grad(lambda v, r=future: value_losses(v, 0 * v, jnp.array([[r]]), 0.2).sum())(jnp.array([[value]]))
        assert float(found[0]) == pytest.approx(loss) and float(found[1].sum()) == pytest.approx(slope, abs=1e-6)
    assert float(value_losses(jnp.array([[0.5]]), jnp.zeros((1, 1)), jnp.array([[2.0]]), 0.0)[0, 0]) == pytest.approx(1.125)


def rollout_batch(rows: int = 16) -> tuple[Any, Batch]:
    """Return a model, and responses of different lengths with numbers far enough from each other that clips act."""
    net = small("gpt", layers=1)
    rng = np.random.default_rng(5)
    texts = [rng.integers(3, 300, 1 + row % 6).tolist() for row in range(rows)]
    batch = responses.rows(net, [(5, 6)] * rows, texts, length=8, target_length=0)
    weights = np.asarray(batch.weights)
    old = np.asarray(log_probs(net, random_params(net), batch)) + 0.3 * rng.standard_normal(weights.shape) * weights
    extra = {"old": old, **{name: rng.standard_normal(weights.shape) * weights for name in FIELDS[1:]}}
    extra = {name: np.float32(values) for name, values in extra.items()}
    return net, jax.tree.map(jnp.asarray, dataclasses.replace(batch, extra=extra, index=np.arange(rows, dtype=np.uint32)))


def test_losses_and_gradients_are_those_of_numpy() -> None:
    """The values are those of the positions that predict the tokens, and their gradient reaches the head and the body."""
    net, batch = rollout_batch()
    options, params = Ppo(), random_params(net)
    kernel = np.random.default_rng(1).standard_normal((net.config.width, 1)) / 4
    head = {"value": {"kernel": jnp.asarray(kernel, jnp.float32)}}
    objective = ProximalPolicy(options, Rollout())

    def loss(params: Any, name: str) -> Any:
        terms, _ = objective.loss(net, params, batch, {}, **OPTIONS)
        return terms[name] / objective.weights(batch)[name]

    of_policy, of_values, hidden = jax.jit(
        lambda params: (*(jax.value_and_grad(loss)(params, name) for name in ("ppo", "value")), net.apply(params, batch).hidden)
    )({**params, **head})
    counted, extra = np.asarray(batch.weights) > 0, {name: np.float64(array) for name, array in batch.extra.items()}
    ratio = np.exp(np.float64(log_probs(net, params, batch)) - extra["old"])
    gains = np.minimum(ratio * extra["advantage"], np.clip(ratio, 0.8, 1.2) * extra["advantage"])
    assert float(of_policy[0]) == pytest.approx(-gains[counted].mean(), rel=1e-5)
    assert not np.asarray(of_policy[1]["value"]["kernel"]).any()
    values = (np.float64(hidden) @ kernel)[..., 0]
    plain = values - extra["return"]
    limited = np.clip(values, extra["value"] - 0.2, extra["value"] + 0.2) - extra["return"]
    expected = 0.1 * 0.5 * np.maximum(plain**2, limited**2)[counted].mean()
    assert float(of_values[0]) == pytest.approx(expected, rel=1e-5)
    slope = np.where(counted & (plain**2 >= limited**2), 0.1 * plain, 0) / counted.sum()
    assert 0 < (slope[counted] == 0).sum() < counted.sum()
    np.testing.assert_allclose(of_values[1]["value"]["kernel"][:, 0], np.einsum("bt,btd->d", slope, hidden), rtol=1e-4, atol=1e-6)
    assert np.asarray(of_values[1]["embed"]["tokens"]["embedding"]).any()


def test_a_new_head_predicts_0_and_leaves_the_body_to_the_policy() -> None:
    """So at the first step of a run the weight of the values does not change the gradient of the body."""
    net, batch = rollout_batch()
    params = {**random_params(net), **value_head(net).init(jax.random.key(0))}

    def total(params: Any, weight: float) -> Any:
        objective = ProximalPolicy(Ppo(value_weight=weight), Rollout())
        return sum(objective.loss(net, params, batch, {}, **OPTIONS)[0].values())

    @jax.jit
    def all_of(params: Any) -> Any:
        values = token_values(params, net.apply(params, batch).hidden)
        return values, jax.grad(total)(params, 1.0), jax.grad(total)(params, 10.0)

    values, one, ten = all_of(params)
    assert not np.asarray(values).any()
    assert np.asarray(one["value"]["kernel"]).any()
    # Each element is a sum over the tokens, in which large terms may cancel.
    of_head = 10 * np.asarray(one.pop("value")["kernel"])
    bound = 2.0**-24 * batch.tokens.size * np.abs(of_head).max()
    np.testing.assert_allclose(ten.pop("value")["kernel"], of_head, rtol=0, atol=bound)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(ten), strict=True))


# --- The step ---


def first_step(accumulate: int = 1, **mesh: Any) -> tuple[dict[str, float], Any]:
    """Return the metrics of a training step on 16 responses of different lengths, and the value head after it."""
    net, batch = rollout_batch()
    shape = run_config.Mesh(**{"data": 1, **mesh})
    rows = dict(data=PromptData(length=8, batch=16), mesh=shape, accumulate=accumulate, engine="jit")
    run = tiny.run("ppo", model=net.config, rollout=Rollout(tokens=6), precision="float32", **rows)
    devices = device_mesh.make_mesh(shape, jax.devices()[: shape.data * shape.fsdp * shape.tensor])
    objective = ProximalPolicy.bind_abstract(run, devices)
    built, trained = assemble(run, objective, devices), parametrization_of(run, objective, devices).trained
    state = state_init.init_state(run, net, built.tx, devices, None, trained)
    assert jax.tree.structure(state) == jax.tree.structure(built.state)
    local = jax.tree.map(np.asarray, batch)
    state, metrics = built.engine.step(built.engine.shard(state), built.engine.shard_batch(local))
    head = np.asarray(jax.device_get(built.engine.get(state).params["value"]["kernel"]))
    return {name: float(value) for name, value in metrics.items()}, head


def test_a_step_trains_the_head() -> None:
    metrics, head = first_step()
    assert metrics["ppo"] + metrics["value"] == pytest.approx(metrics["loss"]) and metrics["value"] > 0
    assert head.shape == (small("gpt").config.width, 1) and head.any()


@pytest.mark.full
@pytest.mark.parametrize("division", [{"accumulate": 2, "data": 4}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_step_does_not_depend_on_micro_batches_and_devices(division: dict[str, int]) -> None:
    assert first_step(**division)[0] == pytest.approx(first_step()[0], rel=1e-5)


# --- Options and rows ---


def test_the_arrays_of_a_response_and_the_reference_of_a_run() -> None:
    run = tiny.run("ppo", data=PromptData(length=6, batch=4))
    with pytest.raises(BadInput, match=r"ppo.beta 0.05: .* --init"):
        run.options.check_start(run)
    build = ProximalPolicy.builder(run, preferences.tokenizer("gpt"), dict)
    fields = build(np.random.default_rng(0), ResponseRow(Side(np.int32([5, 6, 7, 8]), first=2)), 6)
    assert fields["targets"].tolist() == [6, 7, 8, 0, 0, 0] and fields["weights"].tolist() == [0, 1, 1, 0, 0, 0]
    assert {name: (array.shape, array.dtype) for name, array in fields["extra"].items()} == dict.fromkeys(
        FIELDS, ((6,), np.float32)
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"beta": -1.0}, "ppo.beta"),
        ({"gamma": 1.5}, "ppo.gamma"),
        ({"lam": -0.1}, "ppo.lam"),
        ({"clip": 0.0}, "ppo.clip"),
        ({"value_clip": -0.2}, "ppo.value-clip"),
        ({"value_weight": 0.0}, "ppo.value-weight"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        Ppo(**options)
