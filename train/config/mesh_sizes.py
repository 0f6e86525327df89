"""The sizes of a mesh, and the checks of what it divides. Nothing here imports JAX."""

import math
from collections.abc import Mapping

from train.config.run_config import Mesh, Run
from zoo.errors import BadInput, require
from zoo.mesh_axes import AXES, BATCH


def axis_sizes(shape: Mesh, devices: int) -> dict[str, int]:
    """Return the number of devices along each of `AXES`, whose product is `devices`.

    Raises:
        BadInput: the axes do not multiply to the number of devices; the message lists shapes that do.
    """
    others = shape.fsdp * shape.tensor * shape.sequence * shape.expert
    data = devices // others if shape.data == -1 else shape.data
    if data * others != devices or data < 1:
        valid = [f"data={devices // (f * t)},fsdp={f},tensor={t}" for f in divisors(devices) for t in divisors(devices // f)]
        raise BadInput(f"--mesh {describe(shape)}: does not multiply to the {devices} devices; valid: {'; '.join(valid[:12])}")
    return dict(zip(AXES, (data, shape.fsdp, shape.tensor, shape.sequence, shape.expert), strict=True))


def describe(shape: Mesh) -> str:
    """Return the axes of a run's options for a message; that of experts only if it has several devices."""
    experts = f" expert={shape.expert}" if shape.expert > 1 else ""
    return f"data={shape.data} fsdp={shape.fsdp} tensor={shape.tensor}{experts}"


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
    micro = run.data.batch // run.accumulate
    fix = f"{micro} rows (of each of {run.accumulate} micro-batches) do not divide over {axes} = {rows} devices"
    require(micro % rows == 0, "data.batch", run.data.batch, f"{fix}; choose a multiple of {rows * run.accumulate}")


def check_responses(run: Run, sizes: Mapping[str, int], *, least: int = 1) -> None:
    """Refuse a run of rollouts whose groups of responses to a prompt are divided between devices.

    Args:
        run: a run; one without rollouts has one response to each prompt.
        sizes: number of devices along each axis.
        least: responses to a prompt that the objective needs.

    Raises:
        BadInput: `rollout.samples` does not divide the rows of a device.
    """
    rows = run.data.batch // row_devices(sizes)
    valid = [number for number in range(least, rows + 1) if rows % number == 0]
    numbers = f"choose {', '.join(map(str, valid[:12]))}" if valid else "choose a larger --data.batch"
    fix = f"it does not divide the {rows} rows of a device (of --data.batch {run.data.batch}); {numbers}"
    require(run.repeat in valid, "rollout.samples", run.repeat, fix)


def divisors(number: int) -> list[int]:
    """Return the positive divisors of a number, ascending."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
