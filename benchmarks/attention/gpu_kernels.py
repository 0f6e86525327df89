"""Read the kernels of a program for GPU from what XLA writes, and what NVIDIA's assembler says of them.

`ptxas` states the registers of a thread and the bytes that it spills, XLA the threads and the shared memory of a program. From
these follows how many programs a multiprocessor holds at once. Neither knows how long anything takes.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.plan.target_devices import GPUS
from zoo.errors import BadInput, install_advice

VARIABLE = "XLA_FLAGS"
OPTIONS = {"xla_dump_to": "{folder}", "xla_dump_emitter_re": "^[^-]*$"}
FLAGS = " ".join(f"--{name}={value}" for name, value in OPTIONS.items())
"""Without the second flag XLA writes no PTX. Names with a hyphen are those of passes, whose intermediate
programs have 20 MB for a kernel, and take longer to write than the kernel to compile."""
REGISTERS, THREADS, PROGRAMS = 65536, 2048, 32
"""Limits of a multiprocessor of compute capability 8.0, 9.0 and 10.0 (CUDA programming guide)."""
RESERVED = 1024
"""Bytes of shared memory that the system takes for each program."""
MATRIX = {"tcgen05.mma": "tcgen05", "wgmma.mma_async": "wgmma", "mma.sync": "mma.sync"}
"""Instruction of the matrix units in PTX -> its name in the table, the newest first."""

TITLE = "Attention as the compilers for {} translate it"
NOTE = (
    "These numbers are reported by XLA and ptxas; they do not determine a time. Registers are those of a thread, spilled "
    "the bytes that it moves because there are too few, shared the memory of a program; occupancy: how many programs x their "
    "warps a multiprocessor holds at once. Serialized: the assembler makes every product wait for the one before it. Of what "
    "XLA compiles itself, only kernels with atomic sums, whose results differ from run to run, are shown."
)
HEAD = ("products", "registers", "spilled", "shared KiB", "occupancy")
"""Head of `columns`."""


class Kernel(NamedTuple):
    """A kernel of a compiled program, as the assembler states it."""

    name: str
    registers: int
    """Registers of a thread."""
    spilled: int
    """Bytes that a thread writes to and reads from local memory because there are too few registers."""
    threads: int
    """Threads of a program."""
    shared: int
    """Bytes of shared memory of a program."""
    programs: int
    """Programs that a multiprocessor holds at once; 0: a program needs more shared memory than there is."""
    matrix: str
    """Instruction of the products."""
    serialized: bool
    """True if the assembler makes every product wait for the one before it."""
    atomics: int
    """Number of atomic operations, which make sums of floating-point numbers differ from run to run."""


def find_ptxas() -> str:
    """Return the path of `ptxas`: that of JAX's extra, which reads the PTX of its compiler, or else that on PATH.

    Raises:
        BadInput: there is none.
    """
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or [] if spec is not None else []:
        if paths := sorted(Path(root).glob("*/bin/ptxas")):
            return str(paths[-1])
    if path := shutil.which("ptxas"):
        return path
    raise BadInput(f"--compiled: ptxas, NVIDIA's assembler, is not installed: {install_advice('cuda13')}")


def take_kernels(folder: Path, text: str, chip: str) -> list[Kernel]:
    """Return the kernels of a compiled program whose files a folder has, in the order in which they start; empty the folder.

    They are those of Pallas, and those of XLA that have atomic operations.

    Args:
        text: the program before XLA compiled it, in StableHLO.

    Raises:
        BadInput: the assembler does not read the PTX, or the files or its report have another form than expected.
    """
    return take_named_kernels(folder, _PALLAS.findall(text), chip)


def take_named_kernels(folder: Path, names: Collection[str], chip: str) -> list[Kernel]:
    """Return the kernels with these names and those that have atomic operations: see `take_kernels`."""
    kernels: list[Kernel] = []
    launches = {launch["name"]: launch for path in folder.glob("*thunk_sequence.txt") for launch in _launches(path.read_text())}
    for path in sorted(folder.glob("*.ptx")):
        ptx = path.read_text()
        chosen = {name: part for name, part in _entries(ptx).items() if name in names or _ATOMIC.search(part)}
        reports = _assemble(path, ptx) if chosen else {}
        for name, part in chosen.items():
            if name not in launches:
                raise _unknown_form("XLA", f"no threads of {name}")
            if name not in reports:
                raise _unknown_form("ptxas", f"nothing about {name}")
            kernels.append(_kernel(name, part, reports[name], launches[name], GPUS[chip].shared))
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    order = {name: place for place, name in enumerate(launches)}
    return sorted(kernels, key=lambda kernel: order[kernel.name])


_ATOMIC = re.compile(r"(?<![\w.])(?:atom|red)\.")
"""Not `bar.red`, which reduces a predicate over a program's threads."""
_PALLAS = re.compile(r'@__gpu\$xla\.gpu\.triton\(.*?[ {]name = "(\w+)"')


