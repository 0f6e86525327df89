"""Training steps of every family, compiled by the real compilers for devices that are not here; run with --aot.

Each target needs its own extra, `tpu` or `cuda13`; one of two is skipped with what it needs, none at all is a failure.
"""

import dataclasses
import functools
import time
from typing import Any

import pytest

from benchmarks.plan import facts, program, subject, targets
from benchmarks.plan.facts import Plan
from train.config import Mesh, Run
from zoo import configs, models

pytestmark = pytest.mark.aot

SMALL = {"tpu": "v5e:2x2", "gpu": "h100:8"}
"""What every family is compiled for."""


def sizes(family: str) -> list[str]:
    """A family's nano and its base: of the others the one whose width is 768, or the nearest to it."""
    known = configs.family(family).SIZES
    nano = next(name for name in known if name.endswith("nano"))
    return [nano, min((name for name in known if name != nano), key=lambda name: abs(known[name].config.width - 768))]


JOBS = [
    (platform, size, mode)
    for platform in SMALL
    for family in models.families()
    for size in sizes(family)
    for mode in ("train", "forward")
]


def needs(platform: str) -> None:
    """Skip, or fail where there is no compiler at all."""
    why = {name: targets.missing(targets.parse(each).platform) for name, each in SMALL.items()}
    if all(why.values()):
        pytest.fail("; ".join(map(str, why.values())), pytrace=False)
    if why[platform]:
        pytest.skip(str(why[platform]))


def small(size: str, devices: int) -> Run:
    """A size on a mesh of two axes, with two rows for each device."""
    run = subject.of_size(size)
    mesh = Mesh(fsdp=2, tensor=2) if run.model.heads % 2 == 0 else Mesh(fsdp=2)
    data = dataclasses.replace(run.data, batch=2 * devices)
    return dataclasses.replace(run, mesh=mesh, accumulate=1, data=data)


@functools.cache
def planned(run: Run, mode: program.Mode, target: str) -> Plan:
    return facts.read(program.compiled(run, mode, targets.parse(target)), run.recipe)


def whole(plan: Plan) -> None:
    """What every plan must have: it fits, its FLOPs are counted whole, and a bound follows."""
    assert plan.fits and plan.products is not None and plan.kernels is not None and not plan.unknown
    share = plan.model_flops / plan.devices / (plan.products + plan.kernels)
    # Recomputation adds a third at most; a causal kernel leaves out half of attention's products, which the model's count has.
    assert 0.6 < share < 1.5, share
    assert plan.bound is not None and 0 < plan.bound < 1.5


@pytest.mark.parametrize(("platform", "size", "mode"), JOBS)
def test_every_family_compiles(platform: str, size: str, mode: program.Mode) -> None:
    needs(platform)
    target = SMALL[platform]
    plan = planned(small(size, 4 if platform == "tpu" else 8), mode, target)
    whole(plan)
    assert sum(row.count for row in plan.collectives) > 0 and not plan.warnings
    assert {row.axes for row in plan.collectives} <= {
        "data",
        "fsdp",
        "tensor",
        "data x fsdp",
        "fsdp x tensor",
        "data x fsdp x tensor",
    }


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
@pytest.mark.parametrize("platform", SMALL)
def test_closed_formulas(platform: str, axis: str) -> None:
    """What data, FSDP and tensor parallelism send, as on CPU (tests/test_plan_hlo.py): gradients in float32, activations and
    gathered weights in what the arithmetic has."""
    needs(platform)
    run = dataclasses.replace(subject.of_size("gpt2"), accumulate=1, loss_chunk=0)
    devices = 4 if platform == "tpu" else 8
    model = dataclasses.replace(run.model, heads=8, head=96, dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0)
    rows = 2 * devices
    run = dataclasses.replace(run, model=model, mesh=Mesh(**{axis: devices}), data=dataclasses.replace(run.data, batch=rows))
    plan = planned(run, "train", SMALL[platform])
    layers, width = model.layers, model.width
    kernels = layers * (4 * width * width + 2 * width * model.ffn)
    table = 50304 * width
    stored = kernels + table + model.context * width + layers * (9 * width + model.ffn) + 2 * width
    sums: dict[str, float] = {}
    for row in plan.collectives:
        sums[row.kind] = sums.get(row.kind, 0.0) + row.bytes
    if axis == "data":
        assert sums["all-reduce"] == pytest.approx(4 * (stored + table), rel=0.05) or sums["all-reduce"] == pytest.approx(
            4 * stored, rel=0.05
        )
    elif axis == "fsdp":
        gathered = 2 * kernels + table + model.context * width
        assert any(sums["all-gather"] == pytest.approx(size * gathered, rel=0.05) for size in (2, 4))
    else:
        activations = 2 * rows * model.context * width
        assert sums["all-reduce"] == pytest.approx((4 * layers + 2) * activations, rel=0.05)


# --- large jobs -----------------------------------------------------------------------------------------------------------------


def job(name: str, mesh: dict[str, int], **changes: Any) -> Run:
    run = subject.default(name)
    data = dataclasses.replace(run.data, batch=changes.pop("batch", run.data.batch))
    compute = dataclasses.replace(run.model.compute, remat=changes.pop("remat", run.model.compute.remat))
    model = dataclasses.replace(run.model, compute=compute)
    return dataclasses.replace(run, mesh=Mesh(**mesh), data=data, model=model, **changes)


@pytest.mark.slow
def test_gpt3_175b_on_512_chips() -> None:
    """In a minute on two cores; parameters and AdamW's two moments as the sharding divides them."""
    needs("tpu")
    began = time.perf_counter()
    plan = planned(subject.default("gpt3-175b"), "train", "v5p:8x8x8")
    assert time.perf_counter() - began <= 60
    whole(plan)
    by_hand = 4 * 174_591_683_584 / 512
    assert plan.memory["parameters"] == pytest.approx(by_hand, rel=0.1)
    assert plan.memory["optimizer"] == pytest.approx(2 * by_hand, rel=0.1)


@pytest.mark.slow
def test_gpt3_175b_on_512_h100() -> None:
    needs("gpu")
    whole(planned(subject.default("gpt3-175b"), "train", "h100:512"))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["t5-11b", "xlnet-large-cased"])
def test_large_encoders_and_decoders_on_a_pod(size: str) -> None:
    needs("tpu")
    whole(planned(job(size, {"fsdp": 64, "data": 4}, batch=256, remat="full", accumulate=1), "train", "v5e:16x16"))


EVERY = [size for family in configs.families() for size in configs.family(family).SIZES]


@pytest.mark.slow
@pytest.mark.parametrize("size", EVERY)
@pytest.mark.parametrize(("platform", "target"), [("tpu", "v5p:4x4x4"), ("gpu", "h200:64")])
def test_every_published_size_has_a_plan(platform: str, target: str, size: str) -> None:
    """That fits 64 devices, its parameters over as many of them as divide the width."""
    needs(platform)
    width = configs.find(size)[1].config.width
    fsdp = max(each for each in (1, 2, 4, 8, 16, 32, 64) if width % each == 0)
    plan = planned(job(size, {"fsdp": fsdp}, batch=64, remat="full", accumulate=1), "train", target)
    assert plan.fits and plan.bound is not None
