"""The sizes of a mesh, the checks of what it divides, and the smaller numbers of processes on which a run can continue.

Nothing here imports JAX: the launcher of local processes uses it too, which has no devices.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping

from train.config.objectives import RolloutOptions
from train.config.run_config import Mesh, Run
from zoo.errors import BadInput, require
from zoo.mesh_axes import AXES, BATCH, POSITIONS


def axis_sizes(shape: Mesh, devices: int, named: Collection[str] = AXES) -> dict[str, int]:
    """Return the number of devices along each of `AXES`, whose product is `devices`.

    Args:
        named: axes that the user chose: a refusal lists shapes that contain them first.

    Raises:
        BadInput: the axes do not multiply to the number of devices; the message lists shapes that do.
    """
    others = shape.fsdp * shape.tensor * shape.sequence * shape.expert
    data = devices // others if shape.data == -1 else shape.data
    if data * others != devices or data < 1:
        valid = "; ".join(_describe_sizes(sizes) for sizes in _nearest_sizes(shape, devices, named)[:12])
        raise BadInput(f"--mesh {describe(shape)}: does not multiply to the {devices} devices; valid: {valid}")
    return dict(zip(AXES, (data, shape.fsdp, shape.tensor, shape.sequence, shape.expert), strict=True))


def slice_sizes(shape: Mesh, sizes: Mapping[str, int], slices: int) -> dict[str, int]:
    """Return the number of groups of slices that each of `AXES` is divided over, whose product is `slices`.

    `data` is divided over as many slices as it can be, and `fsdp` over the rest. Devices that differ in another axis are in one
    slice.

    Args:
        sizes: number of devices along each axis.

    Raises:
        BadInput: the slices do not divide the devices, or data x fsdp; the message lists shapes that they divide.
    """
    devices = math.prod(sizes.values())
    check_slices(slices, devices)
    data = math.gcd(sizes["data"], slices)
    fsdp = slices // data
    if sizes["fsdp"] % fsdp:
        valid = [other for other in _nearest_sizes(shape, devices, ()) if other["data"] * other["fsdp"] % slices == 0]
        rows = sizes["data"] * sizes["fsdp"]
        problem = f"data x fsdp = {rows} is not divisible by the {slices} slices of {devices // slices} devices"
        raise BadInput(f"--mesh {describe(shape)}: {problem}; valid: {'; '.join(map(_describe_sizes, valid[:12]))}")
    return dict.fromkeys(AXES, 1) | {"data": data, "fsdp": fsdp}


def check_slices(slices: int, devices: int) -> None:
    """Refuse a number of slices that does not divide the devices.

    Raises:
        BadInput: lists the numbers that do.
    """
    fix = f"it does not divide the {devices} devices; choose one of {', '.join(map(str, divisors(devices)))}"
    require(devices % slices == 0, "mesh.slices", slices, fix)


def fit_mesh(run: Run, devices: int, named: Collection[str]) -> tuple[Run, str]:
    """Return a run whose mesh multiplies to the devices, and a notice that says what was changed; "" if nothing was.

    Axes that the user named keep their sizes. The others, which the recipe chose, are reduced to what divides both their size and
    the devices that are left. Only data takes the rest, or fsdp if the user named data.

    Raises:
        BadInput: the axes that the user named do not divide the devices; the message lists shapes, first those with these axes.
    """
    old = {axis: getattr(run.mesh, axis) for axis in AXES}
    fixed = math.prod(old[axis] for axis in named if old[axis] > 0)
    if _multiplies(run.mesh, devices) or devices % fixed:
        axis_sizes(run.mesh, devices, named)
        return run, ""
    left, new = devices // fixed, dict(old)
    for axis in ("fsdp", "expert", "tensor", "sequence"):
        if axis not in named:
            new[axis] = math.gcd(old[axis], left)
            left //= new[axis]
    if "data" not in named:
        new["data"] = -1
    elif old["data"] > 0 and "fsdp" not in named:
        new["fsdp"] *= left
    mesh = dataclasses.replace(run.mesh, **new)
    axis_sizes(mesh, devices, named)
    changed = [axis for axis in AXES if new[axis] != old[axis]]
    before, after = (" ".join(f"--mesh.{axis} {sizes[axis]}" for axis in changed) for sizes in (old, new))
    beside = "".join(f"--mesh.{axis} {old[axis]} " for axis in AXES if axis in named and old[axis] > 0)
    verb, count = "do" if len(changed) > 1 else "does", "1 device" if devices == 1 else f"{devices} devices"
    notice = f"{before} of {run.recipe} {verb} not fit {beside}on {count}; {after} instead"
    return dataclasses.replace(run, mesh=mesh), notice


def describe(shape: Mesh) -> str:
    """Return the axes of a run's options for a message; those of experts and positions only if they have several devices."""
    others = "".join(f" {axis}={getattr(shape, axis)}" for axis in RARE_AXES if getattr(shape, axis) > 1)
    return f"data={shape.data} fsdp={shape.fsdp} tensor={shape.tensor}{others}"


