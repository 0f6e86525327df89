"""The tasks by name. Nothing here imports JAX, so that a wrong name, or a model of the wrong kind, is refused at once."""

import difflib
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from zoo import plugins
from zoo.errors import BadInput

if TYPE_CHECKING:
    from eval.tasks.task import Task


class TaskPlace(NamedTuple):
    """The place where a task is declared, and what its model must be as far as its configuration tells."""

    module: str
    constant: str = "TASK"
    models: Literal["any", "encoder", "labelled"] = "any"


TASKS = {
    "blimp": TaskPlace("blimp"),
    "choices": TaskPlace("choices"),
    "classification_probe": TaskPlace("labelled_vectors", "CLASSIFICATION_PROBE", models="encoder"),
    "clustering": TaskPlace("labelled_vectors", "CLUSTERING", models="encoder"),
    "harness": TaskPlace("harness.harness_task"),
    "labelled": TaskPlace("labelled", models="labelled"),
    "lambada": TaskPlace("lambada"),
    "masked": TaskPlace("masked", models="encoder"),
    "pair_classification": TaskPlace("sentence_pairs", "PAIR_CLASSIFICATION", models="encoder"),
    "permutation_likelihood": TaskPlace("perplexity", "PERMUTATION_LIKELIHOOD", models="encoder"),
    "perplexity": TaskPlace("perplexity", "PERPLEXITY"),
    "preferences": TaskPlace("preferences", "PREFERENCES"),
    "pseudo_perplexity": TaskPlace("perplexity", "PSEUDO_PERPLEXITY", models="encoder"),
    "reading": TaskPlace("reading"),
    "rerank": TaskPlace("retrieval", "RERANK", models="encoder"),
    "responses": TaskPlace("responses"),
    "retrieval": TaskPlace("retrieval", "RETRIEVAL", models="encoder"),
    "rewards": TaskPlace("preferences", "REWARDS"),
    "sts": TaskPlace("sentence_pairs", "STS", models="encoder"),
    "text_to_text": TaskPlace("text_to_text"),
    "word_ratios": TaskPlace("word_ratios"),
}
"""The zoo's own tasks, by name."""


def check_task(name: str) -> None:
    """Refuse a name, TASK or TASK:ARGUMENT, of a task that does not exist; no task is imported.

    Raises:
        BadInput: there is no such task, and the nearest is named; or two distributions have one of this name.
    """
    first = name.partition(":")[0]
    if plugins.find_plugin("zoo.tasks", first, TASKS) is None and first not in TASKS:
        near = difflib.get_close_matches(first, [*TASKS, *plugins.plugin_names("zoo.tasks")], n=1, cutoff=0.0)[0]
        choices = ", ".join([*TASKS, *plugins.described_plugins("zoo.tasks")])
        raise BadInput(f"--task {name}: no task has this name; the nearest is {near} (all: {choices})")


def require_files(name: str, files: Sequence[str]) -> None:
    """Refuse a task for which no files are named.

    Raises:
        BadInput: there are none.
    """
    if not files:
        raise BadInput(f"--files: name the files that --task {name} reads, or their folder")


def models_of(name: str) -> str:
    """Return what the model of a task, TASK or TASK:ARGUMENT, must be: see `TaskPlace`; the task of a plug-in takes any."""
    return TASKS.get(name.partition(":")[0], TaskPlace("")).models


def find_task(name: str) -> tuple["Task[Any]", str]:
    """Return a task and its argument, from TASK or TASK:ARGUMENT.

    Raises:
        BadInput: there is no such task, a plug-in that cannot be used, or a task that takes no argument, or needs one.
    """
    check_task(name)
    first, colon, argument = name.partition(":")
    plugin = plugins.find_plugin("zoo.tasks", first, TASKS)
    if plugin is None:
        place = TASKS[first]
        task = getattr(importlib.import_module(f"eval.tasks.{place.module}"), place.constant)
    else:
        task = plugins.load_plugin(plugin, "an `eval.tasks.task.Task` with options of `Settings`", _is_task)
    if colon and task.argument == "none":
        raise BadInput(f"--task {name}: {first} takes nothing after a colon; choose --task {first}")
    if not argument and task.argument != "none" and (colon or task.argument == "required"):
        raise BadInput(f"--task {name}: needs an argument, as --task {first}:NAME")
    return task, argument


def _is_task(value: Any) -> bool:
    from eval.tasks.task import Settings, Task

    return isinstance(value, Task) and {*value.options} <= Settings.__dataclass_fields__.keys()
