"""`zoo bench attention --compiled v5e`: what the compiler makes of every implementation, for a device that need not be present.

Nothing runs and nothing is timed: the table has the bundles of each kernel's tile, how full the fullest slots are, and the memory
of temporaries, all as the compiler states them.
"""

import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.attention import tpu_schedule
from benchmarks.attention.attention_options import Options
from benchmarks.core import result_tables
from benchmarks.core.html_page import Table
from benchmarks.core.progress import Progress
from benchmarks.plan import target_devices
from zoo.errors import BadInput, require

FEATURES = ("causal", "packed", "t5", "dropout")
"""Kinds of attention that are compiled if none are named."""
MODEL, LENGTH, TOKENS = "gpt2", 2048, 8192
"""Size whose heads are used, length of a row, and tokens of a batch, if none are named."""
LANES = 128
"""Numbers in a row of a TPU's vector register."""
TIMED = ("rounds", "budget", "seconds", "quick", "peers")
"""Options of measurements, which have no meaning here."""


def main(options: Options) -> int:
    """Compile, print the table, and return 1 if a program does not compile.

    Raises:
        BadInput: another device than a TPU, the compiler is not installed, an option of measurements, or an unknown name.
    """
    chip = options.compiled
    require(chip in target_devices.TPUS, "compiled", chip, f"choose a TPU: {', '.join(target_devices.TPUS)}")
    for name in TIMED:
        if getattr(options, name) not in (None, False):
            raise BadInput(f"--{name} with --compiled: nothing is timed; leave one of them out")
    if reason := target_devices.unavailable_reason("tpu"):
        raise BadInput(f"--compiled {chip}: {reason}")
    # The compiler knows slices of at least one host of four chips; a program for one of them is compiled.
    host = next(size for size in target_devices.TPUS[chip].slices if size.startswith("2x2"))
    target = target_devices.parse_target(f"{chip}:{host}")
    with tempfile.TemporaryDirectory() as folder:
        tpu_schedule.dump_to(Path(folder))
        target_devices.prepare(target)
        progress = Progress(1.0)
        cells = []
        for cell in _cells(options, target, Path(folder), progress):
            cells.append(cell)
            if options.output.json:
                print(json.dumps(cell), flush=True)
        progress.close()
    if not options.output.json:
        result_tables.show(_blocks(chip, cells))
    return int(any(cell["state"] == "failed" for cell in cells))


def _cells(options: Options, target: target_devices.Target, folder: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    """Compile each implementation for each row and yield what the compiler says of it."""
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from benchmarks.attention import sweep_rows
    from benchmarks.attention.problems import FEATURES as KINDS
    from benchmarks.attention.problems import Problem
    from benchmarks.core.timing import without_compilation_cache
    from zoo.attention import attention

    filled = dataclasses.replace(
        options,
        feature=options.feature or FEATURES,
        direction=options.direction or ("both",),
        model=options.model or (() if options.shape else (MODEL,)),
        lengths=options.lengths or (() if options.shape else (LENGTH,)),
        tokens=options.tokens or (None if options.shape or options.batch else TOKENS),
        rounds=1,
    )
    complete = dataclasses.replace(sweep_rows.resolve_options(filled, target.platform), impl=options.impl)
    implementations = complete.impl or tuple(
        name for name, row in attention.IMPLEMENTATIONS.items() if row.platforms == {target.platform} or name == sweep_rows.UNIT
    )
    device = target_devices.devices(target)[0]
    mesh = Mesh(np.array([device]), ("data",), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, PartitionSpec())
    for row in sweep_rows.rows(complete):
        problem = Problem.of(KINDS[row.feature], row.shape, row.dtype)
        for name in implementations:
            progress.begin(f"{name}: {row}")
            with jax.set_mesh(mesh), jax.default_device(device), without_compilation_cache():
                yield {**row.key(name), **_compile(problem, name, row.direction, replicated, folder)}


def _compile(problem: Any, name: str, direction: str, sharding: Any, folder: Path) -> dict[str, Any]:
    """Return the state of a cell: compiled with its kernels and temporaries, refused or failed with the reason."""
    import jax

    from zoo.attention import attention

    for request in problem.requests():
        if reason := attention.unsupported_reason(name, request):
            return {"state": "refused", "reason": reason}
    function, arguments = problem.program(name, direction)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)
    try:
        compiled = jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        tpu_schedule.take_kernels(folder)
        return {"state": "failed", "reason": _failure(str(error))}
    kernels, memory = [kernel._asdict() for kernel in tpu_schedule.take_kernels(folder)], compiled.memory_analysis()
    return {"state": "compiled", "kernels": kernels, "temporaries": None if memory is None else memory.temp_size_in_bytes}


def _failure(message: str) -> str:
    """Return the reason why the compiler failed, in one line."""
    if "VmemOom" in message:
        kernel = re.search(r"%(\w+)", message)
        name = kernel[1] if kernel else "a kernel"
        return f"the tiles of {name} do not fit the vector memory; choose shorter rows or smaller heads"
    return message.splitlines()[0][:200]


def _blocks(chip: str, cells: list[dict[str, Any]]) -> list[result_tables.Block]:
    """Return the table, with a line for each kernel of a cell."""
    rows, notes = [], []
    for cell in cells:
        shape = f"{cell['batch']} x {cell['queries']}, {cell['heads']} x {cell['head']}"
        title = [cell["feature"] + (", forward" if cell["direction"] == "forward" else ""), shape, cell["implementation"]]
        if cell["state"] != "compiled":
            notes.append(f"{' '.join(title)}: {cell['state']}: {cell['reason']}")
            continue
        temporaries = "" if cell["temporaries"] is None else f"{cell['temporaries'] / 2**20:,.0f}"
        for place, kernel in enumerate(cell["kernels"] or [None]):
            slots = [] if kernel is None else [f"{slot} {share:.0%}" for slot, share in list(kernel["slots"].items())[:2]]
            described = ["-", "", ""] if kernel is None else [kernel["name"], ", ".join(slots), f"{kernel['bundles']:,}"]
            rows.append([*title, *described, temporaries if place == 0 else ""])
    head = ["feature", "B x T, N x H", "implementation", "kernel", "fullest slots", "bundles", "MiB"]
    padded = sorted({cell["head"] for cell in cells if cell["head"] % LANES})
    lanes = f" Heads of {', '.join(map(str, padded))} take the lanes of a multiple of {LANES}." if padded else ""
    dtypes = ", ".join(sorted({cell["dtype"] for cell in cells}))
    return [
        result_tables.Heading(f"Attention as the compiler for TPU {chip} schedules it"),
        f"Forward and backward unless stated otherwise, {dtypes}. Nothing ran. A bundle is a cycle if nothing stalls, so those "
        "of a tile bound its time from below. Kernels differ in the sizes of their tiles. MiB: temporaries of the program; "
        f"of what XLA compiles alone, only they are shown.{lanes}",
        Table(head, rows, words=5),
        notes,
    ]
