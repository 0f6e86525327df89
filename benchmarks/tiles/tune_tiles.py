"""`zoo bench attention --tune`: measure sizes of tiles on the device at hand, and store the fastest for later commands.

`--tune --compiled v5e` needs no device: it orders the sizes by what the compiler makes of them and the rates of `tile_model`, and
stores nothing.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.attention import compiled_kernels, problems, sweep_rows
from benchmarks.attention.problems import Problem
from benchmarks.attention.sweep_rows import SweepRow
from benchmarks.core import bench_command, device_time, guarded_trials, result_tables, timing
from benchmarks.core.options import AttentionOptions
from benchmarks.plan import target_devices
from benchmarks.tiles import tile_model
from benchmarks.tiles.tile_model import TimedTile
from eval.pages.html_page import Table
from train.run.progress_display import PieceProgress
from train.run.run_dir import write_json
from zoo.attention import attention, kernel_check
from zoo.errors import BadInput
from zoo.file_access import read_regular_text
from zoo.ops import tile_sizes
from zoo.ops.tile_sizes import KernelCall, Sizes
from zoo.runtime import caches, stdio
from zoo.sharding import target_device_kind, target_platform

UNUSED = ("quick", "repeats", "seconds", "cell_seconds", "peers", "direction")
"""Options that have no meaning here."""
MARGIN = 0.97
"""Largest time, relative to that of the table's sizes, with which others take their place: less is noise."""
CHIPS = {
    "v4": ("TPU v5p", 1, 2 * 1050),
    "v5e": ("TPU v5p", 2, 1500),
    "v5p": ("TPU v5p", 1, 2 * 1750),
    "v6e": ("TPU v6e", 1, 1750),
    "tpu7x": ("TPU7x", 1, 2200),
}
"""TPU -> the device whose rates it has, how many times as large they are, and the cycles of a device in a microsecond.

A device of v4 and v5p has two cores, which share a grid, and one of v5e has one. The clock follows from the published rate of
matrix products and the size and number of matrix units."""
RATES = Path(__file__).with_name("rates.json")


def _splash(forward: int, backward: int) -> Sizes:
    compute = 256 if forward > 1024 else 512
    sizes = {"queries": forward, "keys": forward, "compute": compute}
    return sizes | {"backward_queries": backward, "backward_keys": backward, "backward_compute": 512}


CANDIDATES: dict[str, Sequence[Sizes]] = {
    "blocked": [{"queries": q, "keys": k} for q in (128, 256, 512, 1024) for k in (512, 1024, 2048)],
    "flash_gpu": [{"block": size} for size in (32, 64, 128)],
    "flash_tpu": [{"block": size} for size in (256, 512, 1024)],
    "splash": [_splash(*sizes) for sizes in ((512, 512), (1024, 512), (1024, 1024), (2048, 1024), (2048, 2048))],
}


class TriedSizes(NamedTuple):
    """Sizes of tiles that were tried for a call."""

    sizes: Sizes
    seconds: float
    """NaN if they do not work."""
    reason: str = ""
    """Reason why they do not work; "": they do."""


def main(options: AttentionOptions, argv: Sequence[str]) -> int:
    """Measure and store, or order by the compiler; the exit code is 1 if a kernel has no sizes that work.

    Raises:
        BadInput: an option that has no meaning here, an unknown name, or no implementation whose tiles can be tuned.
    """
    for name in UNUSED:
        if getattr(options, name) != getattr(AttentionOptions, name):
            raise BadInput(f"--{name.replace('_', '-')} with --tune: it has no meaning there; leave one of them out")
    if options.output.out or options.output.resume:
        raise BadInput("--tune with --out or --resume: what is measured is stored in the cache folder; leave them out")
    for name in options.impl:
        if name not in CANDIDATES:
            raise BadInput(f"--impl {name} with --tune: its tiles have no sizes to choose; choose from {', '.join(CANDIDATES)}")
    if not options.compiled:
        return _measure_and_store(options)
    platform = "gpu" if options.compiled in target_devices.GPUS else "tpu"
    kernels = _kernels_of(platform, options.impl or CANDIDATES)
    if not kernels:
        raise BadInput(
            f"--compiled {options.compiled} with --impl {' '.join(options.impl)}: no kernel of them is for a {platform}"
        )
    return compiled_kernels.report_compilation(
        dataclasses.replace(options, tune=False, impl=kernels), _candidates_for, _ranking_blocks
    )


