"""Closed model of a training step on GPUs with a pipeline of stages: its time, in parts, and the memory of a device.

A pipeline divides the layers into p stages of devices. A batch is m micro-batches, which pass through the stages one after
another. Narayanan et al. 2021 ("Efficient large-scale language model training on GPU clusters using Megatron-LM", arXiv
2104.04473, section 2.2) give the time that a stage waits, as a share of the time that it computes: (p - 1) / m for GPipe and for
1F1B, and (p - 1) / (v m) if each stage has v parts of the model, interleaved, which sends v times as much. A stage stores the
activations of m micro-batches with GPipe, of p with 1F1B, and of p + (p - 1) / v if interleaved (Korthikanti et al. 2022, arXiv
2205.05198, section 4.2.3). Without a pipeline, p is 1.

Each part of a stage's time is a sum over its operations: products at the share of the peak rate that programs reach
(`roofline.SUSTAINED`), other operations at the bandwidth of the memory, and sums and exchanges that the next operation needs.
Gathers and sums of parameters and gradients either overlap with all of that, or with nothing.
"""

import dataclasses
import functools
from typing import Literal

from benchmarks.pipeline.layer_costs import Shape
from benchmarks.plan.roofline import SUSTAINED
from benchmarks.plan.target_devices import Target
from zoo.runtime.hardware import Device

Schedule = Literal["none", "gpipe", "1f1b", "interleaved"]

PASSES = 7
"""How often a value that no product computes is read or written in a step: written and read in the forward pass and again where
the backward pass recomputes it, read in the backward pass, and its gradient written and read."""
STATE = 12
"""Bytes of a parameter and its two moments in float32."""
UPDATE = 28
"""Bytes that an update of a parameter reads and writes: gradient, parameter and moments, and the last three again."""
SUMMED = 12
"""Bytes of a parameter that a micro-batch reads and writes to sum gradients: the gradient, and the sum before and after."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Division of a step over devices; the axes are those of `zoo.mesh_axes`, and `stages`, of devices in other hosts."""

    stages: int = 1
    chunks: int = 1
    """Parts of the model on a stage, v."""
    schedule: Schedule = "none"
    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    rows: int = 1
    """Rows of a micro-batch on the devices that share a row."""
    micro: int = 1
    """Micro-batches of a step, m."""
    remat: str = "full"
    keeps: bool = False
    """True if a stage gathers its parameters once in a step and sends the sum of gradients once, instead of both in each
    micro-batch."""
    divides_residual: bool = False
    """True if the residual stream is divided along `tensor` (Megatron's sequence parallelism), which this project does not do."""
    sum_bytes: int = 4
    """Bytes of a value in sums along `tensor`: float32 in programs that XLA compiles for GPUs, 2 in Megatron."""

    @property
    def devices(self) -> int:
        return self.stages * self.data * self.fsdp * self.tensor * self.sequence

    @property
    def batch(self) -> int:
        """Rows of a step."""
        return self.data * self.fsdp * self.rows * self.micro

    @property
    def shards(self) -> int:
        """Number of devices that the parameters of a stage are divided over."""
        return self.fsdp * self.sequence * self.tensor

    @property
    def stored_batches(self) -> float:
        """Micro-batches whose activations a stage stores at the same time."""
        if self.schedule == "interleaved":
            return min(float(self.micro), self.stages + (self.stages - 1) / self.chunks)
        return float({"none": 1, "gpipe": self.micro, "1f1b": min(self.micro, self.stages)}[self.schedule])

    @property
    def idle_share(self) -> float:
        """Time that a stage waits for the first and last micro-batches, divided by the time that it computes."""
        return (self.stages - 1) / (self.chunks * self.micro)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """Predicted seconds of a step and bytes of a device."""

    products: float
    """Products of the slowest stage."""
    other: float
    """Operations of the slowest stage that are bound by the memory."""
    waits: float
    """Sums along `tensor` and exchanges along `sequence`."""
    idle: float
    """The time that a stage waits for the first and last micro-batches, and for these to be sent."""
    sends: float
    """Activations and their gradients to the next and previous stage."""
    links: float
    """Gathers of parameters, and sums of gradients."""
    memory: float
    """Bytes of a device."""

    @property
    def busy(self) -> float:
        return self.products + self.other + self.waits + self.idle

    @property
    def overlapped(self) -> float:
        """Seconds if links and sends are used while a device computes."""
        return max(self.busy, self.links + self.sends)

    @property
    def apart(self) -> float:
        """Seconds if a device does nothing else while it sends."""
        return self.busy + self.links + self.sends

    def seconds(self, overlap: bool) -> float:
        """Return the seconds of a step whose links are used while a device computes, or not."""
        return self.overlapped if overlap else self.apart


