"""The model of steps with a pipeline: work by the formulas of models, links and schedules by closed forms, and the search."""

import dataclasses
import math

import numpy as np
import pytest

from benchmarks.flops.flops_and_bytes import Work
from benchmarks.hlo.hlo_parser import ExecutedInstruction
from benchmarks.hlo.instructions import Instruction
from benchmarks.pipeline import layouts, step_model
from benchmarks.pipeline.layer_costs import SAVED, Shape, Stack, shape_of_model
from benchmarks.pipeline.step_model import Layout, predict_step
from benchmarks.plan import find_run, roofline
from benchmarks.plan.collectives import Collective
from benchmarks.plan.target_devices import parse_target
from tests.benchmarks.plan.test_roofline import devices
from zoo import models
from zoo.batch import Batch
from zoo.nn import layer_stack

STACK = Stack(layers=8, length=64, width=32, inner=32, keys=32, ffn=128)
SHAPE = Shape(name="toy", stacks=(STACK,), vocab=256, predicted=64, parameters=8.0 * STACK.parameters + 256 * 32)


def test_policies_store_the_parts_that_the_layer_stack_names() -> None:
    names = {"attention_lse": "attention"}
    stored = {name: frozenset(names.get(part, part) for part in parts) for name, parts in layer_stack.SAVED.items()}
    assert {name: parts - {"down"} for name, parts in stored.items()} == SAVED


@pytest.mark.parametrize(("size", "length", "target"), [("gpt3-175b", 2048, 0), ("llama-3.1-405b", 512, 0), ("t5-11b", 512, 114)])
def test_flops_and_parameters_are_those_of_the_model(size: str, length: int, target: int) -> None:
    """All pairs of positions count in the model's formula; here only those that a causal kernel computes."""
    config = find_run.find_run(size).model
    shape = shape_of_model(config, size, length=length, target_length=target)
    all_pairs = dataclasses.replace(shape, fused=False)
    layers, logits = all_pairs.forward
    tokens, source = np.zeros((1, target or length), np.int32), np.zeros((1, length), np.int32)
    batch = Batch(tokens=tokens, source=Batch(tokens=source) if target else None)
    assert sum(layers) + logits == pytest.approx(models.model(config).flops(batch), rel=1e-3)
    assert 0 < shape.table < 0.1 * shape.parameters
    assert shape.needed < all_pairs.needed


def test_idle_time_and_stored_activations_are_those_of_the_schedules() -> None:
    one = Layout(stages=4, micro=8, schedule="1f1b")
    assert one.idle_share == 3 / 8 and one.stored_batches == 4
    assert dataclasses.replace(one, schedule="gpipe").stored_batches == 8
    interleaved = dataclasses.replace(one, schedule="interleaved", chunks=2)
    assert interleaved.idle_share == 3 / 16 and interleaved.stored_batches == 4 + 3 / 2
    target = parse_target("h100:32")
    steps = {layout.chunks: predict_step(SHAPE, dataclasses.replace(layout, tensor=8), target) for layout in (one, interleaved)}
    assert steps[2].sends == 2 * steps[1].sends > 0


def test_a_stage_has_its_share_of_the_slowest_division() -> None:
    """Eight equal layers and logits of less than a layer: nine of them in four stages are at most three layers."""
    layer = sum(STACK.flops(skip_masked=True).values())
    layers, logits = SHAPE.forward
    assert layers == (layer,) * 8 and 0 < logits < layer
    total = 8 * layer + logits
    assert step_model.imbalance(SHAPE, 1) == pytest.approx(1)
    assert step_model.imbalance(SHAPE, 4) == pytest.approx(4 * (2 * layer + logits) / total)
    assert step_model.imbalance(SHAPE, 8) == pytest.approx(8 * (layer + logits) / total)


AXES = {
    "fsdp=16": Layout(fsdp=16),
    "fsdp=4 x tensor=4": Layout(fsdp=4, tensor=4),
    "data=4 x fsdp=4": Layout(data=4, fsdp=4),
    "data=2 x fsdp=8": Layout(data=2, fsdp=8),
    "fsdp=4 x sequence=4": Layout(fsdp=4, sequence=4),
    "data=16": Layout(data=16),
}


@pytest.mark.parametrize("layout", AXES.values(), ids=AXES)
def test_the_time_of_links_is_that_of_a_plan_for_the_same_collectives(layout: Layout) -> None:
    target = parse_target("h100:16")
    array = SHAPE.parameters / layout.tensor
    sizes = (layout.data, layout.fsdp, layout.tensor, layout.sequence)
    numbers = np.arange(16).reshape(sizes)
    group = layout.fsdp * layout.sequence
    gathered = numbers.transpose(0, 2, 1, 3).reshape(-1, group)
    summed = numbers.transpose(1, 2, 3, 0).reshape(-1, layout.data)
    sent = [collective("all-gather", 4 * array, gathered), collective("reduce-scatter", 4 * array, gathered)] if group > 1 else []
    sent += [collective("all-reduce", 4 * array / group, summed)] if layout.data > 1 else []
    nothing = Work(products=0.0, kernels=0.0, bytes=0.0, unknown=())
    times = roofline.times_of_step(nothing, sent, devices(16), target, "bfloat16")
    assert predict_step(SHAPE, layout, target).links == pytest.approx(times.interconnect)


def collective(kind: str, size: float, groups: np.ndarray) -> Collective:
    run = ExecutedInstruction(Instruction("x", kind, "", (), "", ""), "c", 1.0, "")
    return Collective(run, kind, "data", groups.shape[1], size, (), tuple(map(tuple, groups.tolist())))


def test_stages_divide_what_is_gathered_and_not_what_tensor_sums() -> None:
    target = parse_target("h100:64")
    plain = predict_step(SHAPE, Layout(fsdp=8, tensor=8, micro=8), target)
    staged = predict_step(SHAPE, Layout(stages=4, fsdp=2, tensor=8, micro=32, schedule="1f1b"), target)
    assert staged.waits >= plain.waits
    kept = predict_step(SHAPE, Layout(stages=4, fsdp=2, tensor=8, micro=32, schedule="1f1b", keeps=True), target)
    assert kept.links < plain.links / 4 and staged.links > kept.links
    assert kept.apart == pytest.approx(kept.busy + kept.links + kept.sends) and kept.overlapped <= kept.apart


def test_layouts_have_all_devices_and_the_batch() -> None:
    shape = dataclasses.replace(SHAPE, vocab=64)
    for pipeline in (False, True):
        candidates = list(layouts.layouts(shape, 32, 64, host=8, pipeline=pipeline))
        assert candidates and len(set(candidates)) == len(candidates)
        for layout in candidates:
            assert (layout.devices, layout.batch) == (32, 64) and (layout.stages > 1) == pipeline
            assert layout.chunks == 1 or (layout.micro % layout.stages == 0 and layout.stages * layout.chunks <= 8)
    best = layouts.fastest_layouts(shape, parse_target("h100:32"), 64)
    assert {schedule for schedule, _ in best} == {"none", "gpipe", "1f1b", "interleaved"}
    assert all(math.isfinite(step.apart) and 0 < step.memory < 80e9 for _, step in best.values())
