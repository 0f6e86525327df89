"""Reward functions of a run: finding them, calling them, and checking what they return."""

import dataclasses
import difflib
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from train.data.example_types import Prompt
from zoo.errors import BadInput

OPTION = "--rollout.reward"
LARGEST = np.finfo(np.float64).max


@dataclasses.dataclass(frozen=True)
class RewardFunction:
    """A function that judges responses."""

    name: str
    """MODULE:FUNCTION, as on the command line."""
    function: Callable[..., Any]
    weight: float = 1.0


class Completion(NamedTuple):
    """A response to a prompt."""

    prompt: Prompt
    text: str
    ids: list[int]
    """Its tokens without the end mark."""


def find_rewards(names: Sequence[str]) -> tuple[RewardFunction, ...]:
    """Return the reward functions of MODULE:FUNCTION[@WEIGHT] texts; a module may also be in the working directory.

    Raises:
        BadInput: no name or a malformed one, a module that cannot be imported, or one without this function.
    """
    if not names:
        raise BadInput(f"{OPTION}: name the function that judges responses, MODULE:FUNCTION (see docs/feedback.md)")
    return tuple(map(_find, names))


def _find(text: str) -> RewardFunction:
    name, at, weight_text = text.partition("@")
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name.replace(".", "_").isidentifier() and function_name.isidentifier()):
        raise BadInput(f"{OPTION} {text}: write MODULE:FUNCTION or MODULE:FUNCTION@WEIGHT, such as rewards:accuracy")
    try:
        weight = float(weight_text) if at else 1.0
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise BadInput(f"{OPTION} {text}: the weight {weight_text!r} is not a finite number; write one, or leave @ out")
    function = getattr(module := _module(text, module_name), function_name, None)
    if not callable(function):
        names = [other for other, value in vars(module).items() if inspect.isfunction(value) and not other.startswith("_")]
        near = difflib.get_close_matches(function_name, names, n=1, cutoff=0.0)
        fix = f"the nearest is {near[0]}" if near else "define it"
        file = getattr(module, "__file__", None) or "without a file"
        raise BadInput(f"{OPTION} {text}: {module_name} ({file}) has no function {function_name}; {fix}")
    return RewardFunction(name, function, weight)


def _module(text: str, name: str) -> Any:
    # Last, so that no file of the working directory takes the place of an installed module.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        fix = f"correct it, or run from the folder of {name.partition('.')[0]}.py"
        raise BadInput(f"{OPTION} {text}: {name} cannot be imported ({_reason(error)}); {fix}") from error


def rewards(functions: Sequence[RewardFunction], completions: Sequence[Completion]) -> Float64[np.ndarray, " n"]:
    """Return the reward of each completion: the weighted sum of what the functions return.

    Raises:
        BadInput: a function raises, or does not return a finite number for each completion; the message names the function, the
            prompt and the value.
    """
    columns = {name: [item.prompt.columns[name] for item in completions] for name in completions[0].prompt.columns}
    total = np.zeros(len(completions))
    for function in functions:
        arguments = {
            "prompts": [item.prompt.prompt for item in completions],
            "completions": [item.text for item in completions],
            "ids": [list(item.ids) for item in completions],
        }
        try:
            values = function.function(**arguments, **columns)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            first = f"for {len(completions)} completions, the first of {completions[0].prompt.origin}"
            raise BadInput(f"{OPTION} {function.name}: raised {_reason(error)} {first}; correct the function") from error
        total += function.weight * _numbers(function.name, values, completions)
    return total


def _numbers(name: str, values: Any, completions: Sequence[Completion]) -> Float64[np.ndarray, " n"]:
    if not isinstance(values, list | tuple | np.ndarray):
        kind = "None" if values is None else f"a {type(values).__name__}"
        raise BadInput(f"{OPTION} {name}: returned {kind}; return a list with a number for each completion")
    if len(values) != len(completions):
        many = f"{len(values)} values for {len(completions)} completions"
        raise BadInput(f"{OPTION} {name}: returned {many}; return a number for each of them")
    for value, item in zip(values, completions, strict=True):
        is_number = isinstance(value, int | float | np.integer | np.floating | np.bool_)
        if not is_number or not -LARGEST < value < LARGEST:
            where = f"for the completion {item.text[:40]!r} of {item.prompt.origin}"
            raise BadInput(f"{OPTION} {name}: returned {str(value)[:40]} {where}; return a finite number")
    return np.array([float(value) for value in values])


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
