"""Lower bounds on the time of a step, from its work and collectives and the published rates of its devices.

No program takes less than the times of compute and links. Transfers over different links run at the same time, and each
collective is counted with the fewest bytes known: sums are taken in the switches where there are any. The memory has an estimate,
which assumes no cache, and a lower bound.
"""

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from benchmarks.flops.flops_and_bytes import Work
from benchmarks.plan.collectives import OF_EACH, Collective
from benchmarks.plan.target_devices import Target
from zoo.runtime.hardware import Device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a step if it did only this; None if no rate is published."""

    compute: float | None
    """Lower bound."""
    memory: float | None
    """Estimate without a cache."""
    interconnect: float | None
    """Lower bound, of the busiest links within slices."""
    memory_least: float | None = None
    """Lower bound for the memory: see `flops_and_bytes.least_bytes`."""
    estimate: float | None = None
    """Estimate of a step: all operations one after another, each as long as its FLOPs at the rate that programs reach
    (`SUSTAINED`) or its bytes take, whichever is longer. Links are used at the same time, but for those of tensor parallelism."""
    between_slices: float | None = 0.0
    """Lower bound, of the network between slices; None if slices exchange data and its rate is not published."""
    host: float | None = 0.0
    """Lower bound, of the link to the memory of the host; None if no rate is published. Bounds leave both out if unknown."""

    @property
    def longest(self) -> float | None:
        """Return the seconds of a step if all run at the same time; None unless the first three are known."""
        return self._together(self.memory)

    @property
    def least(self) -> float | None:
        """Return the seconds below which no step is, if everything that can be cached is cached; None as for `longest`."""
        return self._together(self.memory_least)

    def _together(self, memory: float | None) -> float | None:
        seconds = (self.compute, memory, self.interconnect, self.between_slices or 0.0, self.host or 0.0)
        return None if None in seconds else max(seconds)  # pyright: ignore[reportArgumentType, reportCallIssue]

    @property
    def slowest(self) -> str:
        """Return the name of the longest of the known times."""
        names = ("compute", "memory", "interconnect", "between_slices", "host")
        return max(names, key=lambda name: getattr(self, name) or 0)


SUSTAINED = {"a100": 0.8, "a100-40gb": 0.8, "h100": 0.6, "h200": 0.6, "v5e": 0.8, "v5p": 0.7, "v6e": 0.7}
"""Share of the peak rate that products reach, by the name of a target's devices.

