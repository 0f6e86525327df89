"""The options by which a recipe gives a run, and the command that trains it again, from its configuration."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.python_functions import option_words
from zoo.errors import BadInput
from zoo.hf import hub

if TYPE_CHECKING:
    from train.config.run_config import Run

OBJECTIVE = "objective"
OF_DATA = ("model.labels", "model.multi_label")
"""Options that the data decide."""
HEADER = ("family", "model.exported", "log")
"""Keys of `flat_options` that are no options, or change nothing of a model."""


def options_beside_recipe(run: "Run", recipe: str, *, init: str, objective: str) -> dict[str, Any]:
    """Return the options, by dotted name, that change what a recipe gives into a run; the objective comes first.

    Args:
        init: the weights from which the recipe takes its defaults.
        objective: the objective whose defaults the other options are compared with.

    Raises:
        BadInput: there is no such recipe, its weights cannot be read, or it cannot have this objective.
    """
    from train import recipes
    from train.config.find_objective import with_objective
    from train.run.run_identity import flat_options

    default = recipes.recipe_run(recipe, init)
    options: dict[str, Any] = {} if default.objective == objective else {OBJECTIVE: str(objective)}
    # A recipe that takes the size of its model from other weights has their name in its defaults.
    before = flat_options(with_objective(default, objective)) | {"init": ""}
    changed = {key: value for key, value in flat_options(run).items() if key not in before or before[key] != value}
    return options | {key: value for key, value in changed.items() if key != OBJECTIVE}


def train_command(run: "Run") -> list[str]:
    """Return the words of a `zoo train` command that gives a run its options, except those of where it is saved and reported.

    Nothing is imported that the configuration alone names, and nothing is fetched.

    Returns:
        The words from "zoo" on; none if no command of this version gives them: the recipe is one of a plug-in, or it or the model
        that the run begins with is not here, or has other defaults than those that options can change.
    """
    from train import recipes
    from zoo.cli.commands.train import parse_options

    if run.recipe not in recipes.recipes() or (recipes.takes_weights(run.recipe) and not _is_here(run.init)):
        return []
    with contextlib.suppress(BadInput, SystemExit):
        options = options_beside_recipe(run, run.recipe, init=run.init, objective=run.objective)
        words = option_words({key: value for key, value in options.items() if key == OBJECTIVE or _decides_parameters(key)})
        if _options(parse_options(run.recipe, list(words))) == _options(run):
            return ["zoo", "train", run.recipe, *words]
    return []


def _is_here(source: str) -> bool:
    """Return whether a model can be read without a download."""
    with contextlib.suppress(BadInput):
        return hub.find_cached(source) is not None if source.startswith(hub.PREFIX) else Path(source).is_dir()
    return False


def _options(run: "Run") -> dict[str, Any]:
    """Return the options of a run that decide its parameters, to the last digit."""
    from train.run.run_identity import flat_options

    return {key: value for key, value in flat_options(run).items() if _decides_parameters(key)}


def _decides_parameters(key: str) -> bool:
    from train.run.run_identity import is_repeated, may_change

    names = (*OF_DATA, *HEADER, OBJECTIVE)
    return (is_repeated(key) or not may_change(key)) and not any(key == name or key.startswith(f"{name}.") for name in names)
