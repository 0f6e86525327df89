"""The largest arrays of a program that does not fit its devices, with the operations and the source lines that make them."""

import collections
import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from benchmarks.core.source_paths import own_path
from benchmarks.hlo.hlo_parser import Module, parse_program
from benchmarks.hlo.instructions import Array, Instruction

LISTED = 8
"""Number of rows that a plan lists."""
NO_ARRAYS = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}
"""Operations that allocate no memory of their own, or that of the arguments."""
_LIVE = re.compile(r"^ +([\w.\-]+)\{([\d,]*)\}: \d+ bytes \(cumulative", re.MULTILINE)
_VALUE = re.compile(r"^ value: <\d+ ([\w.\-]+)(?:\{([\d,]*)\})? @0> \(size=(\d+),", re.MULTILINE)
"""A value in the device's main memory: its instruction, the index in the instruction's tuple, and its bytes with padding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LargeArray:
    """Arrays of a device that have the same shape and are made by the same operation."""

    bytes: int
    """Size of one of them, padded to tiles as the device stores it where the compiler reports that."""
    count: int
    shape: str
    """Dtype and shape on a device, as XLA writes them."""
    operation: str
    """Path of JAX names that it was lowered from."""
    source: str
    """File and line of this project that called it, outside of `zoo.ops` if there is one; "" if the compiler kept none."""


def refused_arrays(lowered: Any, temporaries: int) -> list[LargeArray]:
    """Return the largest temporaries of a program that the compiler refused, at the moment when it needs the most memory.

    The error contains no list, so the program is compiled a second time with a dump; empty if the compiler dumps no list.

    Args:
        temporaries: bytes of all temporaries.
    """
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        names = ("-live-range", "-buffer-assignment", "after_optimizations")
        texts = [file.read_text() for name in names for file in sorted(Path(folder).glob(f"*{name}.txt"))[:1]]
    if len(texts) < len(names):
        return []
    live_ranges, buffers, program = texts
    return live_arrays(live_ranges, buffers, parse_program(program), temporaries)


def live_arrays(live_ranges: str, buffers: str, module: Module, temporaries: int) -> list[LargeArray]:
    """Return the largest temporaries at the peak of a program, from XLA's dumps of the live ranges and the buffers of its values.

    What is larger than all temporaries is no temporary, but an update of an argument in place, as that of a cache.
    """
    sizes = {(name, index): int(size) for name, index, size in _VALUE.findall(buffers)}
    sized: list[tuple[Instruction, Array, int]] = []
    for key in dict.fromkeys(_LIVE.findall(live_ranges.partition("(peak):")[2])):
        (name, index), size = key, sizes.get(key, 0)
        instruction = module.instructions.get(name)
        if instruction is None or instruction.opcode == "parameter" or "," in index or not 0 < size <= temporaries:
            continue
        sized += [(instruction, array, size) for array in instruction.arrays[int(index or 0) :][:1]]
    return _largest(sized)


def program_arrays(module: Module) -> list[LargeArray]:
    """Return the largest results of a compiled program's operations, without padding; not all of them exist at the same time."""
    executed = (run.instruction for run in module.runs() if run.instruction.opcode not in NO_ARRAYS)
    return _largest((line, array, int(array.bytes)) for line in executed for array in line.arrays if array.space == 0)


def _largest(sized: Iterable[tuple[Instruction, Array, int]]) -> list[LargeArray]:
    counts: collections.Counter[LargeArray] = collections.Counter()
    for instruction, array, size in sized:
        shape = f"{array.dtype}[{','.join(map(str, array.shape))}]"
        located = instruction.located()
        places = [f"{file}:{frame.line}" for frame in located.frames if (file := own_path(frame.file)) != frame.file]
        # The functions of zoo.ops serve all layers, so their callers say more.
        source = next((place for place in places if not place.startswith("zoo/ops/")), "".join(places[:1]))
        operation = located.op_name or instruction.name
        counts[LargeArray(bytes=size, count=1, shape=shape, operation=operation, source=source)] += 1
    rows = [dataclasses.replace(array, count=count) for array, count in counts.items()]
    return sorted(rows, key=lambda row: -row.bytes * row.count)[:LISTED]
