"""Training steps of every family, compiled by the real compilers for devices that are not here; run with --aot."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.core import timing
from benchmarks.flops import flops_and_bytes
from benchmarks.hlo import hlo_parser
from benchmarks.plan import compile_program, find_run, plan_record, target_devices
from benchmarks.plan.plan_record import Plan
from tests.support.small import BODIES
from train.config.objectives import CausalOptions
from train.config.run_config import Mesh, Run
from train.engine import device_mesh, loss_chunks
from train.engine.losses import token_losses
from zoo import configs, models
from zoo.configs import gpt_oss
from zoo.nn.experts import Experts
from zoo.nn.layers import params_of, tied_logits
from zoo.ops import ragged_product
from zoo.sharding import BATCH

pytestmark = pytest.mark.aot


@pytest.fixture(autouse=True)
def cold() -> Iterator[None]:
    """Compile without JAX's cache, as `prepare_target` does: the cache cannot read a program for other devices again."""
    with timing.without_compilation_cache():
        yield


NORMAL = jax.nn.initializers.normal(0.02)
SMALL = {"tpu": "v5e:2x2", "gpu": "h100:8"}
"""What every family is compiled for."""


def sizes(family: str) -> list[str]:
    """Return a family's nano and its base size: of the others the one whose width is nearest to 768."""
    table = configs.family(family).SIZES
    nano = next(name for name in table if name.endswith("nano"))
    return [nano, min((name for name in table if name != nano), key=lambda name: abs(table[name].config.width - 768))]


LONG = ("llama-nano", "bert-nano", "t5-nano", "xlnet-nano")
"""A decoder, an encoder, an encoder-decoder and XLNet."""
FAST = {("train", sizes(family)[0]) for family in BODIES}
# A nano compiles in half a minute or less, a base size in up to two minutes: training one nano of each body is not slow.
JOBS = [
    pytest.param(platform, size, mode, marks=[] if (mode, size) in FAST else pytest.mark.slow)
    for platform in SMALL
    for family in models.families()
    for size in sizes(family)
    for mode in ("train", "forward")
]


def needs(platform: str) -> None:
    """Skip without the extra of a platform, `tpu` or `cuda13`, and fail where there is no compiler at all."""
    why = {name: target_devices.unavailable_reason(target_devices.parse_target(each).platform) for name, each in SMALL.items()}
    if all(why.values()):
        pytest.fail("; ".join(map(str, why.values())), pytrace=False)
    if why[platform]:
        pytest.skip(str(why[platform]))


def small(size: str, devices: int) -> Run:
    """Return a run of a size on a mesh of two axes, with two rows for each device; those of `LONG` divide positions."""
    run = find_run.run_of_size(size)
    mesh = Mesh(fsdp=2, sequence=2) if size in LONG else Mesh(fsdp=2, tensor=2) if run.model.heads % 2 == 0 else Mesh(fsdp=2)
    data = dataclasses.replace(run.data, batch=2 * devices)
    return dataclasses.replace(run, mesh=mesh, accumulate=1, data=data)


def small_gpt() -> Run:
    """Return a run of gpt-nano with closed formulas.

    Of unrolled layers a GPU keeps what it gathered for the backward pass, and Muon gathers the matrices that it orthogonalizes.
    """
    run = find_run.find_run("gpt-nano")
    scanned = dataclasses.replace(run.model, compute=dataclasses.replace(run.model.compute, unroll=1))
    adamw = dataclasses.replace(run.optim, name="adamw")
    return dataclasses.replace(run, model=scanned, optim=adamw, mesh=Mesh(fsdp=2, tensor=2))


@functools.cache
def planned(run: Run, mode: compile_program.Mode, target: str) -> Plan:
    return plan_record.make_plan(compile_program.compile_run(run, mode, target_devices.parse_target(target)), run.recipe)


