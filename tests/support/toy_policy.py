"""Models of a vocabulary of 3 for policy gradients: expectations over all texts, their exact gradients, and the optimum."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.support import responses
from tests.support.enumeration import PREFIXES, TEXTS, text_log_probs
from tests.support.small import random_params, shallow, small
from zoo import models
from zoo.batch import Batch, Output

LIMIT, BETA = 3, 0.5
REWARDS = np.random.default_rng(0).standard_normal(len(TEXTS))
OPTIONS: dict[str, Any] = dict(seeds=None, carry={}, smoothing=0.0, chunk=0)
"""Arguments of an objective's loss."""


def wide(tree: Any) -> Any:
    """Return float32 arrays as float64."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.float64(leaf) if leaf.dtype == np.float32 else leaf), tree)


@functools.cache
def toy(family: str) -> tuple[Any, Any, Any, Batch]:
    """Return a model of one layer, or of two, its parameters, those of a reference, and all texts as rows, in float64."""
    net = shallow(family, vocab=3)
    params = wide(random_params(net))
    reference = jax.tree.map(lambda leaf: 0.7 * leaf, params)
    prompt = (1, 0, 2) if net.is_encoder_decoder else (0, 1)
    rows = responses.rows(net, [prompt] * len(TEXTS), TEXTS, length=len(prompt) + LIMIT, target_length=LIMIT)
    return net, params, reference, wide(rows)


@functools.partial(jax.jit, static_argnums=0)
def log_probs_of_texts(net: Any, params: Any, batch: Batch) -> jax.Array:
    """Return the log-probability of each row's response by the definition."""
    logs = jax.nn.log_softmax(net.unembed(params, net.apply(params, batch).hidden)[..., :3])
    return (jnp.take_along_axis(logs, batch.targets[..., None], -1)[..., 0] * batch.weights).sum(1)


def exact(family: str, rewards: np.ndarray, beta: float) -> Any:
    """Return the gradient of the expected reward minus beta times the KL divergence to the reference."""
    net, params, reference, batch = toy(family)
    reference_logs = log_probs_of_texts(net, reference, batch)

    def objective(params: Any) -> jax.Array:
        logs = log_probs_of_texts(net, params, batch)
        return (jnp.exp(logs) * (rewards - beta * (logs - reference_logs))).sum()

    assert abs(float(jnp.exp(log_probs_of_texts(net, params, batch)).sum()) - 1) <= 1e-12
    return jax.grad(objective)(params)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def error(estimate: Any, true: Any, scale: float) -> float:
    """Return the relative error of `scale` times a gradient."""
    return float(np.linalg.norm(scale * flat(estimate) - flat(true)) / np.linalg.norm(flat(true)))


def tabular() -> tuple[Any, Batch]:
    """Return a model whose parameter `table` has the logits after each prefix, and all texts after a prompt of one token."""

    def apply(cfg: Any, params: Any, batch: Batch, **_: Any) -> Output:
        first, second = batch.tokens[:, 1] % 2, batch.tokens[:, 2] % 2
        prefix = jnp.stack([0 * first, 1 + first, 3 + 2 * first + second, 0 * first], 1)
        return Output(hidden=params["table"].reshape(len(PREFIXES), 3)[prefix])

    gpt = small("gpt", vocab=3)
    definition = dataclasses.replace(gpt.definition, apply=apply, unembed=lambda cfg, params, hidden: hidden)
    batch = wide(responses.rows(gpt, [(0,)] * len(TEXTS), TEXTS, length=1 + LIMIT, target_length=0))
    return models.Model(family="gpt", config=gpt.config, definition=definition), batch


def distance(gradient: Callable[[Any, Any], Any], rates: Sequence[float]) -> float:
    """Return the total variation to the optimum, pi_ref exp(R / beta) / Z, after natural gradient steps from the reference.

    Args:
        gradient: function from the table and that of the reference to an ascent direction of the reward.
        rates: the rate of each step.
    """
    reference = jnp.asarray(np.random.default_rng(1).standard_normal(3 * len(PREFIXES)))
    jacobian = jax.jit(jax.jacobian(text_log_probs))
    table, target = reference, jax.nn.softmax(text_log_probs(reference) + REWARDS / BETA)
    for rate in rates:
        slope = jacobian(table)
        fisher = slope.T @ (jnp.exp(text_log_probs(table))[:, None] * slope)
        table = table + rate / BETA * np.linalg.lstsq(fisher, gradient(table, reference), rcond=1e-10)[0]
    return 0.5 * float(jnp.abs(jnp.exp(text_log_probs(table)) - target).sum())
