"""Models and variants (ways of computing a step) that `zoo bench step` measures side by side, as its options request."""

import dataclasses
import itertools
from typing import Any, get_args

from benchmarks.core import bench_command
from benchmarks.core.options import StepOptions
from benchmarks.step.cases import Case, case
from benchmarks.step.programs import Variant
from zoo import plugins
from zoo.configs import Implementation
from zoo.errors import BadInput

OURS = "jax-zoo"
"""Name of our own programs in tables with peers."""
WAYS = tuple(field.name for field in dataclasses.fields(Variant))
"""Options of a variant, in the order of its name."""
BUDGET = 20.0
"""Default number of seconds in which rounds of each program are timed."""


def resolve_options(options: StepOptions, backend: str) -> StepOptions:
    """Return the options with all omitted fields filled in for a machine.

    Raises:
        BadInput: an unknown name, a number that is too small, or options that exclude each other; see `cases`.
    """
    if not options.models:
        raise BadInput("zoo bench step: name a model, such as gpt2; zoo models lists them")
    for name in options.attention:
        plugins.check_name("zoo.attention", name, get_args(Implementation), "attention")
    for name in WAYS:
        if not getattr(options, name) and name != "precision":
            raise BadInput(f"--{name}: has no value; name one or more, or leave the option out")
    bench_command.check_numbers(options, "batch", "length", "source_length", "rounds", "budget", "cell_seconds", "repeats")
    precision = options.precision or (("float32",) if backend == "cpu" else ("bfloat16",))
    budget = None if options.rounds else options.budget or BUDGET
    complete = dataclasses.replace(options, precision=precision, budget=budget)
    cases(complete)
    return complete


def cases(options: StepOptions) -> list[Case]:
    """Return the models at their shapes, without duplicates.

    Raises:
        BadInput: see `benchmarks.step.cases.case`.
    """
    shape = {"batch": options.batch, "length": options.length, "source": options.source_length}
    sizes = {name: value or 0 for name, value in shape.items()}
    models = [case(name, options.mode, dropout=options.dropout, **sizes) for name in options.models]
    return list(dict.fromkeys(models))


def variants(options: StepOptions) -> list[Variant]:
    """Return all requested ways of computing; the first one is the unit of ratios."""
    values = [getattr(options, name) for name in WAYS]
    return list(dict.fromkeys(Variant(**dict(zip(WAYS, chosen, strict=True))) for chosen in itertools.product(*values)))


def key(case: Case, variant: Variant, options: StepOptions) -> dict[str, Any]:
    """Return the key of a cell of ours."""
    return {**_of(case, options), "program": OURS, **dataclasses.asdict(variant)}


def peer_key(case: Case, name: str, precision: str, options: StepOptions) -> dict[str, Any]:
    """Return the key of a cell of a peer, which has its own way of computing."""
    variant = Variant(precision=precision, layers="", attention="")
    return {**_of(case, options), "program": name, **dataclasses.asdict(variant)}


def unit(options: StepOptions) -> dict[str, Any]:
    """Return the axes of the cell of each model that is the unit of its ratios."""
    return {"program": OURS, **dataclasses.asdict(variants(options)[0])}


def _of(case: Case, options: StepOptions) -> dict[str, Any]:
    shape = {"model": case.size, "mode": case.mode, "batch": case.batch, "length": case.length, "source": case.source}
    return {**shape, "dropout": options.dropout}
