"""The sequence axis: gradients of every family are those of one device, and no device has the positions of others."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.hlo import hlo_parser
from benchmarks.plan import collectives
from tests.support.gradients import assert_equal_gradients
from tests.support.small import BODIES, random_params, seeds, shallow, shapes, small, with_dropout, with_source
from train.config import run_config
from train.engine import device_mesh
from zoo import models, sharding
from zoo.attention import local_arrays
from zoo.attention.attention import attention
from zoo.attention.masks import Mask
from zoo.batch import Batch
from zoo.configs import Compute
from zoo.mesh_axes import POSITIONS
from zoo.models import Model
from zoo.nn.task_heads import predicting_states

ROWS, LENGTH = 2, 16
MESHES = {
    "sequence=4": run_config.Mesh(data=1, sequence=4),
    "sequence=2,fsdp=2,tensor=2": run_config.Mesh(data=1, sequence=2, fsdp=2, tensor=2),
    "sequence=2,expert=2,tensor=2": run_config.Mesh(data=1, sequence=2, expert=2, tensor=2),
}
FAST = [*((family, "all_to_all", "sequence=2,fsdp=2,tensor=2") for family in BODIES), ("bert", "ring", "sequence=4")]
RINGS = {"gpt": list(MESHES), "gpt_oss": list(MESHES), "t5": list(MESHES)}
CASES = [
    pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
    for family in models.families()
    for form, meshes in (("all_to_all", MESHES), ("ring", RINGS.get(family, ["sequence=4"])))
    for case in ((family, form, mesh) for mesh in meshes)
]


def packed_batch(net: Model) -> Batch:
    """Return rows of two documents with padding, of targets at some positions for encoders, and all that a family reads."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(2, 300, (ROWS, LENGTH)), jnp.int32)
    segments = jnp.asarray(np.repeat([[1] * 9 + [2] * 5 + [0] * 2], ROWS, 0), jnp.int32)
    batch = with_source(net, Batch(tokens=tokens, segments=segments))
    at = jnp.asarray([[1, 4, 5, 8, 11], [0, 2, 3, 9, 12]], jnp.int32)
    if net.task == "permutation":
        order = jnp.asarray([rng.permutation(LENGTH) for _ in range(ROWS)], jnp.int32)
        types = jnp.asarray(rng.integers(0, 2, (ROWS, LENGTH)), jnp.int32)
        return dataclasses.replace(batch, order=order, query_at=at, types=types)
    return dataclasses.replace(batch, predict_at=at) if net.task in ("masked", "pretraining") else batch


def score(net: Model, params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
    """Return a loss of the predictions with dropout, and the new memory."""
    out = net.apply(params, batch, seeds=seeds(ROWS), carry=carry)
    log_p = jax.nn.log_softmax(net.unembed(params, predicting_states(out, batch)))
    return -log_p[..., 7].mean(), out.carry


@functools.cache
def model_of(family: str, form: str) -> Model:
    """Return a family's model with dropout, attention by tiles, and memory if it has one; of two layers if the first differs."""
    compute = Compute(attention="blocked", sequence=form)  # pyright: ignore[reportArgumentType]
    task = {"task": "masked"} if "masked" in models.family(family).names else {}
    make = small if family == "modernbert" else shallow
    net = make(family, **task, **({"layers": 2} if family == "modernbert" else {}), compute=compute)
    memory = {"memory": 8} if hasattr(net.config, "memory") else {}
    return dataclasses.replace(net, config=dataclasses.replace(net.config, **with_dropout(net), **memory))


def step(net: Model) -> Any:
    return jax.jit(jax.grad(functools.partial(score, net), has_aux=True))


@functools.cache
def one_device(family: str) -> Any:
    net = model_of(family, "auto")
    return jax.device_get(step(net)(random_params(net), packed_batch(net), net.init_carry(ROWS)))


def on_mesh(family: str, form: str, shape: run_config.Mesh) -> Any:
    net = model_of(family, form)
    count = shape.data * shape.fsdp * shape.tensor * shape.sequence * shape.expert
    mesh, params = device_mesh.make_mesh(shape, jax.devices()[:count]), random_params(net)
    placed = jax.device_put(params, sharding.shardings(mesh, params, net.definition.sharding))
    rows = jax.device_put((packed_batch(net), net.init_carry(ROWS)), device_mesh.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        return jax.device_get(step(net)(placed, *rows))


@pytest.mark.parametrize(("family", "form", "mesh"), CASES)
def test_gradients_and_memory_are_those_of_one_device(family: str, form: str, mesh: str) -> None:
    """Packed rows with padding, dropout, targets at a number of positions that the axis does not divide."""
    (gradient, memory), (expected, expected_memory) = on_mesh(family, form, MESHES[mesh]), one_device(family)
    assert_equal_gradients(gradient, expected)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), memory, expected_memory)


