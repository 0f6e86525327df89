"""`zoo bench attention --compiled v5e`: what the compiler makes of every implementation, for a device that need not be present.

Nothing runs and nothing is timed. For a TPU the table has the bundles of each kernel's tile and how full the fullest slots are,
for a GPU the registers, spills and shared memory of each kernel and how many of its programs a multiprocessor holds, and for both
the memory of temporaries, all as the compiler states them.
"""

import collections
import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks.attention import gpu_kernels, problems, sweep_rows, tpu_schedule
from benchmarks.attention.problems import Problem
from benchmarks.core import result_tables
from benchmarks.core.memory import planned_memory
from benchmarks.core.options import AttentionOptions
from benchmarks.core.timing import without_compilation_cache
from benchmarks.plan import target_devices
from eval.pages.html_page import Table
from train.run.progress_display import PieceProgress
from zoo.attention import attention
from zoo.errors import BadInput, install_advice, require
from zoo.ops import tile_sizes

LANES = 128
"""Numbers in a row of a TPU's vector register."""
TIMED = ("rounds", "budget", "repeats", "seconds", "cell_seconds", "quick", "peers")
"""Options of measurements, which have no meaning here."""
WRITTEN = ("out", "resume")
"""Options of the folder of results, which this command does not write."""


COMPILERS: Mapping[str, ModuleType] = {"tpu": tpu_schedule, "gpu": gpu_kernels}
"""Platform -> the module that reads its compiler. `VARIABLE` and `FLAGS` make the compiler write its programs to a folder,
`take_kernels` returns the kernels of the program that was compiled last, and `TITLE`, `NOTE`, `HEAD` and `columns` show them."""


SizesOf = Callable[[str, sweep_rows.SweepRow], Sequence[tile_sizes.Sizes | None]]
"""(implementation, row) -> the sizes of tiles with which it is compiled; None: those that it has."""


def report_compilation(
    options: AttentionOptions,
    sizes_of: SizesOf = lambda *_: [None],
    blocks_of: Callable[[target_devices.Target, list[dict[str, Any]]], list[result_tables.Block]] | None = None,
) -> int:
    """Compile, print the table, and return 1 if a program does not compile with the sizes of tiles that it has.

    Args:
        sizes_of: the sizes of tiles with which each implementation is compiled.
        blocks_of: (target, cells) -> what is printed; None: the table of kernels.

    Raises:
        BadInput: an unknown device, the compiler is not installed, an option of measurements, or an unknown name.
    """
    chip = options.compiled
    names = [*target_devices.TPUS, *target_devices.GPUS]
    require(chip in names, "compiled", chip, f"choose a TPU or GPU: {', '.join(names)}")
    for name in TIMED:
        if getattr(options, name) != getattr(AttentionOptions, name):
            raise BadInput(f"--{name.replace('_', '-')} with --compiled: nothing is timed; leave one of them out")
    for name in WRITTEN:
        if getattr(options.output, name):
            raise BadInput(f"--{name} with --compiled: it writes no folder; leave it out, and redirect the output of --json")
    size = "1"
    if chip in target_devices.TPUS:
        # The compiler knows slices of at least one host of four chips; a program for one of them is compiled.
        size = next(size for size in target_devices.TPUS[chip].slices if size.startswith("2x2"))
    target = target_devices.parse_target(f"{chip}:{size}")
    if reason := target_devices.unavailable_reason(target.platform):
        raise BadInput(f"--compiled {chip}: {reason}")
    if target.platform == "gpu":
        gpu_kernels.find_ptxas()
    with tempfile.TemporaryDirectory() as folder:
        write_programs(COMPILERS[target.platform], Path(folder))
        target_devices.prepare_target(target)
        progress = PieceProgress(1.0)
        cells = []
        for cell in _cells(options, target, Path(folder), progress, sizes_of):
            cells.append(cell)
            if options.output.json:
                print(json.dumps(cell), flush=True)
        progress.close()
    if not options.output.json:
        result_tables.print_blocks((blocks_of or _blocks)(target, cells))
    return int(any(cell["state"] == "failed" and "sizes" not in cell for cell in cells))


def write_programs(compiler: ModuleType, folder: Path) -> None:
    """Make a compiler write its programs to a folder; call this before JAX starts."""
    flags = f"{os.environ.get(compiler.VARIABLE, '')} {compiler.FLAGS.format(folder=folder)}"
    os.environ[compiler.VARIABLE] = flags.strip()


def _cells(
    options: AttentionOptions, target: target_devices.Target, folder: Path, progress: PieceProgress, sizes_of: SizesOf
) -> Iterator[dict[str, Any]]:
    """Compile each implementation for each row and yield what the compiler says of it."""
    complete = sweep_rows.resolve_sweep_options(options, target.platform)
    implementations = options.impl or tuple(
        name for name, row in attention.IMPLEMENTATIONS.items() if row.platforms == {target.platform} or name == sweep_rows.UNIT
    )
    device = target_devices.devices_of_target(target)[0]
    mesh = Mesh(np.array([device]), ("data",), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, PartitionSpec())
    for row in sweep_rows.sweep_rows(complete):
        problem = Problem.of(problems.FEATURES[row.feature], row.shape, row.dtype)
        for name in implementations:
            for sizes in sizes_of(name, row):
                progress.begin(f"{name}: {row}")
                forced = contextlib.nullcontext() if sizes is None else tile_sizes.forced_sizes(name, sizes)
                with forced, jax.set_mesh(mesh), target_devices.simulate_target(target), without_compilation_cache():
                    cell = _compile(problem, name, row.direction, replicated, target, folder)
                yield {**row.key(name), **({} if sizes is None else {"sizes": dict(sizes)}), **cell}


