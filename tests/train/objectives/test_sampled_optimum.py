"""The optimum of reward minus KL divergence, reached with texts that are sampled, through estimators and objectives."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.enumeration import TEXTS, float64
from tests.support.toy_policy import BETA, LIMIT, OPTIONS, REWARDS, distance, tabular
from train.config.policy_gradient_options import PolicyGradientLoss, Ppo
from train.config.rollout_options import Rollout
from train.engine.log_probs import token_log_probs
from train.objectives.feedback.policy_gradient import PolicyGradient, RolloutObjective
from train.objectives.feedback.ppo import ProximalPolicy
from train.rollouts.advantage_estimators import ScoredBatch

GROUPS, SAMPLES = 64, 8
RATES = [2 / (step + 3) for step in range(300)]
"""Rates of stochastic approximation: the noise of the steps is averaged, and the start is forgotten."""
ROLLOUT = Rollout(samples=SAMPLES, tokens=LIMIT)
CENTRED = LIMIT * SAMPLES / (SAMPLES - 1)
"""Factor of the loss that is divided by the limit and in which a group's own mean takes 1 / G of each reward away."""
OBJECTIVES: dict[str, tuple[RolloutObjective, float]] = {
    "Dr. GRPO": (PolicyGradient(PolicyGradientLoss(aggregation="limit", beta=BETA), ROLLOUT), CENTRED),
    "RLOO": (
        PolicyGradient(
            PolicyGradientLoss(advantage="leave_one_out", ratio="product", aggregation="sequences", beta=BETA), ROLLOUT
        ),
        1.0,
    ),
    # Its loss is a mean over tokens; the expected number of tokens of a text is about 2.
    "PPO": (ProximalPolicy(Ppo(beta=BETA, lam=1.0, whiten=False), ROLLOUT), 2.0),
}


@pytest.fixture
def in_float64() -> Iterator[None]:
    with float64():
        yield


def sampled_gradient(objective: RolloutObjective, scale: float, seed: int) -> Callable[[Any, Any], Any]:
    """Return the ascent direction of one step on `GROUPS` groups of texts, sampled from the table of the step."""
    net, texts = tabular()
    rng, head = np.random.default_rng(seed), {"value": {"kernel": jnp.zeros((3, 1))}}
    token_logs = jax.jit(lambda table: token_log_probs(net, {"table": table}, texts))

    @jax.jit
    @jax.grad
    def ascent(table: Any, batch: Any) -> jax.Array:
        terms, _ = objective.loss(net, {"table": table, **head}, batch, {}, **OPTIONS)
        divisors = objective.weights(batch)
        return -sum((terms[name] / divisors[name] for name in terms), jnp.zeros(()))

    def gradient(table: Any, reference: Any) -> Any:
        old, of_reference = np.asarray(token_logs(table)), np.asarray(token_logs(reference))
        probability = np.exp(old.sum(1))
        numbers = rng.choice(len(TEXTS), GROUPS * SAMPLES, p=probability / probability.sum())
        batch = jax.tree.map(lambda leaf: leaf[numbers], texts)
        weights = np.asarray(batch.weights)
        # Values that say nothing about the rewards have no bias with lambda 1.
        values = np.full(weights.shape, 0.7)
        scored: Any = (REWARDS[numbers], None, SAMPLES, weights, old[numbers], of_reference[numbers], values)
        (estimate,), _ = objective.estimator().estimate([ScoredBatch(*scored)])
        return scale * ascent(table, dataclasses.replace(batch, extra=jax.tree.map(jnp.asarray, estimate.extra)))

    return gradient


@pytest.mark.parametrize(
    ("name", "seed"),
    [pytest.param(name, seed, marks=pytest.mark.slow if seed else pytest.mark.full) for name in OBJECTIVES for seed in range(3)],
)
def test_the_optimum_is_reached_with_sampled_texts(name: str, seed: int, in_float64: None) -> None:
    assert distance(sampled_gradient(*OBJECTIVES[name], seed), RATES) <= 0.03


@pytest.mark.full
@pytest.mark.planted
def test_a_divergence_in_the_loss_ends_elsewhere(in_float64: None) -> None:
    in_loss = PolicyGradient(PolicyGradientLoss(aggregation="limit", beta=BETA, kl="loss"), ROLLOUT)
    assert distance(sampled_gradient(in_loss, CENTRED, 0), RATES) > 0.05