def predict_step(shape: Shape, layout: Layout, target: Target) -> Step:
    """Return the prediction for a step on GPUs in hosts; bfloat16 products, AdamW in float32."""
    device = target.published
    assert device is not None and device.bandwidth is not None
    slowest = imbalance(shape, layout.stages * layout.chunks) / layout.stages
    tokens_share = layout.rows / layout.sequence
    products = step_flops(shape, layout.remat) * layout.rows * slowest / (layout.tensor * layout.sequence)
    products /= SUSTAINED.get(target.chip, 1.0) * device.peak["bfloat16"] * 1e12
    values = 0.0
    for stack in shape.stacks:
        copied, divided = stack.values
        scores = 0.0 if shape.fused else 2.5 * shape.heads * stack.length**2
        share = layout.tensor if layout.divides_residual else 1
        values += stack.layers * (copied / share + (divided + scores) / layout.tensor)
    stage_parameters = parameters_of_stage(shape, layout)
    bytes_moved = PASSES * 2 * values * tokens_share * slowest
    if layout.micro > 1:
        held = layout.tensor if layout.keeps or layout.shards == layout.tensor else layout.shards
        bytes_moved += SUMMED * stage_parameters / held
    rate = device.bandwidth * 1e9
    other, waits = bytes_moved / rate, waiting_time(shape, layout, device) * slowest
    send = sending_time(shape, layout, device)
    busy = products + other + waits
    return Step(
        products=products * layout.micro,
        other=other * layout.micro + UPDATE * stage_parameters / layout.shards / rate,
        waits=waits * layout.micro,
        idle=layout.idle_share * layout.micro * busy + (layout.stages - 1) * 2 * send,
        sends=2 * send * layout.chunks * layout.micro if layout.stages > 1 else 0.0,
        links=parameter_links(layout, stage_parameters, device),
        memory=device_memory(shape, layout, stage_parameters),
    )


def step_flops(shape: Shape, remat: str) -> float:
    """Return the FLOPs of a step for one row, with what the backward pass computes again.

    A fused backward pass of attention computes the scores again, half of its forward pass.
    """
    again = 0.0
    for stack in shape.stacks:
        scores = stack.flops(skip_masked=shape.fused)["attention"] / 2 if shape.fused else 0.0
        again += stack.layers * (stack.recomputed(remat, skip_masked=shape.fused) + scores)
    return shape.needed + again


@functools.cache
def imbalance(shape: Shape, parts: int) -> float:
    """Return the time of the slowest of consecutive parts of the layers over the mean of all.

    The logits belong to the last part. The division is the one whose slowest part is the fastest.
    """
    layers, logits = shape.forward
    costs = [*layers, logits]

    def number_of_parts(limit: float) -> int:
        number, filled = 1, 0.0
        for cost in costs:
            if filled + cost > limit:
                number, filled = number + 1, 0.0
            filled += cost
        return number

    low, high = max(max(costs), sum(costs) / parts), sum(costs)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if number_of_parts(middle) <= parts else (middle, high)
    return high * parts / sum(costs)