RARE_AXES = ("expert", "sequence")
"""Axes that a message names only if a run has them."""


def row_devices(sizes: Mapping[str, int]) -> int:
    """Return over how many devices the rows of a batch are divided."""
    return math.prod(sizes[axis] for axis in BATCH)


def check_rows(run: Run, sizes: Mapping[str, int]) -> None:
    """Refuse a batch whose micro-batches do not divide over the devices.

    Raises:
        BadInput: names the devices and a batch that does.
    """
    rows = row_devices(sizes)
    axes = " x ".join(axis for axis in BATCH if axis != "expert" or sizes[axis] > 1)
    for stage in reversed(run.data.sizes.stages):
        number = run.micro_batches(stage.rows)
        parts = f" (of each of {number} micro-batches)" if number > 1 else ""
        fix = f"{stage.rows // number} rows{parts} do not divide over {axes} = {rows} devices"
        largest = stage.rows == run.data.batch
        key, value = ("data.batch", run.data.batch) if largest else ("data.ramp", " ".join(run.data.ramp))
        require(stage.rows % (rows * number) == 0, key, value, f"{fix}; choose a multiple of {rows * number}")


def check_positions(run: Run, sizes: Mapping[str, int]) -> None:
    """Refuse rows, or a memory of earlier positions (XLNet), whose positions do not divide over the devices.

    Raises:
        BadInput: names the length and the nearest one that does.
    """
    devices = sizes[POSITIONS]
    for key, length in (("data.length", run.data.length), ("model.memory", getattr(run.model, "memory", 0))):
        nearest = max(1, round(length / devices)) * devices
        fix = f"--mesh.sequence {devices} does not divide it; choose {nearest}"
        require(length % devices == 0, key, length, fix)


def check_responses(run: Run, sizes: Mapping[str, int]) -> None:
    """Refuse a run of rollouts whose groups of responses to a prompt are divided between devices.

    Args:
        run: a run; one without rollouts has one response to each prompt.
        sizes: number of devices along each axis.

    Raises:
        BadInput: `rollout.samples` does not divide the rows of a device.
    """
    rows = run.data.batch // row_devices(sizes)
    least = run.options.fewest_samples if isinstance(run.options, RolloutOptions) else 1
    valid = [number for number in range(least, rows + 1) if rows % number == 0]
    numbers = f"choose {', '.join(map(str, valid[:12]))}" if valid else "choose a larger --data.batch"
    fix = f"it does not divide the {rows} rows of a device (of --data.batch {run.data.batch}); {numbers}"
    require(run.repeat in valid, "rollout.samples", run.repeat, fix)


def fewer_processes(run: Run) -> tuple[int, ...]:
    """Return the smaller numbers of local processes over whose devices a run divides, the largest first.

    Each process has the same number of devices: the simulated ones, or one. Only the data axis changes, which divides rows. A run
    that may not shrink has no such number.

    Raises:
        BadInput: the run may shrink, and there is none.
    """
    if not run.machine.may_shrink:
        return ()
    processes = range(run.machine.processes - 1, 0, -1)
    if valid := tuple(number for number in processes if _divides(run, number * max(1, run.machine.devices))):
        return valid
    problem = f"--mesh {describe(run.mesh)} and --data.batch {run.data.batch} fit no number of processes below"
    fix = f"choose --mesh.data -1 and smaller other axes, or --restart {run.machine.restarts}"
    raise BadInput(f"--restart {run.machine.restart}: {problem} {run.machine.processes}; {fix}")


def divisors(number: int) -> list[int]:
    """Return the positive divisors of a number, ascending."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _multiplies(shape: Mesh, devices: int) -> bool:
    try:
        return bool(axis_sizes(shape, devices))
    except BadInput:
        return False


def _nearest_sizes(shape: Mesh, devices: int, named: Collection[str]) -> list[dict[str, int]]:
    """Return all sizes of the axes that multiply to the devices, first those with most of the named axes of a shape."""
    axes = ("fsdp", "tensor", *(axis for axis in RARE_AXES if getattr(shape, axis) > 1))
    # The sizes of these axes, and for data what they leave.
    products = itertools.product(divisors(devices), repeat=len(axes))
    valid = [(devices // math.prod(sizes), *sizes) for sizes in products if devices % math.prod(sizes) == 0]
    listed = [dict(zip(("data", *axes), sizes, strict=True)) for sizes in valid]

    def distance(sizes: dict[str, int]) -> tuple[int, int]:
        different = [axis for axis, size in sizes.items() if getattr(shape, axis) not in (size, -1)]
        return sum(axis in named for axis in different), len(different)

    return sorted(listed, key=distance)


def _describe_sizes(sizes: Mapping[str, int]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())


def _divides(run: Run, devices: int) -> bool:
    try:
        sizes = axis_sizes(run.mesh, devices)
        slice_sizes(run.mesh, sizes, max(1, run.mesh.slices))
        check_rows(run, sizes)
        check_responses(run, sizes)
    except BadInput:
        return False
    return True
