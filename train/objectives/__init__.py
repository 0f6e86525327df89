"""Training objectives, one file each: rows are built on the host, and the loss is computed on the device.

An objective is a module with

- `DATA`: "text", "labelled" for labelled examples, or "pairs" for source and target texts;
- `builder(run, tokenizer, counts) -> build`: returns the function that converts a row to arrays on the host; `counts()` returns
  the number of occurrences of each id in the training data;
- for text, `plan(tokens, run, tokenizer)` and `scored(tokens, run, tokenizer, stride)`: return the rows for training and scoring;
- `weights(batch)`: returns the divisor of each term of the loss;
- `loss(model, params, batch, frozen, *, seeds, carry, smoothing, chunk) -> (terms, carry)`: returns weighted sums.

An objective that needs more, such as a teacher, has `bind(run, mesh)`, which returns an object with the same `weights` and `loss`
and with any of these: `frozen`, arrays that the loss reads and that are not trained; `begin(model, params)`, which returns the
initial parameters; `flops(model, batch)`, the FLOPs of a step. It also has `sketch(run, mesh)`, which returns the same object
with shapes and shardings instead of arrays and reads no weights, and `named(run)`, which returns the teacher's configuration.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from jax.sharding import Mesh

from train.config.run_config import Run
from zoo.batch import Batch
from zoo.models import Model


def objectives() -> list[str]:
    """Return the names of the objectives: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def objective(name: str) -> ModuleType:
    """Return the module of an objective.

    Raises:
        ModuleNotFoundError: no file has this name.
    """
    return importlib.import_module(f"{__name__}.{name}")


def bind(run: Run, mesh: Mesh) -> Any:
    """Return the objective of a run, ready for a training step."""
    module = objective(run.objective)
    return module.bind(run, mesh) if hasattr(module, "bind") else module


def sketch(run: Run, mesh: Mesh) -> Any:
    """Return the objective of a run without arrays, for a step that is compiled but not run."""
    module = objective(run.objective)
    return module.sketch(run, mesh) if hasattr(module, "sketch") else bind(run, mesh)


def named(run: Run) -> Any:
    """Return the configuration of another model that the step of a run needs, such as a teacher; None if there is none.

    Raises:
        BadInput: the other model does not exist.
    """
    module = objective(run.objective)
    return module.named(run) if hasattr(module, "named") else None


def frozen(objective: Any) -> Any:
    """Return the arrays that the loss reads and that are not trained, sharded over the run's mesh."""
    return getattr(objective, "frozen", {})


def begin(objective: Any, model: Model, params: Any) -> Any:
    """Return the initial parameters of a run; `params` are those from `--init`, or None."""
    return objective.begin(model, params) if hasattr(objective, "begin") else params


def flops(objective: Any, model: Model, batch: Batch) -> float:
    """Return the matrix-product FLOPs of a training step; the backward pass has two products for each one of the forward pass."""
    return objective.flops(model, batch) if hasattr(objective, "flops") else 3 * model.flops(batch)
