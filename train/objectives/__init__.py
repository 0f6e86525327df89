"""What a model is trained to predict, one file each: a row is made on the host and scored on the device.

An objective is a module with

- `DATA`: "text", "labelled" for examples that somebody labelled, or "pairs" for texts and what is written for them;
- `builder(run, tokenizer, counts) -> build`: the function that makes a row arrays, on the host; `counts()` is how often each id
  occurs in the training data;
- of text, `plan(tokens, run, tokenizer)` and `scored(tokens, run, tokenizer, stride)`: its rows for training and for scoring;
- `weights(batch)`: what each term of the loss is divided by;
- `loss(model, params, batch, frozen, *, seeds, carry, smoothing, chunk) -> (terms, carry)`: their weighted sums.

One that needs more than that, such as a teacher, has `bind(run, mesh)`, which gives an object with the same `weights` and `loss`
and with whatever of this it has: `frozen`, arrays that the loss reads and nothing trains; `begin(model, params)`, the parameters
of a run's start; `flops(model, batch)`, those of a step. Beside it stands `sketch(run, mesh)`, which gives the same with shapes
and shardings in the place of arrays, and needs nothing that they would be read from; `named(run)` is what those shapes are of, if
the run only names it.
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
    """Names of the objectives, found by listing this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def objective(name: str) -> ModuleType:
    """The module of an objective.

    Raises:
        ModuleNotFoundError: no file has this name.
    """
    return importlib.import_module(f"{__name__}.{name}")


def bind(run: Run, mesh: Mesh) -> Any:
    """The objective of a run, ready for its step."""
    module = objective(run.objective)
    return module.bind(run, mesh) if hasattr(module, "bind") else module


def sketch(run: Run, mesh: Mesh) -> Any:
    """The same without any array, for a step that is compiled and not run."""
    module = objective(run.objective)
    return module.sketch(run, mesh) if hasattr(module, "sketch") else bind(run, mesh)


def named(run: Run) -> Any:
    """The configuration of what a run only names and its step depends on, such as a teacher; None: there is none.

    Raises:
        BadInput: it is not there.
    """
    module = objective(run.objective)
    return module.named(run) if hasattr(module, "named") else None


def frozen(goal: Any) -> Any:
    """Arrays that the loss reads and nothing trains, laid out over the run's mesh."""
    return getattr(goal, "frozen", {})


def begin(goal: Any, model: Model, params: Any) -> Any:
    """The parameters of a run's start, `params` being fresh or from `--init`."""
    return goal.begin(model, params) if hasattr(goal, "begin") else params


def flops(goal: Any, model: Model, batch: Batch) -> float:
    """Matrix-product FLOPs of a training step: a backward pass has two products for each one of the forward pass."""
    return goal.flops(model, batch) if hasattr(goal, "flops") else 3 * model.flops(batch)
