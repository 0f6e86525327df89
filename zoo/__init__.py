"""Transformer models in JAX and Flax: `zoo.load`, `zoo.train` and the names below are the Python interface.

`zoo.models`, `zoo.configs`, `zoo.attention` and the other subpackages are functions of arrays for use in other programs, as
`from zoo.attention.attention import attention`; they import JAX, Flax and NumPy only. Nothing is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.batch import Batch
    from zoo.cli.python_api import LoadedModel, load
    from zoo.cli.python_functions import metrics, model, recipes, sizes, train
    from zoo.errors import BadInput
    from zoo.models import Model

__all__ = ["BadInput", "Batch", "LoadedModel", "Model", "__version__", "load", "metrics", "model", "recipes", "sizes", "train"]

_MODULES = {
    "BadInput": "zoo.errors",
    "Batch": "zoo.batch",
    "Model": "zoo.models",
    **dict.fromkeys(("LoadedModel", "load"), "zoo.cli.python_api"),
    **dict.fromkeys(("metrics", "model", "recipes", "sizes", "train"), "zoo.cli.python_functions"),
}
"""Public name -> the module that defines it."""
__version__: str


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        import importlib.metadata

        return importlib.metadata.version("transformer-zoo")
    if name not in _MODULES:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