def muon_flops(run: Run, mode: compile_program.Mode) -> float:
    """Return the FLOPs with which Muon orthogonalizes the kernels of experts, which the model's count leaves out.

    Five iterations of three products for each of the three square matrices of an expert (Jordan et al. 2024). In the step of
    gpt-oss-nano they are 5.1e9 FLOPs on a device of a v5e:2x2, and all others 8.0e9: they do not depend on the number of tokens,
    of which there are few, while an expert gets only a quarter of these. The compiled program divides them evenly.
    """
    if mode != "train" or run.optim.name != "muon" or not isinstance(run.model, gpt_oss.Config):
        return 0.0
    model = run.model
    assert model.width == model.ffn
    return 5 * 3 * 2.0 * model.width**3 * 3 * model.experts * model.layers


def check_plan(plan: Plan, optimizer: float = 0.0) -> None:
    """Check what every plan must have: it fits, all its FLOPs are counted, and a bound follows.

    Args:
        optimizer: FLOPs of the optimizer that count as needed, which the devices along `data` repeat.
    """
    assert plan.fits and plan.products is not None and plan.kernels is not None and not plan.unknown
    counted, model = plan.products + plan.kernels, plan.model_flops / plan.devices
    needed = model + optimizer * plan.mesh["data"] / plan.devices
    # Recomputation adds a third at most.
    assert needed / counted > 0.6 and model / counted < 1.03, (model, needed, counted)
    assert plan.bound is not None and 0 < plan.bound <= 1


@pytest.mark.parametrize(("platform", "size", "mode"), JOBS)
def test_every_family_compiles(platform: str, size: str, mode: compile_program.Mode) -> None:
    needs(platform)
    run = small_gpt() if size == "gpt-nano" else small(size, 4 if platform == "tpu" else 8)
    plan = planned(run, mode, SMALL[platform])
    # What is copied over `data` is by intention; cuBLAS computes the products of base T5's training step for GPUs.
    expected = ("copied over data", "by cuBLAS")
    if size in ("llama-nano", "gpt-oss-nano", "ettin-decoder-nano"):
        # XLA gathers kernels of up to 0.4 MiB for all layers of these. It does not for gpt-oss-20b on v5p:4x4x4.
        expected += ("are gathered at once, outside of the loop",)
    check_plan(plan, muon_flops(run, mode) if size == "gpt-oss-nano" else 0.0)
    assert sum(row.count for row in plan.collectives) > 0
    assert all(any(words in line for words in expected) for line in plan.warnings)
    # Who exchanges what is known: all of some axes, not a part of one, and nobody else.
    assert {axis for row in plan.collectives for axis in row.axes.split(" x ")} <= set(plan.mesh)


RINGS = [
    pytest.param(platform, size, marks=() if (platform, size) == ("tpu", "llama-nano") else pytest.mark.slow)
    for platform in SMALL
    for size in LONG
]


@pytest.mark.parametrize(("platform", "size"), RINGS)
def test_a_ring_compiles(platform: str, size: str) -> None:
    """Keys and values pass from device to device; the step has as many FLOPs as with all-to-alls, but for the diagonals."""
    needs(platform)
    run = small(size, 4 if platform == "tpu" else 8)
    compute = dataclasses.replace(run.model.compute, sequence="ring")
    plan = planned(dataclasses.replace(run, model=dataclasses.replace(run.model, compute=compute)), "train", SMALL[platform])
    check_plan(plan)
    sent = {row.kind for row in plan.collectives if row.axes == "sequence"}
    # XLNet's projected distances come to all devices by an all-to-all and a gather.
    assert "collective-permute" in sent and ("all-to-all" not in sent or size == "xlnet-nano")
    counted, expected = ((one.products or 0.0) + (one.kernels or 0.0) for one in (plan, planned(run, "train", SMALL[platform])))
    assert 0.9 < counted / expected < 1.25


