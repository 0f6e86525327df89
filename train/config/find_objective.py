"""Objectives by their names: the classes of their options, those of plug-ins included. Nothing here imports JAX."""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from train.config.declaration import ObjectiveOptions, adapt_options
from train.config.objectives import (
    OPTIONS,
    CausalOptions,
    DenoisingOptions,
    MaskedOptions,
    PermutationOptions,
    TextToTextOptions,
)
from train.config.option_groups import Labelled
from train.config.run_config import Run, TrainingMachine
from zoo import plugins
from zoo.configs import Objective
from zoo.errors import require
from zoo.plugins import Plugin

EXTENDED = (CausalOptions, MaskedOptions, PermutationOptions, DenoisingOptions, TextToTextOptions)
"""Declarations of the zoo that a plug-in may extend; not those of labelled data, whose readers are tables by objective."""
METHODS = ("builder", "bind", "weights", "loss", "flops")
HEADER = {"family", "objective", "plugins"}
RESERVED = {field.name for kind in (Run, TrainingMachine) for field in dataclasses.fields(kind)} | HEADER
"""Names in config.json or on the command line that no option of an objective may have."""


def find_options(objective: Any) -> type[ObjectiveOptions]:
    """Return the class of an objective's options; an objective of a plug-in is imported.

    Raises:
        BadInput: there is no such objective, or the plug-in's cannot be used.
    """
    plugins.check_name("zoo.objectives", objective, get_args(Objective), "objective")
    if objective in OPTIONS:
        return OPTIONS[objective]
    return find_objective(objective).OPTIONS


def with_objective(run: Run, objective: str) -> Run:
    """Return a run with another objective; the options that both objectives have keep their values.

    Raises:
        BadInput: there is no such objective.
    """
    kind = find_options(objective)
    return dataclasses.replace(run, options=adapt_options(run.options, kind), data=adapt_options(run.data, kind.data))


def from_labelled(objective: str, labelled: Labelled) -> Any:
    """Return the options of an objective, with the reading options `labelled`, which were parsed before it was known.

    Raises:
        BadInput: a reading option is set that the objective does not use.
    """
    options: Any = find_options(objective)()
    used = adapt_options(labelled, type(options.labelled))
    for name, value in _chosen(labelled).items():
        require(name in vars(used), f"labelled.{name}", value, f"it has no effect on {objective}; remove it")
    return dataclasses.replace(options, labelled=used)


def with_labelled(own: ObjectiveOptions | None, objective: str, labelled: Labelled) -> Any:
    """Return the options of an objective: a run's own ones, or the defaults, with what `labelled` chooses in their place.

    Raises:
        BadInput: see `from_labelled`; or the two contradict each other.
    """
    options = from_labelled(objective, labelled)
    if own is None:
        return options
    options = adapt_options(own, type(options))
    return dataclasses.replace(options, labelled=dataclasses.replace(options.labelled, **_chosen(labelled)))


def _chosen(labelled: Labelled) -> dict[str, Any]:
    """Return the reading options that are named on the command line, or differ from their defaults."""
    fields = {field.name: field.default for field in dataclasses.fields(labelled) if field.name != "named"}
    values = {name: getattr(labelled, name) for name in fields}
    return {name: value for name, value in values.items() if name in labelled.named or value != fields[name]}


def find_objective(name: str) -> Any:
    """Return the class of an objective that a plug-in provides.

    Raises:
        BadInput: two distributions provide it, or it cannot be used.
    """
    plugin = plugins.find_plugin("zoo.objectives", name, get_args(Objective))
    assert plugin is not None, f"{name} is not an objective of a plug-in"
    return load_objective(plugin)


def load_objective(plugin: Plugin) -> Any:
    """Return the class of the objective that a plug-in provides.

    Raises:
        BadInput: it cannot be imported, or is not a valid objective.
    """
    expected = (
        "a subclass of `train.objectives.base.Objective` with FAMILIES (the models it trains) and OPTIONS (a dataclass derived "
        f"from the options of {', '.join(kind.objective for kind in EXTENDED)}, whose objective is {plugin.name!r} and whose "
        "fields are not those of a run)"
    )
    return plugins.load_plugin(plugin, expected, lambda value: _is_objective(plugin, value))


def _is_objective(plugin: Plugin, value: Any) -> bool:
    # The base class imports JAX, so its methods identify a subclass.
    is_subclass = isinstance(value, type) and not inspect.isabstract(value) and plugins.has_attributes(value, *METHODS)
    options = getattr(value, "OPTIONS", None)
    return (
        is_subclass
        and isinstance(options, type)
        and issubclass(options, ObjectiveOptions)
        and "__dataclass_params__" in vars(options)
        and (base := next((own for own in options.__mro__ if own in OPTIONS.values()), None)) in EXTENDED
        and issubclass(options.data, base.data)
        and plugin.name == options.objective
        and isinstance(getattr(value, "FAMILIES", None), tuple | list)
        and not {field.name for field in dataclasses.fields(options)} & RESERVED
    )


def objectives_with_option(option: str) -> list[str]:
    """Return the objectives that have an option of the command line, such as "masking.rate" or "data.pack"."""
    return [name for name, kind in OPTIONS.items() if option in {*_option_names(kind, ""), *_option_names(kind.data, "data.")}]


def _option_names(kind: Any, prefix: str) -> Iterator[str]:
    for field in dataclasses.fields(kind):
        group = get_type_hints(kind)[field.name]
        if dataclasses.is_dataclass(group):
            yield from _option_names(group, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"
