"""Policy gradients: expectations over all texts are the exact gradient, known optima, and settings that must agree."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import preferences, responses, tiny
from tests.support.enumeration import TEXTS, float64
from tests.support.small import small
from tests.support.toy_policy import BETA, LIMIT, OPTIONS, REWARDS, distance, error, exact, flat, tabular, toy
from train.config import run_config
from train.config.data_options import PromptData
from train.config.policy_gradient_options import PolicyGradientLoss
from train.config.rollout_options import Rollout
from train.engine import device_mesh, state_init
from train.engine.log_probs import token_log_probs
from train.engine.policy_losses import clipped_losses, loss_weights, probability_ratios
from train.objectives.feedback import policy_gradient
from train.objectives.feedback.policy_gradient import PolicyGradient
from train.rollouts.advantages import group_advantages
from train.rows.feedback.preference_rows import Side
from train.rows.feedback.response_rows import ResponseRow
from train.step.assembly import assemble
from zoo.batch import Batch
from zoo.errors import BadInput

PAIRS = np.array(list(itertools.product(range(len(TEXTS)), repeat=2)))
"""All groups of two responses, as numbers of texts: the expectation over groups is a sum over these."""
# Compiled once for all losses and their gradients.
compiled = jax.jit(token_log_probs, static_argnums=0, static_argnames=("chunk", "temperature", "longest"))


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(policy_gradient, "token_log_probs", compiled)
    with float64():
        yield


# --- Exact gradients ---


def expected(net: Any, params: Any, reference: Any, texts: Batch, options: PolicyGradientLoss, rewards: np.ndarray) -> Any:
    """Return the gradient of the objective's loss over all pairs of texts, each weighted by its probability."""
    objective = PolicyGradient(options, Rollout(samples=2, tokens=LIMIT))
    batch = jax.tree.map(lambda leaf: leaf[PAIRS.reshape(-1)], texts)
    old, of_reference = (compiled(net, which, batch, chunk=0, temperature=1.0) for which in (params, reference))
    logs, reference_logs = old.sum(1)[1 : 2 * len(TEXTS) : 2], of_reference.sum(1)[1 : 2 * len(TEXTS) : 2]
    returns = rewards if options.kl_in_loss else rewards - options.beta * np.asarray(logs - reference_logs)
    advantage = group_advantages(returns[PAIRS], options.advantage).reshape(-1)
    probability = np.repeat(np.exp(np.asarray(logs))[PAIRS].prod(1), 2)
    batch = dataclasses.replace(
        batch,
        weights=batch.weights * probability[:, None],
        extra={"old": old, "reference": of_reference, "advantage": jnp.asarray(advantage)},
    )

    def loss(params: Any) -> jax.Array:
        terms, _ = objective.loss(net, params, batch, {}, **OPTIONS)
        divisors = objective.weights(batch)
        return sum(terms[name] / divisors[name] for name in terms)

    return jax.grad(loss)(params)


EXACT: dict[str, tuple[PolicyGradientLoss, float]] = {
    "Dr. GRPO": (PolicyGradientLoss(advantage="group", aggregation="limit", beta=BETA), -2 * LIMIT),
    "leave one out": (PolicyGradientLoss(advantage="leave_one_out", aggregation="limit", beta=BETA), -LIMIT),
    "RLOO": (PolicyGradientLoss(advantage="leave_one_out", ratio="product", aggregation="sequences", beta=BETA), -1),
}
"""Settings whose gradient is exact, and the factor: a group's own mean takes 1 / G of each reward away."""
FAMILIES = ["gpt", *(pytest.param(name, marks=pytest.mark.full) for name in ("ettin_decoder", "llama", "t5"))]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expectation_over_all_texts_is_the_exact_gradient(family: str, in_float64: None) -> None:
    true = exact(family, REWARDS, BETA)
    for name, (options, scale) in EXACT.items():
        assert error(expected(*toy(family), options, REWARDS), true, scale) <= 1e-10, name


