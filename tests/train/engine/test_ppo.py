"""Parts of PPO against plain loops in float64, and against exact gradients over all texts of a tiny vocabulary."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.enumeration import PREFIXES, TEXTS, float64, text_log_probs
from train.engine import ppo

BETA = 0.5
SPANS = ((0, 4), (2, 6), (5, 6), (1, 2))
"""First token of the response and the place after its last one, of each row."""


def numbers(pad: int = 0) -> tuple[np.ndarray, ...]:
    """Return (scores, log-ratios, values, weights)."""
    rng = np.random.default_rng(0)
    log_ratios, values = (np.pad(rng.standard_normal((len(SPANS), 6)), ((0, 0), (0, pad))) for _ in range(2))
    weights = np.array([[float(first <= at < end) for at in range(6 + pad)] for first, end in SPANS])
    return rng.standard_normal(len(SPANS)), log_ratios, values, weights


def test_advantages_and_returns_are_those_of_a_plain_loop_whatever_the_padding() -> None:
    scores, log_ratios, values, weights = numbers()
    rewards = ppo.token_rewards(scores, log_ratios, weights, BETA)
    results = ppo.advantages_and_returns(rewards, values, weights, gamma=0.9, lam=0.8)
    for row, (first, end) in enumerate(SPANS):
        tokens = [-BETA * log_ratios[row, at] + (scores[row] if at == end - 1 else 0) for at in range(first, end)]
        for at in range(first, end):
            errors = []
            for later in range(at, end):
                after = values[row, later + 1] if later + 1 < end else 0.0
                errors.append(tokens[later - first] + 0.9 * after - values[row, later])
            expected = sum((0.9 * 0.8) ** distance * error for distance, error in enumerate(errors))
            assert results[0][row, at] == pytest.approx(expected, abs=1e-14)
            assert results[1][row, at] == pytest.approx(expected + values[row, at], abs=1e-14)
    assert not any((array[weights == 0] != 0).any() for array in (rewards, *results))
    white = ppo.whitened(results[0], weights)
    assert white[weights > 0].mean() == pytest.approx(0, abs=1e-12) and white[weights > 0].var() == pytest.approx(1, abs=1e-7)
    more = numbers(pad=3)
    padded = ppo.advantages_and_returns(ppo.token_rewards(more[0], more[1], more[3], BETA), *more[2:], gamma=0.9, lam=0.8)
    assert all((wide[:, :6] == narrow).all() and not wide[:, 6:].any() for wide, narrow in zip(padded, results, strict=True))
    with pytest.raises(ValueError, match=r"lambda 1\.5"):
        ppo.advantages_and_returns(rewards, values, weights, lam=1.5)


def expected_error(lam: float, values_of_prefixes: Any) -> float:
    """Return the relative error of the expected gradient, for the values of prefixes, or exact ones if that is None."""
    rng = np.random.default_rng(1)
    table, reference, scores = rng.standard_normal(21), rng.standard_normal(21), rng.standard_normal(len(TEXTS))
    at = np.array([[PREFIXES.index(text[:place]) if place < len(text) else 0 for place in range(3)] for text in TEXTS])
    tokens = np.array([[*text, 0, 0][:3] for text in TEXTS])
    weights = np.array([[float(place < len(text)) for place in range(3)] for text in TEXTS])

    def token_logs(table: Any) -> Any:
        return jax.nn.log_softmax(jnp.reshape(table, (7, 3)))[at, tokens] * weights

    def true(table: Any) -> Any:
        logs = text_log_probs(table)
        return (jnp.exp(logs) * (scores - BETA * (logs - text_log_probs(reference)))).sum()

    reference = jnp.asarray(reference)
    logs = np.asarray(token_logs(table))
    probability = np.exp(logs.sum(1))
    rewards = ppo.token_rewards(scores, logs - np.asarray(token_logs(reference)), weights, BETA)
    if values_of_prefixes is None:
        to_go = np.cumsum(rewards[:, ::-1], 1)[:, ::-1]
        share = probability[:, None] * weights
        values_of_prefixes = np.array([(share * to_go)[at == n].sum() / share[at == n].sum() for n in range(7)])
    advantages, _ = ppo.advantages_and_returns(rewards, values_of_prefixes[at] * weights, weights, lam=lam)
    gradient = np.einsum("y,yt,ytp->p", probability, advantages, np.asarray(jax.jacobian(token_logs)(table)))
    exact = np.asarray(jax.grad(true)(jnp.asarray(table)))
    return float(np.linalg.norm(gradient - exact) / np.linalg.norm(exact))


@pytest.mark.planted
def test_the_expected_gradient_is_exact_with_lambda_1_or_with_exact_values() -> None:
    """Values that are wrong are a mistake for any smaller lambda, which the last line notices."""
    wrong = np.random.default_rng(2).standard_normal(7)
    with float64():
        assert expected_error(1.0, wrong) <= 1e-10
        assert expected_error(0.3, None) <= 1e-10
        assert expected_error(0.95, wrong) > 1e-2


def test_losses_of_values() -> None:
    values, old, returns = np.random.default_rng(3).standard_normal((3, 4, 5))
    loss, gradient = jax.value_and_grad(lambda x: ppo.value_losses(x, jnp.float32(old), jnp.float32(returns), 0.2).sum())(
        jnp.float32(values)
    )
    limited = np.minimum(np.maximum(values, old - 0.2), old + 0.2)
    plain, of_limited = (values - returns) ** 2, (limited - returns) ** 2
    assert float(loss) == pytest.approx(0.5 * np.maximum(plain, of_limited).sum(), rel=1e-5)
    np.testing.assert_allclose(gradient, np.where(plain >= of_limited, values - returns, 0), atol=1e-5)
