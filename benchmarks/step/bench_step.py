"""`zoo bench step`: measure models one after the other, write each cell as soon as it is measured, then show all of them."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from benchmarks.core import bench_command
from benchmarks.core.guarded_trials import Group, Watch
from benchmarks.core.options import StepOptions
from benchmarks.step import measure_model, peer_libraries, step_report
from benchmarks.step.cases import Case, make_case
from benchmarks.step.programs import OURS, WAYS, Step, Variant, peer_key, step_key
from zoo import plugins
from zoo.configs import Implementation
from zoo.errors import BadInput

BUDGET = 20.0
"""Default number of seconds in which rounds of each program are timed."""


def resolve_step_options(options: StepOptions, backend: str) -> StepOptions:
    """Return the options with all omitted fields filled in for a machine.

    Raises:
        BadInput: an unknown name, a number that is too small, or options that exclude each other; see `step_cases`.
    """
    if not options.models:
        raise BadInput("bench step: name a model, such as gpt2; zoo models lists them")
    for name in options.attention:
        plugins.check_name("zoo.attention", name, get_args(Implementation), "attention")
    for name in WAYS:
        if not getattr(options, name) and name != "precision":
            raise BadInput(f"--{name}: has no value; name one or more, or leave the option out")
    bench_command.check_numbers(options, "batch", "length", "source_length", "rounds", "budget", "cell_seconds", "repeats")
    precision = options.precision or (("float32",) if backend == "cpu" else ("bfloat16",))
    budget = None if options.rounds else options.budget or BUDGET
    complete = dataclasses.replace(options, precision=precision, budget=budget)
    step_cases(complete)
    return complete


def step_cases(options: StepOptions) -> list[Case]:
    """Return the models at their shapes, without duplicates.

    Raises:
        BadInput: see `benchmarks.step.cases.make_case`.
    """
    shape = {"batch": options.batch or 0, "length": options.length or 0, "source": options.source_length or 0}
    return list(dict.fromkeys(make_case(name, options.mode, dropout=options.dropout, **shape) for name in options.models))


def step_variants(options: StepOptions) -> list[Variant]:
    """Return all requested ways of computing; the first one is the unit of ratios."""
    values = [getattr(options, name) for name in WAYS]
    return list(dict.fromkeys(Variant(**dict(zip(WAYS, chosen, strict=True))) for chosen in itertools.product(*values)))


def unit_of_ratios(options: StepOptions) -> dict[str, Any]:
    """Return the axes of the cell of each model that is the unit of its ratios."""
    return {"program": OURS, **dataclasses.asdict(step_variants(options)[0])}


def _check(options: StepOptions) -> None:
    """Refuse a mesh without enough devices or one that does not divide the model.

    What only some variants refuse is recorded in their cells.
    """
    for case in step_cases(options):
        for variant in step_variants(options):
            if variant.mesh != "data=1":
                Step(case, dataclasses.replace(variant, attention="auto"))


def _groups(options: StepOptions, environment: Mapping[str, Any]) -> list[Group]:
    def measure(case: Case, keys: Sequence[dict[str, Any]], watch: Watch) -> Iterator[dict[str, Any]]:
        # All of a model, because its cells are compared with each other.
        return measure_model.measure_model(case, step_variants(options), options, environment, watch)

    groups = []
    for case in step_cases(options):
        keys = [step_key(case, variant) for variant in step_variants(options)]
        keys += [peer_key(case, *peer) for peer in peer_libraries.requested_peers(options)]
        groups.append(Group(f"{case.size} {case.mode}", keys, functools.partial(measure, case)))
    return groups


BENCHMARK = bench_command.Benchmark(
    "step",
    "Steps",
    resolve_step_options,
    _groups,
    step_report.step_report,
    step_report.step_cells_text,
    unit=unit_of_ratios,
    dtypes=lambda options: options.precision,
    check=_check,
)
main = BENCHMARK.main
