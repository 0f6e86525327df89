"""Sources of the numbers of a recipe: which are published, which are assumed, and which are unknown. Nothing here imports JAX."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from train.config.optim_options import USES, Optim
from train.config.run_config import Run
from zoo import configs
from zoo.configs import Size

Status = Literal["published", "assumed", "unknown"]
METHODS = ("masking", "permutation", "denoising", "distillation")
"""Groups of options of objectives with numbers of a method; the others choose memory, files or formats."""
DATA = ("length", "target_length", "batch", "ramp", "rows", "pack")
OPTIMIZER = ("name", "lr", "schedule", "warmup", "weight_decay", "decayed", "independent_decay", "rates", "clip")
"""Options of every optimizer and schedule; `USES` has the others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Sources of the numbers of a recipe's training. Those of its model are in `zoo.configs.Size`."""

    size: str
    """Name of the size that is trained."""
    source: str
    published: Mapping[str, str]
    """Place in the source -> the options whose values are there, separated by blanks."""
    is_typical: bool = True
    """True if a plan of another size of the family is made like this one: it has no batch, optimizer or phase of its own."""
    assumed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Reason -> the options whose values this project chose for it, also if a part of them is published."""

    def status_of(self, option: str) -> tuple[Status, str]:
        """Return the status of an option's value, and its place in the source or the reason."""
        tables: tuple[tuple[Status, Mapping[str, str]], ...] = (("assumed", self.assumed), ("published", self.published))
        for status, table in tables:
            for text, options in table.items():
                if option in options.split():
                    return status, text
        return "unknown", "the source does not say; a default of this project"


PROVENANCE: dict[str, Provenance] = {}
"""Name of a recipe -> its sources; filled when the modules of `train.recipes` are imported."""
Recipe = TypeVar("Recipe", bound=Callable[..., Run])


def provenance(
    size: str, source: str, *, published: Mapping[str, str], assumed: Mapping[str, str] | None = None, is_typical: bool = True
):
    """Return a decorator that records the sources of a recipe's numbers, for `zoo recipes NAME`."""

    def record(recipe: Recipe) -> Recipe:
        name = recipe.__name__.replace("_", "-")
        PROVENANCE[name] = Provenance(size=size, source=source, published=published, assumed=assumed or {}, is_typical=is_typical)
        return recipe

    return record


def recipe_numbers(run: Run, sources: Provenance) -> dict[str, Any]:
    """Return the numbers of a recipe's method by option, in the order of the command line.

    They are those of the steps, the rows, the tokenizer, the objective and the optimizer, and fields of the model whose values
    are not those of the published size. An option without a source that is off is left out.
    """
    config = configs.find_size(sources.size)[1].config
    groups = {"data": (run.data, DATA), "tokenizer": (run.tokenizer, ("kind", "vocab"))}
    for name in METHODS:
        if (options := getattr(run.options, name, None)) is not None and (name != "distillation" or run.teacher):
            unused = ("teacher", "beta") if getattr(options, "divergence", "") != "jsd" else ("teacher",)
            groups[name] = (options, tuple(field.name for field in dataclasses.fields(options) if field.name not in unused))
    groups["optim"] = (run.optim, _optimizer_options(run.optim))
    numbers: dict[str, Any] = {"steps": run.steps, "label_smoothing": run.label_smoothing, "z_loss": run.z_loss}
    numbers |= {
        f"{group}.{name}": getattr(options, name)
        for group, (options, names) in groups.items()
        for name in names
        if hasattr(options, name)
    }
    for name in Size.numbers_of(config):
        option, value = f"model.{name}", getattr(run.model, name)
        if name not in ("task", "labels") and (value != getattr(config, name) or sources.status_of(option)[0] != "unknown"):
            numbers[option] = value
    return {option: value for option, value in numbers.items() if value or sources.status_of(option)[0] != "unknown"}


def _optimizer_options(optim: Optim) -> tuple[str, ...]:
    """Return the options that a choice of optimizer and schedule has, without those of a weight decay of 0."""
    names = (*OPTIMIZER[:4], *USES.get(optim.schedule, ()), *USES.get(optim.name, ("b1", "b2", "eps")), *OPTIMIZER[4:])
    return tuple(name for name in names if name != "decayed" or optim.weight_decay)
