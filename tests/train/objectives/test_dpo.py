"""Preferences without sampling: losses of TRL, optima that are known, and what must not change a loss."""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from tests.support import preference_steps, tiny, trl_losses
from tests.support.enumeration import PREFIXES, TEXTS, text_log_probs
from tests.support.gradients import assert_equal_gradients
from tests.support.preference_steps import MESH_CASES, MESHES, assert_equal_to_torch, batch_of, pairs_of
from tests.support.small import random_params, small
from train.config import run_config
from train.config.data_options import PreferenceData
from train.config.dpo_options import Dpo
from train.engine import device_mesh
from train.engine.log_probs import sequence_log_probs
from train.engine.preference_losses import implicit_rewards, pair_losses
from train.objectives.feedback import dpo
from train.objectives.feedback.dpo import DirectPreferences
from zoo import models, published_weights
from zoo.batch import Batch
from zoo.errors import BadInput

MESH = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
OPTIONS: dict[str, Any] = dict(seeds=None, carry={}, smoothing=0.0, chunk=0)
# Compiled once for all losses and their gradients.
log_probs = jax.jit(sequence_log_probs, static_argnums=0, static_argnames="chunk")


# --- TRL ---


@functools.cache
def policy_and_reference() -> tuple[Any, Any, Any]:
    """Return the model of `tests.support.trl_losses`, its parameters and those of the reference."""
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        (cfg, policy), (_, reference) = (
            published_weights.load_published(f, MESH) for f in trl_losses.write_models(Path(scratch))
        )
    return models.model(cfg), policy, reference


def decoder_batch(name: str) -> Batch:
    """Return the pairs of `tests.support.trl_losses` with the reference's log-probabilities."""
    net, _, reference = policy_and_reference()
    batch = batch_of(*trl_losses.pairs(name))
    return dataclasses.replace(batch, extra={"reference": log_probs(net, reference, batch, chunk=0)[0]})


def frozen(name: str) -> dict[str, Any]:
    return json.loads(trl_losses.FILE.read_text())["losses"][name]


def check_against_trl(name: str, expected: dict[str, Any], folder: Path) -> None:
    """Compare the loss within 1e-5, and the gradients by the project's bound against torch."""
    net, params, _ = policy_and_reference()
    objective, batch = DirectPreferences(Dpo(kind=name.split()[0], **trl_losses.KINDS[name])), decoder_batch(name)
    divisors = objective.weights(batch)

    def loss(params: Any) -> jax.Array:
        terms, _ = objective.loss(net, params, batch, {}, **OPTIONS)
        return sum(terms[term] / divisors[term] for term in terms)

    value, gradients = jax.value_and_grad(loss)(params)
    assert_equal_to_torch(net.config, value, gradients, expected, folder)


@pytest.fixture
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpo, "sequence_log_probs", log_probs)


@pytest.mark.parametrize("name", trl_losses.KINDS)
def test_losses_and_gradients_are_those_of_trl(name: str, compiled_once: None, tmp_path: Path) -> None:
    check_against_trl(name, frozen(name), tmp_path)


# The libraries' own deprecations.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parity
def test_trl_still_computes_the_frozen_losses(compiled_once: None, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    for name, expected in trl_losses.losses().items():
        (tmp_path / name).mkdir()
        check_against_trl(name, expected, tmp_path / name)


def beta_on_one_side(log_probs: Any, reference: Any, lengths: Any, options: Dpo) -> Any:
    return implicit_rewards(log_probs, reference, lengths, options) * jnp.array([1.0, 1 / options.beta])


def reference_of_the_other_side(log_probs: Any, reference: Any, lengths: Any, options: Dpo) -> Any:
    return implicit_rewards(log_probs, reference[:, ::-1], lengths, options)


def shifted_mask(net: Any, params: Any, batch: Batch, **options: Any) -> Any:
    return log_probs(net, params, dataclasses.replace(batch, weights=jnp.roll(batch.weights, 1, -1)), **options)


def summed_ipo(log_probs: Any, reference: Any, lengths: Any, options: Dpo) -> Any:
    return implicit_rewards(log_probs, reference, jnp.ones_like(lengths), options)


@pytest.mark.planted(4)
@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        ("sigmoid", "implicit_rewards", beta_on_one_side),
        ("sigmoid", "implicit_rewards", reference_of_the_other_side),
        ("sigmoid", "sequence_log_probs", shifted_mask),
        ("ipo", "implicit_rewards", summed_ipo),
    ],
)
def test_wrong_losses_differ_from_trl(
    kind: str, name: str, wrong: Callable[..., Any], compiled_once: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dpo, name, wrong)
    with pytest.raises(AssertionError):
        check_against_trl(kind, frozen(kind), tmp_path)


