"""Tasks on local files, one file each: what the files hold, and what is measured on them. Found by listing this folder.

A task is a module with a docstring that defines its format and its metrics, and
- `OPTIONS`: names of the fields of `Settings`, beside `batch` and `dtype`, that mean something to it; `argument` is needed,
  unless the task says `ALONE = True`;
- `read(names, settings) -> examples`, of the files or folders named; what can be refused before a model is loaded is;
- `score(subject, examples, settings, progress) -> Result`.
Nothing here imports jax, so that a name can be refused at once.
"""

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

from train.config.objective_options import Labelled
from zoo.errors import BadInput
from zoo.generation.settings import Beams

Progress = Callable[[int, int], None]
"""Told (done, in all) while a task goes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a caller may choose; a default is the choice of somebody who says nothing."""

    batch: int = 16
    """Rows of the model's full length computed at a time, or as many tokens in shorter rows; no result depends on it."""
    dtype: Any = "float32"
    """Of the arithmetic."""
    argument: str = ""
    """What follows the colon in the task's name."""
    field: str = "text"
    """Field of a .jsonl line that holds the text."""
    length: int = 0
    """Tokens in a row; 0 = the model's positions."""
    stride: int = 0
    """New tokens per row; 0 = half a row."""
    words: bool = False
    """Also the perplexity per word."""
    labelled: Labelled = Labelled()
    """How labelled files are read; as it is, a run reads them as its own."""
    prefix: str = ""
    """What stands before every source; none: the run's own."""
    orders: int = 0
    """Random orders of each document; 0 = the task's choice."""
    limit: int = 0
    """How many of the first examples are scored, at most; 0 = all. A task that takes it reads or scores no others."""
    tokens: int = 0
    """Tokens of a generated text at most; 0 = the task's choice."""
    search: Beams = Beams()
    """How texts are searched for."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a task found; every value can be written as JSON."""

    metrics: dict[str, float]
    examples: int
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Facts by name; a dict of dicts is a table, its rows by name."""


def tasks() -> list[str]:
    """Names of the tasks, found by listing this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def check(name: str) -> None:
    """Refuse a name, TASK or TASK:ARGUMENT, that no task has; the task itself is not imported.

    Raises:
        BadInput: there is no such task; the nearest is named.
    """
    first = name.partition(":")[0]
    if first not in tasks():
        near = difflib.get_close_matches(first, tasks(), n=1, cutoff=0.0)[0]
        raise BadInput(f"--task {name}: no task is called so; the nearest is {near} (all: {', '.join(tasks())})")


def find(name: str) -> tuple[ModuleType, str]:
    """The module of a task, and its argument: the name is TASK or TASK:ARGUMENT.

    Raises:
        BadInput: there is no such task, or it takes no argument, or needs one.
    """
    check(name)
    first, colon, argument = name.partition(":")
    module = importlib.import_module(f"{__name__}.{first}")
    if colon and "argument" not in module.OPTIONS:
        raise BadInput(f"--task {name}: {first} takes nothing after a colon; choose --task {first}")
    if "argument" in module.OPTIONS and not argument and (colon or not getattr(module, "ALONE", False)):
        raise BadInput(f"--task {name}: say which one, --task {first}:NAME")
    return module, argument


def first(examples: list[Any], limit: int) -> list[Any]:
    """The first `limit` examples; 0 = all."""
    return examples[:limit] if limit else examples
