"""Labelled completions: losses of TRL, what must not change a loss, and the scores of held-out ones."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.tasks.held_out import preference_scores
from eval.tasks.held_out.scoring_inputs import ScoringInputs
from tests.support import preference_steps, tiny, trl_kto
from tests.support.gradients import assert_equal_gradients
from tests.support.preference_steps import MESH_CASES, MESHES, assert_equal_to_torch, batch_of, pairs_of
from tests.support.small import random_params, small
from train.config import run_config
from train.config.data_options import UnpairedData
from train.config.kto_options import Kto
from train.data.example_types import UnpairedPreference
from train.engine import device_mesh
from train.engine.log_probs import sequence_log_probs
from train.engine.preference_losses import unpaired_losses
from train.inputs import kto_inputs
from train.objectives.feedback import kto
from train.objectives.feedback.kto import OBJECTIVE
from train.rows.batches import in_order
from train.tokenizers.tokenizer import Tokenizer
from train.weights.reference_log_probs import with_reference
from zoo import models, published_weights
from zoo.batch import Batch
from zoo.errors import BadInput

MESH = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
COMPLETE: dict[str, Any] = dict(seeds=None, reduce=lambda x: x, num_micro=1, chunk=0)
LOSS: dict[str, Any] = dict(seeds=None, carry={}, smoothing=0.0, chunk=0)
# Compiled once for all losses and their gradients.
log_probs = jax.jit(sequence_log_probs, static_argnums=0, static_argnames="chunk")


@pytest.fixture
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kto, "sequence_log_probs", log_probs)


def value_of(objective: Any, net: Any, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return (the loss of a batch as a step computes it, its reference point)."""
    batch = objective.complete_batch(net, lambda: params, batch, {}, **COMPLETE)
    terms, _ = objective.loss(net, params, batch, {}, **LOSS)
    return terms["kto"] / objective.weights(batch)["kto"], batch.extra["z"][0]


# --- TRL ---


@functools.cache
def case_of(case: str) -> tuple[Any, Any, Batch]:
    """Return the model of a case of `tests.support.trl_kto`, its parameters, and the batch."""
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        (cfg, policy), (_, reference) = (published_weights.load_published(f, MESH) for f in trl_kto.models(Path(scratch), case))
    net, batch = models.model(cfg), batch_of(*trl_kto.texts())
    extra = {"reference": log_probs(net, reference, batch, chunk=0)[0], "desired": jnp.asarray(trl_kto.DESIRED, jnp.float32)}
    return net, policy, dataclasses.replace(batch, extra=extra)


def check_against_trl(case: str, expected: dict[str, Any], folder: Path) -> None:
    """Compare loss, reference point and gradients."""
    net, params, batch = case_of(case)
    objective = OBJECTIVE(Kto(**trl_kto.OPTIONS))
    z = value_of(objective, net, params, batch)[1]
    # As in a step, the numbers of the batch are computed outside of the function that is differentiated.
    extra = batch.extra | {"z": objective.complete_batch(net, lambda: params, batch, {}, **COMPLETE).extra["z"]}
    completed = dataclasses.replace(batch, extra=extra)

    def loss(params: Any) -> jax.Array:
        return objective.loss(net, params, completed, {}, **LOSS)[0]["kto"] / len(batch.tokens)

    value, gradients = jax.value_and_grad(loss)(params)
    assert float(z) == pytest.approx(expected["z"], abs=1e-5) and (expected["z"] > 0) == (case == "above 0")
    assert_equal_to_torch(net.config, value, gradients, expected, folder)


def frozen(case: str) -> dict[str, Any]:
    return json.loads(trl_kto.FILE.read_text())["losses"][case]


@pytest.mark.parametrize("case", trl_kto.CASES)
def test_loss_reference_point_and_gradients_are_those_of_trl(case: str, compiled_once: None, tmp_path: Path) -> None:
    check_against_trl(case, frozen(case), tmp_path)


