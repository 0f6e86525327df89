"""One run, many machines: losses and gradients agree on every mesh, under pmap and with micro-batches."""

import collections
import contextlib
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.support import mesh_steps, tiny
from tests.support.gradients import assert_equal_gradients
from train import recipes
from train.config import mesh_sizes, run_config
from train.config.data_options import CausalData
from train.engine import device_mesh, optim, state_init
from zoo.attention.attention import attention, interpreted
from zoo.attention.biases import Dense
from zoo.attention.masks import Mask
from zoo.configs import Compute
from zoo.errors import BadInput
from zoo.models import model
from zoo.sharding import BATCH

CASES = {
    "data=2,fsdp=2,tensor=2": {"mesh": run_config.Mesh(data=2, fsdp=2, tensor=2)},
    "pmap": {"mesh": run_config.Mesh(data=8), "engine": "pmap"},
    "fsdp=8": {"mesh": run_config.Mesh(data=1, fsdp=8)},
    "4 micro-batches": {"mesh": run_config.Mesh(data=4), "accumulate": 4},
    "data=8, remat, chunked loss": {"mesh": run_config.Mesh(data=8), "compute": {"remat": "full"}, "loss_chunk": 8},
    "pmap, remat": {"mesh": run_config.Mesh(data=8), "engine": "pmap", "compute": {"remat": "full"}},
    "fsdp=8, 2 micro-batches, chunked loss": {"mesh": run_config.Mesh(data=1, fsdp=8), "accumulate": 2, "loss_chunk": 8},
    "data=2,sequence=4, 2 micro-batches, chunked loss": {
        "mesh": run_config.Mesh(data=2, sequence=4),
        "accumulate": 2,
        "loss_chunk": 4,
    },
}
TIERS = {
    "data=2,fsdp=2,tensor=2": (),
    "pmap, remat": pytest.mark.full,
    "fsdp=8, 2 micro-batches, chunked loss": pytest.mark.full,
    "data=2,sequence=4, 2 micro-batches, chunked loss": pytest.mark.full,
}
"""Every choice in the fast or the full tier, several at once; which of them is wrong, the others tell."""
alone = functools.cache(mesh_steps.train)


@pytest.mark.parametrize("case", [pytest.param(case, marks=TIERS.get(case, pytest.mark.slow)) for case in CASES])
def test_losses_and_gradients_agree(case):
    """Losses of AdamW with dropout to 1e-5 relative, and the first gradient."""
    losses, gradient = mesh_steps.train(**CASES[case])
    expected, theirs = alone()
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert losses[-1] < losses[0] - 0.5
    assert_equal_gradients(gradient, theirs)


@pytest.mark.full
@pytest.mark.planted(2)
def test_the_comparison_catches_a_wrong_gradient():
    """A gradient off by one part in ten thousand, or with other dropout, is not equal."""
    theirs = alone()[1]
    with pytest.raises(AssertionError):
        assert_equal_gradients(jax.tree.map(lambda leaf: leaf * (1 + 1e-4), theirs), theirs)
    with pytest.raises(AssertionError):
        assert_equal_gradients(mesh_steps.train(1, seed=1)[1], theirs)


def test_the_state_is_sharded_as_the_table_says():
    run = tiny.run(mesh=run_config.Mesh(data=2, fsdp=2, tensor=2))
    mesh, net, tx = device_mesh.make_mesh(run.mesh), model(run.model), optim.make_optimizer(run.optim)
    state = state_init.init_state(run, net, tx, mesh)
    up = state.params["layers"]["mlp"]["up"]["kernel"]
    assert up.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert up.addressable_data(0).shape == (2, 16, 32)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == up.shape]
    assert {leaf.sharding.spec for leaf in moments} == {PartitionSpec(None, "fsdp", "tensor")}
    table = state.params["embed"]["tokens"]["embedding"]
    assert table.sharding.spec == PartitionSpec("tensor", "fsdp")


