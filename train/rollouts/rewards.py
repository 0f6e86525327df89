"""Rewards of a run: finding its reward functions and reward models by name, calling functions, and checking what they return."""

import dataclasses
import difflib
import importlib
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64

from train.config.reward_names import OPTION, FunctionName, ModelName, parse_reward
from train.data.example_types import ASSISTANT, Message, Prompt
from zoo import trust
from zoo.errors import BadInput, without_secrets
from zoo.runtime.progress import this_process

LARGEST = 1e15
"""Largest absolute value of a reward: squares of gradients of larger ones would not be finite in float32."""


class Completion(NamedTuple):
    """A response to a prompt."""

    prompt: Prompt
    text: str
    ids: list[int]
    """Tokens of the completion, without the end mark."""

    @property
    def content(self) -> str | list[dict[str, str]]:
        """The response in the form of its prompt: a text, or a conversation with the message of the assistant."""
        # Templates write a space before a message that does not belong to it.
        return [Message(ASSISTANT, self.text.lstrip())._asdict()] if self.prompt.messages else self.text


class Scores(NamedTuple):
    """The numbers that completions get."""

    values: Float64[np.ndarray, " n"]
    truncated: Bool[np.ndarray, " n"]
    """True for completions that are too long for a reward model, which has read only their beginning."""


@runtime_checkable
class Judge(Protocol):
    """A reward function or a reward model: it gives each response a number."""

    collective: ClassVar[bool]
    """True if every process calls `scores` with the same completions, because the devices of all of them compute."""

    @property
    def name(self) -> str:
        """Name on the command line, without its weight."""
        ...

    @property
    def weight(self) -> float:
        """Factor of its numbers in the sum of all judges."""
        ...

    def scores(self, completions: Sequence[Completion]) -> Scores:
        """Return the number of each completion, finite and without the weight.

        Raises:
            BadInput: there is none; the message names the judge and the prompt.
        """
        ...


@dataclasses.dataclass(frozen=True)
class RewardFunction:
    """A Python function that judges responses; see `Judge`."""

    collective: ClassVar[bool] = False

    name: str
    """MODULE:FUNCTION, as on the command line."""
    function: Callable[..., Any]
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.name}@{self.weight:g}" if self.weight != 1 else self.name

    def scores(self, completions: Sequence[Completion]) -> Scores:
        """Return the scores that the function returns for the completions.

        Raises:
            BadInput: it raises, or does not return a finite number for each completion; the message names the function, the
                prompt and the value.
        """
        columns = {name: [item.prompt.columns[name] for item in completions] for name in completions[0].prompt.columns}
        arguments = {
            "prompts": [item.prompt.content for item in completions],
            "completions": [item.content for item in completions],
            "ids": [list(item.ids) for item in completions],
        }
        try:
            values = self.function(**arguments, **columns)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            first = f"for {len(completions)} completions, the first of {completions[0].prompt.origin}"
            raised = f"{_reason(error)}{_place(error)}"
            raise BadInput(f"{OPTION} {self.name}: raised {raised} {first}; correct the function") from error
        return Scores(_numbers(self.name, values, completions), np.zeros(len(completions), bool))


def find_rewards(names: Sequence[str]) -> tuple[RewardFunction | ModelName, ...]:
    """Return what MODULE:FUNCTION[@WEIGHT], FOLDER[@WEIGHT] or FOLDER:LABEL[@WEIGHT] texts name.

    A module may also be in the working directory.

    Raises:
        BadInput: no name, one that `parse_reward` refuses, a function that only the config.json of an unconfirmed run names (see
            `zoo.trust`), a module that cannot be imported, or one without this function.
    """
    if not names or "" in (name.partition("@")[0] for name in names):
        what = "name what judges responses, MODULE:FUNCTION, a reward model or CLASSIFIER:LABEL (see docs/feedback-rewards.md)"
        raise BadInput(f"{OPTION}: {what}")
    parsed = ((text, parse_reward(text)) for text in names)
    return tuple(_function(text, name) if isinstance(name, FunctionName) else name for text, name in parsed)


