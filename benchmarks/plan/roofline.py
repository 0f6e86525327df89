"""How long a step takes at least: what it computes, moves and sends, at the published rates of its devices."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.plan.collectives import OTHER, PART, Sent
from benchmarks.plan.targets import HOST, Target
from benchmarks.plan.work import Work
from train.hardware import Device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a step at least, were nothing else done; None where no rate is published."""

    compute: float | None
    memory: float | None
    interconnect: float | None

    @property
    def longest(self) -> float | None:
        """What a step takes if all three are done at once; None unless all are known."""
        each = (self.compute, self.memory, self.interconnect)
        return None if None in each else max(each)  # pyright: ignore[reportArgumentType, reportCallIssue]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A mesh's axes, and its devices in their order: each has a number, `id`, and of a TPU `coords`, its place in the torus."""

    axes: tuple[str, ...]
    devices: np.ndarray


def times(work: Work, sent: Iterable[Sent], mesh: Grid, target: Target, dtype: str) -> Times:
    """Of a step whose matrix products are of `dtype`."""
    device = target.published
    peak = None if device is None else device.peak.get(dtype)
    bandwidth = None if device is None else device.bandwidth
    seconds = [] if device is None else [each.run.times * _seconds(each, mesh, target, device) for each in sent]
    return Times(
        compute=None if peak is None else work.flops / (peak * 1e12),
        memory=None if bandwidth is None else work.bytes / (bandwidth * 1e9),
        interconnect=None if device is None or (mesh.devices.size > 1 and device.links is None) else math.fsum(seconds),
    )


def bound(flops: float, found: Times, mesh: Grid, target: Target, dtype: str) -> float | None:
    """The most of the devices' peak that the model's own `flops` can put to use (MFU), 0 to 1."""
    device, longest = target.published, found.longest
    if device is None or not longest or dtype not in device.peak:
        return None
    return flops / mesh.devices.size / (device.peak[dtype] * 1e12) / longest


def _seconds(each: Sent, mesh: Grid, target: Target, device: Device) -> float:
    """Of one execution, the links being free of everything else."""
    assert device.links is not None
    group = _group(each.axes, mesh)
    if target.platform == "tpu":
        # A ring along a dimension of the torus uses its two links alone; devices of one chip share their place.
        spanned = len([True for places in zip(*(_place(member) for member in group), strict=True) if len(set(places)) > 1])
        return each.sent / (device.links * 1e9 * ((spanned or device.torus) / device.torus))
    inside = each.sent / (device.links * 1e9)
    first = min(member.id for member in mesh.devices.flat)
    hosts = [(member.id - first) // HOST for member in group]
    count = len(set(hosts))
    if count == 1 or device.network is None:
        return inside
    # Between hosts each array goes once, a part of it by each of a host's members.
    members = max(hosts.count(host) for host in set(hosts))
    times = 2 if each.kind == "all-reduce" else 1
    across = times * each.bytes * (count - 1) / count / members if each.kind != "collective-permute" else each.bytes
    return max(inside, across / (device.network * 1e9))


def _group(axes: str, mesh: Grid) -> list[Any]:
    """Devices that exchange with each other along some axes."""
    if axes == OTHER:
        return list(mesh.devices.flat)
    chosen = axes.removesuffix(PART).split(" x ")
    return list(mesh.devices[tuple(slice(None) if name in chosen else 0 for name in mesh.axes)].flat)


def _place(device: Any) -> tuple[int, ...]:
    return tuple(device.coords)