def _compile(
    problem: Problem, name: str, direction: str, sharding: Any, target: target_devices.Target, folder: Path
) -> dict[str, Any]:
    """Return the state of a cell: compiled with its kernels and temporaries, refused or failed with the reason."""
    for request in problem.requests():
        if reason := attention.unsupported_reason(name, request):
            return {"state": "refused", "reason": reason}
    function, arguments = problem.program(name, direction)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)
    compiler, began = COMPILERS[target.platform], time.monotonic()
    try:
        traced = jax.jit(function).trace(*shapes)
        lowered = traced.lower(lowering_platforms=(target.lowering,))
        compiled = lowered.compile()
    except RuntimeError as error:  # of the compiler, or of JAX if it does not find a library
        compiler.take_kernels(folder, "", target.chip)
        return _failure(str(error))
    seconds, temporaries = time.monotonic() - began, planned_memory(compiled)["memory_temporaries"]
    grids = dict(_grids(traced.jaxpr.jaxpr))
    kernels = [
        {**kernel._asdict(), "grid": grids.get(kernel.name, [])}
        for kernel in compiler.take_kernels(folder, lowered.as_text(), target.chip)
    ]
    return {"state": "compiled", "kernels": kernels, "temporaries": temporaries, "compile_seconds": round(seconds, 1)}


def _failure(message: str) -> dict[str, str]:
    """Return the state of a program that did not compile, and the reason in one line."""
    if "cuDNN not found" in message:
        return {"state": "refused", "reason": f"it needs cuDNN: {install_advice('cuda13')}"}
    reason = message.splitlines()[0][:200]
    if "VmemOom" in message:
        kernel = re.search(r"%(\w+)", message)
        name = kernel[1] if kernel else "a kernel"
        reason = f"the tiles of {name} do not fit the vector memory; choose shorter rows or smaller heads"
    return {"state": "failed", "reason": reason}


def _grids(jaxpr: Any) -> Iterator[tuple[str, list[int]]]:
    """Yield (name, grid) of each Pallas kernel of a program; 0: a size of the grid that is computed when the kernel starts."""
    for line in jaxpr.eqns:
        if line.primitive.name == "pallas_call":
            grid = line.params["grid_mapping"].grid
            yield line.params["name"], [size if isinstance(size, int) else 0 for size in grid]
            continue
        for value in jax.tree.leaves(list(line.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _grids(inner)


def _blocks(target: target_devices.Target, cells: list[dict[str, Any]]) -> list[result_tables.Block]:
    """Return the explanation, and a table for each shape: a line for each implementation, and below it one for each kernel."""
    compiler = COMPILERS[target.platform]
    head = ["feature", "kernel", "grid", *compiler.HEAD, "MiB", "s"]
    tables: dict[str, list[list[str]]] = {}
    for cell in cells:
        if cell["state"] != "compiled":
            continue
        rows = tables.setdefault(_shape_text(cell), [])
        memory, seconds = f"{cell['temporaries'] / 2**20:,.0f}", f"{cell['compile_seconds']:.0f}"
        rows.append([cell["feature"], cell["implementation"], *[""] * (1 + len(compiler.HEAD)), memory, seconds])
        for kernel in cell["kernels"]:
            grid = " x ".join(str(size or "?") for size in kernel["grid"])
            rows.append([cell["feature"], f"  {kernel['name']}", grid, *compiler.columns(kernel), "", ""])
    lanes = ""
    if target.platform == "tpu" and (padded := sorted({cell["head"] for cell in cells if cell["head"] % LANES})):
        lanes = f" Heads of {', '.join(map(str, padded))} take the lanes of a multiple of {LANES}."
    return [
        result_tables.Heading(compiler.TITLE.format(target.kind)),
        f"Nothing ran. {compiler.NOTE} A kernel runs once for each point of its grid. MiB: temporaries of the program; of an "
        f"implementation without kernels of Pallas, only they are shown. s: seconds of the compiler on this machine.{lanes}",
        *(block for shape, rows in tables.items() for block in (f"{shape}:", Table(head, rows, words=2))),
        _notes(cells),
    ]


def _notes(cells: list[dict[str, Any]]) -> list[str]:
    """Return why cells were not compiled: a note for each implementation, reason and shape; the shape if there are several."""
    is_one_shape, features = len({_shape_text(cell) for cell in cells}) == 1, collections.defaultdict(list)
    for cell in cells:
        if cell["state"] != "compiled":
            shape = "" if is_one_shape else f" of {_shape_text(cell)}"
            features[cell["implementation"], shape, cell["state"], cell["reason"]].append(cell["feature"])
    return [f"{name}, {', '.join(of)}{shape}: {state}: {reason}" for (name, shape, state, reason), of in features.items()]


def _shape_text(cell: Mapping[str, Any]) -> str:
    """Return the shape, pass and dtype of a cell in words."""
    tokens = f"{cell['queries']:,} tokens"
    if cell["keys"] != cell["queries"]:
        tokens = f"{cell['queries']:,} queries and {cell['keys']:,} keys"
    groups = f" ({cell['groups']} for keys and values)" if cell["groups"] != cell["heads"] else ""
    direction = "forward" if cell["direction"] == "forward" else "forward and backward"
    return f"{cell['batch']} x {tokens}, {cell['heads']} heads of {cell['head']}{groups}, {cell['dtype']}, {direction}"
