"""Compiled programs, made here: what a parallel step sends, by closed formulas, and what a plan warns of."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.plan import collectives, facts, hlo, program, targets, work
from benchmarks.plan.collectives import Sent
from tests.support import tiny
from train.config import Data, Mesh, Run
from zoo.configs import Compute

SIZES = {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}


def test_products_and_gathers_of_a_real_loop() -> None:
    """Twelve layers of a product each, forward and backward, weights split over eight devices."""
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    layers, width, rows = 12, 64, 32

    def loss(stack: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0].sum()

    def placed(*shape: int, axes: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, axes))

    stack = placed(layers, width, width, axes=PartitionSpec(None, "fsdp"))
    x = placed(rows, width, axes=PartitionSpec("fsdp"))
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(stack, x).compile().as_text()
    assert text is not None
    module = hlo.parse(text)
    # Each layer forward, its gradient by the weights and, but for the first of its inputs, by what it is given.
    assert work.work(module, [], 8).products == 3 * layers * 2 * rows / 8 * width * width
    rows_by_kind = {row.kind: row for row in collectives.collectives(collectives.sent(module, {"fsdp": 8}))}
    assert rows_by_kind["all-gather"].count == 2 * layers
    assert rows_by_kind["all-gather"].bytes == 2 * layers * width * width * 4
    assert set(rows_by_kind) == {"all-gather", "all-reduce"} and rows_by_kind["all-reduce"].axes == "fsdp"


LAYERS, WIDTH, ROWS, LENGTH, VOCAB = 4, 64, 16, 32, 512


def gpt(**mesh: int) -> Run:
    """A GPT whose tables and layers divide over eight devices, without dropout."""
    run = tiny.run()
    numbers = {"width": WIDTH, "heads": 8, "head": 8, "ffn": 4 * WIDTH, "layers": LAYERS, "vocab": VOCAB, "context": LENGTH}
    rates = {name: 0.0 for name in ("dropout", "embedding_dropout", "attention_dropout")}
    model = dataclasses.replace(run.model, **numbers, **rates, compute=Compute(attention="xla"))
    return dataclasses.replace(run, model=model, mesh=Mesh(**mesh), data=Data(length=LENGTH, batch=ROWS))


@functools.cache
def compiled(axis: str) -> tuple[program.Program, list[Sent]]:
    """The training step with all eight devices along one axis, and what it sends."""
    made = program.compiled(gpt(**{axis: 8}), "train", targets.parse("cpu:8"))
    return made, collectives.sent(hlo.parse(made.text), dict(made.mesh.shape))


def stored(made: program.Program, *parts: str) -> int:
    """Bytes of the parameters whose path has all of these parts, whole."""
    leaves = jax.tree_util.tree_leaves_with_path(made.arguments["parameters"])
    paths = {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}
    return sum(math.prod(leaf.shape) * 4 for path, leaf in paths.items() if all(part in path for part in parts))


def total(sent: list[Sent], kind: str) -> float:
    return sum(each.run.times * each.bytes for each in sent if each.kind == kind)


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_everything_goes_along_the_axis_that_there_is(axis: str) -> None:
    assert {each.axes for each in compiled(axis)[1]} == {axis}


def test_data_parallel_sends_each_gradient_once() -> None:
    """All parameters' gradients are summed over the devices. The tied table has two, of the lookup and of
    the logits, and XLA sums them one by one."""
    made, sent = compiled("data")
    expected = stored(made) + stored(made, "embed/tokens")
    assert {each.kind for each in sent} == {"all-reduce"}
    assert total(sent, "all-reduce") == pytest.approx(expected, rel=0.05)


def test_fsdp_gathers_each_layer_twice_and_scatters_it_once() -> None:
    """Kernels are gathered forward and backward, tables once. On CPU XLA does not scatter sums: each device gets all of them."""
    made, sent = compiled("fsdp")
    gathers = 2 * stored(made, "layers", "kernel") + stored(made, "embed")
    assert total(sent, "all-gather") == pytest.approx(gathers, rel=0.05)
    scatters = stored(made) + stored(made, "embed/tokens")
    assert total(sent, "all-reduce") + total(sent, "reduce-scatter") == pytest.approx(scatters, rel=0.05)
    inside = sum(each.run.times for each in sent if each.kind == "all-gather" and each.run.loop)
    assert inside == 2 * LAYERS * 4


def test_tensor_parallel_reduces_twice_in_each_block_and_direction() -> None:
    """The activations of all rows; besides, those of the embeddings and the gradient of the last hidden states."""
    _, sent = compiled("tensor")
    activations = ROWS * LENGTH * WIDTH * 4
    assert total(sent, "all-reduce") == pytest.approx((4 * LAYERS + 2) * activations, rel=0.05)
    assert sum(each.run.times for each in sent if each.run.loop) == 4 * LAYERS


STACK = """
ENTRY %main (w: f32[4,8,256]) -> f32[4,64,256] {
  %w = f32[4,8,256]{2,1,0} parameter(0)
  ROOT %g = f32[4,64,256]{2,1,0} all-gather(%w), replica_groups=[1,8]<=[8], dimensions={1}
}
"""


@pytest.mark.planted(2)
def test_stacks_gathered_outside_of_the_loop_are_warned_of() -> None:
    """A gather of one layer is not; one of the stack is, by itself and in the loop over micro-batches."""
    made, sent = compiled("fsdp")
    assert not facts.gathered(sent, made)
    (line,) = facts.gathered(collectives.sent(hlo.parse(STACK), dict(made.mesh.shape)), made)
    assert "layers/mlp/up/kernel" in line and "outside of the loop" in line
    micro = """
