"""`zoo bench attention`: sweep, write each cell as soon as it is measured, then show all of them.

Several repeats are measured by fresh processes, one after the other, each of which measures every cell once.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.attention import measure_row, page, tables, torch_peer
from benchmarks.attention.settings import UNIT, Row, Settings, resolved, rows
from benchmarks.core import bench_command, result_files
from benchmarks.core.progress import Progress
from benchmarks.core.result_files import Writer
from benchmarks.core.trials import Watch

VIEWS = bench_command.Views(markdown=tables.markdown, csv=tables.csv, page=page.render, terminal=tables.show)


def main(requested: Settings, request: bench_command.Request, *, quick: bool) -> int:
    """Run the command: see `bench_command.run_benchmark`.

    Raises:
        BadInput: see `settings.resolved` and `bench_command.run_benchmark`.
    """
    setup = bench_command.start(requested.repeats, peers=requested.peers)
    settings = resolved(requested, setup.machine["backend"], quick=quick)
    todo = rows(settings)
    measure = functools.partial(_sweep, todo, settings, time.monotonic())
    return bench_command.run_benchmark(setup, "attention", measure, VIEWS, request, repeats=settings.repeats)


def _sweep(todo: Sequence[Row], settings: Settings, began: float, folder: Path, process: int, resume: bool) -> None:
    """Measure the missing rows, until `settings.seconds` after the time `began` are over."""
    environment = result_files.environment(settings.dtype)
    # `seconds` does not change a cell, and a larger value completes rows that were left out.
    options = {name: value for name, value in dataclasses.asdict(settings).items() if name != "seconds"}
    writer = Writer(folder / result_files.CELLS, "attention", environment, options, resume, {"implementation": UNIT})
    names = (*settings.impl, *(torch_peer.NAMES if settings.peers else ()))
    missing = {row: [name for name in names if not writer.has(row.key(name), process)] for row in todo}
    weights = {row: _weight(row) * len(lacking) for row, lacking in missing.items() if lacking}
    progress = Progress(sum(weights.values(), 0.0))
    watch = Watch(progress.doing, writer, process)
    left_out: list[Row] = []
    try:
        for number, row in enumerate(weights if settings.seconds is None else sorted(weights, key=_each_feature_first)):
            # The limit is checked only between rows, so that rounds are never cut short; the first row is always measured.
            if settings.seconds and number and time.monotonic() - began > settings.seconds:
                left_out.append(row)
                continue
            progress.begin(str(row))
            cells = measure_row.measure(row, missing[row], settings, environment, watch)
            for cell in cells:
                writer.write({"process": process, **cell, **_machine_columns(environment, row)})
            progress.done(weights[row], tables.one_line(cells))
    finally:
        writer.close()
        progress.close()
    if left_out:
        names = ", ".join(map(str, left_out))
        print(f"left out, after the {settings.seconds:g} s of --seconds: {names}; --resume measures them", file=sys.stderr)


def _each_feature_first(row: Row) -> tuple[Any, ...]:
    """Return the sort key of rows if the last may be left out: short rows of all features and directions come first."""
    return row.dtype, row.shape.queries, row.direction != "forward"


def _weight(row: Row) -> float:
    """Return about how long a cell takes, in arbitrary units: compiling, checking and several rounds, longer for more pairs."""
    shape = row.shape
    return (
        1.0 + shape.batch * shape.heads * shape.head * shape.queries * shape.keys * (1 + 2.5 * (row.direction == "both")) / 1e10
    )


def _machine_columns(environment: dict[str, Any], row: Row) -> dict[str, Any]:
    """Return the columns that describe the machine, as the process that measured a cell found it."""
    return {
        "matrix_rate": environment["matrix_rate"][row.dtype],
        "copy_rate": environment["copy_rate"],
        "load": environment["load"],
        "clock_mhz": environment["clock_mhz"],
    }
