"""`zoo bench step`: measure models one after the other, write each cell as soon as it is measured, then show all of them.

Several repeats are measured by fresh processes, one after the other, each of which measures every cell once.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.core import bench_command
from benchmarks.core.guarded_trials import Group, Watch
from benchmarks.step import measure_model, page, peers, tables
from benchmarks.step.cases import Case
from benchmarks.step.options import Settings
from benchmarks.step.programs import Step
from benchmarks.step.settings import cases, key, peer_key, resolved, unit, variants
from zoo.errors import require

BENCHMARK = bench_command.Benchmark("step", "Steps", tables.blocks, page.render, tables.one_line)


def main(requested: Settings, argv: Sequence[str]) -> int:
    """Run the command: see `bench_command.run_benchmark`.

    Raises:
        BadInput: see `settings.resolved` and `bench_command.run_benchmark`; a mesh or a batch that does not fit the devices.
    """
    devices = requested.devices
    require(devices >= 0, "devices", devices, "choose the number of CPU devices to simulate, or 0 for the real ones")
    setup = bench_command.start(requested.repeats, devices, peers=requested.peers)
    settings = resolved(requested, setup.machine["backend"])
    todo = cases(settings)
    if setup.alone:
        _check(todo, settings)
    measurement = bench_command.Measurement(
        settings=settings,
        groups=functools.partial(_groups, todo, settings),
        dtypes=settings.precision,
        unit=unit(settings),
        repeats=settings.repeats,
    )
    return bench_command.run_benchmark(BENCHMARK, setup, measurement, argv)


def _check(todo: Sequence[Case], settings: Settings) -> None:
    """Refuse, before anything is measured, a mesh without enough devices or one that does not divide the model.

    What only some variants refuse is recorded in their cells.
    """
    for case in todo:
        for variant in variants(settings):
            if variant.mesh != "data=1":
                Step(case, dataclasses.replace(variant, attention="auto"))


def _groups(todo: Sequence[Case], settings: Settings, environment: Mapping[str, Any]) -> list[Group]:
    def measure(case: Case, keys: Sequence[dict[str, Any]], watch: Watch) -> Iterator[dict[str, Any]]:
        # All of a model, because its cells are compared with each other.
        return measure_model.measure(case, variants(settings), settings, environment, watch)

    return [Group(f"{case.size} {case.mode}", _keys(case, settings), functools.partial(measure, case)) for case in todo]


def _keys(case: Case, settings: Settings) -> list[dict[str, Any]]:
    """Return the keys of all cells of a model."""
    keys = [key(case, variant, settings) for variant in variants(settings)]
    return keys + [peer_key(case, name, precision, settings) for name, precision in peers.requested_peers(settings)]
