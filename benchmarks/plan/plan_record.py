"""All that a plan says, as plain values: what is shown, printed as JSON, and kept so that nothing is compiled twice."""

import dataclasses
import importlib.metadata
import itertools
import math
import operator
from collections.abc import Iterable
from typing import Any

import jax

from benchmarks.hlo import module as hlo
from benchmarks.plan import collectives, flops_and_bytes, roofline
from benchmarks.plan.collectives import PART, Collective, Sent
from benchmarks.plan.compile_program import Program, per_device
from benchmarks.plan.roofline import Times
from zoo.models import parameter_count
from zoo.sharding import path_of

LARGE = 64 << 20
"""Bytes that a device may hold of an array that others hold too, before a plan warns of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a job is on its devices. Bytes and FLOPs are of one device and step unless said otherwise."""

    name: str
    mode: str
    target: str
    kind: str
    devices: int
    mesh: dict[str, int]
    batch: int
    """Rows of a step over all devices."""
    length: int
    accumulate: int
    remat: str
    precision: str
    parameters: int
    """As a paper counts them."""
    attention: list[str]
    memory: dict[str, int]
    """Bytes of what the program is given, by what it is."""
    temporaries: int
    total: int
    device_memory: int | None
    fits: bool
    model_flops: float
    """Of all devices: the model's own products, no recomputation."""
    products: float | None
    """FLOPs of matrix products in the program; None here and below where it was too large to be compiled."""
    kernels: float | None
    """FLOPs inside kernels."""
    bytes: float | None
    """Read and written in the device's memory."""
    collectives: list[Collective]
    times: Times
    bound: float | None
    """MFU: at most, where compute or links bound it; an estimate where memory does."""
    unknown: list[str]
    """Kernels whose FLOPs are not counted."""
    warnings: list[str]
    seconds: float
    """That tracing and compiling took."""
    versions: dict[str, str]

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Plan":
        """Undoes `plain`."""
        rows = [Collective(**row) for row in values["collectives"]]
        return cls(**{**values, "collectives": rows, "times": Times(**values["times"])})


def read(program: Program, name: str) -> Plan:
    """Read a compiled program."""
    run, mesh, target = program.run, program.mesh, program.target
    device = target.published
    memory = None if device is None or device.memory is None else int(device.memory)
    found_collectives: list[Sent] = []
    loops: list[str] = []
    work, step_times = None, Times(compute=None, memory=None, interconnect=None)
    if program.text:
        module = hlo.parse(program.text)
        loops = [f"how often {name} runs is not known: it is counted once" for name in module.unknown()]
        found_collectives = collectives.sent(module, dict(mesh.shape))
        work = flops_and_bytes.work(module, program.calls, mesh.size, on_chip=target.platform == "tpu")
        step_times = roofline.times(work, found_collectives, mesh.devices, target, run.precision)
    return Plan(
        name=name,
        mode=program.mode,
        target=target.name,
        kind=str(mesh.devices.flat[0].device_kind),
        devices=mesh.size,
        mesh=dict(mesh.shape),
        batch=run.data.batch,
        length=run.data.length,
        accumulate=run.accumulate,
        remat=run.model.compute.remat,
        precision=run.precision,
        parameters=parameter_count(run.model),
        attention=sorted({call.name for call in program.calls}),
        memory={what: per_device(tree) for what, tree in program.arguments.items()},
        temporaries=program.temporaries,
        total=program.total,
        device_memory=memory,
        fits=program.fits and (memory is None or program.total <= memory),
        model_flops=program.flops,
        products=work and work.products,
        kernels=work and work.kernels,
        bytes=work and work.bytes,
        collectives=collectives.collectives(found_collectives),
        times=step_times,
        bound=roofline.bound(program.flops, step_times, mesh.size, target, run.precision),
        unknown=list(work.unknown) if work else [],
        warnings=[*program.remarks, *copied(program.arguments, dict(mesh.shape)), *gathered(found_collectives, program), *loops],
        seconds=program.seconds,
        versions=versions(target.platform),
    )


def copied(arguments: dict[str, Any], mesh: dict[str, int], large: int = LARGE) -> list[str]:
    """Warnings of what every device along an axis holds whole: by name, but over `data`, where all is by intention, in a line."""
    messages: list[str] = []
    replicated: dict[str, float] = {}
    for what, tree in arguments.items():
        # A batch is the rows that a device has.
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree if what != "batch" else {}):
            used = {axis for part in leaf.sharding.spec if part for axis in ((part,) if isinstance(part, str) else part)}
            device_bytes = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            axes = [axis for axis, size in mesh.items() if size > 1 and axis not in used]
            if "data" in axes:
                replicated[what] = replicated.get(what, 0) + device_bytes
                axes.remove("data")
            if axes and device_bytes >= large:
                copies = f"{device_bytes / 2**20:,.0f} MiB on each device"
                messages.append(f"{what} {path_of(keys)} {tuple(leaf.shape)} is copied over {' and '.join(axes)}: {copies}")
    if sum(replicated.values()) >= large:
        size = f"{sum(replicated.values()) / 2**20:,.0f} MiB on each device"
        messages.append(f"{', '.join(replicated)}: copied over data, {size}; fsdp instead of data would divide them")
    return messages


def gathered(found_collectives: Iterable[Sent], program: Program) -> list[str]:
    """Warnings of stacks of layers that are gathered whole, outside of the loop over the layers. They may be in one over
    micro-batches, so what tells them is how much is gathered: within the loop over the layers it is one layer."""
    paths_by_shape: dict[tuple[int, int], list[str]] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(program.arguments["parameters"]):
        path = path_of(keys)
        if any(part.endswith("layers") for part in path.split("/")) and leaf.shape[0] > 1:
            elements = math.prod(leaf.sharding.shard_shape(leaf.shape))
            paths_by_shape.setdefault((leaf.shape[0], elements), []).append(path)
    return stacks(found_collectives, paths_by_shape)


def stacks(found_collectives: Iterable[Sent], paths_by_shape: dict[tuple[int, int], list[str]]) -> list[str]:
    """The same, of stacks by their layers and the number of a device's own elements."""
    messages: dict[str, None] = {}
    for collective in found_collectives:
        if collective.kind != "all-gather" or "fsdp" not in collective.axes.removesuffix(PART).split(" x "):
            continue
        for array in collective.arrays:
            # The layers come first, in one axis or two: a layer may have another axis of as many, and the elements of a stack.
            first = set(itertools.accumulate(array.shape, operator.mul))
            matching = (paths for (layers, elements), paths in paths_by_shape.items() if elements == array.elements and layers in first)
            if names := " or ".join(path for paths in matching for path in paths):
                size = array.bytes * collective.members / 2**20
                messages[f"all layers of {names} are gathered at once, outside of the loop over them: {size:,.1f} MiB"] = None
    return list(messages)


def versions(platform: str) -> dict[str, str]:
    """Of what compiled it."""
    return installed(("jax", "jaxlib", *{"tpu": ("libtpu",), "gpu": GPU_PACKAGES}.get(platform, ())))


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are here."""
    found_versions = {}
    for name in names:
        try:
            found_versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found_versions


GPU_PACKAGES = tuple(f"jax-cuda{version}-{part}" for version in (13, 12) for part in ("plugin", "pjrt"))
"""Of the two parts the second is the compiler."""
