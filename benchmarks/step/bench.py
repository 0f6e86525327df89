"""`zoo bench step`: measure models one after the other, write each cell as soon as it is measured, then show all of them.

Several repeats are measured by fresh processes, one after the other, each of which measures every cell once.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.core import bench_command, result_files
from benchmarks.core.progress import Progress
from benchmarks.core.result_files import Writer
from benchmarks.core.trials import Watch
from benchmarks.step import model_runner, page, peers, tables
from benchmarks.step.cases import Case
from benchmarks.step.programs import Step
from benchmarks.step.settings import Settings, cases, key, peer_key, resolved, unit, variants
from zoo.errors import require

VIEWS = bench_command.Views(markdown=tables.markdown, csv=tables.csv, page=page.render, terminal=tables.show)


def main(requested: Settings, request: bench_command.Request, *, devices: int = 0) -> int:
    """Run the command: see `bench_command.run_benchmark`.

    Args:
        devices: CPU devices to simulate; 0 = the real ones.

    Raises:
        BadInput: see `settings.resolved` and `bench_command.run_benchmark`; a mesh or a batch that does not fit the devices.
    """
    require(devices >= 0, "devices", devices, "choose the number of CPU devices to simulate, or 0 for the real ones")
    setup = bench_command.start(requested.repeats, devices, peers=requested.peers)
    settings = resolved(requested, setup.machine["backend"])
    todo = cases(settings)
    if setup.alone:
        _check(todo, settings)
    measure = functools.partial(_measure, todo, settings)
    return bench_command.run_benchmark(setup, "step", measure, VIEWS, request, repeats=settings.repeats)


def _check(todo: Sequence[Case], settings: Settings) -> None:
    """Refuse, before anything is measured, a mesh without enough devices or one that does not divide the model.

    What only some variants refuse is recorded in their cells.
    """
    for case in todo:
        for variant in variants(settings):
            if variant.mesh != "data=1":
                Step(case, dataclasses.replace(variant, attention="auto"))


def _measure(todo: Sequence[Case], settings: Settings, folder: Path, process: int, resume: bool) -> None:
    environment = result_files.environment(settings.precision)
    # Peers on torch use as many threads as there are cores, whatever OMP_NUM_THREADS says.
    environment["threads"] = f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')}, torch {os.cpu_count()}"
    options = dataclasses.asdict(settings)
    writer = Writer(folder / result_files.CELLS, "step", environment, options, resume, unit(settings))
    ways = variants(settings)
    lacking = {case: [cell_key for cell_key in _keys(case, settings) if not writer.has(cell_key, process)] for case in todo}
    left = {case: keys for case, keys in lacking.items() if keys}
    progress = Progress(float(sum(map(len, left.values()))))
    watch = Watch(progress.doing, writer, process)
    try:
        for case, keys in left.items():
            progress.begin(f"{case.size} {case.mode}")
            missing = {result_files.identity(cell_key) for cell_key in keys}
            written = []
            for cell in model_runner.measure(case, ways, settings, environment, watch):
                # Cells of a partly measured model may be in the file already.
                if result_files.identity(cell["key"]) in missing:
                    writer.write({"process": process, **cell, **_machine_columns(environment)})
                    written.append(cell)
            progress.done(float(len(keys)), tables.one_line(written))
    finally:
        writer.close()
        progress.close()


def _keys(case: Case, settings: Settings) -> list[dict[str, Any]]:
    """Return the keys of all cells of a model."""
    keys = [key(case, variant, settings) for variant in variants(settings)]
    return keys + [peer_key(case, name, precision, settings) for name, precision in peers.requested_peers(settings)]


def _machine_columns(environment: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that describe the machine, as the process that measured a cell found it."""
    return {"load": environment["load"], "clock_mhz": environment["clock_mhz"]}