def parameters_of_stage(shape: Shape, layout: Layout) -> float:
    """Return the parameters of the largest stage: its share of the layers, and the tables at an end of the model."""
    layers = -(-shape.layers // (layout.stages * layout.chunks)) * layout.chunks if layout.stages > 1 else shape.layers
    # Of two tables, as of a Llama, the first stage has one and the last the other.
    tables = shape.table if layout.stages == 1 else min(shape.table, 1.05 * shape.vocab * shape.width)
    return (shape.parameters - shape.table) * layers / shape.layers + tables


def waiting_time(shape: Shape, layout: Layout, device: Device) -> float:
    """Return the seconds in which one micro-batch waits for sums along `tensor` and exchanges along `sequence`, in all layers.

    A layer sums the result of each sub-layer in the forward pass, and the gradient of its input in the backward pass. Attention
    exchanges queries, keys, values and its output in both. What is computed again is sent again.
    """
    assert device.links is not None
    summed = exchanged = 0.0
    for stack in shape.stacks:
        sub_layers = 3 if stack.source else 2
        again = 0 if layout.remat in ("save_out", "save_qkv", "save_mlp", "save_dots") else sub_layers - 1
        summed += stack.layers * (2 * sub_layers + again) * stack.length * stack.width
        heads = (2 if stack.source else 1) * stack.length * (stack.inner + 2 * stack.keys)
        outputs = (2 if stack.source else 1) * stack.length * stack.inner
        repeated = heads * (layout.remat not in ("save_qkv", "save_dots")) + outputs * (layout.remat == "full")
        exchanged += stack.layers * (2 * (heads + outputs) + repeated) / layout.tensor
    rows, n, s = layout.rows / layout.sequence, layout.tensor, layout.sequence
    # The switch computes a sum where that sends less: see `roofline`.
    sums = layout.sum_bytes * summed * rows * min(2 * (n - 1) / n, 1 + 1 / n) if n > 1 else 0.0
    return (sums + 2 * exchanged * rows * (s - 1) / s) / (device.links * 1e9)


def sending_time(shape: Shape, layout: Layout, device: Device) -> float:
    """Return the seconds to send the activations of a micro-batch to the next stage, each device a part of them.

    Devices along `tensor` have copies of them; each sends its part, and the next stage gathers them (Narayanan et al. 2021,
    section 4.1). A stage of fewer devices than a host has its neighbours in the host.
    """
    assert device.links is not None and device.network is not None
    values = shape.sent * layout.rows / (layout.sequence * layout.tensor)
    outside = layout.devices // layout.stages >= device.host
    return 2 * values / ((device.network if outside else device.links) * 1e9)


def parameter_links(layout: Layout, parameters: float, device: Device) -> float:
    """Return the seconds for which the gathers of parameters (bfloat16) and sums of gradients (float32) use the busiest links.

    Along `fsdp` and `sequence` parameters are gathered for the forward pass and for the backward pass, and gradients are
    scattered, in each micro-batch, or once in a step. Along `data` the gradients are summed as often.
    """
    assert device.links is not None and device.network is not None
    times = 1 if layout.keeps else layout.micro
    group = layout.fsdp * layout.sequence
    array = parameters / layout.tensor
    inside = outside = 0.0
    if group > 1:
        sent = (2 if layout.keeps else 4) * array + 4 * array
        own = max(1, min(group, device.host // layout.tensor))
        inside += times * sent * (own - 1) / own
        outside += times * sent * (group - own) / group / own
    if layout.data > 1:
        own = max(1, min(layout.data, device.host // (group * layout.tensor)))
        inside += times * 4 * array / group * (min(2 * (own - 1) / own, 1 + 1 / own) if own > 1 else 0)
        outside += times * 4 * array / group / own if layout.data > own else 0
    return max(inside / (device.links * 1e9), outside / (device.network * 1e9))


def device_memory(shape: Shape, layout: Layout, parameters: float) -> float:
    """Return the bytes of a device: state, gradients, gathered parameters, stored activations, and those of one layer.

    Logits are left out: the loss computes a part of them at a time.
    """
    local, array = parameters / layout.shards, parameters / layout.tensor
    gathers = layout.shards > layout.tensor
    largest = max(stack.parameters for stack in shape.stacks) / layout.tensor
    if layout.keeps:
        # The gathered parameters in bfloat16 and the sum of gradients, both of a stage, and a part of it at the end.
        gradients = 6 * array + 4 * local
    else:
        # Of a layer, the gathered parameters in bfloat16 and its gradients in float32.
        gradients = (8 if layout.micro > 1 else 4) * local + (6 * largest if gathers else 2 * array)
    share = layout.tensor if layout.divides_residual else 1
    stored = working = 0.0
    for stack in shape.stacks:
        copied, divided = stack.stored(layout.remat)
        stored += stack.layers * (copied / share + divided / layout.tensor)
        values, parts = stack.values
        working = max(working, values / share + parts / layout.tensor)
    per_stage = stored / layout.stages * imbalance(shape, layout.stages * layout.chunks)
    activations = 2 * layout.rows / layout.sequence * (per_stage * layout.stored_batches + working)
    return STATE * local + gradients + activations
