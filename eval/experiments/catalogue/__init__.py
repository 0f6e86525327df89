"""The experiments, a module each, found by listing this folder.

A module has a function of its own name without parameters that returns the `Experiment`; an underscore ends a name that Python
reserves.
"""

import difflib
import importlib
import pkgutil

from eval.experiments.declaration import Experiment
from zoo.errors import BadInput


def names() -> list[str]:
    """Return the names of all experiments."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def find_experiment(name: str) -> Experiment:
    """Return the experiment of a name.

    Raises:
        BadInput: there is none, and the nearest is named; or its declaration is wrong.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.0)[0]
        raise BadInput(f"no experiment is called {name!r}; the nearest is {near} (all: {', '.join(names())})")
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)()