def test_a_program_that_the_tpu_compiler_refuses_is_a_plan() -> None:
    """Of gpt-nano with 2,048 rows of 256 on a device, the logits alone are half of the memory."""
    needs("tpu")
    run = find_run.find_run("gpt-nano")
    run = dataclasses.replace(
        run, data=dataclasses.replace(run.data, batch=8192), accumulate=1, options=CausalOptions(loss_chunk=0)
    )
    plan = planned(run, "train", SMALL["tpu"])
    assert not plan.fits and plan.bound is None and plan.device_memory == int(15.75 * 2**30) < plan.total
    assert plan.total == sum(plan.memory.values()) + plan.temporaries
    largest = plan.large[0]
    assert largest.shape == "f32[2048,256,4096]" and largest.bytes == 8 << 30 and "unembed" in largest.operation
    assert [(row.source, row.operation) for row in plan.large if not row.source] == []
    # What is live at once is not more than what the compiler needs.
    assert sum(row.bytes * row.count for row in plan.large) <= plan.temporaries
    options = {line.partition(":")[0] for line in plan.advice}
    assert {"--loss-chunk 64", "--model.compute.remat full", "--accumulate 2", "--batch 4096"} <= options


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_a_logit_takes_the_bytes_that_auto_counts(platform: str, dtype: str) -> None:
    """Temporaries of the loss of gpt2's vocabulary with its gradient, all logits at once."""
    needs(platform)
    target = target_devices.parse_target(SMALL[platform])
    mesh = device_mesh.make_mesh(Mesh(data=1), target_devices.devices_of_target(target)[:1])

    def loss(hidden: Any, table: Any, targets: Any) -> Any:
        return token_losses(lambda h: tied_logits(h, table, 50_257), hidden, targets, vocabulary=50_257).sum()

    shapes = ((8, 1024, 768), dtype), ((50_304, 768), dtype), ((8, 1024), "int32")
    everywhere = NamedSharding(mesh, PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(shape, jnp.dtype(name), sharding=everywhere) for shape, name in shapes]
    with jax.set_mesh(mesh), target_devices.simulate_target(target):
        traced = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(*arguments)
        program = traced.lower(lowering_platforms=(target.lowering,)).compile()
    temporaries = program.memory_analysis().temp_size_in_bytes
    assert temporaries / (8 * 1024 * 50_304) == pytest.approx(loss_chunks.BYTES[platform], rel=0.02)


