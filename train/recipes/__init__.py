"""Recipes: functions that return the complete configuration of a run.

The docstring of each gives the command, the hardware, the time and the result to expect. The name of a recipe on the command line
is that of its function, with hyphens. Recipes are found by listing the modules of this folder; another distribution adds one
by an entry point in `zoo.recipes`.
"""

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from train.config.run_config import Run
from zoo import plugins
from zoo.errors import BadInput

DEFAULT = "gpt-nano"


def recipes() -> dict[str, Callable[..., Run]]:
    """Return the zoo's own recipes by name."""
    by_name = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                by_name[name.replace("_", "-")] = function
    return by_name


def is_recipe(name: str) -> bool:
    """Return whether there is a recipe with a name, which is not imported if it is a plug-in's."""
    return name in recipes() or name in plugins.plugin_names("zoo.recipes")


def recipe_run(name: str, init: str) -> Run:
    """Return the run of a recipe; a recipe with a parameter gets `init`, to take the size of the model from it.

    Raises:
        BadInput: no such recipe, or no such `init`.
    """
    return find_recipe(name)(*([init] if takes_weights(name) else []))


def takes_weights(name: str) -> bool:
    """Return whether the runs of a recipe begin with the parameters of another model.

    Raises:
        BadInput: no such recipe.
    """
    return bool(inspect.signature(find_recipe(name)).parameters)


def find_recipe(name: str) -> Callable[..., Run]:
    """Return the recipe with a name.

    Raises:
        BadInput: there is none (the nearest name is given), two distributions have it, or that of a plug-in cannot be used.
    """
    by_name = recipes()
    if (plugin := plugins.find_plugin("zoo.recipes", name, by_name)) is not None:
        return _plugin_recipe(plugin)
    if name not in by_name:
        near = difflib.get_close_matches(name, [*by_name, *plugins.plugin_names("zoo.recipes")], n=1, cutoff=0.0)[0]
        choices = ", ".join([*sorted(by_name), *plugins.described_plugins("zoo.recipes")])
        raise BadInput(f"no recipe is called {name!r}; the nearest is {near!r} (all: {choices})")
    return by_name[name]


def _plugin_recipe(plugin: plugins.Plugin) -> Callable[..., Run]:
    """Return the recipe function of a plug-in, wrapped to raise BadInput unless it returns a run of the plug-in's name."""
    function = plugins.load_plugin(plugin, "a function without parameters, or with the one parameter `init`", _is_recipe)

    @functools.wraps(function)
    def recipe(*init: str) -> Run:
        run = function(*init)
        if not isinstance(run, Run) or run.recipe != plugin.name:
            fix = f"a recipe returns a `train.config.run_config.Run` with recipe={plugin.name!r}"
            raise BadInput(f"{plugin.title}: returned {str(run)[:60]!r}; {fix}; report it to {plugin.distribution}")
        return run

    return recipe


def _is_recipe(value: Any) -> bool:
    return inspect.isfunction(value) and list(inspect.signature(value).parameters) in ([], ["init"])