# The libraries' own deprecations.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parity
@pytest.mark.parametrize("case", trl_kto.CASES)
def test_trl_still_computes_the_frozen_losses(case: str, compiled_once: None, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    check_against_trl(case, trl_kto.loss(case), tmp_path)


def unclamped(summed: Any, count: Any) -> Any:
    return summed / count


class OwnCompletions(OBJECTIVE):
    def complete_batch(self, model: Any, params: Any, batch: Any, frozen: Any, **options: Any) -> Any:
        own = jax.tree.map(lambda leaf: leaf[:, ::-1], dataclasses.replace(batch, extra=None))
        own = dataclasses.replace(own, extra=batch.extra | {"reference": batch.extra["reference"][:, ::-1]})
        z = super().complete_batch(model, params, own, frozen, **options).extra["z"]
        return dataclasses.replace(batch, extra=batch.extra | {"z": z})


class WithGradient(OBJECTIVE):
    def loss(self, model: Any, params: Any, batch: Any, frozen: Any, **options: Any) -> Any:
        batch = self.complete_batch(model, lambda: params, batch, frozen, **COMPLETE)
        return super().loss(model, params, batch, frozen, **options)


def swapped(ratios: Any, z: Any, desired: Any, options: Kto) -> Any:
    return unpaired_losses(ratios, z, 1 - desired, options)


@pytest.mark.planted
@pytest.mark.parametrize(
    ("case", "module", "name", "wrong"),
    [
        ("clamped", kto, "reference_point", unclamped),
        ("above 0", kto, "unpaired_losses", swapped),
        ("above 0", None, "OBJECTIVE", OwnCompletions),
        ("above 0", None, "OBJECTIVE", WithGradient),
    ],
)
def test_wrong_losses_differ_from_trl(
    case: str, module: Any, name: str, wrong: Any, compiled_once: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check_against_trl(case, frozen(case), tmp_path)
    monkeypatch.setitem(globals(), name, wrong) if module is None else monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError):
        check_against_trl(case, frozen(case), tmp_path)


# --- What must not change a loss ---


def labelled(net: Any, rows: int) -> Batch:
    """Return examples with alternating labels, whose log-ratios to the reference are around 1: the reference point is above 0."""
    batch = pairs_of(net, rows=rows)
    # The logarithm of the vocabulary is 5.7: a new model predicts all of its tokens alike.
    reference = batch.extra["reference"] - 6.0 * batch.weights.sum(-1)
    return dataclasses.replace(batch, extra={"reference": reference, "desired": jnp.arange(rows) % 2 * 1.0})


def first_steps(**changes: Any) -> tuple[list[float], Any]:
    """Return the losses of three steps and the first gradient; of two micro-batches, each has examples of one label alone."""
    net = small("gpt", layers=1)
    options = Kto(desired_weight=1.5)
    run = tiny.run("kto", model=net.config, kto=options, data=UnpairedData(length=10, batch=16), **changes)
    return preference_steps.first_steps(run, OBJECTIVE(options), labelled(net, 16))


alone = functools.cache(functools.partial(first_steps, mesh=run_config.Mesh(data=1)))


@pytest.mark.parametrize("case", MESH_CASES)
def test_losses_and_gradients_do_not_depend_on_the_mesh(case: str) -> None:
    losses, gradient = first_steps(**MESHES[case])
    np.testing.assert_allclose(losses, alone()[0], rtol=1e-5)
    assert losses[-1] < losses[0]
    assert_equal_gradients(gradient, alone()[1])


def test_rows_that_fill_up_a_batch_count_nowhere_and_adapters_have_the_same_loss() -> None:
    net = small("gpt", layers=1)
    params, batch, objective = random_params(net), labelled(net, 4), OBJECTIVE(Kto())
    extra = batch.extra | {"reference": batch.extra["reference"] - 30}
    batch, value = dataclasses.replace(batch, extra=extra), jax.jit(functools.partial(value_of, objective, net))
    uncounted = dataclasses.replace(batch, weights=batch.weights * jnp.array([1, 0, 0, 1])[:, None, None])
    counted = jax.tree.map(lambda leaf: leaf[jnp.array([0, 3, 0, 3])], batch)
    both = [value(params, rows) for rows in (uncounted, counted)]
    np.testing.assert_allclose(*both, rtol=1e-6)
    assert both[0][1] > 1 and abs(value(params, batch)[1] / both[0][1] - 1) > 1e-3


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"desired_weight": 0.0}, {"undesired_weight": float("nan")}])
def test_options_without_a_meaning_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=f"--kto.{next(iter(options)).replace('_', '-')} "):
        Kto(**options)


