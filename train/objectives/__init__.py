"""Training objectives, one file each: rows become arrays on the host, and the loss is computed on the device.

An objective is a subclass of `train.objectives.base.Objective`, which documents its methods, and is named by `OBJECTIVE` in its
file; those of learning from feedback are in the folder `feedback`. Importing this package imports none of them; `objective`
imports a module when its objective is named. Other distributions add objectives by entry points in `zoo.objectives` (see
`docs/extending.md`).
"""

import importlib
import pkgutil

from train.config.find_objective import load_objective
from train.config.run_config import Run
from train.objectives.base import Objective
from zoo import configs, models, plugins
from zoo.errors import require

BASES = ("base", "student", "response_student", "embedding")
"""Modules of base classes."""


def objectives() -> list[str]:
    """Return the names of the zoo's own objectives: the modules of this folder and of `feedback`, apart from base classes."""
    return sorted(_modules())


def objective(name: str) -> type[Objective]:
    """Return the class of an objective.

    Raises:
        ModuleNotFoundError: no file and no plug-in has this name.
        BadInput: two distributions have an objective of this name, or the plug-in cannot be used.
    """
    plugin = plugins.find_plugin("zoo.objectives", name, objectives())
    if plugin is not None:
        return load_objective(plugin)
    return importlib.import_module(_modules().get(name, f"{__name__}.{name}")).OBJECTIVE


def check_run(run: Run) -> None:
    """Refuse a run whose configuration alone shows that its objective cannot train its model with its options.

    Raises:
        BadInput: the family does not support the objective, its loss has no use for `z_loss`, an objective of a plug-in ignores
            the teacher, or an error of the declaration's `check_run`.
    """
    supported = supported_objectives(run)
    fix = f"{configs.family_of(run.model)} is trained with {', '.join(supported)}; choose the recipe of another family"
    require(run.objective in supported, "objective", run.objective, fix)
    run.options.check_run(run)
    fix = f"the loss of {run.objective} has no log-normalizer over the vocabulary; leave it out"
    require(not run.z_loss or objective(run.objective).has_normalizer(), "z_loss", run.z_loss, fix)
    fix = "it is a part of the loss of the tokens, whose weight --distillation.targets is 0; leave it out"
    targets = getattr(getattr(run.options, "distillation", None), "targets", 1.0)
    require(not run.z_loss or targets > 0, "z_loss", run.z_loss, fix)
    fix = f"{run.objective} computes its loss without one; leave it out"
    has_use = not run.teacher or objective(run.objective).learns_from_teacher()
    require(has_use, "distillation.teacher", run.teacher, fix)


def supported_objectives(run: Run) -> tuple[str, ...]:
    """Return the objectives that the family of a run supports, and the run's own if it is a plug-in for this family."""
    family = configs.family_of(run.model)
    supported = tuple(models.family(family).objectives)
    plugin = plugins.find_plugin("zoo.objectives", run.objective, objectives())
    extends = plugin is not None and run.objective not in supported and family in load_objective(plugin).FAMILIES
    return (*supported, run.objective) if extends else supported


def _modules() -> dict[str, str]:
    """Return the module of each of the zoo's own objectives by its name."""
    folders = {f"{__name__}.": __path__, f"{__name__}.feedback.": [f"{path}/feedback" for path in __path__]}
    modules = [info for prefix, paths in folders.items() for info in pkgutil.iter_modules(paths, prefix) if not info.ispkg]
    return {name: info.name for info in modules if (name := info.name.rpartition(".")[2]) not in BASES}
