"""Bytes that a compiled program moves between a device and the memory of its host."""

import dataclasses

from benchmarks.flops.flops_and_bytes import SLICES
from benchmarks.hlo.hlo_parser import Module
from benchmarks.hlo.instructions import HOST, Array, Instruction
from zoo.runtime.hardware import Device


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostTransfers:
    """Bytes that a device exchanges with its host in a step."""

    to_host: float
    from_host: float


def count_transfers(module: Module) -> HostTransfers:
    """Return the bytes that a device writes to the memory of its host and reads from there.

    An operation that updates or takes a slice of an array on the host moves the slice only.
    """
    to_host = from_host = 0.0
    for run in module.runs():
        for instruction in run.instruction.inside():
            written, read = _moved(instruction)
            to_host, from_host = to_host + run.times * written, from_host + run.times * read
    return HostTransfers(to_host=to_host, from_host=from_host)


def transfer_seconds(moved: HostTransfers, device: Device | None) -> float | None:
    """Return the least seconds that the link to the host needs, with both directions at once; None if no rate is published."""
    larger = max(moved.to_host, moved.from_host)
    if not larger:
        return 0.0
    return None if device is None or device.host_link is None else larger / (device.host_link * 1e9)


def _moved(instruction: Instruction) -> tuple[float, float]:
    """Return the bytes that an instruction itself moves to the host and from it; a fusion moves what its parts do."""
    opcode, operands = instruction.opcode.removesuffix("-start"), instruction.operands
    if opcode == "dynamic-update-slice" and len(operands) > 1:
        return (operands[1].bytes if _on_host(operands[0]) and not _on_host(operands[1]) else 0.0), 0.0
    if opcode in SLICES and operands:
        return 0.0, (_slice(instruction).bytes if _on_host(operands[0]) else 0.0)
    if opcode != "copy" or not operands:
        return 0.0, 0.0
    size, source, result = operands[0].bytes, _on_host(operands[0]), instruction.arrays[0].space == HOST
    return (size if result and not source else 0.0), (size if source and not result else 0.0)


def _slice(instruction: Instruction) -> Array:
    """Return the slice that an instruction takes; an asynchronous start lists its operands first."""
    return instruction.arrays[len(instruction.operands) if instruction.opcode.endswith("-start") else 0]


def _on_host(instruction: Instruction) -> bool:
    return bool(instruction.arrays) and instruction.arrays[0].space == HOST