@pytest.mark.full
def test_adafactor_treats_layers_as_separate_matrices():
    """Updates of a stacked leaf equal those of each layer's own matrix, which stands outside the stack under another name."""
    tx = optim.make_optimizer(run_config.Optim(name="adafactor", clip=0.0, weight_decay=0.0))
    rng = np.random.default_rng(0)
    grads = jnp.float32(rng.standard_normal((3, 128, 256)) * [[[1]], [[10]], [[0.1]]])
    params = jnp.float32(rng.standard_normal((3, 128, 256)))

    def whole(stacked):
        return {"layers": {"kernel": stacked}, **{str(layer): {"kernel": stacked[layer]} for layer in range(3)}}

    updates, _ = tx.update(whole(grads), tx.init(whole(params)), whole(params))
    for layer in range(3):
        np.testing.assert_allclose(updates["layers"]["kernel"][layer], updates[str(layer)]["kernel"], rtol=1e-5)
    assert not np.allclose(updates["layers"]["kernel"][0], updates["layers"]["kernel"][1] * 10, rtol=0.1)


@pytest.mark.parametrize("impl", ["xla", *(pytest.param(name, marks=pytest.mark.full) for name in ("reference", "blocked"))])
def test_attention_adds_no_collective(impl):
    """Under data, fsdp and tensor axes attention runs on local arrays: the compiled program has no communication."""
    mesh = device_mesh.make_mesh(run_config.Mesh(data=2, fsdp=2, tensor=2))
    place = NamedSharding(mesh, PartitionSpec(BATCH, None, "tensor"))
    rows = NamedSharding(mesh, PartitionSpec(BATCH))
    q = jax.ShapeDtypeStruct((8, 16, 4, 8), jnp.float32, sharding=place)
    seeds = jax.ShapeDtypeStruct((8, 2), jnp.uint32, sharding=rows)
    segments = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=rows)

    def value(q, k, v, seeds, segments):
        mask = Mask(causal=True, query_segments=segments, key_segments=segments)
        return attention(q, k, v, mask=mask, dropout=(0.1, seeds), impl=impl)

    def pull(q, k, v, seeds, segments, cotangent):
        return jax.vjp(lambda *qkv: value(*qkv, seeds, segments), q, k, v)[1](cotangent)

    with jax.set_mesh(mesh):
        program = jax.jit(pull).lower(q, q, q, seeds, segments, q).compile().as_text()
    assert collectives(program) == {}


@pytest.mark.parametrize(
    "impl", ["xla", *(pytest.param(impl, marks=pytest.mark.full) for impl in ("blocked", "flash_tpu", "flash_gpu"))]
)
def test_sinks_are_sharded_like_heads(impl):
    """The output and all gradients with sinks are the same on a mesh: a device has the sinks of its own heads."""
    rng = np.random.default_rng(0)
    q, k, v, cotangent = (jnp.float32(rng.standard_normal((8, 16, heads, 8))) for heads in (4, 2, 2, 4))
    sinks = jnp.float32(rng.standard_normal(4))

    def pull(q, k, v, sinks):
        out, pull = jax.vjp(
            lambda q, k, v, sinks: attention(q, k, v, mask=Mask(causal=True), sinks=sinks, impl=impl), q, k, v, sinks
        )
        return out, pull(cotangent)

    with interpreted(impl) if impl.startswith("flash") else contextlib.nullcontext():
        expected = jax.jit(pull)(q, k, v, sinks)
        with jax.set_mesh(device_mesh.make_mesh(run_config.Mesh(data=2, fsdp=2, tensor=2))):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), jax.jit(pull)(q, k, v, sinks), expected)


@pytest.mark.planted
def test_a_bias_table_costs_one_reduction():
    """What the counter above would see: the gradient of something all examples share must be summed."""
    mesh = device_mesh.make_mesh(run_config.Mesh(data=8))
    q = jax.ShapeDtypeStruct((8, 16, 4, 8), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(BATCH)))

    def value(bias, q):
        return attention(q, q, q, mask=Mask(), bias=Dense(values=bias)).sum()

    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(value)).lower(jnp.zeros((1, 4, 16, 16)), q).compile().as_text()
    assert set(collectives(program)) == {"all-reduce"}


def collectives(program):
    kinds = r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    return dict(collections.Counter(re.findall(kinds, program)))