def _unknown_form(program: str, missing: str) -> BadInput:
    return BadInput(
        f"--compiled: {program} writes its report in another form than expected ({missing}); use the versions in constraints.txt"
    )


def _launches(text: str) -> list[Mapping[str, str]]:
    pattern = r"(?P<name>\w+) grid: \[.*?\] threads: \[(?P<threads>\d+).*?shared_memory: (?P<shared>\d+)"
    return [match.groupdict() for match in re.finditer(pattern, text)]


def _entries(ptx: str) -> dict[str, str]:
    """Return the text of each kernel of a PTX program."""
    _, *parts = re.split(r"\.entry (\w+)", ptx)
    return dict(zip(parts[::2], parts[1::2], strict=True))


_SERIALIZED = re.compile(r"instructions are serialized .*? in the function '(\w+)'")


class Report(NamedTuple):
    """The assembler's report of a kernel."""

    text: str
    is_serialized: bool


def _assemble(path: Path, ptx: str) -> dict[str, Report]:
    """Return what the assembler says of each kernel of a PTX file."""
    target = re.search(r"\.target (\w+)", ptx)
    if target is None:
        raise _unknown_form("XLA", f"no target in {path.name}")
    command = [find_ptxas(), "-v", f"-arch={target[1]}", str(path), "-o", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = " ".join(done.stderr.split())[:200]
        raise BadInput(f"--compiled: {command[0]} does not read the program ({reason}): {install_advice('cuda13')}")
    _, *parts = re.split(r"Compiling entry function '(\w+)'", done.stderr)
    serialized = set(_SERIALIZED.findall(done.stderr))
    return {name: Report(text, name in serialized) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def _kernel(name: str, ptx: str, report: Report, launch: Mapping[str, str], capacity: int) -> Kernel:
    registers = re.search(r"Used (\d+) registers", report.text)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report.text)
    if registers is None or spills is None:
        raise _unknown_form("ptxas", f"no {'registers' if registers is None else 'spills'} of {name}")
    count, threads, shared = int(registers[1]), int(launch["threads"]), int(launch["shared"])
    return Kernel(
        name=name,
        registers=count,
        spilled=int(spills[1]) + int(spills[2]),
        threads=threads,
        shared=shared,
        programs=programs_per_multiprocessor(count, threads, shared, capacity),
        matrix=next((label for instruction, label in MATRIX.items() if instruction in ptx), ""),
        serialized=report.is_serialized,
        atomics=len(_ATOMIC.findall(ptx)),
    )


def programs_per_multiprocessor(registers: int, threads: int, shared: int, capacity: int) -> int:
    """Return how many programs a multiprocessor with `capacity` bytes of shared memory holds at once."""
    # A warp's registers are allocated in units of 256, which is 8 for each of its threads.
    by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    return min(by_registers, capacity // (shared + RESERVED), THREADS // threads, PROGRAMS)


def columns(kernel: Mapping[str, Any]) -> list[str]:
    """Return the columns of a kernel under `HEAD`."""
    occupancy = f"{kernel['programs']} x {kernel['threads'] // 32}"
    numbers = [f"{kernel['registers']}", f"{kernel['spilled']}", f"{kernel['shared'] / 1024:.0f}", occupancy]
    remarks = [kernel["matrix"], "serialized" if kernel["serialized"] else "", "atomic sums" if kernel["atomics"] else ""]
    return [", ".join(filter(None, remarks)), *numbers]