def _kernels_of(platform: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the implementations that are written for a platform; `blocked` is tuned on a CPU alone."""
    own = {"cpu": ("blocked",)}.get(platform, tuple(name for name in CANDIDATES if name != "blocked"))
    return tuple(name for name in names if name in own and platform in attention.IMPLEMENTATIONS[name].platforms)


def _candidates_for(kernel: str, row: SweepRow) -> list[Sizes]:
    """Return the candidates that are not larger than the lengths of a row."""
    longest = max(row.shape.queries, row.shape.keys)
    return [sizes for sizes in CANDIDATES[kernel] if max(sizes.values()) <= longest]


# --- on a device ----------------------------------------------------------------------------------------------------------------


def _measure_and_store(requested: AttentionOptions) -> int:
    options = sweep_rows.resolve_sweep_options(requested, bench_command.prepare_measurement()["backend"])
    platform, kind = target_platform(), target_device_kind()
    kernels = _kernels_of(platform, requested.impl or CANDIDATES)
    if not kernels:
        raise BadInput(
            f"--impl {' '.join(requested.impl)}: this is {platform}, on which no kernel of them is tuned; leave it out"
        )
    path = tile_sizes.stored_path(kind, platform)
    caches.private_folder(path.parent)
    todo = [(name, row) for name in kernels for row in sweep_rows.sweep_rows(options)]
    progress, lines, reasons, code = PieceProgress(float(len(todo))), [], [], 0
    for name, row in todo:
        progress.begin(f"{name}: {row}")
        problem = problems.Problem.of(problems.FEATURES[row.feature], row.shape, row.dtype)
        requests = problem.requests()
        if reason := next(filter(None, (attention.unsupported_reason(name, request) for request in requests)), None):
            reasons.append(f"{row}, {name}: {reason}")
            continue
        calls = [request.kernel_call(name) for request in requests]
        tried = time_sizes(problem, name, [tile_sizes.table_sizes(calls[0], kind), *_candidates_for(name, row)], options)
        chosen = choose_sizes(tried)
        if chosen is None:
            code = 1
        else:
            store_sizes(path, kind, platform, calls, chosen)
        for one in tried:
            note = "failed" if one.reason else "chosen" * (one.sizes == chosen)
            lines.append([str(row), name, _text(one.sizes), "" if one.reason else f"{1e3 * one.seconds:.3f}", note])
            if one.reason:
                reasons.append(f"{row}, {name}, {_text(one.sizes)}: {one.reason}")
    progress.close()
    if options.output.json:
        for line in lines:
            print(json.dumps(dict(zip(HEAD, line, strict=True))))
    else:
        note = f"{path}: used from now on by processes that run alone; delete it to go back to the table"
        result_tables.print_blocks([_names(kernels), Table(HEAD, lines, words=3, notes=1), reasons, note])
    return code


HEAD = ("call", "kernel", "tiles", "ms", "note")


def time_sizes(problem: Problem, kernel: str, candidates: Sequence[Sizes], options: AttentionOptions) -> list[TriedSizes]:
    """Time both passes of a kernel with several sizes of tiles, in the same rounds; sizes that give an equal program once.

    Args:
        candidates: the first are the present ones, with whose results those of the others are compared.
    """
    function, arguments = problem.program(kernel, "both")
    programs: dict[str, timing.Program] = {}
    reasons: dict[str, str] = {}
    first: Any = None
    texts: set[str] = set()
    for number, sizes in enumerate(candidates):
        try:
            with tile_sizes.forced_sizes(kernel, sizes):
                # Of the same function JAX would return what it has traced with other sizes.
                lowered = jax.jit(lambda *xs: function(*xs)).lower(*arguments)
            if (text := lowered.as_text()) in texts:
                continue
            texts.add(text)
            compiled = lowered.compile()
            results = jax.device_get(compiled(*arguments))
        except Exception as error:
            reasons[str(number)] = guarded_trials.error_in_one_line(error)
            continue
        first = results if first is None else first
        if not (error := _largest_difference(results, first)) <= kernel_check.TOLERANCE:  # a NaN compares False
            reasons[str(number)] = f"WRONG: its results differ by {error:.2g} of the largest entry"
            continue
        programs[str(number)] = lambda compiled=compiled: jax.block_until_ready(compiled(*arguments))
    for program in programs.values():
        timing.warm_up(program)
    budget = (options.budget or 0.0) * len(programs)
    times = {
        name: float(np.median(x))
        for name, x in timing.time_within_budget(programs, rounds=options.rounds or 0, budget=budget).items()
    }
    times |= device_time.device_seconds(programs)
    return [
        TriedSizes(sizes, times.get(str(number), math.nan), reasons.get(str(number), ""))
        for number, sizes in enumerate(candidates)
        if str(number) in times or str(number) in reasons
    ]


def _largest_difference(results: Any, expected: Any) -> float:
    """Return the largest difference of two trees of arrays, each relative to the largest entry of the expected array."""
    pairs = zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True)
    arrays = ([np.asarray(array, np.float32) for array in pair] for pair in pairs)
    return float(np.max([np.abs(one - other).max() / max(np.abs(other).max(), 1e-6) for one, other in arrays]))


def choose_sizes(tried: Sequence[TriedSizes]) -> Sizes | None:
    """Return the fastest sizes, or the first ones if no others are clearly faster; None if none works."""
    working = [one for one in tried if not one.reason]
    if not working:
        return None
    fastest = min(working, key=lambda one: one.seconds)
    is_clear = tried[0].reason or fastest.seconds < MARGIN * tried[0].seconds
    return fastest.sizes if is_clear else tried[0].sizes


def store_sizes(path: Path, kind: str, platform: str, calls: Sequence[KernelCall], sizes: Sizes) -> None:
    """Store sizes for calls on a device, in place of what is stored for equal calls or by other versions."""
    try:
        stored = tile_sizes.read_tuning(path)
    except BadInput as error:
        stdio.write_error(f"{error}: it is written again")
        stored = None
    versions, new = tile_sizes.compiler_versions(platform), [dataclasses.asdict(call) for call in calls]
    rows = stored["rows"] if stored and stored["versions"] == versions else []
    others = [row for row in rows if {name: value for name, value in row.items() if name != "sizes"} not in new]
    write_json(path, {"device": kind, "versions": versions, "rows": [*others, *({**call, "sizes": dict(sizes)} for call in new)]})
    tile_sizes.usable_rows.cache_clear()


def _text(sizes: Sizes) -> str:
    return " x ".join(map(str, sizes.values()))


def _names(kernels: Iterable[str]) -> str:
    """Explain the numbers of `_text`."""
    names = (f"{kernel}: {' x '.join(CANDIDATES[kernel][0]).replace('_', ' ')}" for kernel in dict.fromkeys(kernels))
    return f"Tiles of {'; of '.join(names)}."


# --- by the compiler ------------------------------------------------------------------------------------------------------------


def predicted_time(cell: Mapping[str, Any], chip: str) -> float:
    """Return the microseconds of both passes of a compiled cell, for comparisons of sizes; infinite if a GPU's kernel spills.

    A tile of a TPU takes its bundles. What the grid and the memory add is by the rates of the model, on a GPU everything.
    """
    sizes, kernel, causal = cell["sizes"], cell["implementation"], cell["feature"] not in ("full", "t5")
    shape = tuple(cell[name] for name in ("batch", "queries", "keys", "heads", "groups", "head"))
    rates = json.loads(read_regular_text(RATES))

    def row(direction: str, tile: tuple[int, ...]) -> TimedTile:
        return TimedTile(
            device="",
            kernel=kernel,
            direction=direction,
            shape=shape,
            tile=tile,
            micros=1.0,
            causal=causal,
            has_bias=cell["feature"] == "t5",
        )

    if kernel == "flash_gpu":
        if any(one["spilled"] for one in cell["kernels"]):
            return math.inf
        tile = (sizes["block"], sizes["block"], 4)
        return sum(
            tile_model.predicted_micros(rates[f"NVIDIA H100 flash_gpu {direction}"], row(direction, tile), tile)
            for direction in ("forward", "vjp")
        )
    device, times, cycles = CHIPS[chip]
    of_grid, total = rates[f"{device} splash forward"], 0.0
    for one in cell["kernels"]:
        prefix = "" if "fwd" in one["name"] else "backward_"
        block = sizes.get("block")
        tile = (block, block, block) if block else tuple(sizes[prefix + name] for name in ("queries", "keys", "compute"))
        counts = tile_model.splash_counts(row("forward", tile), tile)
        tiles = counts["scores"] * 1e6 / (tile[0] * tile[1])
        added = sum(of_grid[name] * counts[name] for name in ("grid steps", "numbers read"))
        total += tiles * one["bundles"] / cycles + times * added
    return total


def _ranking_blocks(target: target_devices.Target, cells: list[dict[str, Any]]) -> list[result_tables.Block]:
    """Return a table for all calls, with the candidates in the order of their predicted times."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = collections.defaultdict(list)
    for cell in cells:
        row = f"{cell['feature']} {cell['batch']} x {cell['queries']} {cell['head']} {cell['dtype']}"
        groups[row, cell["implementation"]].append(cell)
    lines, reasons = [], []
    for (row, kernel), of_call in groups.items():
        # What an implementation refuses, it refuses with all sizes.
        of_call = of_call if of_call[0]["state"] != "refused" else of_call[:1]
        times = [predicted_time(cell, target.chip) if cell["state"] == "compiled" else math.inf for cell in of_call]
        for time, cell in sorted(zip(times, of_call, strict=True), key=lambda pair: pair[0]):
            note = "spills registers" if math.isinf(time) else f"{cell['compile_seconds']:.0f} s to compile"
            if reason := cell.get("reason"):
                note = cell["state"]
                reasons.append(f"{row}, {kernel}, {_text(cell['sizes'])}: {note}: {reason}")
            lines.append([row, kernel, _text(cell["sizes"]), "" if math.isinf(time) else f"{time / min(times):.2f}", note])
    return [
        result_tables.Heading(f"Tiles in the order of their predicted times on {target.kind}"),
        "Nothing ran, and nothing is stored. Predicted by the bundles of the compiler and a model of grid and traffic that was "
        "fitted to published times; on a GPU by the model alone. " + _names(cell["implementation"] for cell in cells),
        Table(("call", "kernel", "tiles", "of the first", "note"), lines, words=3, notes=1),
        reasons,
    ]
