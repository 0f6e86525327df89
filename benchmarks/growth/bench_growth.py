"""`zoo bench growth`: how time, memory and compilation of a small model's step grow with length, layers, width and devices.

Along each axis everything else stays fixed. Values of an axis are timed in the same rounds; each number of devices has its own
process, and the same batch is split over its devices. Simulated devices share the cores of this machine: they show the cost of
splitting, not a speed-up.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.core import bench_command, timing
from benchmarks.core.guarded_trials import Group, Trial, Watch, repeat_without_failures, run_guarded
from benchmarks.core.memory import planned_memory
from benchmarks.core.options import GrowthOptions, fill_options, recorded_options
from benchmarks.core.result_files import cell_identity
from benchmarks.core.worker_process import call_in_process
from benchmarks.growth import growth_report
from benchmarks.step import programs
from benchmarks.step.cases import Case, make_case
from benchmarks.step.programs import Step, Variant
from zoo.errors import require
from zoo.runtime import jax_setup

DEFAULTS = {
    "full": GrowthOptions(
        batch=8,
        length=(64, 128, 256, 512, 1024),
        layers=(2, 4, 8, 16, 32),
        width=(64, 128, 256, 512),
        device_counts=(1, 2, 4, 8),
        rounds=9,
    ),
    "quick": GrowthOptions(
        batch=4, length=(64, 256, 1024), layers=(2, 8, 32), width=(64, 128, 256), device_counts=(1, 2, 4), rounds=5
    ),
}
BASE = {"length": 64, "layers": 2, "width": 64, "devices": 1}
"""Values of the axes that do not grow."""
HEAD = 32
"""Size of a head; a wider model has more heads."""


def resolve_growth_options(options: GrowthOptions, backend: str) -> GrowthOptions:
    """Return the options with all omitted fields filled in, alike for every machine.

    Raises:
        BadInput: an unknown model, numbers below 1, or a single value of an axis.
    """
    default = DEFAULTS["quick" if options.quick else "full"]
    filled = fill_options(options, default, vars(options))
    bench_command.check_numbers(options, "batch", "rounds")
    for name in ("length", "layers", "width", "device_counts"):
        values, listed = filled[name], " ".join(map(str, filled[name]))
        require(all(value > 0 for value in values), name, listed, "choose numbers of 1 or more")
        require(len(set(values)) > 1, name, listed, "growth needs two different values or more")
        filled[name] = tuple(sorted(set(values)))
    for width in filled["width"]:
        require(width % HEAD == 0, "width", width, f"choose multiples of {HEAD}, the size of a head")
    for count in filled["device_counts"]:
        require(filled["batch"] % count == 0, "device-counts", count, f"it does not divide the {filled['batch']} rows of --batch")
    complete = GrowthOptions(**filled)
    _case(complete, "length", BASE["length"])
    return complete


def _case(options: GrowthOptions, axis: str, value: int) -> Case:
    """Return the model with one axis at a value and the others at their base."""
    numbers = {**BASE, axis: value}
    base = make_case(options.model, "train", batch=options.batch or 0)
    fields = {field.name for field in dataclasses.fields(base.config)}
    width = numbers["width"]
    changes = {
        **{name: numbers["layers"] for name in ("layers", "decoder_layers")},
        **{"width": width, "heads": width // HEAD, "head": HEAD, "ffn": 4 * width, "context": max(numbers["length"], 2)},
    }
    cfg = dataclasses.replace(base.config, **{name: size for name, size in changes.items() if name in fields})
    length = numbers["length"]
    return dataclasses.replace(base, config=cfg, length=length, source=length if base.source else 0)


def _groups(options: GrowthOptions, environment: Mapping[str, Any]) -> list[Group]:
    groups = []
    for axis in growth_report.UNITS:
        values, measure = (options.device_counts, _devices) if axis == "devices" else (getattr(options, axis), _axis)
        keys = [{"model": options.model, "batch": options.batch, "axis": axis, "value": value} for value in values]
        groups.append(Group(f"growth with {axis}", keys, functools.partial(measure, options)))
    return groups


def _axis(options: GrowthOptions, keys: Sequence[dict[str, Any]], watch: Watch) -> list[dict[str, Any]]:
    """Return the cells of an axis, timed in the same rounds; a program that fails is removed and the others continue."""
    trials = [Trial(key) for key in keys]
    for trial in trials:
        value = trial.key["value"]
        prepare = functools.partial(_warm, case=_case(options, trial.key["axis"], value), variant=Variant())
        run_guarded(trial, prepare, watch, f"{value}: compiling")
    watch.begin("timing", *(trial.key for trial in trials if trial.program is not None))
    seconds = repeat_without_failures(trials, functools.partial(timing.time_within_budget, rounds=options.rounds or 0)) or {}
    for trial in trials:
        if (place := cell_identity(trial.key)) in seconds:
            trial.columns |= timing.time_columns(seconds[place])
            trial.end("timed")
    return [trial.cell() for trial in trials]


def _devices(options: GrowthOptions, keys: Sequence[dict[str, Any]], watch: Watch) -> list[dict[str, Any]]:
    """Return the cells of the axis of devices, each measured in a separate process."""

    def measure(trial: Trial) -> None:
        # Devices are simulated on the CPU, so the process uses no other platform.
        count = trial.key["value"]
        trial.columns |= call_in_process(measure_device_count, recorded_options(options), count, env={"JAX_PLATFORMS": "cpu"})
        trial.end("timed")

    trials = [Trial(key) for key in keys]
    for trial in trials:
        run_guarded(trial, measure, watch, f"{trial.key['value']} devices")
    return [trial.cell() for trial in trials]


def _warm(trial: Trial, case: Case, variant: Variant) -> None:
    """Compile a step and call it until it is warm."""
    step = Step(case, variant)
    spent = step.compile()
    step.start(programs.case_params(case))
    began = time.perf_counter()
    loss = step.run()
    first = time.perf_counter() - began
    timing.warm_up(step.run)
    memory = planned_memory(step.compiled)["memory"] * step.mesh.size
    trial.columns |= {**spent, "first_step_seconds": sum(spent.values()) + first, "memory": memory, "loss": loss}
    trial.program = step.run


def measure_device_count(fields: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return the columns of a number of devices, in a process with that many."""
    jax_setup.prepare_jax(count)
    restored: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    options = GrowthOptions(**restored)
    trial = Trial({})
    _warm(trial, _case(options, "devices", count), Variant(mesh=f"data={count}"))
    assert trial.program is not None
    seconds = timing.time_within_budget({"": trial.program}, rounds=options.rounds or 0)[""]
    return trial.columns | timing.time_columns(seconds)


BENCHMARK = bench_command.Benchmark(
    "growth", "How cost grows", resolve_growth_options, _groups, growth_report.growth_report, growth_report.growth_cells_text
)
main = BENCHMARK.main
