"""`zoo bench step`: measure models one after the other, write their cells as soon as they are known, then show all of them.

Several repeats are done by fresh processes, one after the other, each of which measures everything once more.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.core import result_files, runner
from benchmarks.core.guarded import Watch
from benchmarks.core.progress import Progress
from benchmarks.core.result_files import Writer
from benchmarks.step import model_runner, page, peers, tables
from benchmarks.step.cases import Case
from benchmarks.step.programs import Step
from benchmarks.step.settings import Settings, cases, key, peer_key, resolved, unit, variants
from zoo.errors import require

VIEWS = runner.Views(markdown=tables.markdown, csv=tables.csv, page=page.render, terminal=tables.show)


def main(requested: Settings, request: runner.Request, *, devices: int = 0) -> int:
    """The command: see `command.perform`.

    Args:
        devices: CPU devices to simulate; 0 = the real ones.

    Raises:
        BadInput: see `step_settings` and `command.perform`; a mesh or a batch that does not fit the devices.
    """
    require(devices >= 0, "devices", devices, "choose the number of CPU devices to simulate, or 0 for the real ones")
    begun = runner.start(requested.repeats, devices, peers=requested.peers)
    settings = resolved(requested, begun.machine["backend"])
    todo = cases(settings)
    if begun.alone:
        _check(todo, settings)
    measure = functools.partial(_measure, todo, settings)
    return runner.perform(begun, "step", measure, VIEWS, request, repeats=settings.repeats)


def _check(todo: Sequence[Case], settings: Settings) -> None:
    """Refuse, before anything is measured, what no cell could do: a mesh that there are no devices for or that does not divide
    the model. What only some ways of computing refuse is said in their cells."""
    for case in todo:
        for variant in variants(settings):
            if variant.mesh != "data=1":
                Step(case, dataclasses.replace(variant, attention="auto"))


def _measure(todo: Sequence[Case], settings: Settings, folder: Path, process: int, resume: bool) -> None:
    environment = result_files.environment(settings.precision)
    # Peers on torch take as many threads as there are cores, whatever this says.
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
                # Those of a group that was written in part are there already.
                if result_files.identity(cell["key"]) in missing:
                    writer.write({"process": process, **cell, **_machine_columns(environment)})
                    written.append(cell)
            progress.done(float(len(keys)), tables.in_a_line(written))
    finally:
        writer.close()
        progress.close()


def _keys(case: Case, settings: Settings) -> list[dict[str, Any]]:
    """Of all cells of a model."""
    keys = [key(case, variant, settings) for variant in variants(settings)]
    return keys + [peer_key(case, name, precision, settings) for name, precision in peers.asked(settings)]


def _machine_columns(environment: dict[str, Any]) -> dict[str, Any]:
    """What the process that measured a cell found the machine able to do."""
    return {"load": environment["load"], "clock_mhz": environment["clock_mhz"]}
