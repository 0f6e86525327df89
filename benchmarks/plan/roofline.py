"""How long a step takes at least: what it computes, moves and sends, at the published rates of its devices.

Of compute and links no program takes less. What goes over different links goes at once, and each exchange sends the least that
is known: sums are taken in the switches where there are any. The time of the memory is an estimate: it counts no cache.
"""

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np

from benchmarks.plan.collectives import Sent
from benchmarks.plan.flops_and_bytes import Work
from benchmarks.plan.targets import Target
from train.run.hardware import Device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a step, were nothing else done; None where no rate is published."""

    compute: float | None
    """At least."""
    memory: float | None
    """If nothing were cached."""
    interconnect: float | None
    """At least, of the busiest links."""

    @property
    def longest(self) -> float | None:
        """What a step takes if all three are done at once; None unless all are known."""
        seconds = (self.compute, self.memory, self.interconnect)
        return None if None in seconds else max(seconds)  # pyright: ignore[reportArgumentType, reportCallIssue]

    @property
    def slowest(self) -> str:
        """Which of the three takes longest, of those that are known."""
        return max(vars(self), key=lambda name: vars(self)[name] or 0)


def times(work: Work, collectives: Iterable[Sent], devices: np.ndarray, target: Target, dtype: str) -> Times:
    """Of a step whose matrix products are of `dtype`.

    Args:
        devices: of the mesh: each has a number, `id`, and of a TPU `coords`, its place in the torus.
    """
    device = target.published
    peak = None if device is None else device.peak.get(dtype)
    bandwidth = None if device is None else device.bandwidth
    return Times(
        compute=None if peak is None else work.flops / (peak * 1e12),
        memory=None if bandwidth is None else work.bytes / (bandwidth * 1e9),
        interconnect=None if device is None else _interconnect(list(collectives), list(devices.flat), device),
    )


def bound(flops: float, step_times: Times, devices: int, target: Target, dtype: str) -> float | None:
    """The share of the devices' peak that the model's own `flops` put to use (MFU) in a step of that time, 0 to 1."""
    device, longest = target.published, step_times.longest
    if device is None or not longest or dtype not in device.peak:
        return None
    return flops / devices / (device.peak[dtype] * 1e12) / longest


def _interconnect(collectives: Sequence[Sent], devices: Sequence, device: Device) -> float | None:
    if len(devices) == 1:
        return 0.0
    if device.links is None:
        return None
    return _over_torus(collectives, devices, device) if device.torus else _over_hosts(collectives, devices, device)


def _over_torus(collectives: Sequence[Sent], devices: Sequence, device: Device) -> float:
    """An exchange has the links of the dimensions that it spans, a ring along one of them its two links alone. How several share
    them is free, so no choice of dimensions can take less than what has no other way."""
    assert device.links is not None
    # Devices of one chip share its place, and send to each other over none of these links.
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


def _over_hosts(collectives: Sequence[Sent], devices: Sequence, device: Device) -> float | None:
    """NVLink within hosts, and the network between them."""
    assert device.links is not None
    first = min(member.id for member in devices)
    hosts = [(member.id - first) // device.host for member in devices]
    inside = math.fsum(collective.run.times * _within(collective, hosts) for collective in collectives) / (device.links * 1e9)
    across = math.fsum(collective.run.times * _between(collective, hosts, in_switches=True) for collective in collectives)
    if not across:
        return inside
    return None if device.network is None else max(inside, across / (device.network * 1e9))


def _between(collective: Sent, places: Sequence[Hashable], *, in_switches: bool) -> float:
    """Bytes that go in or out at the busiest place (host or chip), over as many ports as it has devices. What a place has of an
    array need not come to it again.

    Args:
        in_switches: whether sums may be taken on the way, so that each array of a place goes out once.
    """
    load: defaultdict[Hashable, float] = defaultdict(float)
    if collective.kind == "collective-permute":
        pairs = [(places[source], places[target]) for source, target in collective.groups]
        leaving, coming = (Counter(pair[end] for pair in pairs if pair[0] != pair[1]) for end in (0, 1))
        load.update(leaving | coming)
    for place, own, members in _shares(collective, places):
        if own < members:
            there = (members - own) / members
            ways = {"all-reduce": 1.0 if in_switches else 2 * there} | dict.fromkeys(_OF_EACH, own * there)
            load[place] += ways.get(collective.kind, there)
    ports = Counter(places)
    return collective.bytes * max((share / ports[place] for place, share in load.items()), default=0.0)


def _within(collective: Sent, hosts: Sequence[Hashable]) -> float:
    """Bytes that the busiest device sends to others of its host. A sum of k devices is taken by themselves, or in the switch
    (NVLink SHARP): then each sends its array once, and the part that it has the sum of."""
    if collective.kind == "collective-permute":
        return collective.bytes * any(hosts[source] == hosts[target] and source != target for source, target in collective.groups)

    def share(own: int, members: int) -> float:
        ways = {"all-reduce": min(2 * (own - 1) / own, 1 + 1 / own)} | dict.fromkeys(_OF_EACH, (own - 1) / members)
        return ways.get(collective.kind, (own - 1) / own)

    return collective.bytes * max((share(own, members) for _, own, members in _shares(collective, hosts) if own > 1), default=0.0)


def _shares(collective: Sent, places: Sequence[Hashable]) -> Iterator[tuple[Hashable, int, int]]:
    """(place, devices of a group that it has, devices of the group) of an exchange that is no permutation."""
    if collective.kind != "collective-permute":
        for group in collective.groups:
            for place, own in Counter(places[member] for member in group).items():
                yield place, own, len(group)


_OF_EACH = ("all-to-all", "ragged-all-to-all")
"""Exchanges in which each device has an array of its own for all others; in others a group has one together."""