%micro (p: f32[4,8,256]) -> f32[4,8,256] {
  %p = f32[4,8,256]{2,1,0} parameter(0)
  %g = f32[4,64,256]{2,1,0} all-gather(%p), replica_groups=[1,8]<=[8], dimensions={1}
  ROOT %own = f32[4,8,256]{2,1,0} slice(%g), slice={[0:4], [0:8], [0:256]}
}

%more (q: f32[4,8,256]) -> pred[] {
  %q = f32[4,8,256]{2,1,0} parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (w: f32[4,8,256]) -> f32[4,8,256] {
  %w = f32[4,8,256]{2,1,0} parameter(0)
  ROOT %loop = f32[4,8,256]{2,1,0} while(%w), condition=%more, body=%micro, backend_config={"known_trip_count":{"n":"3"}}
}
"""
    assert facts.gathered(collectives.sent(hlo.parse(micro), dict(made.mesh.shape)), made) == [line]


def test_what_is_copied_over_an_axis_is_warned_of_by_name() -> None:
    made, _ = compiled("tensor")
    found = facts.copied(made.arguments, dict(made.mesh.shape), large=LENGTH * WIDTH * 4)
    assert len(found) == 3 and all("embed/positions/embedding (32, 64) is copied over tensor" in line for line in found)
    assert facts.copied(made.arguments, dict(made.mesh.shape)) == []


def test_what_data_parallelism_copies_is_told_in_a_line() -> None:
    """All of the state."""
    made, _ = compiled("data")
    (line,) = facts.copied(made.arguments, dict(made.mesh.shape), large=1)
    held = program.per_device(made.arguments["parameters"]) + program.per_device(made.arguments["optimizer"])
    assert line.startswith(f"parameters, optimizer: copied over data, {held / 2**20:,.0f} MiB on each device; fsdp")


def test_whatever_a_program_is_given_is_looked_at() -> None:
    """A cache and a teacher too, but no batch."""
    mesh = jax.make_mesh((2, 2, 2, 1), tuple(SIZES), axis_types=(AxisType.Auto,) * 4)

    def given(*axes: str | None) -> dict[str, jax.ShapeDtypeStruct]:
        return {"keys": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))}

    arguments = {"cache": given("data", "fsdp"), "teacher": given("data", "tensor"), "batch": given("data")}
    assert facts.copied(arguments, SIZES, large=1) == [
        "cache keys (8, 4) is copied over tensor: 0 MiB on each device",
        "teacher keys (8, 4) is copied over fsdp: 0 MiB on each device",
    ]


def test_flops_of_a_step_are_the_models_own() -> None:
    """Without recomputation a program multiplies what the model's formula says, but for no gradient by what is looked up."""
    for axis in ("data", "fsdp", "tensor"):
        made, _ = compiled(axis)
        products = work.work(hlo.parse(made.text), made.calls, 8).products
        assert products == pytest.approx(made.flops / 8, rel=0.02), axis


def test_places_of_a_mesh_are_numbered_as_the_compiler_does() -> None:
    """The devices of a mesh in their order are the partitions 0, 1, ...: groups of the axes are read off their numbers."""
    axes = collectives._axes(SIZES)
    grid = np.arange(8).reshape(2, 2, 2)
    assert axes[frozenset(frozenset(pair) for pair in grid.reshape(4, 2).tolist())] == "tensor"
    assert axes[frozenset(frozenset(pair) for pair in grid.transpose(1, 2, 0).reshape(4, 2).tolist())] == "data"
    assert axes[frozenset(frozenset(four) for four in grid.reshape(2, 4).tolist())] == "fsdp x tensor"


def test_a_layer_that_has_as_many_elements_as_a_stack_is_no_stack() -> None:
    """One of its axes may even be as long as there are layers: that of q, k and v, of three layers."""
    made, _ = compiled("fsdp")
    layer = STACK.replace("f32[4,8,256]", "f32[1,8,4,256]").replace("f32[4,64,256]", "f32[1,64,4,256]").replace("{2,1,0}", "")
    sent = collectives.sent(hlo.parse(layer), dict(made.mesh.shape))
    assert [each.arrays[0].shape for each in sent] == [(1, 8, 4, 256)]
    assert not facts.gathered(sent, made)
