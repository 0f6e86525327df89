"""The plug-ins that a run uses, and the requirements on an objective from a plug-in. Nothing here imports JAX."""

import dataclasses
import inspect
from typing import Any, get_args

from train.config.objectives import OPTIONS, ObjectiveOptions, scored_as
from train.config.run_config import Run, TrainingMachine
from zoo import configs, plugins
from zoo.configs import Implementation, Objective
from zoo.plugins import Plugin

EXTENDED = ("causal", "masked", "permutation", "denoising", "text_to_text")
"""Objectives of the zoo whose options a plug-in may extend; not those of labelled data, whose readers are tables by objective."""
METHODS = ("builder", "bind", "weights", "loss", "trained_params", "flops")
HEADER = {"family", "objective", "plugins"}
RESERVED = {field.name for kind in (Run, TrainingMachine) for field in dataclasses.fields(kind)} | HEADER
"""Names in config.json or on the command line that no option of an objective may have."""


def used_plugins(run: Run) -> list[Plugin]:
    """Return the plug-ins that provide the recipe, the model, the objective and the attention implementation of a run."""
    compute = getattr(run.model, "compute", None)
    used = {
        "zoo.recipes": (run.recipe, ()),
        "zoo.models": (configs.family_of(run.model), configs.families()),
        "zoo.objectives": (run.objective, get_args(Objective)),
        "zoo.attention": (getattr(compute, "attention", "auto"), get_args(Implementation)),
    }
    return [
        plugin
        for group, (name, own) in used.items()
        for plugin in plugins.installed(group)
        if plugin.name == name and name not in own
    ]


def find_objective(name: str) -> Any:
    """Return the class of an objective that a plug-in provides.

    Raises:
        BadInput: two distributions provide it, or it cannot be used.
    """
    plugin = plugins.find("zoo.objectives", name, get_args(Objective))
    assert plugin is not None, f"{name} is not an objective of a plug-in"
    return load_objective(plugin)


def load_objective(plugin: Plugin) -> Any:
    """Return the class of the objective that a plug-in provides.

    Raises:
        BadInput: it cannot be imported, or is not a valid objective.
    """
    expected = (
        f"a subclass of `train.objectives.base.Objective` with NAME ({plugin.name!r}), FAMILIES (the models it trains), and "
        f"OPTIONS (a dataclass derived from the options of {', '.join(EXTENDED)}, whose objective is {plugin.name!r} and whose "
        "fields are not those of a run)"
    )
    return plugins.load(plugin, expected, lambda value: _is_objective(plugin, value))


def _is_objective(plugin: Plugin, value: Any) -> bool:
    # The base class imports JAX, so its methods identify a subclass.
    is_subclass = isinstance(value, type) and not inspect.isabstract(value) and plugins.has(value, *METHODS)
    options = getattr(value, "OPTIONS", None)
    return (
        is_subclass
        and isinstance(options, type)
        and issubclass(options, ObjectiveOptions)
        and "__dataclass_params__" in vars(options)
        and (base := scored_as(options)) in EXTENDED
        and issubclass(options.data, OPTIONS[base].data)
        and getattr(value, "DATA", "") == ("pairs" if base == "text_to_text" else "text")
        and plugin.name == options.objective == getattr(value, "NAME", "")
        and isinstance(getattr(value, "FAMILIES", None), tuple | list)
        and not {field.name for field in dataclasses.fields(options)} & RESERVED
    )