def _function(text: str, name: FunctionName) -> RewardFunction:
    trust.check_trusted([text])
    function = getattr(module := _module(text, name), name.function, None)
    if not callable(function):
        names = [other for other, value in vars(module).items() if inspect.isfunction(value) and not other.startswith("_")]
        near = difflib.get_close_matches(name.function, names, n=1)
        all_names = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        fix = f"the nearest is {near[0]}" if near else f"its functions are {all_names}" if names else "define it"
        what = "has no function" if function is None else f"has the {type(function).__name__}, and not the function,"
        file = getattr(module, "__file__", None) or "without a file"
        raise BadInput(f"{OPTION} {text}: {name.module} ({file}) {what} {name.function}; {fix}")
    return RewardFunction(name.name, function, name.weight)


def _module(text: str, name: FunctionName) -> Any:
    # Last, so that no file of the working directory takes the place of an installed module. The zoo's own functions, which a run
    # of anybody may name, need none of its files.
    if not name.is_own and (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name.module)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        fix = f"correct it, or run from the folder of {name.module.partition('.')[0]}.py"
        raise BadInput(f"{OPTION} {text}: {name.module} cannot be imported ({_reason(error)}); {fix}") from error


def score_completions(judges: Sequence[Judge], completions: Sequence[Completion]) -> Scores:
    """Return the weighted sum of the scores of all functions and models for each completion, and whether one truncated it.

    Raises:
        BadInput: see `Judge.scores`.
    """
    return weighted_sum(judges, [scores_of(judge, completions) for judge in judges], len(completions))


def scores_of(judge: Judge, completions: Sequence[Completion]) -> Scores:
    """Return the scores of a judge, and record that the process waits for it.

    Raises:
        BadInput: see `Judge.scores`.
    """
    with this_process.stage(f"waiting for the rewards of {judge.name}"):
        return judge.scores(completions)


def weighted_sum(judges: Sequence[Judge], scores: Sequence[Scores], count: int) -> Scores:
    """Return the weighted sum of the scores of all judges for `count` completions, and whether a judge truncated each."""
    total, truncated = np.zeros(count), np.zeros(count, bool)
    for judge, of_judge in zip(judges, scores, strict=True):
        total += judge.weight * of_judge.values
        truncated |= of_judge.truncated
    return Scores(total, truncated)


def with_missing_end(values: Float64[np.ndarray, " n"], ended: Any, missing_end: float | None) -> Float64[np.ndarray, " n"]:
    """Return the rewards, with `missing_end`, unless it is None, in place of the rewards of responses without an end mark.

    Args:
        ended: bool [n]: True for responses with an end mark.
    """
    return values if missing_end is None else np.where(ended, values, missing_end)


def _numbers(name: str, values: Any, completions: Sequence[Completion]) -> Float64[np.ndarray, " n"]:
    is_array = isinstance(values, np.ndarray)
    if not isinstance(values, list | tuple) and not (is_array and values.ndim == 1):
        kind = "None" if values is None else f"a {type(values).__name__}"
        kind = f"an array with {values.ndim} axes" if is_array else kind
        if inspect.iscoroutine(values):
            # Otherwise Python warns that nobody has awaited it.
            values.close()
        raise BadInput(f"{OPTION} {name}: returned {kind}; return a list with a number for each completion")
    if len(values) != len(completions):
        many = f"{len(values)} values for {len(completions)} completions"
        raise BadInput(f"{OPTION} {name}: returned {many}; return a number for each of them")
    for value, item in zip(values, completions, strict=True):
        is_number = isinstance(value, int | float | np.integer | np.floating | np.bool_)
        if not is_number or not (isinstance(value, int) or math.isfinite(value)):
            raise BadInput(
                f"{OPTION} {name}: returned {_one_line(value)} for {describe_completion(item)}; return a finite number"
            )
        if not -LARGEST <= value <= LARGEST:
            fix = "gradients would overflow; return smaller numbers"
            raise BadInput(f"{OPTION} {name}: returned a number beyond ±{LARGEST:g} for {describe_completion(item)}; {fix}")
    return np.array([float(value) for value in values])


def describe_completion(item: Completion) -> str:
    """Return a completion and the place of its prompt, for a message."""
    return f"the completion {item.text[:40]!r} of {item.prompt.origin}"


def _one_line(value: Any) -> str:
    # In quotes, a text that looks like a number is not taken for one.
    return " ".join((repr(value) if isinstance(value, str) else str(value)).split())[:40]


def _reason(error: BaseException) -> str:
    return " ".join(without_secrets(f"{type(error).__name__}: {error}").split())[:300]


def _place(error: BaseException) -> str:
    """Return the file and the line where an error was raised, for a message; "" if the function could not be called at all."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
