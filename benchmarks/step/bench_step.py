"""`zoo bench step`: measure models one after the other, write each cell as soon as it is measured, then show all of them."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.core import bench_command
from benchmarks.core.guarded_trials import Group, Watch
from benchmarks.step import measure_model, peer_libraries, step_report
from benchmarks.step.cases import Case
from benchmarks.step.programs import Step
from benchmarks.step.step_options import Options
from benchmarks.step.step_variants import cases, key, peer_key, resolve_options, unit, variants
from zoo.errors import require

BENCHMARK = bench_command.Benchmark("step", "Steps", step_report.report, step_report.one_line)


def main(requested: Options, argv: Sequence[str]) -> int:
    """Run the command: see `bench_command.run_benchmark`.

    Raises:
        BadInput: see `step_variants.resolve_options` and `bench_command.run_benchmark`; also for a mesh or a batch that does
            not fit the devices.
    """
    devices = requested.devices
    require(devices >= 0, "devices", devices, "choose the number of CPU devices to simulate, or 0 for the real ones")
    setup = bench_command.start(requested.repeats, devices, peers=requested.peers)
    options = resolve_options(requested, setup.machine["backend"])
    todo = cases(options)
    if setup.alone:
        _check(todo, options)
    measurement = bench_command.Measurement(
        options=options,
        groups=functools.partial(_groups, todo, options),
        dtypes=options.precision,
        unit=unit(options),
        repeats=options.repeats,
    )
    return bench_command.run_benchmark(BENCHMARK, setup, measurement, argv)


def _check(todo: Sequence[Case], options: Options) -> None:
    """Refuse, before anything is measured, a mesh without enough devices or one that does not divide the model.

    What only some variants refuse is recorded in their cells.
    """
    for case in todo:
        for variant in variants(options):
            if variant.mesh != "data=1":
                Step(case, dataclasses.replace(variant, attention="auto"))


def _groups(todo: Sequence[Case], options: Options, environment: Mapping[str, Any]) -> list[Group]:
    def measure(case: Case, keys: Sequence[dict[str, Any]], watch: Watch) -> Iterator[dict[str, Any]]:
        # All of a model, because its cells are compared with each other.
        return measure_model.measure(case, variants(options), options, environment, watch)

    groups = []
    for case in todo:
        keys = [key(case, variant, options) for variant in variants(options)]
        keys += [peer_key(case, name, precision, options) for name, precision in peer_libraries.requested_peers(options)]
        groups.append(Group(f"{case.size} {case.mode}", keys, functools.partial(measure, case)))
    return groups
