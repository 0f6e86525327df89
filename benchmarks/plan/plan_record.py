"""The result of a plan as plain values, which are shown, printed as JSON, and cached."""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import math
import operator
from collections.abc import Iterable
from typing import Any

import jax

from benchmarks.core.memory import bytes_per_device
from benchmarks.flops import flops_and_bytes
from benchmarks.flops.flops_and_bytes import Work
from benchmarks.hlo import hlo_parser as hlo
from benchmarks.plan import collectives, compile_program, host_transfers, large_arrays, memory_advice, roofline
from benchmarks.plan.check_flops import check_flops, needed_flops
from benchmarks.plan.collectives import PART, Collective, CollectiveTotal
from benchmarks.plan.compile_program import Program
from benchmarks.plan.large_arrays import LargeArray
from benchmarks.plan.roofline import Times
from train.config import mesh_sizes
from train.config.run_config import Optim
from train.engine import loss_chunks
from train.weights.stored_teacher import row_type, stored_options
from zoo.models import parameter_count
from zoo.sharding import path_of

LARGE = 64 << 20
"""Bytes of an array that may be replicated on several devices before a plan warns of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Predictions for a job on its devices; bytes and FLOPs are per device and step unless stated otherwise."""

    name: str
    mode: str
    target: str
    kind: str
    devices: int
    mesh: dict[str, int]
    slices: dict[str, int]
    """Number of groups of slices that each axis of the mesh is divided over."""
    batch: int
    """Number of rows of a step over all devices."""
    length: int
    accumulate: int
    remat: str
    precision: str
    parameters: int
    """Parameter count as in papers."""
    attention: list[str]
    experts: list[str]
    """Forms of the products of experts; empty if the model has none."""
    logits: str
    """Description of how many logits of the loss are computed at once, and why; "": there are none."""
    memory: dict[str, int]
    """Bytes of the program's arguments, by name."""
    temporaries: int
    total: int
    device_memory: int | None
    fits: bool
    model_flops: float
    """FLOPs of all devices: the model's own products, without recomputation and without what attention leaves out."""
    products: float | None
    """FLOPs of matrix products in the program; None here and below if it was too large to be compiled."""
    kernels: float | None
    """FLOPs inside kernels."""
    bytes: float | None
    """Bytes read and written in the device's memory, if nothing is cached."""
    least_bytes: float | None
    """Bytes read and written however much is cached."""
    collectives: list[CollectiveTotal]
    times: Times
    bound: float | None
    """MFU: an upper bound if compute or links bound it; an estimate if memory does."""
    ceiling: float | None
    """MFU: an upper bound, however much is cached."""
    unknown: list[str]
    """Kernels whose FLOPs are not counted."""
    warnings: list[str]
    seconds: float
    """Time of tracing and compiling."""
    versions: dict[str, str]
    optimizer: str = ""
    """Names of the options that save the optimizer's memory, such as "bfloat16 moments on the host"; "" if there are none."""
    host: int = 0
    """Bytes that a device has in the memory of its host."""
    to_host: float = 0.0
    """Bytes that a device sends to the memory of its host."""
    from_host: float = 0.0
    """Bytes that a device reads from the memory of its host."""
    gradient: int = 0
    """Bytes of a gradient of the parameters, which is one of the temporaries; 0 if the job computes none."""
    large: list[LargeArray] = dataclasses.field(default_factory=list)
    """The largest temporaries; empty if the job fits."""
    advice: list[str] = dataclasses.field(default_factory=list)
    """Options with which the job needs less memory, with the reason; empty if it fits."""
    kernel_runs: dict[str, float] = dataclasses.field(default_factory=dict)
    """Name of a kernel -> how often it runs."""
    rollout: dict[str, int] = dataclasses.field(default_factory=dict)
    """Bytes that a rollout holds beside the arguments of the step, by name; empty if the job has no rollouts."""
    stored: int = 0
    """Bytes on disk for each training row, of the stored probabilities of a teacher; 0 = none are stored."""

    @property
    def rollout_total(self) -> int:
        """Bytes on a device in a rollout, without the temporaries of its programs; 0 if the job has no rollouts."""
        arguments = sum(size for name, size in self.memory.items() if name != "batch")
        return arguments + sum(self.rollout.values()) if self.rollout else 0

    @property
    def largest(self) -> int:
        """Largest number of bytes on a device, in a step or in a rollout."""
        return max(self.total, self.rollout_total)

    @property
    def slice_count(self) -> int:
        """Number of slices that the devices are in."""
        return math.prod(self.slices.values())

    def plain(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Plan":
        """Return the plan of such JSON values."""
        rows = [CollectiveTotal(**row) for row in values["collectives"]]
        large = [LargeArray(**row) for row in values["large"]]
        return cls(**{**values, "collectives": rows, "large": large, "times": Times(**values["times"])})


def make_plan(program: Program, name: str) -> Plan:
    """Return the plan of a compiled program.

    Raises:
        BadInput: its FLOPs cannot be counted: see `check_flops`.
    """
    run, mesh, target = program.run, program.mesh, program.target
    device, needed = target.published, needed_flops(program)
    batch: Any = program.arguments["batch"]
    memory = program.limit or (None if device is None or device.memory is None else int(device.memory))
    train = program.mode == "train"
    rollout = compile_program.rollout_arguments(run, mesh) if train else {}
    # The program of the step does not read it, but it is in memory.
    reference = compile_program.reference_model(run, mesh) if train else {}
    slices = mesh_sizes.slice_sizes(run.mesh, mesh.shape, target.slices)
    sent: list[Collective] = []
    loops: list[str] = []
    least, module, work = None, None, None
    moved = host_transfers.HostTransfers(to_host=0.0, from_host=0.0)
    # Of a program that the compiler refused, only the products are known, from its trace.
    traced = Work(products=program.traced.flops / mesh.size, kernels=0.0, bytes=0.0, unknown=())
    step_times = roofline.compute_times(traced, target, run.precision)
    if program.text:
        module = hlo.parse_program(program.text)
        loops = [f"how often {loop} runs is not known: its memory traffic counts once" for loop in module.unknown_loops()]
        on_chip = target.platform == "tpu"
        sent = collectives.sent_by_program(module, dict(mesh.shape), slices, of_slice=on_chip)
        devices = mesh.devices[*(slice(size // slices[axis]) for axis, size in mesh.shape.items())] if on_chip else mesh.devices
        work = flops_and_bytes.device_work(module, program.calls, mesh.size, products=program.products, on_chip=on_chip)
        work = check_flops(program, work, name)
        # On a TPU, temporaries in memory on the chip are not among those of the compiler's report.
        least = flops_and_bytes.least_bytes(module, program.temporaries, target.cache)
        moved = host_transfers.count_transfers(module)
        to_host = host_transfers.transfer_seconds(moved, device)
        step_times = roofline.times_of_step(work, sent, devices, target, run.precision, least, to_host)
    plan = Plan(
        name=name,
        mode=program.mode,
        target=target.name,
        kind=str(mesh.devices.flat[0].device_kind),
        devices=mesh.size,
        mesh=dict(mesh.shape),
        slices=slices,
        batch=run.data.batch,
        length=run.data.length,
        accumulate=run.accumulate,
        remat=run.model.compute.remat,
        precision=run.precision,
        parameters=parameter_count(run.model),
        attention=sorted({call.name for call in program.calls}),
        experts=sorted({product.form for product in program.products}),
        logits=loss_chunks.describe_logits(program.logits),
        memory={what: bytes_per_device(tree) for what, tree in (program.arguments | reference).items()},
        temporaries=program.temporaries,
        total=program.total + bytes_per_device(reference),
        device_memory=memory,
        fits=True,
        model_flops=needed,
        products=work and work.products,
        kernels=work and work.kernels,
        bytes=work and work.bytes,
        least_bytes=least,
        collectives=collectives.total_by_axes(sent),
        times=step_times,
        bound=roofline.mfu_bound(needed, step_times.longest, mesh.size, target, run.precision),
        ceiling=roofline.mfu_bound(needed, step_times.least, mesh.size, target, run.precision),
        unknown=list(work.unknown) if work else [],
        warnings=[
            *program.remarks,
            *replication_warnings(program.arguments, dict(mesh.shape), slices=target.slices),
            *gather_warnings(sent, program),
            *loops,
            *(
                ["no rate of the link to the host is published: the bound leaves its transfers out"]
                if step_times.host is None
                else []
            ),
        ],
        seconds=program.seconds,
        versions=compiler_versions(target.platform),
        optimizer=optimizer_policy(run.optim) if train else "",
        host=program.host,
        to_host=moved.to_host,
        from_host=moved.from_host,
        gradient=bytes_per_device(program.arguments["parameters"]) if train else 0,
        kernel_runs=dict(work.runs) if work else {},
        rollout={what: bytes_per_device(tree) for what, tree in rollout.items()},
        stored=row_type(run, batch.targets.shape[1]).itemsize if train and stored_options(run) else 0,
    )
    if program.limit is None and (memory is None or plan.largest <= memory):
        return plan
    large = list(program.refused) if module is None else large_arrays.program_arrays(module)
    options = memory_advice.memory_advice(program, large, memory or 0)
    advice = [f"{option.options}: {option.reason}" for option in options]
    return dataclasses.replace(plan, fits=False, large=large, advice=advice)


def optimizer_policy(optim: Optim) -> str:
    """Return how moments are stored, if not in float32 on the device, in words."""
    parts = ("bfloat16 moments" if optim.moments == "bfloat16" else "", "moments on the host" if optim.offload else "")
    return "bfloat16 moments on the host" if all(parts) else "".join(parts)


def replication_warnings(arguments: dict[str, Any], mesh: dict[str, int], large: int = LARGE, *, slices: int = 1) -> list[str]:
    """Return warnings of arrays that every device along an axis holds in full.

    They are listed by name, except along `data`, where all are replicated on purpose: those share one line. There is none where
    `data` only joins slices: to divide parameters over these would send them over the slower network.
    """
    messages: list[str] = []
    replicated: dict[str, float] = {}
    for what, tree in arguments.items():
        # A batch is always divided by rows.
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree if what != "batch" else {}):
            used = {axis for part in leaf.sharding.spec if part for axis in ((part,) if isinstance(part, str) else part)}
            device_bytes = bytes_per_device(leaf)
            axes = [axis for axis, size in mesh.items() if size > 1 and axis not in used]
            if "data" in axes:
                replicated[what] = replicated.get(what, 0) + device_bytes
                axes.remove("data")
            if axes and device_bytes >= large:
                copies = f"{device_bytes / 2**20:,.0f} MiB on each device"
                messages.append(f"{what} {path_of(keys)} {tuple(leaf.shape)} is copied over {' and '.join(axes)}: {copies}")
    if sum(replicated.values()) >= large and mesh["data"] > slices:
        size = f"{sum(replicated.values()) / 2**20:,.0f} MiB on each device"
        within = f"--mesh.data {slices} --mesh.fsdp {mesh['data'] * mesh['fsdp'] // slices}"
        instead = within if slices > 1 else "fsdp instead of data"
        messages.append(f"{', '.join(replicated)}: copied over data, {size}; {instead} would divide them")
    return messages


def gather_warnings(sent: Iterable[Collective], program: Program) -> list[str]:
    """Return warnings of stacks of layers that are gathered in full, outside of the loop over the layers.

    They may be in a loop over micro-batches, so the size of the gathered array decides: within the loop over the layers, it is
    one layer. A gather within slices and between them is one, of the devices along its axes in all slices.
    """
    paths_by_shape: dict[tuple[int, int], list[str]] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(program.arguments["parameters"]):
        path = path_of(keys)
        if any(part.endswith("layers") for part in path.split("/")) and leaf.shape[0] > 1:
            elements = math.prod(leaf.sharding.shard_shape(leaf.shape))
            paths_by_shape.setdefault((leaf.shape[0], elements), []).append(path)
    sizes: dict[str, float] = {}
    for collective in sent:
        axes = collective.axes.removesuffix(PART).split(" x ")
        if collective.kind != "all-gather" or "fsdp" not in axes:
            continue
        members = math.prod(program.mesh.shape[axis] for axis in axes)
        for array in collective.arrays:
            # The layers are the first axis or two: one layer may have another axis of that size, and as many elements as a stack.
            first = set(itertools.accumulate(array.shape, operator.mul))
            matching = (
                paths for (layers, elements), paths in paths_by_shape.items() if elements == array.elements and layers in first
            )
            if names := " or ".join(path for paths in matching for path in paths):
                sizes[names] = max(sizes.get(names, 0.0), array.bytes * members / 2**20)
    where = "are gathered at once, outside of the loop over them"
    return [f"all layers of {names} {where}: {size:,.1f} MiB" for names, size in sizes.items()]


def compiler_versions(platform: str) -> dict[str, str]:
    """Return the versions of the packages that compiled the program."""
    return installed_versions(("jax", "jaxlib", *{"tpu": ("libtpu",), "gpu": GPU_PACKAGES}.get(platform, ())))


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    versions_by_package = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions_by_package[name] = importlib.metadata.version(name)
    return versions_by_package


GPU_PACKAGES = tuple(f"jax-cuda{version}-{part}" for version in (13, 12) for part in ("plugin", "pjrt"))
"""`pjrt` contains the compiler."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """Result of a search of meshes (`benchmarks.plan.mesh_search`)."""

    ranked: list[Plan]
    """Plans that fit, the best first."""
    summary: str
    """How much was tried, in a sentence."""
