"""Steps whose loss is far above those before it are skipped: by a plain loop, on every engine, and only if a run asks for it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import tiny
from train.config.option_groups import Spikes
from train.config.run_config import Mesh, Run
from train.engine import device_mesh, step_acceptance
from train.engine.state import State
from train.engine.state_init import init_state
from train.engine.step_acceptance import Acceptance, make_acceptance
from train.objectives.causal import Causal
from train.step.assembly import assemble
from zoo.errors import BadInput
from zoo.models import model

SIGMAS, WINDOW = 2.0, 5
SMALL = dataclasses.replace(tiny.run().model, layers=1, dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0)


def losses() -> list[float]:
    """Noise around a falling curve, with spikes, and numbers that are not finite."""
    rng = np.random.default_rng(3)
    values = 3 - np.arange(60) / 200 + 0.1 * rng.standard_normal(60)
    values[[3, 11, 12, 13, 30, 45]] += 3.0
    values[[20, 46]] = np.nan, np.inf
    return values.astype(np.float32).tolist()


def by_a_loop() -> list[bool]:
    applied, decisions = [], []
    for loss in losses():
        last = np.array(applied[-WINDOW:])
        is_spike = len(applied) >= WINDOW and loss > last.mean() + SIGMAS * last.std()
        decisions.append(bool(np.isfinite(loss) and not is_spike))
        applied += [loss] if decisions[-1] else []
    return decisions


def decisions(policy: Acceptance) -> list[bool]:
    decide, statistics, accepted = jax.jit(policy.decide), policy.init(), []
    for loss in losses():
        applied, statistics, metrics = decide(statistics, jnp.float32(loss), jnp.float32(1))
        accepted.append(bool(applied))
        assert float(metrics["finite"]) == np.isfinite(loss)
        assert float(metrics["spike"]) == (np.isfinite(loss) and not applied)
    return accepted


def counting_skipped(policy: Acceptance) -> Acceptance:
    """Return the policy with a planted mistake: the losses of skipped steps count as well."""

    def decide(statistics: Any, loss: Any, norm: Any) -> Any:
        accepted, _, metrics = policy.decide(statistics, loss, norm)
        index = statistics["applied"] % WINDOW
        losses = statistics["losses"].at[index].set(jnp.where(jnp.isfinite(loss), loss, 0))
        return accepted, {"losses": losses, "applied": statistics["applied"] + 1}, metrics

    return dataclasses.replace(policy, decide=decide)


@pytest.mark.planted(3)
def test_the_decisions_are_those_of_a_plain_loop() -> None:
    expected = by_a_loop()
    assert 6 <= expected.count(False) < 20
    policy = make_acceptance(Spikes(sigmas=SIGMAS, window=WINDOW))
    assert decisions(policy) == expected
    mistakes = [
        make_acceptance(Spikes(sigmas=2 * SIGMAS, window=WINDOW)),
        make_acceptance(Spikes(sigmas=SIGMAS, window=WINDOW + 1)),
    ]
    for mistake in [*mistakes, counting_skipped(policy)]:
        assert decisions(mistake) != expected


def run_of(**changes: Any) -> Run:
    return tiny.run(**{"model": SMALL, "spikes": Spikes(sigmas=3.0, window=4), **changes})


@functools.cache
def batch() -> Any:
    return tiny.batch(0)


def take_step(run: Run, statistics: list[float]) -> tuple[State, State, dict[str, float]]:
    """Return the state before and after a step, whose loss is about 5.7, and its metrics."""
    mesh, net = device_mesh.make_mesh(run.mesh), model(run.model)
    built = assemble(dataclasses.replace(run, precision="float32"), Causal(), mesh)
    state = init_state(run, net, built.tx, mesh)
    replicated = state.statistics["losses"].sharding
    planted = {"losses": np.array(statistics, np.float32), "applied": np.int32(len(statistics))}
    state = dataclasses.replace(state, statistics=jax.device_put(planted, replicated))
    before = jax.device_get(state)
    after, metrics = built.engine.step(built.engine.shard(state), built.engine.shard_batch(batch()), {})
    numbers = {name: float(np.asarray(value).reshape(-1)[0]) for name, value in jax.device_get(metrics).items()}
    return before, jax.device_get(built.engine.get(after)), numbers


ENGINES = [
    {},
    {"mesh": Mesh(data=2, fsdp=2, tensor=2), "accumulate": 2},
    {"engine": "pmap", "accumulate": 2},
    pytest.param({"mesh": Mesh(data=1, fsdp=8)}, marks=pytest.mark.full),
]


@pytest.mark.parametrize("changes", ENGINES, ids=str)
def test_a_spike_changes_only_the_step_on_every_engine(changes: dict[str, Any]) -> None:
    """The same loss is a spike after losses of about 1, and none after losses of about 5."""
    before, after, metrics = take_step(run_of(**changes), [1.0, 1.1, 0.9, 1.0])
    assert 5 < metrics["loss"] < 7
    assert (metrics["finite"], metrics["spike"], int(after.step)) == (1, 1, 1)
    for name in ("params", "opt_state", "statistics", "key"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    before, after, metrics = take_step(run_of(**changes), [5.0, 7.0, 4.0, 6.0])
    assert (metrics["finite"], metrics["spike"]) == (1, 0)
    np.testing.assert_array_equal(after.statistics["losses"], np.float32([metrics["loss"], 7.0, 4.0, 6.0]))
    assert int(after.statistics["applied"]) == 5
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True))


def lowered(spikes: Spikes) -> str:
    run = tiny.run(model=SMALL, spikes=spikes, precision="float32")
    mesh = device_mesh.make_mesh(Mesh())
    built = assemble(run, Causal(), mesh)
    assert built.engine.trace is not None
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch())
    return built.engine.trace(built.state, shapes, {}).lower().as_text()


@pytest.mark.planted
def test_without_the_policy_the_state_and_the_program_do_not_depend_on_it() -> None:
    off, other = lowered(Spikes()), lowered(Spikes(window=7))
    assert off == other != lowered(Spikes(sigmas=3.0, window=7))
    assert jax.tree.leaves(make_acceptance(Spikes()).init()) == []
    metrics = make_acceptance(Spikes()).decide({}, jnp.float32(1), jnp.float32(1))[2]
    assert metrics.keys() == {"finite"}
    assert step_acceptance.make_acceptance(Spikes()).decide is step_acceptance._finite


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Spikes(sigmas=-1.0), "--spikes.sigmas -1.0: choose 0"),
        (lambda: Spikes(sigmas=float("nan")), "--spikes.sigmas nan: choose 0"),
        (lambda: Spikes(sigmas=1.0, window=1), "--spikes.window 1: choose 2"),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        make()
    assert str(refused.value).startswith(message)
