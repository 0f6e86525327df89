"""`zoo bench growth`: how time, memory and compilation of a small model's step grow with length, layers, width and devices.

Along each axis everything else stays fixed. Values of an axis are timed in the same rounds; each number of devices has its own
process, and the same batch is split over its devices. Simulated devices share the cores of this machine: they show the cost of
splitting, not a speed-up.
"""

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.core import bench_command, result_files, timing
from benchmarks.core.progress import Progress
from benchmarks.core.result_files import Writer
from benchmarks.core.trials import RepeatFailure, Watch, first_line
from benchmarks.growth import page, tables
from benchmarks.growth.tables import AXES
from benchmarks.step import programs
from benchmarks.step.cases import Case, case
from benchmarks.step.programs import Step, Variant
from zoo.errors import require
from zoo.runtime import jax_setup


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of the command; an empty or None field takes its value from `DEFAULTS`."""

    model: str = "gpt-nano"
    batch: int | None = None
    length: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()
    width: tuple[int, ...] = ()
    device_counts: tuple[int, ...] = ()
    rounds: int | None = None


DEFAULTS = {
    "full": Settings(
        batch=8,
        length=(64, 128, 256, 512, 1024),
        layers=(2, 4, 8, 16, 32),
        width=(64, 128, 256, 512),
        device_counts=(1, 2, 4, 8),
        rounds=9,
    ),
    "quick": Settings(
        batch=4, length=(64, 256, 1024), layers=(2, 8, 32), width=(64, 128, 256), device_counts=(1, 2, 4), rounds=5
    ),
}
BASE = {"length": 64, "layers": 2, "width": 64, "devices": 1}
"""Values of the axes that do not grow."""
HEAD = 32
"""Size of a head; a wider model has more heads."""


VIEWS = bench_command.Views(markdown=tables.markdown, csv=tables.csv, page=page.render, terminal=tables.show)


def main(requested: Settings, request: bench_command.Request, *, quick: bool) -> int:
    """Run the command: see `bench_command.run_benchmark`.

    Raises:
        BadInput: an unknown model, numbers below 1, fewer than two values of an axis; see `bench_command.run_benchmark`.
    """
    settings = resolved(requested, quick=quick)
    measure = functools.partial(_measure, settings)
    return bench_command.run_benchmark(bench_command.start(1), "growth", measure, VIEWS, request, repeats=1)


def resolved(settings: Settings, *, quick: bool) -> Settings:
    """Return the settings with all omitted fields filled in.

    Raises:
        BadInput: an unknown model, numbers below 1, or a single value of an axis.
    """
    default = DEFAULTS["quick" if quick else "full"]
    filled = {field.name: getattr(settings, field.name) or getattr(default, field.name) for field in dataclasses.fields(settings)}
    for name in ("batch", "rounds"):
        value = getattr(settings, name)
        require(value is None or value > 0, name, value, "must be 1 or more; choose a larger number, or leave it out")
    for name in ("length", "layers", "width", "device_counts"):
        values, listed = filled[name], " ".join(map(str, filled[name]))
        require(all(value > 0 for value in values), name, listed, "choose numbers of 1 or more")
        require(len(set(values)) > 1, name, listed, "growth needs two different values or more")
        filled[name] = tuple(sorted(set(values)))
    for width in filled["width"]:
        require(width % HEAD == 0, "width", width, f"choose multiples of {HEAD}, the size of a head")
    for count in filled["device_counts"]:
        require(filled["batch"] % count == 0, "device-counts", count, f"it does not divide the {filled['batch']} rows of --batch")
    complete = Settings(**filled)
    _case(complete, "length", BASE["length"])
    return complete


def key(settings: Settings, axis: str, value: int) -> dict[str, Any]:
    """Return the key of a cell."""
    return {"model": settings.model, "batch": settings.batch, "axis": axis, "value": value}


def _values(settings: Settings, axis: str) -> Sequence[int]:
    return getattr(settings, "device_counts" if axis == "devices" else axis)


def _case(settings: Settings, axis: str, value: int) -> Case:
    """Return the model with one axis at a value and the others at their base."""
    numbers = {**BASE, axis: value}
    base = case(settings.model, "train", batch=settings.batch or 0)
    fields = {field.name for field in dataclasses.fields(base.config)}
    width = numbers["width"]
    changes = {
        **{name: numbers["layers"] for name in ("layers", "decoder_layers")},
        **{"width": width, "heads": width // HEAD, "head": HEAD, "ffn": 4 * width, "context": max(numbers["length"], 2)},
    }
    cfg = dataclasses.replace(base.config, **{name: size for name, size in changes.items() if name in fields})
    length = numbers["length"]
    return dataclasses.replace(base, config=cfg, length=length, source=length if base.source else 0)


def _measure(settings: Settings, folder: Path, process: int, resume: bool) -> None:
    writer = Writer(folder / result_files.CELLS, "growth", result_files.environment(), dataclasses.asdict(settings), resume)
    lacking = {
        axis: [value for value in _values(settings, axis) if not writer.has(key(settings, axis, value), process)] for axis in AXES
    }
    progress = Progress(float(sum(map(len, lacking.values()))))
    watch = Watch(progress.doing, writer, process)
    try:
        for axis, values in lacking.items():
            if not values:
                continue
            progress.begin(f"growth with {axis}")
            cells = _devices(settings, values, watch) if axis == "devices" else _axis(settings, axis, values, watch)
            for value, cell in cells.items():
                writer.write({"key": key(settings, axis, value), "process": process, **cell})
            progress.done(float(len(values)), tables.one_line(cells))
    finally:
        writer.close()
        progress.close()


def _axis(settings: Settings, axis: str, values: Sequence[int], watch: Watch) -> dict[int, dict[str, Any]]:
    """Return the cells of an axis, timed in the same rounds; a program that fails is removed and the others continue."""
    steps, cells = {}, {}
    for value in values:
        watch.begin(f"{value}: compiling", key(settings, axis, value))
        try:
            steps[value], cells[value] = _warm_step(_case(settings, axis, value), Variant())
        except Exception as error:
            cells[value] = {"state": "failed", "reason": first_line(error)}
    watch.begin("timing", *(key(settings, axis, value) for value in steps))
    while steps:
        try:
            seconds = timing.measured(_programs(steps, cells), rounds=settings.rounds or 0)
        except RepeatFailure:
            continue
        return cells | {value: cells[value] | timing.columns(seconds[str(value)]) for value in steps}
    return cells


def _programs(steps: dict[int, Step], cells: dict[int, dict[str, Any]]) -> dict[str, timing.Program]:
    """Return the programs of the steps; one that fails is removed from `steps` and its reason recorded in `cells`."""

    def run(value: int) -> None:
        try:
            steps[value].run()
        except Exception as error:
            del steps[value]
            cells[value] = {"state": "failed", "reason": first_line(error)}
            raise RepeatFailure from error

    return {str(value): functools.partial(run, value) for value in steps}


def _devices(settings: Settings, counts: Sequence[int], watch: Watch) -> dict[int, dict[str, Any]]:
    """Return the cells of the axis of devices, each from a process of its own."""
    cells = {}
    for count in counts:
        watch.begin(f"{count} devices", key(settings, "devices", count))
        argv = [sys.executable, "-P", "-m", "benchmarks.growth.bench", json.dumps(dataclasses.asdict(settings)), str(count)]
        # Devices are simulated on the CPU, so the process uses no other platform.
        done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        if done.returncode:
            log_lines = [line for line in done.stderr.splitlines() if line.strip()]
            cells[count] = {"state": "failed", "reason": (log_lines or ["it printed nothing"])[-1][:300]}
            continue
        cells[count] = json.loads(done.stdout.splitlines()[-1])
    return cells


def _warm_step(case: Case, variant: Variant) -> tuple[Step, dict[str, Any]]:
    """Return a warm step, and its columns so far."""
    step = Step(case, variant)
    with timing.cold():
        spent = step.compile()
    params = programs.initial(case)
    step.start(params)
    began = time.perf_counter()
    loss = step.run()
    first = time.perf_counter() - began
    timing.warm(step.run)
    memory = step.memory.peak * step.mesh.size
    columns = {**spent, "first_step_seconds": sum(spent.values()) + first, "memory": memory, "loss": loss}
    return step, {"state": "timed", "reason": "", **columns}


def _measure_device_count(settings: Settings, count: int) -> dict[str, Any]:
    """Return the cell of a number of devices, in a process with that many."""
    jax_setup.prepare(count)
    step, columns = _warm_step(_case(settings, "devices", count), Variant(mesh=f"data={count}"))
    seconds = timing.measured({"": step.run}, rounds=settings.rounds or 0)[""]
    return columns | timing.columns(seconds)


if __name__ == "__main__":
    settings_fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(sys.argv[1]).items()
    }
    # Everything that libraries print goes to standard error; the last line of standard output is the cell.
    with contextlib.redirect_stdout(sys.stderr):
        columns = _measure_device_count(Settings(**settings_fields), int(sys.argv[2]))
    print(json.dumps(columns))