Each is the highest that any published step of the half for improvement implies, rounded up to a tenth; an H200 has the cores of
an H100, and the same share. Without such a step it is 1. `benchmarks/results/published-plans_2026-12-01.md` has the steps.
"""


def times_of_step(
    work: Work,
    collectives: Sequence[Collective],
    devices: np.ndarray,
    target: Target,
    dtype: str,
    least_bytes: float = 0.0,
    host: float | None = 0.0,
) -> Times:
    """Return the times of a step whose matrix products have the dtype `dtype`.

    Args:
        least_bytes: bytes that a device moves however much is cached.
        devices: devices that `Collective.groups` numbers: of the mesh, or of one slice if the program is that of a slice; each
            has a number, `id`, and on a TPU `coords`, its place in the torus.
        host: seconds of the transfers to and from the memory of the host; None if they are not known.
    """
    device = target.published
    peak = None if device is None else device.peak.get(dtype)
    bandwidth = None if device is None else device.bandwidth
    sent = [one for one in collectives if not one.between_slices]
    interconnect, between_slices, waited = None, 0.0, 0.0
    if device is not None:
        interconnect = _interconnect(sent, list(devices.flat), target)
        # The next operation needs a sum along this axis; those of other axes overlap with operations.
        waited = _interconnect([one for one in sent if "tensor" in one.axes], list(devices.flat), target) or 0.0
    if outer := math.fsum(one.run.times * one.bytes_sent for one in collectives if one.between_slices):
        network = None if device is None else device.between_slices
        between_slices = None if network is None else outer / (network * 1e9)
    estimate = None
    if peak is not None and bandwidth is not None:
        rate = SUSTAINED.get(target.chip, 1.0) * peak * 1e12
        in_turn = math.fsum(max(flops / rate, moved / (bandwidth * 1e9)) for flops, moved in work.operations)
        estimate = max(in_turn + waited, interconnect or 0.0, between_slices or 0.0, host or 0.0)
    return Times(
        compute=None if peak is None else work.flops / (peak * 1e12),
        memory=None if bandwidth is None else work.bytes / (bandwidth * 1e9),
        interconnect=interconnect,
        memory_least=None if bandwidth is None else least_bytes / (bandwidth * 1e9),
        estimate=estimate,
        between_slices=between_slices,
        host=host,
    )


def compute_times(work: Work, target: Target, dtype: str) -> Times:
    """Return the times of a step of which only the FLOPs are known."""
    peak = None if target.published is None else target.published.peak.get(dtype)
    compute = None if peak is None else work.flops / (peak * 1e12)
    estimate = None if compute is None else compute / SUSTAINED.get(target.chip, 1.0)
    return Times(compute=compute, memory=None, interconnect=None, estimate=estimate)


def mfu_bound(flops: float, seconds: float | None, devices: int, target: Target, dtype: str) -> float | None:
    """Return the MFU of a step that takes some seconds, 0 to 1.

    It is `flops` over the FLOPs that all devices compute at their peak in that time; None if the peak or the time is unknown.
    """
    device = target.published
    if device is None or not seconds or dtype not in device.peak:
        return None
    # Counts may differ by `check_flops.TOLERANCE`.
    return min(1.0, flops / devices / (device.peak[dtype] * 1e12) / seconds)


def _interconnect(collectives: Sequence[Collective], devices: Sequence, target: Target) -> float | None:
    device = target.published
    assert device is not None
    if len(devices) == 1:
        return 0.0
    if device.links is None:
        return None
    if device.torus:
        return _over_torus(collectives, devices, device)
    return _over_hosts(collectives, devices, device, min(device.host, int(target.size)))


def _over_torus(collectives: Sequence[Collective], devices: Sequence, device: Device) -> float:
    """Return the seconds of all collectives on a torus.

    A collective uses the links of the dimensions that it spans; a ring along one dimension uses only its two links. Collectives
    may share links in any way, so no choice of dimensions takes less time than the collectives that cannot use other dimensions.
    """
    assert device.links is not None
    # Devices of one chip have the same place, and do not use these links between each other.
    places = [tuple(member.coords) for member in devices]
    loads: defaultdict[frozenset[int], float] = defaultdict(float)
    for collective in collectives:
        corners = [zip(*(places[member] for member in group), strict=True) for group in collective.groups]
        spanned = frozenset(at for group in corners for at, values in enumerate(group) if len(set(values)) > 1)
        loads[spanned] += collective.run.times * _between(collective, places, in_switches=False)
    dimensions = range(device.torus)
    chosen = [set(some) for count in dimensions for some in itertools.combinations(dimensions, count + 1)]
    rate = device.links * 1e9 / device.torus
    return max(math.fsum(load for spanned, load in loads.items() if spanned <= some) / (len(some) * rate) for some in chosen)


def _over_hosts(collectives: Sequence[Collective], devices: Sequence, device: Device, host: int) -> float | None:
    """Return the seconds over NVLink within hosts of `host` devices and the network between them, whichever is longer."""
    assert device.links is not None
    first = min(member.id for member in devices)
    hosts = [(member.id - first) // host for member in devices]
    inside = math.fsum(collective.run.times * _within(collective, hosts) for collective in collectives) / (device.links * 1e9)
    across = math.fsum(collective.run.times * _between(collective, hosts, in_switches=True) for collective in collectives)
    if not across:
        return inside
    return None if device.network is None else max(inside, across / (device.network * 1e9))


def _between(collective: Collective, places: Sequence[Hashable], *, in_switches: bool) -> float:
    """Return the bytes in or out of the busiest place (host or chip), divided by its number of ports, one for each device.

    Data of an array that a place already holds need not be sent to it again.

    Args:
        in_switches: whether the network's switches compute sums, so that each array leaves a place once.
    """
    load: defaultdict[Hashable, float] = defaultdict(float)
    if collective.kind == "collective-permute":
        pairs = [(places[source], places[target]) for source, target in collective.groups]
        leaving, coming = (Counter(pair[end] for pair in pairs if pair[0] != pair[1]) for end in (0, 1))
        load.update(leaving | coming)
    for place, own, members in _shares(collective, places):
        if own < members:
            there = (members - own) / members
            ways = {"all-reduce": 1.0 if in_switches else 2 * there} | dict.fromkeys(OF_EACH, own * there)
            load[place] += ways.get(collective.kind, there)
    ports = Counter(places)
    return collective.bytes * max((share / ports[place] for place, share in load.items()), default=0.0)


def _within(collective: Collective, hosts: Sequence[Hashable]) -> float:
    """Return the bytes that the busiest device sends to others of its host.

    A sum over k devices is computed by the devices, or in the switch (NVLink SHARP). In the switch, each device sends its array
    once, and its part of the sum.
    """
    if collective.kind == "collective-permute":
        return collective.bytes * any(hosts[source] == hosts[target] and source != target for source, target in collective.groups)

    def share(own: int, members: int) -> float:
        ways = {"all-reduce": min(2 * (own - 1) / own, 1 + 1 / own)} | dict.fromkeys(OF_EACH, (own - 1) / members)
        return ways.get(collective.kind, (own - 1) / own)

    return collective.bytes * max((share(own, members) for _, own, members in _shares(collective, hosts) if own > 1), default=0.0)


def _shares(collective: Collective, places: Sequence[Hashable]) -> Iterator[tuple[Hashable, int, int]]:
    """Yield, for each group of a collective and each place with members of it, (place, members there, members of the group).

    A collective-permute has no groups and yields nothing.
    """
    if collective.kind != "collective-permute":
        for group in collective.groups:
            for place, own in Counter(places[member] for member in group).items():
                yield place, own, len(group)