# --- Optima ---


def optimum(kind: str, probability: Any, reference: Any, beta: float) -> Any:
    """Return the log-probabilities that minimize the expected loss of all pairs, whose first text wins with `probability`."""
    winner, loser = np.array([pair for pair in itertools.permutations(range(len(TEXTS)), 2)]).T
    lengths = jnp.ones((len(winner), 2))

    @jax.jit
    @jax.value_and_grad
    def loss(table: Any) -> Any:
        both = text_log_probs(table)[np.stack([winner, loser], 1)]
        options = Dpo(kind=kind, beta=beta)
        of_pairs = pair_losses(implicit_rewards(both, reference[np.stack([winner, loser], 1)], lengths, options), options)
        return (of_pairs * probability[winner, loser]).sum()

    start = np.random.default_rng(1).standard_normal(3 * len(PREFIXES))
    solution = scipy.optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-12, "maxiter": 10_000})
    return text_log_probs(solution.x)


def test_the_optima_of_dpo_and_ipo_are_reached() -> None:
    """DPO on all pairs, labelled by Bradley and Terry's model, gives pi_ref exp(R / beta) / Z; IPO, with sums instead of means,
    differences of log-ratios (p(y > mu) - p(y' > mu)) / beta for uniform mu (Azar et al. 2023, section 5)."""
    assert len(TEXTS) == 15
    beta = 0.5
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        reference = text_log_probs(jnp.asarray(rng.standard_normal(3 * len(PREFIXES))))
        reward = rng.standard_normal(len(TEXTS))
        probability = 1 / (1 + np.exp(reward[None] - reward[:, None]))  # [winner, loser]
        expected = jax.nn.softmax(reference + reward / beta)
        assert 0.5 * np.abs(np.exp(optimum("sigmoid", probability, reference, beta)) - expected).sum() <= 1e-6
        ratios = optimum("ipo", probability, reference, beta) - reference
        wins = probability.mean(1)
        np.testing.assert_allclose(ratios[:, None] - ratios, (wins[:, None] - wins) / beta, atol=1e-6)


# --- Identities ---


def numbers(kind: Any, **options: Any) -> tuple[Any, Dpo]:
    """Return rewards of random log-probabilities, and the options."""
    rng = np.random.default_rng(3)
    log_probs, reference = jnp.asarray(-20 * rng.random((2, 64, 2)), jnp.float32)
    lengths = jnp.asarray(rng.integers(1, 9, (64, 2)), jnp.float32)
    chosen = Dpo(kind=kind, sft=float(kind == "orpo"), **options)
    return implicit_rewards(log_probs, reference if chosen.has_reference else None, lengths, chosen), chosen


def test_smoothed_and_robust_losses_are_mixtures_of_both_labels() -> None:
    plain, right_way = (pair_losses(*numbers("sigmoid")) for _ in range(2))
    assert (
        plain.tobytes() == pair_losses(*numbers("robust")).tobytes() == pair_losses(*numbers("sigmoid", smoothing=0.0)).tobytes()
    )
    of_both, options = numbers("sigmoid", smoothing=0.2)
    wrong_way = pair_losses(of_both[:, ::-1], numbers("sigmoid")[1])
    np.testing.assert_allclose(pair_losses(of_both, options), 0.8 * right_way + 0.2 * wrong_way, rtol=1e-6)
    # A robust loss is unbiased: over labels of which a share is wrong, its mean is the loss of the right ones.
    both_ways = [pair_losses(of_both[:, order], numbers("robust", smoothing=0.2)[1]) for order in ([0, 1], [1, 0])]
    np.testing.assert_allclose(0.8 * both_ways[0] + 0.2 * both_ways[1], right_way, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 7])
