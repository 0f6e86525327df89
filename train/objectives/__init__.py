"""Training objectives, one file each: rows become arrays on the host, and the loss is computed on the device.

An objective is a subclass of `train.objectives.base.Objective`, which documents its methods, and is named by `OBJECTIVE` in its
file. Importing this package imports none of them; `objective` imports the one that is named.
"""

import importlib
import pkgutil

from train.objectives.base import Objective


def objectives() -> list[str]:
    """Return the names of the objectives: the modules of this folder, apart from that of their base class."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def objective(name: str) -> type[Objective]:
    """Return the class of an objective.

    Raises:
        ModuleNotFoundError: no file has this name.
    """
    return importlib.import_module(f"{__name__}.{name}").OBJECTIVE
