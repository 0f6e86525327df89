"""gpt-oss in training: the same losses on every mesh, the loss of its routers, its FLOPs, and the counts of its parameters."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.flops import flops_and_bytes
from benchmarks.hlo import hlo_parser
from tests.support import tiny
from tests.support.gradients import assert_equal_gradients
from tests.support.small import random_params, row, small
from tests.zoo.configs.published_counts import GPT_OSS
from train.config import run_config
from train.engine import device_mesh, optim, state_init
from train.objectives.causal import Causal
from train.step.assembly import ENGINES
from train.step.training_step import make_step
from zoo import configs, models
from zoo.batch import Batch
from zoo.configs import Compute
from zoo.errors import BadInput

ONE = run_config.Mesh(data=1)
MESHES: dict[str, dict[str, Any]] = {
    "expert=2,data=2,tensor=2": {"mesh": run_config.Mesh(data=2, tensor=2, expert=2)},
    "expert=4,fsdp=2, remat": {"mesh": run_config.Mesh(data=1, fsdp=2, expert=4), "remat": "full"},
    "fsdp=2,tensor=2,data=2": {"mesh": run_config.Mesh(data=2, fsdp=2, tensor=2)},
    "4 micro-batches": {"mesh": ONE, "accumulate": 4},
    "pmap": {"mesh": run_config.Mesh(data=8), "engine": "pmap"},
}


def run_of(mesh: run_config.Mesh, remat: str = "none", router_loss: float = 0.1, **changes: Any) -> run_config.Run:
    numbers: dict[str, Any] = {"attention_dropout": 0.1, "router_loss": router_loss, "compute": Compute(remat=remat)}  # pyright: ignore[reportArgumentType]
    return tiny.run(mesh=mesh, model=dataclasses.replace(small("gpt_oss").config, **numbers), **changes)


def train(steps: int = 8, **options: Any) -> tuple[np.ndarray, dict[str, np.ndarray], Any]:
    """Return the losses of some steps of gradient descent, the terms of the loss, and the first gradient."""
    run = run_of(**options)
    shape = run.mesh
    count = shape.data * shape.fsdp * shape.tensor * shape.expert
    devices = device_mesh.make_mesh(shape, jax.devices()[:count])
    device_mesh.check_mesh(run, devices)
    # The trace of decay 0 is the gradient itself, passed on.
    net, tx = models.model(run.model), optax.chain(optax.trace(0.0), optax.scale(10.0), optim.scale_by_rate())
    places = jax.tree.map(lambda leaf: leaf.sharding, state_init.abstract_state(run, net, tx, devices))
    engine = ENGINES[run.engine](make_step(run, net, Causal(), tx, jnp.float32), devices, places, run.data.batch)
    state, seen, gradient = engine.shard(state_init.init_state(run, net, tx, devices)), [], None
    for step in range(steps):
        own_rows = jax.tree.map(lambda leaf: leaf[device_mesh.local_rows(devices, run.data.batch)], tiny.batch(step))
        state, metrics = engine.step(state, engine.shard_batch(own_rows), {})
        seen.append({name: float(np.ravel(jax.device_get(x.addressable_data(0)))[0]) for name, x in metrics.items()})
        if step == 0:
            gradient = jax.device_get(engine.get(state).opt_state[0].trace)
    terms = {name: np.array([metrics[name] for metrics in seen]) for name in ("causal", "router", "busiest_expert")}
    return np.array([metrics["loss"] for metrics in seen]), terms, gradient


alone = functools.cache(functools.partial(train, mesh=ONE))


@pytest.mark.parametrize(
    "mesh", [name if name.startswith("expert=2") else pytest.param(name, marks=pytest.mark.slow) for name in MESHES]
)
def test_losses_and_gradients_are_the_same_on_every_mesh(mesh: str) -> None:
    losses, terms, gradient = train(**MESHES[mesh])
    expected, expected_terms, expected_gradient = alone()
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for name, values in terms.items():
        np.testing.assert_allclose(values, expected_terms[name], rtol=1e-5)
    assert_equal_gradients(gradient, expected_gradient)


def test_the_loss_of_the_routers_is_scaled_and_reported() -> None:
    """With a factor of 0 it is reported all the same, and the gradient of a router differs."""
    losses, terms, gradient = alone()
    np.testing.assert_allclose(losses, terms["causal"] + 0.1 * terms["router"], rtol=1e-6)
    assert (terms["router"] >= 0.9).all() and (terms["busiest_expert"] >= 1).all()
    losses, terms, other = train(1, mesh=ONE, router_loss=0.0)
    np.testing.assert_allclose(losses, terms["causal"], rtol=1e-6)
    assert terms["router"] == pytest.approx(alone()[1]["router"][:1])
    kernel, without = (tree["layers"]["mlp"]["router"]["kernel"] for tree in (gradient, other))
    assert np.abs(kernel - without).max() > 1e-5


def test_compiled_flops_are_those_of_the_active_experts() -> None:
    """Within 10 %: what fills tiles up, and the computation of a window in full, which `flops` counts too."""
    net = small("gpt_oss", experts=8, active_experts=2, ffn=64, width=64, context=256)
    batch = Batch(tokens=jnp.zeros((8, 256), jnp.int32))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0)))

    def forward(params: Any, batch: Batch) -> Any:
        return net.unembed(params, net.apply(params, batch).hidden)

    # Attention in full: `blocked` would skip what a causal mask leaves empty.
    net = dataclasses.replace(net, config=dataclasses.replace(net.config, compute=Compute(attention="xla")))
    text = jax.jit(forward).lower(params, batch).compile().as_text() or ""
    compiled = flops_and_bytes.device_work(hlo_parser.parse_program(text), (), 1).flops
    assert compiled == pytest.approx(net.flops(batch), rel=0.1)
    # With every expert it would be far more.
    dense = dataclasses.replace(net, config=dataclasses.replace(net.config, active_experts=8))
    assert compiled < 0.7 * dense.flops(batch)


def test_active_counts_are_exact() -> None:
    for name, (count, active) in GPT_OSS.items():
        config = configs.find_size(name)[1].config
        assert models.parameter_count(config) == count
        assert configs.active_parameters(config, count) == active
    assert configs.active_parameters(small("gpt").config, 1) is None


@pytest.mark.planted(3)
def test_a_mesh_that_does_not_fit_is_refused() -> None:
    for mesh, message in (
        (run_config.Mesh(data=1, expert=8), r"--mesh\.expert 8: it does not divide the 4 experts; choose one of 1, 2, 4"),
        (run_config.Mesh(data=1, tensor=4, expert=2), r"--mesh\.tensor 4: it does not divide layers/attention/k"),
    ):
        with pytest.raises(BadInput, match=message):
            device_mesh.check_mesh(run_of(mesh), device_mesh.make_mesh(mesh))
    with pytest.raises(BadInput, match=r"--mesh\.expert 2: the model has no experts; choose 1"):
        tiny.run(mesh=run_config.Mesh(data=4, expert=2))


@pytest.mark.planted(3)
def test_windows_sinks_and_clamps_change_the_hidden_states() -> None:
    """What would not show in shapes: every second layer has a window, sinks take part, inputs are clamped."""
    net, batch = small("gpt_oss", limit=0.5), row(16)
    params = random_params(net)
    hidden = np.asarray(net.apply(params, batch).hidden)
    layers = params["layers"]
    without_sinks = {**layers, "attention": {**layers["attention"], "sinks": jnp.full_like(layers["attention"]["sinks"], -1e9)}}
    for other, leaves in (
        (small("gpt_oss", limit=0.5, window=16), params),
        (small("gpt_oss", limit=7.0), params),
        (net, {**params, "layers": without_sinks}),
    ):
        assert np.abs(np.asarray(other.apply(leaves, batch).hidden) - hidden).max() > 1e-3