def test_a_tpu_slice_of_one_chip_is_known() -> None:
    needs("tpu")
    assert [len(target_devices.devices_of_target(target_devices.parse_target(f"{chip}:1x1"))) for chip in ("v5e", "v6e")] == [
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("platform", "form", "least", "largest"),
    [
        ("tpu", "grouped_tpu", 1.0, 1.1),
        ("tpu", "ragged_dot", 4.0, 16.0),
        ("gpu", "grouped_gpu", 1.0, 1.1),
        ("gpu", "ragged_dot", 14.0, 18.0),
    ],
)
def test_experts_multiply_what_their_tokens_need(
    platform: str, form: str, least: float, largest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The products of a layer and its gradients are three times those of each token's experts, to 10 %, which has the router's.

    With JAX's function XLA of JAX 0.10 multiplies all rows for each of the eight experts of a device; see
    `zoo.ops.grouped_product_tpu`. For a GPU it does so in all three products, with the rows of both devices of the axis: 16
    times.
    """
    needs(platform)
    rows, length, width, ffn, experts, chosen = 8, 512, 256, 384, 16, 2
    monkeypatch.setattr(ragged_product, "product_form", lambda: form)
    make = functools.partial(Experts, width, ffn, experts, chosen, NORMAL, NORMAL)
    graph = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    leaves = jax.eval_shape(lambda: params_of(make(nnx.Rngs(0))))

    def value(leaves: Any, x: Any) -> Any:
        y, _ = nnx.merge(graph, leaves)(x, None)
        return jnp.square(y.astype(jnp.float32)).sum()

    target = target_devices.parse_target(SMALL[platform])
    devices = target_devices.devices_of_target(target)
    mesh = device_mesh.make_mesh(Mesh(data=len(devices) // 4, fsdp=2, expert=2), devices)
    leaves = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), leaves)
    x = jax.ShapeDtypeStruct((rows, length, width), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(BATCH)))
    with jax.set_mesh(mesh), target_devices.simulate_target(target), ragged_product.record_products() as products:
        traced = jax.jit(jax.grad(value, argnums=(0, 1))).trace(leaves, x)
        program = traced.lower(lowering_platforms=(target.lowering,)).compile()
    module = hlo_parser.parse_program(program.as_text() or "")
    work = flops_and_bytes.device_work(module, [], mesh.size, products=products, on_chip=platform == "tpu")
    active = 3 * 2.0 * rows * length * chosen * 3 * width * ffn / mesh.size
    if form == "ragged_dot" and platform == "tpu" and jax.__version_info__ >= (0, 11):
        # Newer compilers for TPU have a kernel for it, whose FLOPs nobody states.
        assert work.unknown == ("tpu_custom_call",)
        return
    assert least <= work.flops / active <= largest
    assert form == "ragged_dot" or not work.unknown


@pytest.mark.parametrize("platform", SMALL)
def test_closed_formulas(platform: str) -> None:
    """FSDP, tensor and data parallelism of gpt-nano send what they do on CPU (test_collectives.py), to 5 %, but in other dtypes.

    Kernels are gathered in bfloat16, forward and backward, and their gradients summed in float32; of the tied table, that of the
    logits in float32 and that of the lookup in bfloat16. Activations are summed in float32, those of the lookup in bfloat16.
    """
    needs(platform)
    run = small_gpt()
    plan = planned(run, "train", SMALL[platform])
    model, halves = run.model, plan.mesh["tensor"]
    width, layers = model.width, model.layers
    kernels = layers * (4 * width * width + 2 * width * model.ffn) // halves
    table, positions = model.vocab * width // halves, model.context * width
    sent: dict[tuple[str, str], float] = {}
    for row in plan.collectives:
        sent[row.kind, row.axes] = sent.get((row.kind, row.axes), 0.0) + row.bytes
    rows = run.data.batch // (plan.mesh["data"] * plan.mesh["fsdp"])
    activations = 4 * rows * model.context * width
    assert sent["all-reduce", "tensor"] == pytest.approx((4 * layers + 1.5) * activations, rel=0.05)
    # XLA gathers the table before it casts it for a GPU, and after that for a TPU.
    gathered = 2 * 2 * kernels + (4 if platform == "gpu" else 2) * table + 2 * positions
    assert sent["all-gather", "fsdp"] == pytest.approx(gathered, rel=0.05)
    summed = 4 * kernels + (4 + 2) * table + 2 * positions
    fsdp = ("fsdp", "data x fsdp") if platform == "gpu" else ("fsdp",)
    kinds = ("reduce-scatter", "all-reduce")
    assert sum(sent.get((kind, axes), 0) for kind in kinds for axes in fsdp) == pytest.approx(summed, rel=0.05)
    if plan.mesh["data"] > 1:
        # Of the layers, only the parts that each device keeps; the table goes over both axes at once.
        assert sent["all-reduce", "data"] == pytest.approx(4 * kernels / plan.mesh["fsdp"], rel=0.05)


@pytest.mark.parametrize(
    ("platform", "target", "inner"), [("tpu", "v5e:2x2*2", 4), ("tpu", "v5p:2x2x1*2", 4), ("gpu", "h100:8*2", 8)]
)
def test_slices_send_each_other_the_gradients(platform: str, target: str, inner: int) -> None:
    """Of FSDP within slices, a device has one of `inner` parts of the gradients, and sends it once: half of it twice.

    Gradients have the dtypes of `test_closed_formulas`. A part of a width of 512 fills the tiles of a TPU: it pads smaller ones.
    """
    needs(platform)
    run = small_gpt()
    model = dataclasses.replace(run.model, width=512, heads=4, head=128, ffn=2048, layers=3)
    run = dataclasses.replace(run, model=model, mesh=Mesh(fsdp=inner))
    plan = planned(run, "train", target)
    assert plan.mesh["data"] == plan.slices["data"] == plan.slice_count == 2
    kernels = model.layers * (4 * model.width**2 + 2 * model.width * model.ffn)
    gradients = 4 * kernels + (4 + 2) * model.vocab * model.width + 2 * model.context * model.width
    between = {row.axes: row.bytes_sent for row in plan.collectives if row.between_slices}
    assert between == {"data": pytest.approx(gradients / inner, rel=0.05)}
    rate = target_devices.parse_target(target).published
    assert rate is not None
    seconds = None if rate.between_slices is None else between["data"] / (1e9 * rate.between_slices)
    assert plan.times.between_slices == (seconds and pytest.approx(seconds)) and plan.bound is not None
    # Within slices it is a program for one of them: nothing goes along `data`.
    assert {row.axes for row in plan.collectives if not row.between_slices} == {"fsdp"}


@pytest.mark.slow
def test_fsdp_over_slices_gathers_between_them() -> None:
    """A device sends its eighth of what is gathered. Gradients are summed in full: XLA scatters no sums between slices."""
    needs("tpu")
    run = small_gpt()
    model = dataclasses.replace(run.model, width=1024, heads=8, head=128, ffn=4096, layers=3)
    run = dataclasses.replace(run, model=model, mesh=Mesh(fsdp=8))
    plan = planned(run, "train", "v5e:2x2*2")
    assert plan.slices["fsdp"] == plan.slice_count == 2
    kernels = model.layers * (4 * model.width**2 + 2 * model.width * model.ffn)
    sent = {(row.kind, row.axes): row.bytes_sent for row in plan.collectives if row.between_slices}
    gathered = 2 * 2 * kernels + 4 * model.vocab * model.width + 2 * model.context * model.width
    assert sent["all-gather", "fsdp"] == pytest.approx(gathered / 8, rel=0.05)
    gradients = 4 * kernels + (4 + 2) * model.vocab * model.width + 2 * model.context * model.width
    reduced = sum(size for (kind, _), size in sent.items() if kind != "all-gather")
    assert reduced == pytest.approx(gradients / 4, rel=0.05)


def test_offload_stores_the_projections_in_the_memory_of_the_host_of_a_tpu() -> None:
    """Buffers in memory space 5 have attention's output and all projections of a layer but the last, which no gradient reads.

    The output of attention by `xla` is float32, the others are bfloat16.
    """
    needs("tpu")
    run = small_gpt()
    compute = dataclasses.replace(run.model.compute, remat="offload", attention="xla")
    model = dataclasses.replace(run.model, layers=4, compute=compute)
    run = dataclasses.replace(run, model=model, mesh=Mesh(fsdp=4), accumulate=1, data=dataclasses.replace(run.data, batch=64))
    text = compile_program.compile_run(run, "train", target_devices.parse_target(SMALL["tpu"])).text
    buffers = re.findall(r"= (bf16|f32)\[([\d,]+)\]\S*S\(5\)\} custom-call\(\), custom_call_target=\"AllocateBuffer\"", text)
    stored = sum({"bf16": 2, "f32": 4}[dtype] * math.prod(map(int, shape.split(","))) for dtype, shape in buffers)
    values = 2 * (3 * model.width + model.width + model.ffn) + 4 * model.width
    assert stored == pytest.approx(model.layers * 64 // 4 * run.data.length * values, rel=0.05)
    assert text.count("dynamic-update-slice-start(") >= len(buffers) <= text.count("dynamic-slice-start(")


@pytest.mark.slow
@pytest.mark.parametrize("size", [size for family in configs.families() for size in configs.family(family).SIZES])
@pytest.mark.parametrize(("platform", "target"), [("tpu", "v5p:4x4x4"), ("gpu", "h200:64")])
def test_every_published_size_has_a_plan(platform: str, target: str, size: str) -> None:
    """It fits 64 devices, its parameters over as many of them as divide the width and a torus of 4 x 4 x 4 can be cut into."""
    needs(platform)
    width = configs.find_size(size)[1].config.width
    fsdp = max(each for each in (1, 4, 16, 64) if width % each == 0)
    run = find_run.find_run(size)
    # Everything is computed again in the backward pass, and no micro-batches are accumulated.
    model = dataclasses.replace(run.model, compute=dataclasses.replace(run.model.compute, remat="full"))
    data = dataclasses.replace(run.data, batch=64)
    run = dataclasses.replace(run, mesh=Mesh(fsdp=fsdp), data=data, model=model, accumulate=1)
    plan = planned(run, "train", target)
    assert plan.fits and plan.bound is not None
