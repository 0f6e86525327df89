"""Options with which a job that does not fit its devices needs less memory, each checked against the job and its mesh."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.core.memory import bytes_per_device
from benchmarks.plan.compile_program import Program
from benchmarks.plan.large_arrays import LargeArray
from benchmarks.plan.target_devices import simulate_target
from train.config import mesh_sizes
from train.config.declaration import TokenOptions
from train.config.run_config import Run
from train.engine import device_mesh
from zoo.attention import attention
from zoo.attention.recorded_calls import Call
from zoo.errors import BadInput

LOGITS = "unembed"
"""The name scope of the operations that compute logits (`zoo.nn.layers`)."""
SHARE = 20
"""Arrays below one part in this number of the memory are not worth an option."""
LONG = 4
"""Keys, in widths of a head, from which a kernel that stores no weights of attention needs clearly less memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """Options to add to a job, and what they do."""

    options: str
    reason: str
    change: Callable[[Run], Run]
    """Function from the job to the job with these options; raises BadInput if they do not fit it."""


def memory_advice(program: Program, large: list[LargeArray], memory: int) -> list[Advice]:
    """Return what to try for a program that needs more than `memory` bytes of a device."""
    return [advice for advice in _candidates(program, large, memory) if _is_valid(advice, program)]


def _candidates(program: Program, large: list[LargeArray], memory: int) -> Iterator[Advice]:
    run, train = program.run, program.mode == "train"
    large = [array for array in large if SHARE * array.bytes * array.count >= program.total]
    # A model as wide as its rows are long has other arrays of the shape of weights.
    calls = [call for call in program.calls if not _is_fused(call.name, program.target.platform)]
    if any(_has_weights(array, call) for array in large for call in calls):
        for name in _kernels(program):
            reason = "a kernel that does not store the weights of attention"
            yield Advice(options=f"--model.compute.attention {name}", reason=reason, change=_compute(attention=name))
    scopes = {part for array in large for part in re.split(r"[/()]", array.operation)}
    at_once = min((logits.chunk or run.data.length for logits in program.logits), default=run.data.length)
    if LOGITS in scopes and isinstance(run.options, TokenOptions) and run.loss_chunk <= 0 and at_once > 1:
        chunk = max(number for number in mesh_sizes.divisors(run.data.length) if number <= max(1, at_once // 4))
        reason = f"logits of {chunk} of the {run.data.length:,} positions at a time"
        yield Advice(options=f"--loss-chunk {chunk}", reason=reason, change=_within("options", loss_chunk=chunk))
    if train and run.model.compute.remat != "full":
        reason = "activations of layers are computed again in the backward pass; attention and save_... compute less again"
        yield Advice(options="--model.compute.remat full", reason=reason, change=_compute(remat="full"))
    rows = run.data.batch // run.accumulate // mesh_sizes.row_devices(program.mesh.shape)
    # The smallest part of the rows with which it would fit if all but parameters, optimizer and gradient were divided by it.
    sizes = {name: bytes_per_device(tree) for name, tree in program.arguments.items()}
    constant = sum(size for name, size in sizes.items() if name not in ("batch", "cache")) + (sizes["parameters"] if train else 0)
    parts = [number for number in mesh_sizes.divisors(rows) if number > 1] if constant < memory else []
    part = next((number for number in parts if constant + (program.total - constant) / number <= memory), (parts or [0])[-1])
    if part and train:
        number = part * run.accumulate
        reason = f"a device computes {rows // part:,} of its {rows:,} rows at a time"
        yield Advice(
            options=f"--accumulate {number}", reason=reason, change=lambda run: dataclasses.replace(run, accumulate=number)
        )
    if part:
        batch = run.data.batch // part
        reason = f"a device has {rows // part:,} of the {rows:,} rows"
        yield Advice(options=f"--batch {batch}", reason=reason, change=_within("data", batch=batch, ramp=()))
    if train and SHARE * sizes["optimizer"] >= memory:
        if run.optim.moments == "float32":
            options, reason = "--optim.moments bfloat16", "moments take half the memory"
            yield Advice(options=options, reason=reason, change=_within("optim", moments="bfloat16"))
        if not run.optim.offload and program.target.platform != "cpu":
            reason = "moments of layers are in the memory of the host"
            yield Advice(options="--optim.offload", reason=reason, change=_within("optim", offload=True))
    axes, slices = program.mesh.shape, program.target.slices
    # Divided over slices, parameters would be sent over the slower network.
    if axes["data"] > slices and SHARE * constant >= memory:
        fsdp = axes["data"] * axes["fsdp"] // slices
        options = f"--mesh.data {slices} --mesh.fsdp {fsdp}"
        reason = f"parameters and optimizer divided over {fsdp} devices instead of {axes['fsdp']}"
        yield Advice(options=options, reason=reason, change=_within("mesh", data=slices, fsdp=fsdp))
    if program.mesh.size > 1:
        yield Advice(
            options="--search", reason="tries meshes, remat and micro-batches, and ranks those that fit", change=lambda run: run
        )
    yield Advice(options="--target", reason="a larger slice, or devices with more memory", change=lambda run: run)


def _has_weights(array: LargeArray, call: Call) -> bool:
    """Return whether an array may contain attention weights, of one layer or of all: its last axes are queries and keys.

    The names of operations do not tell: the weights of all layers are stored by the loop over them.
    """
    _, queries, keys, _, _, _ = call.request.shape
    shape = tuple(map(int, re.findall(r"(?<=[\[,])\d+", array.shape)))
    return queries > 1 and shape[-2:] in ((queries, keys), (keys, queries))


def _is_fused(name: str, platform: str) -> bool:
    """Return whether an implementation is for a platform alone: those store no weights."""
    row = attention.IMPLEMENTATIONS.get(name)
    return row is not None and row.platforms == {platform}


def _kernels(program: Program) -> list[str]:
    """Return the implementations for the target's platform alone that support all calls of a program's attention.

    They pad heads to 128, so that they need more memory than the weights of short rows: of gpt-nano, with heads of 32 and rows of
    256, 20.1 GiB instead of 17.4 (8,192 rows on a v5e:2x2).
    """
    used, platform = {call.name for call in program.calls}, program.target.platform
    rows = {name: row for name, row in attention.IMPLEMENTATIONS.items() if _is_fused(name, platform) and name not in used}
    requests = [call.request for call in program.calls]
    if any(request.shape[2] < LONG * max(request.shape[-1], 128) for request in requests):
        return []
    with simulate_target(program.target):
        return [name for name, row in rows.items() if not any(row.unsupported_reason(request, platform) for request in requests)]


def _compute(**fields: Any) -> Callable[[Run], Run]:
    return lambda run: _within("model", compute=dataclasses.replace(run.model.compute, **fields))(run)


def _within(group: str, **fields: Any) -> Callable[[Run], Run]:
    """Return a function that changes options of a group of a job."""
    return lambda run: dataclasses.replace(run, **{group: dataclasses.replace(getattr(run, group), **fields)})


def _is_valid(advice: Advice, program: Program) -> bool:
    """Return whether a job with the options exists, and divides over the devices."""
    try:
        run = advice.change(program.run)
        mesh = device_mesh.make_mesh(run.mesh, list(program.mesh.devices.flat))
        device_mesh.check_mesh(run, mesh)
    except (BadInput, NotImplementedError, ValueError):
        return False
    return True
