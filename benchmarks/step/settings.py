"""Settings of `zoo bench step`: models, modes, and the ways of computing that are measured side by side."""

import dataclasses
import itertools
from typing import Any, get_args

from benchmarks.core import bench_command
from benchmarks.step.cases import Case, Mode, case
from benchmarks.step.programs import Variant
from zoo.configs import Implementation, Remat
from zoo.errors import BadInput

OURS = "jax-zoo"
"""Name of our own programs beside their peers."""
AXES = {
    "layers": ("scan", "unroll"),
    "remat": get_args(Remat),
    "precision": ("float32", "bfloat16"),
    "attention": get_args(Implementation),
}
"""Options of a variant -> their values; meshes are written as axes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of the command; an empty or None field takes the default of the model's family or of the machine."""

    models: tuple[str, ...] = ()
    mode: Mode = "train"
    batch: int | None = None
    length: int | None = None
    source_length: int | None = None
    dropout: bool = False
    layers: tuple[str, ...] = ("scan", "unroll")
    remat: tuple[str, ...] = ("none",)
    precision: tuple[str, ...] = ()
    attention: tuple[str, ...] = ("auto",)
    mesh: tuple[str, ...] = ("data=1",)
    peers: bool = False
    profile: bool = False
    rounds: int | None = None
    budget: float | None = None
    """Seconds of rounds for each program of a model, instead of a number of rounds."""
    cell_seconds: float = 60.0
    repeats: int = 1


BUDGET = 20.0
"""Default seconds of rounds for each program."""


def resolved(settings: Settings, backend: str) -> Settings:
    """Return the settings with all omitted fields filled in for a machine.

    Raises:
        BadInput: an unknown name, a number that is too small, or options that exclude each other.
    """
    if not settings.models:
        raise BadInput("zoo bench step: name a model, such as gpt2; zoo models lists them")
    for name, choices in AXES.items():
        for value in getattr(settings, name):
            bench_command.check_choice(name, value, choices)
    for name in (*AXES, "mesh"):
        if not getattr(settings, name) and name != "precision":
            raise BadInput(f"--{name}: has no value; name one or more, or leave the option out")
    bench_command.check_numbers(settings, "batch", "length", "source_length", "rounds", "budget", "cell_seconds", "repeats")
    precision = settings.precision or (("float32",) if backend == "cpu" else ("bfloat16",))
    budget = None if settings.rounds else settings.budget or BUDGET
    return dataclasses.replace(settings, precision=precision, budget=budget)


def cases(settings: Settings) -> list[Case]:
    """Return the models at their shapes, without duplicates.

    Raises:
        BadInput: see `benchmarks.step.cases.case`.
    """
    shape = {"batch": settings.batch, "length": settings.length, "source": settings.source_length}
    sizes = {name: value or 0 for name, value in shape.items()}
    models = [case(name, settings.mode, dropout=settings.dropout, **sizes) for name in settings.models]
    return list(dict.fromkeys(models))


def variants(settings: Settings) -> list[Variant]:
    """Return all requested ways of computing; the first one is the unit of ratios."""
    axes = [getattr(settings, name) for name in (*AXES, "mesh")]
    return list(dict.fromkeys(Variant(**dict(zip((*AXES, "mesh"), values, strict=True))) for values in itertools.product(*axes)))


def key(case: Case, variant: Variant, settings: Settings) -> dict[str, Any]:
    """Return the key of a cell of ours."""
    return {**_of(case, settings), "program": OURS, **dataclasses.asdict(variant)}


def peer_key(case: Case, name: str, precision: str, settings: Settings) -> dict[str, Any]:
    """Return the key of a cell of a peer, which has its own way of computing."""
    return {
        **_of(case, settings),
        "program": name,
        **dataclasses.asdict(Variant(precision=precision)),
        "layers": "",
        "attention": "",
    }


def unit(settings: Settings) -> dict[str, Any]:
    """Return the axes of the cell of each model that is the unit of its ratios."""
    return {"program": OURS, **dataclasses.asdict(variants(settings)[0])}


def _of(case: Case, settings: Settings) -> dict[str, Any]:
    shape = {"model": case.size, "mode": case.mode, "batch": case.batch, "length": case.length, "source": case.source}
    return {**shape, "dropout": settings.dropout}
