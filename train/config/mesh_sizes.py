"""The sizes of a mesh, the checks of what it divides, and the smaller numbers of processes on which a run can continue.

Nothing here imports JAX: the launcher of local processes uses it too, which has no devices.
"""

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
    parts = f" (of each of {run.accumulate} micro-batches)" if run.accumulate > 1 else ""
    fix = f"{micro} rows{parts} do not divide over {axes} = {rows} devices"
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


def _divides(run: Run, devices: int) -> bool:
    try:
        sizes = axis_sizes(run.mesh, devices)
        check_rows(run, sizes)
        check_responses(run, sizes)
    except BadInput:
        return False
    return True
