"""The step of a run that trains adapters, or has frozen layers or embeddings: what it computes and what it changes."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest

from tests.support import tiny
from tests.support.small import small
from train.checkpoints.manifest import by_path
from train.config import run_config
from train.config.dpo_options import Dpo
from train.config.lora_options import Lora
from train.config.run_config import Optim
from train.engine import device_mesh, optim, optimizers, state_init
from train.objectives import objective as find_objective
from train.objectives.causal import Causal
from train.objectives.feedback.dpo import DirectPreferences
from train.parametrization import parametrization_of
from train.step.assembly import ENGINES, assemble
from train.step.training_step import make_step
from train.weights import adapter_params, frozen_layers
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.lora import adapters
from zoo.models import model

LORA = Lora(rank=4, alpha=8.0)
ONE = run_config.Mesh(data=1)


@functools.cache
def steps(mesh: run_config.Mesh = ONE, count: int = 3, rate: float = 0.0, **changes: Any) -> tuple[list[float], Any, Any, Any]:
    """Return (losses, trained parameters, frozen ones before the first step, frozen ones after the last)."""
    changes = {"lora": dataclasses.replace(LORA, dropout=rate), **changes}
    run = tiny.run(mesh=mesh, precision="float32", init="gpt2", **changes)
    devices = device_mesh.make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])
    net, objective = model(run.model), Causal()
    parameters = parametrization_of(run, objective, devices)
    built = assemble(run, objective, devices, parameters)
    base = state_init.init_state(
        dataclasses.replace(run, init="", lora=Lora()), net, optim.make_optimizer(Optim()), devices
    ).params
    parameters, params = parameters.begin(run, devices, base)
    state = state_init.init_state(run, net, built.tx, devices, params, parameters.trained)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, built.state)
    before, losses = jax.device_get(parameters.base), []
    state, base = built.engine.shard(state), built.engine.replicate(parameters.base)
    for step in range(count):
        local = jax.tree.map(lambda leaf: leaf[device_mesh.local_rows(devices, run.data.batch)], tiny.batch(step))
        state, metrics = built.engine.step(state, built.engine.shard_batch(local), {}, base)
        losses.append(float(np.ravel(jax.device_get(metrics["loss"]))[0]))
    return losses, jax.device_get(built.engine.get(state).params), before, jax.device_get(parameters.base)


def test_new_adapters_have_the_loss_of_the_base_and_the_base_stays() -> None:
    """To the last bit, with dropout, and after steps that did train."""
    losses, params, before, after = steps()
    run = tiny.run(precision="float32", mesh=ONE)
    devices = device_mesh.make_mesh(ONE, jax.devices()[:1])
    net = model(run.model)
    built = assemble(run, Causal(), devices)
    state = state_init.init_state(run, net, built.tx, devices)
    assert not (by_path(before).keys() ^ by_path(jax.device_get(state.params)).keys())
    _, metrics = built.engine.step(state, built.engine.shard_batch(tiny.batch(0)), {})
    assert losses[0] == float(metrics["loss"])
    assert all(np.array_equal(one, other) for one, other in zip(*map(jax.tree.leaves, (before, after)), strict=True))
    assert losses[-1] < losses[0]
    assert params.keys() == {"layers"} and all(np.asarray(leaf).any() for leaf in jax.tree.leaves(params))


MESHES: dict[str, dict[str, Any]] = {
    "data=2,fsdp=2,tensor=2": {"mesh": run_config.Mesh(data=2, fsdp=2, tensor=2)},
    "pmap, micro-batches": {"mesh": run_config.Mesh(data=8), "engine": "pmap", "accumulate": 2},
    "pmap": {"mesh": run_config.Mesh(data=8), "engine": "pmap"},
    "micro-batches": {"mesh": run_config.Mesh(data=2), "accumulate": 4},
}
FULL = ("data=2,fsdp=2,tensor=2", "pmap, micro-batches")
TIERS = {case: pytest.mark.full if case in FULL else pytest.mark.slow for case in MESHES}


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("case", [pytest.param(case, marks=mark) for case, mark in TIERS.items()])
def test_losses_do_not_depend_on_the_mesh(case: str, rate: float) -> None:
    np.testing.assert_allclose(steps(**MESHES[case], rate=rate)[0], steps(rate=rate)[0], rtol=1e-5)


FROZEN: dict[str, dict[str, Any]] = {
    "layers": {"optim": Optim(lr=1e-2, warmup=1, freeze_layers=1)},
    "embeddings": {"optim": Optim(lr=1e-2, warmup=1, freeze_embeddings=True), "mesh": run_config.Mesh(data=2), "accumulate": 4},
    "both, sharded": {
        "optim": Optim(lr=1e-2, warmup=1, freeze_layers=1, freeze_embeddings=True, layer_decay=0.5),
        "mesh": run_config.Mesh(data=2, fsdp=2, tensor=2),
    },
    "all layers, pmap": {
        "optim": Optim(lr=1e-2, warmup=1, freeze_layers=2),
        "mesh": run_config.Mesh(data=8),
        "engine": "pmap",
    },
}


@pytest.mark.parametrize("case", ["layers", *(pytest.param(case, marks=pytest.mark.full) for case in FROZEN if case != "layers")])
def test_a_step_with_frozen_parameters_is_that_of_the_model_with_their_updates_set_to_0(case: str) -> None:
    """Losses and parameters agree up to rounding, and the frozen ones stay as they are."""
    changes = FROZEN[case]
    cfg = changes["optim"]
    losses, params, before, after = steps(**{"lora": Lora(), **changes})
    run = tiny.run(precision="float32", **{"mesh": ONE, **changes})
    devices = device_mesh.make_mesh(run.mesh, jax.devices()[: run.mesh.data * run.mesh.fsdp * run.mesh.tensor])
    net, inner = model(run.model), optim.make_optimizer(dataclasses.replace(cfg, freeze_layers=0, freeze_embeddings=False))

    def factor(path: str) -> Any:
        if path.startswith("layers/"):
            return np.arange(net.config.layers) >= cfg.freeze_layers
        return np.array([not (cfg.freeze_embeddings and path.startswith("embed/"))])

    def masked(tree: Any) -> Any:
        leaves = by_path(tree)
        scaled = (leaf * factor(path).reshape(-1, *[1] * (leaf.ndim - 1)).astype(np.float32) for path, leaf in leaves.items())
        return jax.tree.unflatten(jax.tree.structure(tree), list(scaled))

    def update(updates: Any, state: Any, params: Any = None, *, lr: Any = 1.0, **_: Any) -> Any:
        grads = masked(updates)
        updates, state = inner.update(grads, state, params, norm=optim.gradient_norm(grads), lr=lr)
        return masked(updates), state

    tx = optax.GradientTransformationExtraArgs(inner.init, update)
    state = state_init.init_state(run, net, tx, devices)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state_init.abstract_state(run, net, tx, devices))
    engine = ENGINES[run.engine](make_step(run, net, Causal(), tx, np.float32), devices, shardings, run.data.batch)
    state, expected = engine.shard(state), []
    for number in range(len(losses)):
        local = jax.tree.map(lambda leaf: leaf[device_mesh.local_rows(devices, run.data.batch)], tiny.batch(number))
        state, metrics = engine.step(state, engine.shard_batch(local), {})
        expected.append(float(np.ravel(jax.device_get(metrics["loss"]))[0]))
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    joined = by_path(frozen_layers.join_params(before, params))
    for path, leaf in by_path(jax.device_get(engine.get(state).params)).items():
        # The loss does not depend on the bias of the keys, and Adam scales the rounding errors of its gradient up.
        rows = (slice(None), [0, 2]) if path == "layers/attention/qkv/bias" else ...
        np.testing.assert_allclose(joined[path][rows], leaf[rows], rtol=1e-5, atol=1e-6, err_msg=path)
    same_bits = jax.tree.map(lambda one, other: one.tobytes() == other.tobytes(), before, after)
    assert before and all(jax.tree.leaves(same_bits))


def test_dropout_of_adapters_changes_the_steps_that_follow_the_first() -> None:
    """New adapters add 0, whatever their input is."""
    plain, dropped = steps()[0], steps(rate=0.5)[0]
    assert plain[0] == dropped[0] and plain[1] != dropped[1] and dropped[-1] < dropped[0]


@pytest.mark.parametrize(("name", "forward"), [("causal", 1), ("dpo", 1), ("preference", 1), ("kto", 2)])
def test_a_step_has_no_gradients_of_kernels(name: str, forward: int) -> None:
    """Of the forward products, the gradients of the input and those of the kernel, the last are left out."""
    run = tiny.run(name, init="gpt2", lora=LORA)
    axes = () if name == "causal" else (2,)
    ids = jax.ShapeDtypeStruct((4, *axes, 8), np.int32)
    batch = Batch(tokens=ids, segments=ids, positions=ids)
    devices = device_mesh.make_mesh(ONE, jax.devices()[:1])
    objective = find_objective(name).bind_abstract(run, devices)
    adapted, plain = (
        parametrization_of(dataclasses.replace(run, lora=lora), objective, devices).step_flops(objective, batch)
        for lora in (LORA, Lora())
    )
    ratio = adapted / plain
    assert ratio == pytest.approx((forward + 1) / (forward + 2))


def test_parameters_that_are_no_adapters_are_counted_apart() -> None:
    """A and B of `c_attn` have 4 x 32 and 96 x 4 entries in each of two layers, and the value head of PPO has 32."""
    run = tiny.run("ppo", precision="float32", init="gpt2", lora=LORA)
    mesh = device_mesh.make_mesh(ONE, jax.devices()[:1])
    facts = parametrization_of(run, find_objective("ppo").bind_abstract(run, mesh), mesh).describe("ppo")
    of_adapters = "1,024 parameters of adapters of rank 4 on c_attn"
    assert facts == {"trained": f"{of_adapters}, 32 of value, which ppo adds"}


def test_adapters_have_no_weight_decay() -> None:
    net = model(tiny.run().model)
    spec = adapters.Adapters(rank=2, alpha=2.0, targets=("c_attn",))
    shapes = jax.eval_shape(lambda: adapters.init_adapters(net, spec, jax.random.key(0)))
    model_shapes = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    assert not any(jax.tree.leaves(optimizers.decay_mask(Optim(), shapes))) and any(
        jax.tree.leaves(optimizers.decay_mask(Optim(), model_shapes))
    )


@pytest.mark.planted(2)
def test_dropout_is_refused_where_it_would_not_be_applied() -> None:
    lora = dataclasses.replace(LORA, dropout=0.1)
    with pytest.raises(BadInput, match=r"--lora\.dropout 0\.1: dpo trains without dropout"):
        parametrization_of(
            tiny.run("dpo", init="gpt2", lora=lora), DirectPreferences(Dpo()), device_mesh.make_mesh(ONE, jax.devices()[:1])
        )
    bert = dataclasses.replace(tiny.run(init="m"), model=small("bert", task="masked").config)
    run = dataclasses.replace(bert, lora=dataclasses.replace(lora, targets=("query", "transform.dense")))
    with pytest.raises(
        BadInput, match=r"--lora\.dropout 0\.1: cls\.predictions\.transform\.dense is outside of the layers, where"
    ):
        adapter_params.adapters_of(run)
