"""Names of rewards on the command line: functions, folders of reward models, and labels of classifiers. Nothing is imported."""

import math
from pathlib import Path
from typing import NamedTuple

from zoo.errors import BadInput

OPTION = "--rollout.reward"
OWN_MODULE = "train.rollouts.reward_functions"
OWN_FUNCTIONS = ("exact_match", "sentence_chrf", "sentence_gleu")
"""The reward functions of the zoo, all in `OWN_MODULE`: a run of somebody else may name these, and no other function."""


class FunctionName(NamedTuple):
    """A reward function that is not imported yet."""

    module: str
    function: str
    weight: float

    @property
    def name(self) -> str:
        """Name on the command line, without its weight."""
        return f"{self.module}:{self.function}"

    @property
    def is_own(self) -> bool:
        """True for a reward function of the zoo."""
        return self.module == OWN_MODULE and self.function in OWN_FUNCTIONS


class ModelName(NamedTuple):
    """A reward model, or a label of a classifier, that is not loaded yet."""

    folder: str
    """A run, or a folder of published weights."""
    weight: float
    label: str | None = None
    """Label whose log-probability is the reward; None: the score of a reward model is."""

    @property
    def name(self) -> str:
        """Name on the command line, without its weight."""
        return self.folder if self.label is None else f"{self.folder}:{self.label}"


def parse_reward(text: str) -> FunctionName | ModelName:
    """Return what MODULE:FUNCTION[@WEIGHT], FOLDER[@WEIGHT] or FOLDER:LABEL[@WEIGHT] names.

    A folder has precedence over a shorter one with a label.

    Raises:
        BadInput: it is neither a function nor a folder, or both, or its weight is not a number.
    """
    name, at, weight_text = (text, "", "") if Path(text).is_dir() else text.rpartition("@") if "@" in text else (text, "", "")
    module_name, colon, function_name = name.partition(":")
    is_function = bool(colon) and module_name.replace(".", "_").isidentifier() and function_name.isidentifier()
    # A Python package in the working directory is a folder too, but has no model.
    model = _model(name, needs_config=is_function)
    if is_function and model is not None:
        what = "is a folder" if model.label is None else f"names a label of the model in {model.folder}"
        fix = f"write ./{name} for the folder, or rename it for the function"
        raise BadInput(f"{OPTION} {text}: {name} {what}, and also has the form MODULE:FUNCTION; {fix}")
    if not is_function and model is None:
        forms = "MODULE:FUNCTION, such as rewards:accuracy, the folder of a reward model, or CLASSIFIER:LABEL"
        raise BadInput(f"{OPTION} {text}: neither a function nor a folder; write {forms}, perhaps with @WEIGHT after it")
    try:
        weight = float(weight_text) if at else 1.0
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        fix = f"write a finite number after @, or leave @ out; if it belongs to the name, write {text}@1"
        raise BadInput(f"{OPTION} {text}: the weight {weight_text!r} is not a finite number; {fix}")
    return FunctionName(module_name, function_name, weight) if model is None else model._replace(weight=weight)


def _model(name: str, *, needs_config: bool) -> ModelName | None:
    """Return the folder, or the longest folder with a label after a colon, that a text names; None if there is none.

    Args:
        needs_config: True if a folder with a label must have a config.json.
    """
    if Path(name).is_dir():
        return ModelName(name, 1.0)
    folder = name
    while folder := folder.rpartition(":")[0]:
        if Path(folder).is_dir() and (not needs_config or (Path(folder) / "config.json").exists()):
            return ModelName(folder, 1.0, name[len(folder) + 1 :])
    return None
