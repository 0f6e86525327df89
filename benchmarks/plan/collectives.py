"""Collectives of a program: which arrays its devices exchange, along which mesh axes, how often and how many bytes."""

import dataclasses
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from benchmarks.hlo.hlo_parser import COLLECTIVES, ExecutedInstruction, Module
from benchmarks.hlo.instructions import Array, Instruction

Groups = frozenset[frozenset[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectiveTotal:
    """Sum over the collectives of one kind along the same axes, in a step."""

    kind: str
    axes: str
    """Axes of the mesh, joined by x."""
    members: int
    """Number of devices that exchange data with each other."""
    count: float
    bytes: float
    """Size of the full arrays: after a gather, of a reduction, or before a scatter."""
    bytes_sent: float
    """Bytes that a device sends if all send equally much: n - 1 of n parts, twice that for an all-reduce."""
    between_slices: bool = False
    """True if slices exchange data: `members` counts slices."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction of the program, or its part within slices or between them."""

    run: ExecutedInstruction
    kind: str
    axes: str
    members: int
    bytes: float
    """Size of the full array, for one execution."""
    arrays: tuple[Array, ...]
    """A device's own arrays, before the collective."""
    groups: tuple[tuple[int, ...], ...]
    """Mesh indices of the devices that exchange with each other; for a permutation pairs (source, target)."""
    between_slices: bool = False
    """True if slices exchange data: `members` and `groups` are of slices."""

    @property
    def bytes_sent(self) -> float:
        """Return the bytes that a device sends in one execution: see `CollectiveTotal.bytes_sent`."""
        if self.kind == "collective-permute":
            return self.bytes
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (self.members - 1) / self.members


def total_by_axes(collectives: Iterable[Collective]) -> list[CollectiveTotal]:
    """Return the sums by kind and axes, the most bytes first."""
    groups_by_kind: defaultdict[tuple[str, str, int, bool], list[Collective]] = defaultdict(list)
    for collective in collectives:
        key = collective.kind, collective.axes, collective.members, collective.between_slices
        groups_by_kind[key].append(collective)
    rows = [
        CollectiveTotal(
            kind=kind,
            axes=axes,
            members=members,
            count=sum(one.run.times for one in group),
            bytes=sum(one.run.times * one.bytes for one in group),
            bytes_sent=sum(one.run.times * one.bytes_sent for one in group),
            between_slices=between_slices,
        )
        for (kind, axes, members, between_slices), group in groups_by_kind.items()
    ]
    return sorted(rows, key=lambda row: -row.bytes_sent)


def find_collectives(module: Module, sizes: Mapping[str, int]) -> list[Collective]:
    """Return all collectives of a program on a mesh with these sizes by axis.

    The devices of the mesh are numbered with the last axis fastest.
    """
    axes = _axes(sizes)
    collectives, seen = [], set()
    for run in module.runs():
        for instruction in run.instruction.inside():
            if instruction.opcode not in COLLECTIVES:
                continue
            name, members, groups = _axes_and_groups(instruction, sizes, axes)
            # On a TPU one collective may be split into a chain of fusions, each of which names it; it is counted once.
            chain = instruction.attribute("channel_id"), instruction.attribute("chain_id")
            channel = (run.loop, *chain) if all(chain) else (run.instruction.name, instruction.name)
            if members > 1 and channel not in seen:
                seen.add(channel)
                # The result of an asynchronous start includes its operands; the operands are always exactly the data sent.
                arrays = tuple(array for operand in instruction.operands for array in operand.arrays)
                kind, size = instruction.opcode.removesuffix("-start"), sum((array.bytes for array in arrays), 0.0)
                if kind == "all-reduce" and _is_scattered(run.instruction, arrays, members):
                    kind = "reduce-scatter"
                size = size * members if kind == "all-gather" else size
                collectives.append(Collective(run, kind, name, members, size, arrays, groups))
    return collectives


def sent_by_program(module: Module, sizes: Mapping[str, int], slices: Mapping[str, int], *, of_slice: bool) -> list[Collective]:
    """Return all collectives of a program, those within slices and those between them.

    Args:
        sizes: number of devices by axis.
        slices: number of groups of slices by axis, which are the outermost part of it.
        of_slice: whether the program is that of one slice, as TPUs' compiler makes it, and not of all devices.
    """
    if not of_slice:
        return divide_by_slices(find_collectives(module, sizes), sizes, slices)
    inner = {axis: size // slices[axis] for axis, size in sizes.items()}
    return [*find_collectives(module, inner), *find_transfers(module, slices)]


SLICE = 100_000
"""TPUs' compiler numbers the devices of the first slice from this on, those of the second from twice this on."""
TRANSFERS = {
    "ALL_REDUCE": "all-reduce",
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}
"""Names by which TPUs' compiler says what several slices exchange; for a kind that is not listed, the name is the kind."""


def find_transfers(module: Module, slices: Mapping[str, int]) -> list[Collective]:
    """Return what a program for TPUs exchanges between slices, of which each has an own copy of the program.

    The host sends it: to the compiler it is the transfer of a device's array to the host, and of the result from there.

    Args:
        slices: number of groups of slices by axis; slices are numbered with the last axis fastest.
    """
    axes, transfers = _axes(slices), []
    for run in module.runs():
        instruction = run.instruction
        if instruction.opcode != "send" or "xla_megascale_runtime" not in instruction.attributes:
            continue
        name = instruction.attribute("_xla_megascale_transfer_type")
        kind, arrays = TRANSFERS.get(name, name), instruction.operands[0].arrays
        groups = _slice_groups(instruction.attribute("_xla_megascale_target"))
        if kind == "collective-permute":
            along, members = _axes_of_pairs(np.array(groups), slices)
        else:
            members = max(map(len, groups))
            along = axes.get(frozenset(map(frozenset, groups)), OTHER)
        size = sum((array.bytes for array in arrays), 0.0) * (members if kind == "all-gather" else 1)
        transfers.append(Collective(run, kind, along, members, size, arrays, groups, between_slices=True))
    return transfers


def _slice_groups(target: str) -> tuple[tuple[int, ...], ...]:
    """Return the groups of slices, from 0, of {1,2}x{0:3}: slices and devices, or of {100000,200000},{100001,200001}: devices.

    The groups of a permutation are its pairs, of {100000->200000},{200000->100000}.
    """
    listed = re.findall(r"\{([^{}]*)\}", re.sub(r"x\{[^{}]*\}$", "", target))
    numbers = [map(int, re.findall(r"\d+", group)) for group in listed]
    slices = (tuple(dict.fromkeys((number if number < SLICE else number // SLICE) - 1 for number in group)) for group in numbers)
    return tuple(sorted(set(slices)))


def divide_by_slices(collectives: Iterable[Collective], sizes: Mapping[str, int], slices: Mapping[str, int]) -> list[Collective]:
    """Return collectives of devices in several slices as one within slices and one between them.

    That is how they send the least over the slower network. Where a group has k devices in each of s slices, an all-reduce of n
    bytes reduces and scatters them within a slice, all-reduces n / k between slices on each device, and gathers the result within
    a slice. So a device sends 2 (n / k) (s - 1) / s bytes between slices; of a gather or a scatter it is half of that, and of an
    all-to-all, whose devices have n bytes each, n (s - 1) / s.

    Args:
        sizes: number of devices by axis.
        slices: number of groups of slices by axis, which are the outermost part of it.
    """
    numbers = _slices_of_devices(sizes, slices)
    divided: list[Collective] = []
    for one in collectives:
        listed = [tuple(int(numbers[member]) for member in group) for group in one.groups]
        if all(len(set(places)) == 1 for places in listed):
            divided.append(one)
        elif one.kind == "collective-permute":
            inside = [pair for pair, (source, end) in zip(one.groups, listed, strict=True) if source == end]
            between = sorted({(source, end) for source, end in listed if source != end})
            divided += [
                dataclasses.replace(one, axes=axes, members=members, groups=tuple(pairs), between_slices=pairs is between)
                for pairs, by_axis in ((inside, sizes), (between, slices))
                for axes, members in [_axes_of_pairs(np.reshape(pairs, (-1, 2)), by_axis)]
                if members > 1
            ]
        else:
            divided += _divide_groups(one, listed, sizes, slices)
    return divided


def _divide_groups(
    one: Collective, listed: Sequence[tuple[int, ...]], sizes: Mapping[str, int], slices: Mapping[str, int]
) -> Iterator[Collective]:
    """Yield the parts of a collective within slices and between them; `listed` has the slices of the members of its groups."""
    inside = tuple(part for group, places in zip(one.groups, listed, strict=True) for part in _split_group(group, places))
    between = tuple(sorted({tuple(dict.fromkeys(places)) for places in listed}))
    own, of_each = max(map(len, inside)), one.kind in OF_EACH
    names = [name for name in one.axes.split(" x ") if name in sizes]
    if own > 1:
        axes = " x ".join(name for name in names if sizes[name] > slices[name]) or one.axes
        size = one.bytes * own / one.members if of_each else one.bytes
        yield dataclasses.replace(one, axes=axes, members=own, groups=inside, bytes=size)
    axes = " x ".join(name for name in names if slices[name] > 1) or one.axes
    fields = {"axes": axes, "members": max(map(len, between)), "groups": between, "between_slices": True}
    yield dataclasses.replace(one, **fields, bytes=one.bytes if of_each else one.bytes / own)


def _slices_of_devices(sizes: Mapping[str, int], slices: Mapping[str, int]) -> np.ndarray:
    """Return the number of the slice of each device of a mesh, int64[devices]."""
    places = np.unravel_index(np.arange(math.prod(sizes.values())), tuple(sizes.values()))
    parts = [place // (size // slices[axis]) for place, (axis, size) in zip(places, sizes.items(), strict=True)]
    return np.ravel_multi_index(parts, tuple(slices.values()))


def _split_group(group: tuple[int, ...], slices: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the members of a group in each slice, whose number is at the same place in `slices`."""
    for chosen in dict.fromkeys(slices):
        yield tuple(member for member, number in zip(group, slices, strict=True) if number == chosen)


OF_EACH = ("all-to-all", "ragged-all-to-all")
"""Collectives in which each device sends a separate array to every other; in all other kinds a group shares one array."""


def _is_scattered(instruction: Instruction, arrays: Iterable[Array], members: int) -> bool:
    """Return whether a fusion with a sum keeps only the device's own part of it: a TPU writes a reduce-scatter in this way."""
    return instruction.opcode == "fusion" and members * sum(array.elements for array in instruction.arrays) == sum(
        array.elements for array in arrays
    )


def _axes(sizes: Mapping[str, int]) -> dict[Groups, str]:
    """Return the groups of devices along every combination of axes, the fewest axes first."""
    numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    names = [name for name, size in sizes.items() if size > 1]
    axes_by_groups: dict[Groups, str] = {}
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, count):
            places = [list(sizes).index(name) for name in chosen]
            axes_by_groups.setdefault(_groups_along(numbers, places), " x ".join(chosen))
    return axes_by_groups


def _groups_along(numbers: np.ndarray, axes: Sequence[int]) -> Groups:
    """Return the groups of numbers that differ only in their places along some axes of an array."""
    moved = np.moveaxis(numbers, axes, range(-len(axes), 0))
    rows = moved.reshape(-1, math.prod(numbers.shape[axis] for axis in axes))  # [groups, members]
    return frozenset(frozenset(row) for row in rows.tolist())


OTHER = "other"
"""Groups of devices that are not along axes of the mesh."""
PART = ", part"
"""Suffix of an axis along which only some of the devices exchange data with each other."""
AxesAndGroups = tuple[str, int, tuple[tuple[int, ...], ...]]
"""(axes, devices of a group, groups as in `Collective`)."""


def _axes_and_groups(instruction: Instruction, sizes: Mapping[str, int], axes: Mapping[Groups, str]) -> AxesAndGroups:
    if instruction.opcode.startswith("collective-permute"):
        return _permutation_axes(instruction, sizes)
    groups = replica_groups(instruction.attributes, math.prod(sizes.values()))
    members, listed = max(map(len, groups)), tuple(sorted(tuple(sorted(group)) for group in groups))
    if groups in axes:
        return axes[groups], members, listed
    # The compiler may split an axis into steps, first within parts of it and then between the parts.
    first = next(iter(groups))
    around = (name for axis_groups, name in axes.items() if any(first <= group for group in axis_groups))
    return next((f"{name}{PART}" for name in around), OTHER), members, listed


def _permutation_axes(instruction: Instruction, sizes: Mapping[str, int]) -> AxesAndGroups:
    """Return the axes along which the partners of a permutation differ."""
    ends = np.array(instruction.integers("source_target_pairs"), int).reshape(-1, 2).T
    if not ends.size or (ends[0] == ends[1]).all():
        return OTHER, 1, ()
    return *_axes_of_pairs(ends.T, sizes), tuple(map(tuple, ends.T.tolist()))


def _axes_of_pairs(pairs: np.ndarray, sizes: Mapping[str, int]) -> tuple[str, int]:
    """Return the axes along which the partners of pairs [pairs, 2] differ, and the product of their sizes."""
    source, target = (np.array(np.unravel_index(end, tuple(sizes.values()))) for end in pairs.T)
    differ = (source != target).any(1)
    name = " x ".join(axis for axis, moved in zip(sizes, differ, strict=True) if moved)
    return name, math.prod(size for size, moved in zip(sizes.values(), differ, strict=True) if moved)


def replica_groups(attributes: str, count: int) -> Groups:
    """Return the groups of `replica_groups`, in any of XLA's notations; all `count` devices if there are none.

    {{0,1},{2,3}}; [2,2]<=[4], rows of an array of 0, 1, ... in that shape, or of a transposed one: [2,2]<=[2,2]T(1,0); or
    mesh['a'=2,'b'=2] {'b'}, along axes of a mesh of XLA's, or parts of them: {'b':(1)2}.
    """
    if match := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", attributes):
        return frozenset(frozenset(map(int, group.split(","))) for group in re.findall(r"\{([\d, ]+)\}", match[1]))
    if match := re.search(r"replica_groups=\[([\d,]+)\](<=\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return _groups_along(_iota(match[2]).reshape(_integers(match[1])), [1])
    pattern = r"replica_groups=@?mesh\w*\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? ?\{([^}]*)\}"
    if match := re.search(pattern, attributes):
        return _mesh_groups(match[1], match[2], match[3])
    return frozenset({frozenset(range(count))})


def _mesh_groups(axes: str, order: str | None, along: str) -> Groups:
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", axes)}
    numbers = np.arange(math.prod(sizes.values())) if not order else _iota(f"<={order}")
    shape: list[tuple[int, bool]] = []
    parts = {name: (pre, size) for name, pre, size in re.findall(r"'([\w.]+)'(?::\((\d+)\)(\d+))?", along)}
    for name, size in sizes.items():
        pre, part_size = parts.get(name, ("", "1"))
        if name in parts and not pre:
            shape.append((size, True))
        else:
            before = int(pre or 1)
            shape += [(before, False), (int(part_size), True), (size // (before * int(part_size)), False)]
    array = numbers.reshape([size for size, _ in shape])
    return _groups_along(array, [place for place, (_, chosen) in enumerate(shape) if chosen])


def _iota(text: str) -> np.ndarray:
    """Return 0, 1, ... in the order of `<=[2,4]T(1,0)`."""
    shape = re.search(r"\[([\d,]+)\]", text)
    assert shape
    numbers = np.arange(math.prod(_integers(shape[1]))).reshape(_integers(shape[1]))
    transposed = re.search(r"T\(([\d,]+)\)", text)
    return numbers.transpose(_integers(transposed[1])).reshape(-1) if transposed else numbers.reshape(-1)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))