@pytest.mark.planted
def test_the_comparison_catches_dropout_by_local_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake: a device numbers the heads that it has from 0, not among all heads."""
    original = local_arrays.on_local_arrays

    def local_numbers(
        run: Any, q: Any, k: Any, v: Any, mask: Any, bias: Any, seed: Any, heads: Any, sinks: Any, **options: Any
    ) -> Any:
        def renumbered(q: Any, k: Any, v: Any, mask: Any, bias: Any, seed: Any, heads: Any, *rest: Any) -> Any:
            return run(q, k, v, mask, bias, seed, jnp.arange(heads.shape[0], dtype=jnp.uint32), *rest)

        return original(renumbered, q, k, v, mask, bias, seed, heads, sinks, **options)

    monkeypatch.setattr("zoo.attention.attention.on_local_arrays", local_numbers)
    with pytest.raises(AssertionError):
        assert_equal_gradients(on_mesh("gpt", "all_to_all", MESHES["sequence=4"])[0], one_device("gpt")[0])


def test_attention_exchanges_heads_for_positions() -> None:
    """Four exchanges forward and four backward, of a device's own part; no device gathers what the others have."""
    mesh = device_mesh.make_mesh(run_config.Mesh(data=2, sequence=4))
    shape = (4, 64, 4, 8)
    place = NamedSharding(mesh, PartitionSpec(sharding.BATCH, POSITIONS))
    q = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)

    def value(q: Any, k: Any, v: Any) -> jax.Array:
        return attention(q, k, v, mask=Mask(causal=True), impl="blocked")

    def both(q: Any, k: Any, v: Any, cotangent: Any) -> Any:
        out, pull = jax.vjp(value, q, k, v)
        return out, pull(cotangent)

    with jax.set_mesh(mesh):
        program = jax.jit(both).lower(q, q, q, q).compile()
    sent = collectives.find_collectives(hlo_parser.parse_program(program.as_text() or ""), dict(mesh.shape))
    assert {one.kind for one in sent} == {"all-to-all"}
    own = 4 * math.prod(shape) / mesh.size
    # q, k, v, the output, and their gradients.
    assert sum(one.run.times * one.bytes_sent for one in sent) == pytest.approx(8 * own * 3 / 4, rel=0.05)


def temporaries(family: str, form: str, devices: int, length: int = 16384) -> int:
    """Return the bytes of temporaries of a device in a gradient of rows of many positions, for a model with few parameters."""
    sizes: dict[str, Any] = {"width": 64, "heads": 8, "ffn": 256, "context": length, "layers": 4}
    net = small(family, **sizes, compute=Compute(attention="blocked", sequence=form))  # pyright: ignore[reportArgumentType]
    mesh = device_mesh.make_mesh(run_config.Mesh(data=1, sequence=devices), jax.devices()[:devices])
    places = sharding.shardings(mesh, shapes(net), net.definition.sharding)
    params = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes(net), places)
    tokens: Any = jax.ShapeDtypeStruct((4, length), jnp.int32, sharding=device_mesh.batch_sharding(mesh))
    gradient = jax.grad(lambda params, tokens: jnp.square(net.apply(params, Batch(tokens=tokens)).hidden).mean())
    with jax.set_mesh(mesh):
        memory: Any = jax.jit(gradient).lower(params, tokens).compile().memory_analysis()
    return memory.temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize(("family", "form"), [("gpt", "all_to_all"), ("bert", "all_to_all"), ("gpt", "ring"), ("bert", "ring")])
def test_memory_of_activations_is_divided(family: str, form: str) -> None:
    alone = temporaries(family, form, 1)
    for devices in (2, 4, 8):
        assert temporaries(family, form, devices) == pytest.approx(alone / devices, rel=0.15)
