"""Recipes: functions that return a whole run. The docstring of each gives command, hardware, time and the number to expect.

A recipe's name on the command line is its function's, with hyphens; the modules of this folder are listed, nothing is registered.
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
    """Every recipe by name."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                found[name.replace("_", "-")] = function
    return found


def begun(name: str, init: str) -> Run:
    """The run of a recipe that is to begin from `init`; a recipe that takes its numbers from there is given it.

    Raises:
        BadInput: no such recipe, or nothing it could begin from.
    """
    recipe = find(name)
    return recipe(init) if inspect.signature(recipe).parameters else recipe()


def find(name: str) -> Callable[..., Run]:
    """The recipe of a name.

    Raises:
        BadInput: there is none; names the nearest.
    """
    known = recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise BadInput(f"no recipe is called {name!r}; the nearest is {near!r} (all: {', '.join(sorted(known))})")
    return known[name]
