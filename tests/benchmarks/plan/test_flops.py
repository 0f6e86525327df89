"""The FLOPs of a plan: what was traced, what the model needs, and what the compiled program multiplies must agree."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.flops.flops_and_bytes import Work
from benchmarks.flops.traced_flops import traced_work
from benchmarks.plan import compile_program, flops_sweep, plan_record, target_devices
from benchmarks.plan.check_flops import check_flops, needed_flops
from tests.support import benchmark_steps, tiny
from tests.support.small import shapes, small
from train.config.run_config import Mesh
from zoo import configs
from zoo.attention.attention import IMPLEMENTATIONS, interpreted
from zoo.attention.kernels import blocked
from zoo.attention.masks import Mask
from zoo.attention.recorded_calls import record_calls
from zoo.attention.request import kernel_call
from zoo.batch import Batch
from zoo.configs import Compute
from zoo.errors import BadInput
from zoo.ops.tile_sizes import tile_sizes


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        benchmark_steps.hurry_plans(patch)
        yield


@functools.cache
def step() -> compile_program.Program:
    """Return the training step of a GPT of three layers that are computed again, on two axes."""
    run = tiny.run()
    changes = {"layers": 3, "width": 64, "heads": 4, "head": 16, "ffn": 256, "vocab": 384}
    model = dataclasses.replace(run.model, **changes, compute=Compute(attention="xla", remat="full"))
    run = dataclasses.replace(run, model=model, mesh=Mesh(data=4, tensor=2))
    return compile_program.compile_run(run, "train", target_devices.parse_target("cpu:8"))


def test_the_compiled_products_are_those_of_the_model_and_of_recomputation() -> None:
    """XLA need not compute the last product of a layer again, which no gradient reads; nothing else is left out or added."""
    program = step()
    model, traced = program.run.model, program.traced
    tokens = program.run.data.batch * program.run.data.length
    layers = tokens * model.layers
    last = 2.0 * layers * model.width * model.ffn
    attention = 4.0 * layers * program.run.data.length * model.width
    again = 2.0 * layers * (4 * model.width**2 + 2 * model.width * model.ffn) + attention - last
    assert traced.recomputed == again and traced.skipped == 0 == traced.kernels
    assert needed_flops(program) == program.flops == pytest.approx(traced.flops - again, rel=1e-9)
    plan = plan_record.make_plan(program, "tiny")
    assert plan.products is not None and plan.products * 8 == pytest.approx(traced.flops, rel=0.03)


@pytest.mark.planted
def test_a_wrong_trip_count_is_an_error_of_the_planner() -> None:
    """One layer fewer in the loop over layers, in the forward or the backward pass, ends the plan in one line."""
    program = step()
    loops = [match.span() for match in re.finditer(r'"known_trip_count":\{"n":"3"\}', program.text)]
    assert len(loops) == 2
    for first, last in loops:
        noted = program.text[first:last].replace("3", "2")
        wrong = dataclasses.replace(program, text=program.text[:first] + noted + program.text[last:])
        with pytest.raises(BadInput, match=r"plan tiny: \S+ FLOPs are counted in the compiled program, and \S+ were traced;"):
            plan_record.make_plan(wrong, "tiny")


@pytest.mark.planted
def test_a_loop_of_unknown_count_is_an_error_of_the_planner() -> None:
    """If it multiplies; its counter is replaced by one that goes up by itself, so that nobody knows how often it runs."""
    program = step()
    text = re.sub(r', "?known_trip_count"?:\{"n":"3"\}|"known_trip_count":\{"n":"3"\},?', "", program.text)
    text = re.sub(r"(compare\([^)]*\)), direction=LT", r"\1, direction=EQ", text)
    with pytest.raises(BadInput, match=r"plan tiny: how often the loop .*while.* runs is not known, so its FLOPs are not;"):
        plan_record.make_plan(dataclasses.replace(program, text=text), "tiny")


@pytest.mark.planted
def test_a_model_that_counts_more_than_is_computed_is_an_error() -> None:
    """A formula with too much would make a bound on MFU above what devices reach; what is computed again does not hide it."""
    program = step()
    for factor, wrong in ((1.0, False), (1.06, True)):
        planned = dataclasses.replace(program, flops=factor * program.flops)
        if wrong:
            with pytest.raises(BadInput, match=r"and \S+ the model needs with its recomputation;"):
                plan_record.make_plan(planned, "tiny")
        else:
            assert plan_record.make_plan(planned, "tiny").products


def test_products_with_one_row_may_be_sums_in_decoding() -> None:
    """A program that has lost products to sums has the FLOPs that were traced; in training it is an error."""
    program, nothing = step(), Work(products=0.0, kernels=0.0, bytes=0.0, unknown=())
    decode = dataclasses.replace(program, mode="decode")
    assert check_flops(decode, nothing, "tiny").products == program.traced.products / 8
    with pytest.raises(BadInput, match="this is an error of the planner"):
        check_flops(program, nothing, "tiny")


def test_a_causal_loop_over_blocks_has_its_mean_of_trips() -> None:
    """Its bounds depend on segments: by causality, block i of the queries sees i + 1 blocks of keys.

    On CPU the sums of rows are products too, a hundredth more.
    """
    rows, length, heads, head = 1, 4096, 2, 16
    arrays = [jax.ShapeDtypeStruct((rows, length, heads, head), jnp.float32)] * 3
    segments: Any = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def loss(q: Any, k: Any, v: Any, segments: Any) -> Any:
        mask = Mask(causal=True, query_segments=segments, key_segments=segments)
        options: dict[str, Any] = {"scale": 0.25, "rate": 0.0}
        return blocked.blocked(q, k, v, mask, None, None, jnp.arange(heads, dtype=jnp.uint32), **options).sum()

    with record_calls() as calls:
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*arrays, segments)
    work = traced_work(traced, calls, 1)
    sizes = tile_sizes(kernel_call("blocked", arrays[0], arrays[1], Mask(causal=True), None, 0.0))
    plan = blocked.Plan.of(sizes, rows, length, length, heads, heads, Mask(causal=True), None, 0.25, 0.0)
    blocks = plan.num_q_blocks
    assert blocks == plan.num_k_blocks > 1
    pairs = blocks * (blocks + 1) // 2
    product = 2.0 * rows * heads * head * plan.block_q * plan.block_k
    assert work.products == pytest.approx(pairs * (2 + 5) * product, rel=0.02)
    assert work.recomputed == pytest.approx(pairs * product, rel=0.02)
    assert work.skipped == pytest.approx((blocks**2 - pairs) * (2 + 4) * product, rel=0.02)


def test_the_sweep_has_every_size_on_both_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """And every implementation that needs no other package, target and mesh comes first for some size."""
    monkeypatch.setattr(target_devices, "unavailable_reason", lambda _: None)
    cases = [[case.split(",") for case in alternatives] for alternatives in flops_sweep.rotated_cases()]
    sizes = flops_sweep.distinct_sizes()
    published = [size for family in configs.families() for size in configs.family(family).SIZES]
    assert sorted([*sizes, *(other for others in sizes.values() for other in others)]) == sorted(published)
    for half in (cases[: len(sizes)], cases[len(sizes) :]):
        assert sorted(alternatives[0][0] for alternatives in half) == sorted(sizes)
    platforms = {(case[0], target_devices.parse_target(case[1]).platform) for (case, *_) in cases}
    assert len(platforms) == 2 * len(sizes)
    chosen = [{alternatives[0][column] for alternatives in cases} for column in (1, 2, 3)]
    names = {name for name, row in IMPLEMENTATIONS.items() if not row.requires}
    meshes = {*flops_sweep.MESHES, *flops_sweep.EXPERT_MESHES}
    assert chosen == [{target for targets in flops_sweep.TARGETS.values() for target in targets}, names, meshes]


@pytest.mark.planted
def test_kernels_that_multiply_distances_have_their_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of XLNet's bias the kernels of `flash_tpu` compute what `xla` computes as products of the program, padding apart."""

    def traced_flops(impl: str) -> float:
        net = small("xlnet", layers=1, compute=Compute(attention=impl))  # pyright: ignore[reportArgumentType]
        tokens: Any = jax.ShapeDtypeStruct((2, 512), jnp.int32)
        gradient = jax.jit(jax.grad(lambda params, tokens: net.apply(params, Batch(tokens=tokens)).hidden.sum()))
        with record_calls() as calls, interpreted("flash_tpu"):
            work = traced_work(gradient.trace(shapes(net), tokens), calls, 1)
        return work.flops - work.recomputed

    expected = traced_flops("xla")
    assert traced_flops("flash_tpu") == pytest.approx(expected, rel=0.03)
    # The mistake: the kernels have the two products of other attention alone.
    row = dataclasses.replace(IMPLEMENTATIONS["flash_tpu"], multiplies_distances=False)
    monkeypatch.setitem(IMPLEMENTATIONS, "flash_tpu", row)
    assert traced_flops("flash_tpu") < 0.9 * expected