def test_odds_are_exact_near_probabilities_of_0_and_1(length: int) -> None:
    """Against float64, whose 1 - exp(x) is exact enough; a probability that rounds to 1 has a finite gradient."""
    means = np.array([[-1e-5, -0.5], [-0.69, -0.7], [-30.0, -1e-6]])
    options = Dpo(kind="orpo", sft=1.0)
    ours = implicit_rewards(jnp.float32(means * length), None, jnp.full((3, 2), float(length)), options)
    np.testing.assert_allclose(ours, means - np.log(-np.expm1(means)), rtol=1e-5)
    gradient = jax.grad(lambda x: pair_losses(implicit_rewards(x, None, jnp.ones((1, 2)), options), options).sum())(
        jnp.zeros((1, 2))
    )
    assert np.isfinite(gradient).all()


def test_at_the_reference_margins_are_0_and_the_loss_is_log_2() -> None:
    net, _, reference = policy_and_reference()
    batch = decoder_batch("sigmoid")
    terms, _ = jax.jit(lambda params: DirectPreferences(Dpo()).loss(net, params, batch, {}, **OPTIONS))(reference)
    assert float(terms["dpo"]) / 3 == pytest.approx(math.log(2), abs=1e-6)
    own, lengths = log_probs(net, reference, batch, chunk=0)
    margins = -jnp.diff(implicit_rewards(own, batch.extra["reference"], lengths, Dpo()))
    assert (margins == 0).all()


# --- What must not change a loss ---


@pytest.mark.parametrize(
    "family", ["gpt", *(pytest.param(name, marks=pytest.mark.full) for name in ("ettin_decoder", "llama", "t5", "transformer"))]
)
def test_padding_changes_no_log_probability(family: str) -> None:
    net = small(family, **({"context": 96} if family in ("ettin_decoder", "gpt", "llama") else {}))
    params = random_params(net)
    first, *padded = (log_probs(net, params, pairs_of(net, pad), chunk=0) for pad in (0, 5, 50))
    assert float(jnp.abs(first[0]).max()) > 1
    for other in padded:
        np.testing.assert_allclose(other[0], first[0], rtol=1e-6)
        np.testing.assert_array_equal(other[1], first[1])
    chunked = log_probs(net, params, pairs_of(net), chunk=4)
    np.testing.assert_allclose(chunked[0], first[0], rtol=1e-6)


def first_steps(**changes: Any) -> tuple[list[float], Any]:
    """Return the losses of three steps and the first gradient; chosen answers have different lengths, and the SFT term counts."""
    net = small("gpt", layers=1)
    run = tiny.run("dpo", model=net.config, dpo=Dpo(sft=0.5), data=PreferenceData(length=10, batch=16), **changes)
    return preference_steps.first_steps(run, DirectPreferences(run.options.dpo), pairs_of(net, rows=16))


alone = functools.cache(functools.partial(first_steps, mesh=run_config.Mesh(data=1)))


@pytest.mark.parametrize("case", MESH_CASES)
def test_losses_and_gradients_do_not_depend_on_the_mesh(case: str) -> None:
    losses, gradient = first_steps(**MESHES[case])
    np.testing.assert_allclose(losses, alone()[0], rtol=1e-5)
    assert losses[-1] < losses[0]
    assert_equal_gradients(gradient, alone()[1])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"beta": 0.0}, "dpo.beta"),
        ({"smoothing": 0.5, "kind": "robust"}, "dpo.smoothing"),
        ({"smoothing": 0.1, "kind": "ipo"}, "no effect on ipo"),
        ({"gamma": 1.0}, "no effect on sigmoid"),
        ({"kind": "orpo"}, "dpo.sft"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        Dpo(**options)
