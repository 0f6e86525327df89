"""Compiled programs, made here: what a parallel step sends, by closed formulas, and what a plan warns of."""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.flops import flops_and_bytes
from benchmarks.hlo import hlo_parser
from benchmarks.plan import collectives, compile_program, plan_record, target_devices
from benchmarks.plan.collectives import Collective
from tests.support import benchmark_steps, tiny
from train.config.data_options import CausalData
from train.config.run_config import Mesh, Run
from zoo.configs import Compute

SIZES = {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
LAYERS, WIDTH, ROWS, LENGTH, VOCAB = 4, 64, 16, 32, 512


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        benchmark_steps.hurry_plans(patch)
        yield


def gpt(**mesh: int) -> Run:
    """Return a run of a GPT whose tables and layers divide over eight devices, without dropout."""
    run = tiny.run()
    numbers = {"width": WIDTH, "heads": 8, "head": 8, "ffn": 4 * WIDTH, "layers": LAYERS, "vocab": VOCAB, "context": LENGTH}
    rates = {name: 0.0 for name in ("dropout", "embedding_dropout", "attention_dropout")}
    model = dataclasses.replace(run.model, **numbers, **rates, compute=Compute(attention="xla"))
    return dataclasses.replace(run, model=model, mesh=Mesh(**mesh), data=CausalData(length=LENGTH, batch=ROWS))


@functools.cache
def compiled(axis: str) -> tuple[compile_program.Program, list[Collective]]:
    """Return the training step with all eight devices along one axis, and what it sends."""
    step = compile_program.compile_run(gpt(**{axis: 8}), "train", target_devices.parse_target("cpu:8"))
    return step, collectives.find_collectives(hlo_parser.parse_program(step.text), dict(step.mesh.shape))


def check_axis_and_flops(axis: str) -> None:
    """All goes along the one axis. A program multiplies what the formula says, but for no gradient by what is looked up."""
    step, sent = compiled(axis)
    assert {each.axes for each in sent} == {axis}
    assert flops_and_bytes.device_work(hlo_parser.parse_program(step.text), step.calls, 8).products == pytest.approx(
        step.flops / 8, rel=0.02
    )


def stored(step: compile_program.Program, *parts: str) -> int:
    """Return the bytes of the parameters whose path has all of these parts, over all devices."""
    leaves = jax.tree_util.tree_leaves_with_path(step.arguments["parameters"])
    paths = {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}
    return sum(math.prod(leaf.shape) * 4 for path, leaf in paths.items() if all(part in path for part in parts))


def total(sent: list[Collective], kind: str) -> float:
    return sum(each.run.times * each.bytes for each in sent if each.kind == kind)


@pytest.mark.full
def test_data_parallel_sends_each_gradient_once() -> None:
    """The tied table has two, of the lookup and of the logits, and XLA sums them one by one. All of the state is copied."""
    check_axis_and_flops("data")
    step, sent = compiled("data")
    assert {each.kind for each in sent} == {"all-reduce"}
    assert total(sent, "all-reduce") == pytest.approx(stored(step) + stored(step, "embed/tokens"), rel=0.05)
    (line,) = plan_record.replication_warnings(step.arguments, dict(step.mesh.shape), large=1)
    held = compile_program.bytes_per_device(step.arguments["parameters"]) + compile_program.bytes_per_device(
        step.arguments["optimizer"]
    )
    assert line.startswith(f"parameters, optimizer: copied over data, {held / 2**20:,.0f} MiB on each device; fsdp")


@pytest.mark.full
def test_fsdp_gathers_each_layer_twice_and_scatters_it_once() -> None:
    """Kernels are gathered forward and backward, tables once. On CPU XLA does not scatter sums: each device gets all of them."""
    check_axis_and_flops("fsdp")
    step, sent = compiled("fsdp")
    gathers = 2 * stored(step, "layers", "kernel") + stored(step, "embed")
    assert total(sent, "all-gather") == pytest.approx(gathers, rel=0.05)
    scatters = stored(step) + stored(step, "embed/tokens")
    assert total(sent, "all-reduce") + total(sent, "reduce-scatter") == pytest.approx(scatters, rel=0.05)
    inside = sum(each.run.times for each in sent if each.kind == "all-gather" and each.run.loop)
    assert inside == 2 * LAYERS * 4


@pytest.mark.full
def test_tensor_parallel_reduces_twice_in_each_block_and_direction() -> None:
    """Activations of all rows, of embeddings, and the last gradient. What is copied over an axis is warned of by name."""
    check_axis_and_flops("tensor")
    step, sent = compiled("tensor")
    activations = ROWS * LENGTH * WIDTH * 4
    assert total(sent, "all-reduce") == pytest.approx((4 * LAYERS + 2) * activations, rel=0.05)
    assert sum(each.run.times for each in sent if each.run.loop) == 4 * LAYERS
    lines = plan_record.replication_warnings(step.arguments, dict(step.mesh.shape), large=LENGTH * WIDTH * 4)
    assert len(lines) == 3 and all("embed/positions/embedding (32, 64) is copied over tensor" in line for line in lines)
    assert plan_record.replication_warnings(step.arguments, dict(step.mesh.shape)) == []


STACK = """
ENTRY %main (w: f32[4,8,256]) -> f32[4,64,256] {
  %w = f32[4,8,256]{2,1,0} parameter(0)
  ROOT %g = f32[4,64,256]{2,1,0} all-gather(%w), replica_groups=[1,8]<=[8], dimensions={1}
}
"""


@pytest.mark.planted(2)
def test_stacks_gathered_outside_of_the_loop_are_warned_of() -> None:
    """A gather of one layer is not; one of the stack is, by itself and in the loop over micro-batches."""
    step, sent = compiled("fsdp")
    assert not plan_record.gather_warnings(sent, step)
    (line,) = plan_record.gather_warnings(
        collectives.find_collectives(hlo_parser.parse_program(STACK), dict(step.mesh.shape)), step
    )
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
    assert plan_record.gather_warnings(
        collectives.find_collectives(hlo_parser.parse_program(micro), dict(step.mesh.shape)), step
    ) == [line]
    # A layer may have as many elements as a stack, and an axis as long as there are layers: that of q, k and v, of three.
    layer = STACK.replace("f32[4,8,256]", "f32[1,8,4,256]").replace("f32[4,64,256]", "f32[1,64,4,256]").replace("{2,1,0}", "")
    sent = collectives.find_collectives(hlo_parser.parse_program(layer), dict(step.mesh.shape))
    assert [each.arrays[0].shape for each in sent] == [(1, 8, 4, 256)] and not plan_record.gather_warnings(sent, step)


def test_copies_of_any_argument_are_warned_of() -> None:
    """A cache and a teacher too, but no batch."""
    mesh = jax.make_mesh((2, 2, 2, 1), tuple(SIZES), axis_types=(AxisType.Auto,) * 4)

    def argument(*axes: str | None) -> dict[str, jax.ShapeDtypeStruct]:
        return {"keys": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))}

    arguments = {"cache": argument("data", "fsdp"), "teacher": argument("data", "tensor"), "batch": argument("data")}
    assert plan_record.replication_warnings(arguments, SIZES, large=1) == [
        "cache keys (8, 4) is copied over tensor: 0 MiB on each device",
        "teacher keys (8, 4) is copied over fsdp: 0 MiB on each device",
    ]