NARROW = dataclasses.replace(tiny.run().model, width=36, head=9)
EXCHANGED = dataclasses.replace(tiny.run().model, compute=Compute(sequence="all_to_all"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": run_config.Mesh(tensor=8)}, r"--mesh\.tensor 8: it does not divide the 4 heads"),
        ({"data": CausalData(length=32, batch=12)}, r"--data.batch 12: 12 rows .* choose a multiple of 8"),
        ({"engine": "pmap", "mesh": run_config.Mesh(fsdp=2)}, "--engine pmap: pmap divides rows only"),
        ({"engine": "pmap", "mesh": run_config.Mesh(sequence=2)}, "--engine pmap: pmap divides rows only"),
        (
            {"data": CausalData(length=30, batch=16), "mesh": run_config.Mesh(sequence=4)},
            r"--data\.length 30: --mesh\.sequence 4 does not divide it; choose 32",
        ),
        (
            {"mesh": run_config.Mesh(sequence=8), "model": EXCHANGED},
            r"--mesh\.sequence 8: it does not divide the 4 heads; choose one of 1, 2, 4, or --model\.compute\.sequence ring",
        ),
        (
            {"mesh": run_config.Mesh(sequence=4, tensor=2), "model": EXCHANGED},
            r"--mesh\.sequence 4: it does not divide the 2 heads that each device has by --mesh\.tensor 2; choose one of 1, 2",
        ),
        (
            {"mesh": run_config.Mesh(data=1, fsdp=8), "model": NARROW},
            r"--mesh\.fsdp 8: it does not divide embed/positions/embedding",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(changes, message):
    run = tiny.run(**changes)
    with pytest.raises(BadInput, match=message):
        device_mesh.check_mesh(run, device_mesh.make_mesh(run.mesh))


def fitting_numbers(run: run_config.Run) -> list[int]:
    """Return the smaller numbers of processes of one device whose mesh is not refused, the largest first."""
    numbers = []
    for number in range(run.machine.processes - 1, 0, -1):
        with contextlib.suppress(BadInput):
            device_mesh.check_mesh(run, device_mesh.make_mesh(run.mesh, jax.devices()[:number]))
            numbers.append(number)
    return numbers


MACHINE = run_config.TrainingMachine(processes=8, restart="2:fewer")
SHRINKING = {
    "rows": ({"data": CausalData(length=32, batch=24)}, (6, 4, 3, 2, 1)),
    "micro-batches": ({"data": CausalData(length=32, batch=24), "accumulate": 3}, (4, 2, 1)),
    "fsdp": ({"data": CausalData(length=32, batch=8), "mesh": run_config.Mesh(fsdp=2)}, (4, 2)),
    "rollouts": ({"objective": "policy_gradient", "samples": 6, "batch": 24}, (4, 2, 1)),
}


@pytest.mark.planted
@pytest.mark.parametrize("case", SHRINKING)
def test_a_run_shrinks_to_the_numbers_of_processes_that_start(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the checks of a start, on as many devices."""
    changes, numbers = SHRINKING[case]
    run = rollout_run(**changes) if case == "rollouts" else tiny.run(**changes, machine=MACHINE)
    assert mesh_sizes.fewer_processes(run) == numbers
    assert fitting_numbers(run) == [*numbers]
    # The mistake: rows, or responses to a prompt, are not compared with the devices.
    monkeypatch.setattr(mesh_sizes, "check_responses" if case == "rollouts" else "check_rows", lambda *_, **__: None)
    assert mesh_sizes.fewer_processes(run) != numbers


def rollout_run(objective: str, samples: int, batch: int) -> run_config.Run:
    run = tiny.run(objective, machine=MACHINE)
    return dataclasses.replace(
        tiny.with_options(run, rollout=dataclasses.replace(run.options.rollout, samples=samples)),
        data=dataclasses.replace(run.data, batch=batch),
    )


NAMED = {
    ("fsdp=256", 256): ("fsdp=256", "--mesh.tensor 8 of gpt3-175b does not fit --mesh.fsdp 256 on 256 devices; --mesh.tensor 1 "),
    ("", 256): ("fsdp=64 tensor=4", "--mesh.tensor 8 of gpt3-175b does not fit on 256 devices; --mesh.tensor 4 instead"),
    ("", 512): ("fsdp=64 tensor=8", ""),
    ("", 1024): ("data=2 fsdp=64 tensor=8", ""),
    ("", 48): ("data=3 fsdp=16", "--mesh.fsdp 64 --mesh.tensor 8 .* do not fit on 48 .*; --mesh.fsdp 16 --mesh.tensor 1 instead"),
    ("", 1): ("", "--mesh.fsdp 64 --mesh.tensor 8 .* do not fit on 1 device; --mesh.fsdp 1 --mesh.tensor 1 instead"),
    ("tensor=8", 256): (
        "fsdp=32 tensor=8",
        "--mesh.fsdp 64 .* does not fit --mesh.tensor 8 on 256 devices; --mesh.fsdp 32 instead",
    ),
    ("data=1 tensor=2", 256): ("fsdp=128 tensor=2", "--mesh.fsdp 64 .*; --mesh.fsdp 128 instead"),
    ("data=-1 fsdp=128", 256): ("fsdp=128 tensor=2", "--mesh.tensor 8 .* --mesh.fsdp 128 on 256 .*; --mesh.tensor 2 instead"),
}
"""Axes that a user named, devices -> sizes above 1 of the mesh of GPT-3, whose recipe has fsdp 64 and tensor 8; the notice."""


@pytest.mark.planted
@pytest.mark.parametrize("case", NAMED)
def test_axes_that_the_user_did_not_name_are_fitted_to_the_devices(case: tuple[str, int]) -> None:
    (line, devices), (expected, message) = case, NAMED[case]
    named = {axis: int(size) for axis, size in (part.split("=") for part in line.split())}
    recipe = recipes.find_recipe("gpt3-175b")()
    run = dataclasses.replace(recipe, mesh=dataclasses.replace(recipe.mesh, **named))
    fitted, notice = mesh_sizes.fit_mesh(run, devices, named)
    sizes = mesh_sizes.axis_sizes(fitted.mesh, devices)
    assert " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) == expected
    assert re.match(message, notice) and bool(notice) == bool(message)
    # The mistake: the axes of the recipe count as named too.
    if message:
        with pytest.raises(BadInput, match=f"does not multiply to the {devices} devices"):
            mesh_sizes.fit_mesh(run, devices, ("data", "fsdp", "tensor"))


def test_a_refused_mesh_lists_shapes_with_the_named_axes_first() -> None:
    recipe = recipes.find_recipe("gpt3-175b")()

    def listed(named: tuple[str, ...], **sizes: int) -> list[str]:
        run = dataclasses.replace(recipe, mesh=dataclasses.replace(recipe.mesh, **sizes))
        with pytest.raises(BadInput, match=r"--mesh .*: does not multiply to the 256 devices; valid: ") as error:
            mesh_sizes.fit_mesh(run, 256, named)
        return str(error.value).partition("valid: ")[2].split("; ")

    first = listed(("data", "fsdp"), data=3, fsdp=128)
    assert all("fsdp=128" in shape for shape in first[:2]) and "fsdp=128" not in first[2]
    assert listed(("tensor", "fsdp"), tensor=32, fsdp=64)[:4] == [
        *("data=8,fsdp=1,tensor=32", "data=4,fsdp=2,tensor=32", "data=2,fsdp=4,tensor=32", "data=1,fsdp=8,tensor=32")
    ]
    # The shapes of experts are listed if the run divides them.
    oss = recipes.find_recipe("gpt-oss-20b")()
    run = dataclasses.replace(oss, mesh=dataclasses.replace(oss.mesh, expert=3))
    with pytest.raises(BadInput, match=r"valid: data=1,fsdp=16,tensor=1,expert=1; "):
        mesh_sizes.fit_mesh(run, 16, ("expert",))


def test_a_run_that_fits_no_smaller_number_of_processes_is_refused() -> None:
    run = tiny.run(mesh=run_config.Mesh(fsdp=8), machine=MACHINE)
    problem = r"--restart 2:fewer: --mesh data=-1 fsdp=8 tensor=1 and --data.batch 16 fit no number of processes below 8; choose "
    with pytest.raises(BadInput, match=problem):
        mesh_sizes.fewer_processes(run)
    alone = dataclasses.replace(run, machine=dataclasses.replace(MACHINE, restart=2))
    assert mesh_sizes.fewer_processes(alone) == ()
    # Each process has its simulated devices.
    several = dataclasses.replace(run, machine=dataclasses.replace(MACHINE, devices=4))
    assert mesh_sizes.fewer_processes(several) == (4, 2)


@pytest.mark.parametrize("value", ["2:less", ":fewer", "1001", "1001:fewer", "-1", "2.5"])
def test_other_restarts_are_refused(value: str) -> None:
    with pytest.raises(BadInput, match=f"--restart {value}: write N or N:fewer, with N from 0"):
        run_config.TrainingMachine(processes=2, restart=value)
    with pytest.raises(BadInput, match=r"--restart 0:fewer: only local processes"):
        run_config.TrainingMachine(restart="0:fewer")