@pytest.mark.planted(2)
def test_means_over_responses_and_a_log_ratio_in_the_loss_are_noticed(in_float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over the tokens of a response prefers short ones; the gradient of an expected log-ratio is 0."""
    true = exact("gpt", REWARDS, BETA)
    by_response = flat(
        expected(*toy("gpt"), PolicyGradientLoss(advantage="leave_one_out", aggregation="sequences", beta=BETA), REWARDS)
    )
    assert error(by_response, true, by_response @ flat(true) / (by_response @ by_response)) > 1e-2
    monkeypatch.setattr(policy_gradient, "kl_losses", lambda log_probs, reference, ratio: log_probs - reference)
    of_kl = expected(*toy("gpt"), PolicyGradientLoss(aggregation="limit", beta=BETA, kl="loss"), np.zeros(len(TEXTS)))
    assert np.linalg.norm(flat(of_kl)) <= 1e-13 * np.linalg.norm(flat(exact("gpt", np.zeros(len(TEXTS)), BETA)))


# --- The optimum ---


@pytest.mark.full
def test_the_optimum_with_the_kl_divergence_in_the_reward_is_reached(in_float64: None) -> None:
    net, texts = tabular()

    def gradient(options: PolicyGradientLoss, scale: float) -> Any:
        return lambda table, reference: (
            scale * expected(net, {"table": table}, {"table": reference}, texts, options, REWARDS)["table"]
        )

    for name, (options, scale) in EXACT.items():
        assert distance(gradient(options, scale), 20 * [0.7]) <= 1e-3, name
    in_loss = dataclasses.replace(EXACT["Dr. GRPO"][0], kl="loss")
    assert distance(gradient(in_loss, -2 * LIMIT), 40 * [0.2]) > 0.05


# --- Settings that agree ---


def numbers(tokens: int = 5, rows: int = 12) -> tuple[Any, ...]:
    """Return log-probabilities, old ones and weights [B, T], and advantages [B]."""
    rng = np.random.default_rng(3)
    weights = np.arange(tokens) < rng.integers(1, tokens + 1, (rows, 1))
    log_probs = -3 * rng.random((rows, tokens)) * weights
    old = (log_probs + 0.3 * rng.standard_normal((rows, tokens))) * weights
    return *(jnp.asarray(array, jnp.float32) for array in (log_probs, old, weights)), jnp.asarray(rng.standard_normal(rows))


def test_advantages_of_the_definitions() -> None:
    rewards = np.random.default_rng(0).standard_normal((6, 5))
    centred = rewards - rewards.mean(1, keepdims=True)
    np.testing.assert_allclose(group_advantages(rewards, "group"), centred, atol=1e-14)
    np.testing.assert_allclose(group_advantages(rewards, "leave_one_out"), 5 / 4 * centred, atol=1e-14)
    deviation = np.sqrt((centred**2).sum(1, keepdims=True) / 4)
    np.testing.assert_allclose(group_advantages(rewards, "group_std"), centred / (deviation + 1e-4), atol=1e-14)
    for kind in ("group", "group_std", "leave_one_out"):
        # The mean of seven times 0.1 is not 0.1 in float64.
        assert (group_advantages(np.full((1, 7), 0.1), kind) == 0).all()
    with pytest.raises(ValueError, match="2 or more"):
        group_advantages(np.ones((3, 1)), "group")


@pytest.mark.parametrize("kind", ["token", "sequence", "product"])
def test_the_first_step_has_ratio_1_and_no_clip(kind: Any) -> None:
    log_probs, _, weights, advantage = numbers()

    def loss(values: Any, low: float, high: float, advantage: Any = advantage) -> Any:
        return (
            clipped_losses(probability_ratios(values, log_probs, weights, kind), advantage[:, None], low, high) * weights
        ).sum()

    assert (probability_ratios(log_probs, log_probs, weights, kind) == 1).all()
    gradients = [jax.grad(loss)(log_probs, *clip) for clip in ((0.2, 0.2), (1e-6, 1e-6), (1.0, 1e9))]
    assert gradients[0].any() and all((gradient == gradients[0]).all() for gradient in gradients)
    assert not jax.grad(loss)(log_probs, 0.2, 0.2, jnp.zeros_like(advantage)).any()


def test_a_response_of_one_token_has_one_ratio() -> None:
    log_probs, old, weights, _ = numbers(tokens=1)
    token, sequence, product = (probability_ratios(log_probs, old, weights, kind) for kind in ("token", "sequence", "product"))
    assert (token == sequence).all() and (token == product).all() and not (token == 1).any()
    assert (loss_weights(weights, "sequences") == loss_weights(weights, "tokens")).all()


@pytest.mark.parametrize("aggregation", ["tokens", "sequences", "limit"])
def test_sums_and_divisors_of_parts_add_up(aggregation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So neither micro-batches nor devices change a loss; a row without a weight, which fills up a batch, changes nothing."""
    log_probs, old, weights, advantage = numbers()
    weights = weights.at[-1].set(0)
    objective = PolicyGradient(PolicyGradientLoss(aggregation=aggregation, beta=0.1, kl="loss"), Rollout(tokens=7))
    monkeypatch.setattr(policy_gradient, "token_log_probs", lambda model, params, batch, **_: params[batch.index])

    def sums(rows: slice) -> np.ndarray:
        extra = {"old": old[rows], "reference": old[rows], "advantage": advantage[rows]}
        index = jnp.arange(len(weights), dtype=jnp.uint32)[rows]
        batch = Batch(tokens=weights[rows].astype(int), weights=weights[rows], extra=extra, index=index)
        terms, divisors = objective.loss(small("gpt"), log_probs, batch, {}, **OPTIONS)[0], objective.weights(batch)
        assert terms.keys() == divisors.keys() == {"policy_gradient", "kl"}
        return np.array([terms["policy_gradient"], terms["kl"], divisors["policy_gradient"], divisors["kl"]])

    together = sums(slice(0, 12))
    np.testing.assert_allclose(sums(slice(0, 5)) + sums(slice(5, 12)), together, rtol=1e-5)
    np.testing.assert_allclose(sums(slice(0, 11)), together, rtol=1e-6)
    expected = {"tokens": float(weights.sum()), "sequences": 11, "limit": 77}
    assert together[2] == together[3] == pytest.approx(expected[aggregation], rel=1e-6)


def first_step(accumulate: int = 1, engine: Any = "jit", **mesh: int) -> dict[str, float]:
    """Return the metrics of a training step on 16 responses of different lengths."""
    net = small("gpt", layers=1)
    options = PolicyGradientLoss(aggregation="sequences", beta=0.1, kl="loss")
    shape = run_config.Mesh(**{"data": 1, **mesh})
    rows: dict[str, Any] = dict(data=PromptData(length=8, batch=16), mesh=shape, accumulate=accumulate, engine=engine)
    run = tiny.run(
        "policy_gradient", model=net.config, policy_gradient=options, rollout=Rollout(tokens=6), precision="float32", **rows
    )
    rng = np.random.default_rng(5)
    texts = [rng.integers(3, 300, 1 + row % 6).tolist() for row in range(16)]
    batch = responses.rows(net, [(5, 6)] * 16, texts, length=8, target_length=0)
    noise = jnp.asarray(-5 - rng.random(batch.weights.shape), jnp.float32) * batch.weights
    extra = {"old": noise, "reference": noise, "advantage": jnp.asarray(rng.standard_normal(16), jnp.float32)}
    batch = jax.tree.map(np.asarray, dataclasses.replace(batch, extra=extra, index=np.arange(16, dtype=np.uint32)))
    devices = device_mesh.make_mesh(shape, jax.devices()[: shape.data * shape.fsdp * shape.tensor])
    built = assemble(run, PolicyGradient.bind_abstract(run, devices), devices)
    state = built.engine.shard(state_init.init_state(run, net, built.tx, devices))
    _, metrics = built.engine.step(state, built.engine.shard_batch(batch))
    # A metric of pmap has an axis of devices.
    return {name: float(np.ravel(jax.device_get(value))[0]) for name, value in metrics.items()}


DIVISIONS: dict[str, dict[str, Any]] = {
    "2 micro-batches on 4 devices": {"accumulate": 2, "data": 4},
    "4 micro-batches, sharded parameters": {"accumulate": 4, "fsdp": 4},
    "three axes": {"data": 2, "fsdp": 2, "tensor": 2},
    "pmap": {"engine": "pmap", "data": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DIVISIONS)
def test_a_step_does_not_depend_on_micro_batches_and_devices(name: str) -> None:
    alone, divided = first_step(), first_step(**DIVISIONS[name])
    assert alone["policy_gradient"] + alone["kl"] == pytest.approx(alone["loss"]) and alone["kl"] != 0
    assert divided == pytest.approx(alone, rel=1e-5)


def test_the_arrays_of_a_response_and_the_reference_of_a_run() -> None:
    run = tiny.run("policy_gradient", policy_gradient=PolicyGradientLoss(beta=0.1, kl="loss"), data=PromptData(length=6, batch=4))
    with pytest.raises(BadInput, match=r"policy-gradient.beta 0.1: .* --init"):
        run.options.check_start(run)
    build = PolicyGradient.builder(run, preferences.tokenizer("gpt"), dict)
    fields = build(np.random.default_rng(0), ResponseRow(Side(np.int32([5, 6, 7, 8]), first=2)), 6)
    assert {"tokens", "segments", "positions", "targets", "weights", "extra"} == fields.keys()
    assert fields["targets"].tolist() == [6, 7, 8, 0, 0, 0] and fields["weights"].tolist() == [0, 1, 1, 0, 0, 0]
    extra = {name: (values.shape, values.dtype) for name, values in fields["extra"].items()}
    assert extra == {"old": ((6,), np.float32), "reference": ((6,), np.float32), "advantage": ((), np.float32)}
    alone = build(np.random.default_rng(0), ResponseRow(Side(np.int32([5, 6]), first=2)), 6)
    assert not alone["weights"].any()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ratio": "product"}, "policy-gradient.aggregation"),
        ({"clip_low": 0.0}, "policy-gradient.clip-low"),
        ({"clip_high": 0.0}, "policy-gradient.clip-high"),
        ({"beta": -1.0}, "policy-gradient.beta"),
        ({"kl": "loss"}, "policy-gradient.kl"),
        ({"kl": "loss", "beta": 0.1, "ratio": "product", "aggregation": "sequences"}, "policy-gradient.kl"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        PolicyGradientLoss(**options)
