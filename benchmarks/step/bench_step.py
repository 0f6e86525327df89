"""`zoo bench step`: measure models one after the other, write each cell as soon as it is measured, then show all of them."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.core import bench_command
from benchmarks.core.guarded_trials import Group, Watch
from benchmarks.core.options import StepOptions
from benchmarks.step import measure_model, peer_libraries, step_report
from benchmarks.step.cases import Case
from benchmarks.step.programs import Step
from benchmarks.step.step_variants import cases, key, peer_key, resolve_options, unit, variants


def _check(options: StepOptions) -> None:
    """Refuse a mesh without enough devices or one that does not divide the model.

    What only some variants refuse is recorded in their cells.
    """
    for case in cases(options):
        for variant in variants(options):
            if variant.mesh != "data=1":
                Step(case, dataclasses.replace(variant, attention="auto"))


def _groups(options: StepOptions, environment: Mapping[str, Any]) -> list[Group]:
    def measure(case: Case, keys: Sequence[dict[str, Any]], watch: Watch) -> Iterator[dict[str, Any]]:
        # All of a model, because its cells are compared with each other.
        return measure_model.measure(case, variants(options), options, environment, watch)

    groups = []
    for case in cases(options):
        keys = [key(case, variant, options) for variant in variants(options)]
        keys += [peer_key(case, name, precision, options) for name, precision in peer_libraries.requested_peers(options)]
        groups.append(Group(f"{case.size} {case.mode}", keys, functools.partial(measure, case)))
    return groups


BENCHMARK = bench_command.Benchmark(
    "step",
    "Steps",
    resolve_options,
    _groups,
    step_report.report,
    step_report.one_line,
    unit=unit,
    dtypes=lambda options: options.precision,
    check=_check,
)
main = BENCHMARK.main
