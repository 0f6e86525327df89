"""Recipes: functions that return the complete configuration of a run.

The docstring of each gives the command, the hardware, the time and the result to expect. The name of a recipe on the command line
is that of its function, with hyphens. Recipes are found by listing the modules of this folder.
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable

from train.config.run_config import Run
from zoo.errors import BadInput

DEFAULT = "gpt-nano"


def recipes() -> dict[str, Callable[..., Run]]:
    """Return all recipes by name."""
    by_name = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                by_name[name.replace("_", "-")] = function
    return by_name


def recipe_run(name: str, init: str) -> Run:
    """Return the run of a recipe; a recipe with a parameter gets `init`, to take the size of the model from it.

    Raises:
        BadInput: no such recipe, or no such `init`.
    """
    recipe = find_recipe(name)
    return recipe(init) if inspect.signature(recipe).parameters else recipe()


def find_recipe(name: str) -> Callable[..., Run]:
    """Return the recipe with a name.

    Raises:
        BadInput: there is none; the message gives the nearest name.
    """
    by_name = recipes()
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.0)[0]
        raise BadInput(f"no recipe is called {name!r}; the nearest is {near!r} (all: {', '.join(sorted(by_name))})")
    return by_name[name]
