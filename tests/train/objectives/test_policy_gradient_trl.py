"""Policy gradients against TRL: advantages, losses and gradients of a GPT-2."""

import dataclasses
import functools
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.golden import make
from tests.support import responses, trl_policy
from train.config import run_config
from train.engine import device_mesh
from train.engine.log_probs import token_log_probs
from train.engine.policy_losses import clipped_losses
from train.objectives.feedback import policy_gradient
from train.objectives.feedback.policy_gradient import PolicyGradient
from train.rollouts.advantages import group_advantages
from zoo import models, published_weights
from zoo.batch import Batch
from zoo.hf import safetensors_dir

MESH = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
# Compiled once for all losses of a temperature, and their gradients.
compiled = jax.jit(token_log_probs, static_argnums=0, static_argnames=("chunk", "temperature", "longest"))


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_gradient, "token_log_probs", compiled)


@functools.cache
def networks() -> tuple[Any, tuple[Any, Any, Any], Batch]:
    """Return the model, its parameters, those that sampled and those of the reference, and the responses."""
    with tempfile.TemporaryDirectory() as scratch:
        loaded = [published_weights.load_published(folder, MESH) for folder in trl_policy.write_models(Path(scratch))]
    net = models.model(loaded[0][0])
    batch = responses.rows(net, *trl_policy.texts(), length=trl_policy.PROMPT + max(trl_policy.LENGTHS), target_length=0)
    params, old, reference = (params for _, params in loaded)
    return net, (params, old, reference), batch


@functools.cache
def log_probs(temperature: float) -> tuple[jax.Array, jax.Array]:
    """Return the log-probabilities of the tokens when they were sampled, and under the reference."""
    net, (_, old, reference), batch = networks()
    old_logs, reference_logs = (compiled(net, which, batch, chunk=0, temperature=temperature) for which in (old, reference))
    return old_logs, reference_logs


def check_against_trl(name: str, expected: dict[str, Any], folder: Path, advantages: Any = group_advantages) -> None:
    """Compare advantages and loss within 1e-5, and the gradients by the project's bound against torch."""
    net, (params, _, _), batch = networks()
    options, temperature = trl_policy.CASES[name]
    old, reference = log_probs(temperature)
    in_reward = 0 if options.kl_in_loss else options.beta * np.asarray(old - reference, np.float64).sum(1)
    returns = (np.array(trl_policy.REWARDS) - in_reward).reshape(-1, trl_policy.SAMPLES)
    advantage = advantages(returns, options.advantage).reshape(-1)
    np.testing.assert_allclose(advantage, expected["advantages"], atol=1e-5, rtol=1e-5)
    extra = {"old": old, "reference": reference, "advantage": jnp.asarray(advantage, jnp.float32)}
    objective, batch = PolicyGradient(options, trl_policy.rollout(name)), dataclasses.replace(batch, extra=extra)

    def loss(params: Any) -> jax.Array:
        terms, _ = objective.loss(net, params, batch, {}, seeds=None, carry={}, smoothing=0.0, chunk=0)
        divisors = objective.weights(batch)
        return sum(terms[term] / divisors[term] for term in terms)

    value, gradients = jax.value_and_grad(loss)(params)
    assert float(value) == pytest.approx(expected["loss"], abs=1e-5)
    published_weights.save_published(folder, net.config, gradients)
    stored = load_file(folder / safetensors_dir.SINGLE)
    total = math.hypot(*(norm for norm, _ in expected["gradients"].values()))
    assert stored.keys() == expected["gradients"].keys()
    for tensor, probe in expected["gradients"].items():
        bound = math.sqrt(stored[tensor].size) * (1e-3 * probe[0] + 1e-5 * total)
        assert make.probe(tensor, stored[tensor]) == pytest.approx(probe, abs=bound), tensor


def frozen(name: str) -> dict[str, Any]:
    return json.loads(trl_policy.FILE.read_text())["losses"][name]


# A temperature is another program.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] if "temperature" in name else []) for name in trl_policy.CASES]
)
def test_advantages_losses_and_gradients_are_those_of_trl(name: str, tmp_path: Path) -> None:
    check_against_trl(name, frozen(name), tmp_path)


# The libraries' own deprecations.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parity
def test_trl_still_computes_the_frozen_losses(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    for name, expected in trl_policy.losses().items():
        (tmp_path / name).mkdir()
        check_against_trl(name, expected, tmp_path / name)


def deviation_with_n(rewards: np.ndarray, kind: Any) -> np.ndarray:
    return (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-4)


def clips_swapped(ratio: Any, advantage: Any, low: float, high: float) -> Any:
    return clipped_losses(ratio, advantage, high, low)


def shifted_mask(net: Any, params: Any, batch: Batch, **options: Any) -> Any:
    return compiled(net, params, dataclasses.replace(batch, weights=jnp.roll(batch.weights, 1, -1)), **options)


@pytest.mark.planted
@pytest.mark.parametrize(
    ("name", "wrong"), [("", deviation_with_n), ("clipped_losses", clips_swapped), ("token_log_probs", shifted_mask)]
)
def test_wrong_losses_differ_from_trl(name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if name:
        monkeypatch.setattr(policy_gradient, name, wrong)
    with pytest.raises(AssertionError):
        check_against_trl("dapo", frozen("dapo"), tmp_path, group_advantages if name else wrong)