# --- Scores ---


def test_scores_are_those_of_one_batch_of_all_held_out_examples() -> None:
    """Whatever the size of a batch is; at the reference nothing is gained, and the reference point is 0."""
    words, net = Tokenizer.train([], 257), small("gpt", layers=1)
    data = UnpairedData(length=32, batch=8)
    run = tiny.run("kto", model=net.config, init="base", precision="float32", data=data, kto=Kto(desired_weight=1.5))
    examples = [
        UnpairedPreference(origin="p", prompt=f"a{n}", completion=f" {'c' * (n % 5 + 1)}", desired=n % 3 > 0) for n in range(9)
    ]
    rows, params, objective = kto_inputs.rows_of_completions(examples, run, words), random_params(net), OBJECTIVE(run.options.kto)
    build = OBJECTIVE.builder(run, words, lambda: np.zeros(0))  # pyright: ignore[reportArgumentType]
    (batch,) = in_order(rows, build, 16, np.arange(16))
    reference = np.asarray(log_probs(net, params, jax.tree.map(jnp.asarray, batch), chunk=0)[0])[:9]
    rows, other = with_reference(rows, reference), jax.tree.map(lambda leaf: leaf * 0.9, params)
    (batch,) = in_order(rows, build, 16, np.arange(16))

    def scores(params: Any, size: int) -> dict[str, float | int]:
        scored = ScoringInputs(run=run, model=net, mesh=MESH, data=None, rows=rows, build=build, batch=size, dtype=jnp.float32)
        return preference_scores.score_kto(scored)(params).record()

    at_reference, *records = scores(params, 16), scores(other, 16), scores(other, 3)
    assert at_reference["loss"] == pytest.approx((6 * 1.5 + 3) / 9 / 2, abs=1e-5)
    assert abs(at_reference["reward_margin"]) + at_reference["reference_point"] < 1e-4
    assert (at_reference["examples"], at_reference["desired"], at_reference["undesired_length"]) == (9, 6, pytest.approx(13 / 3))
    assert records[0] == pytest.approx(records[1], rel=1e-5)
    value, z = jax.jit(functools.partial(value_of, objective, net))(other, jax.tree.map(jnp.asarray, batch))
    assert z > 0 and records[0]["reference_point"] == pytest.approx(float(z), rel=1e-5)
    assert records[0]["loss"] == pytest.approx(float(value), rel=1e-5)


def test_without_a_reference_the_scores_are_those_of_the_answers_alone() -> None:
    words, net = Tokenizer.train([], 257), small("gpt", layers=1)
    data = UnpairedData(length=16, batch=4)
    run = tiny.run("kto", model=net.config, precision="float32", data=data, kto=Kto(reference="none"))
    examples = [UnpairedPreference(origin="p", prompt="a", completion=f" {'c' * (n + 1)}", desired=n > 0) for n in range(4)]
    rows, params, objective = kto_inputs.rows_of_completions(examples, run, words), random_params(net), OBJECTIVE(run.options.kto)
    build = OBJECTIVE.builder(run, words, lambda: np.zeros(0))  # pyright: ignore[reportArgumentType]
    (host,) = in_order(rows, build, 4, np.arange(4))
    batch = jax.tree.map(jnp.asarray, host)
    assert batch.tokens.shape == (4, 1, 16)
    logs = np.asarray(log_probs(net, params, batch, chunk=0)[0])[:, 0]
    expected = np.mean(1 / (1 + np.exp(0.1 * np.where([False, True, True, True], logs, -logs))))
    value, z = value_of(objective, net, params, batch)
    assert float(value) == pytest.approx(expected, rel=1e-5) and z == 0
    scored = ScoringInputs(run=run, model=net, mesh=MESH, data=None, rows=rows, build=build, batch=4, dtype=jnp.float32)
    record = preference_scores.score_kto(scored)(params).record()
    assert record["loss"] == pytest.approx(expected, rel=1e-5) and record["reference_point"] == 0
    assert record["desired_reward"] == pytest.approx(0.1 * logs[1:].mean(), rel=1e-5)
