"""What a model is trained to predict, one file each: `build` makes a row on the host, `loss` scores it on the device."""

import importlib
import pkgutil
from types import ModuleType


def objectives() -> list[str]:
    """Names of the objectives, found by listing this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def objective(name: str) -> ModuleType:
    """The module of an objective: `build(rng, row, length)` on the host, `weights(batch)` and `loss(...)` on the device.

    Raises:
        ModuleNotFoundError: no file has this name.
    """
    return importlib.import_module(f"{__name__}.{name}")
