"""Tasks on local files, a module each, found by listing this folder.

A task is a module with a docstring that defines its file format and its metrics, and
- `PER_TOKEN`, if it has such metrics: names of those that are comparable with one tokenizer only;
- `OPTIONS`: names of the fields of `Settings` that it uses besides `batch` and `dtype`; `argument` is required, unless the task
  sets `OPTIONAL_ARGUMENT = True`;
- `read(names, settings) -> examples`: reads the named files or folders, and refuses bad input before a model is loaded;
- `score(subject, examples, settings, progress) -> Result`.
Another distribution adds a task by an entry point in `zoo.tasks`, whose object has the same names.
Nothing here imports jax, so that a wrong name is refused at once.
"""

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

from train.config.data_options import TextData
from train.config.option_groups import Labelled
from train.config.rollout_options import JudgedResponses
from train.data import corpus
from train.data.corpus import Documents
from train.run.item_outcomes import Outcomes
from train.weights.reward_scale import RewardScale
from zoo import plugins
from zoo.errors import BadInput
from zoo.generation.decoding_settings import Beams

Progress = Callable[[int, int], None]
"""Function that is called with (done, total) while a task runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of the tasks."""

    batch: int = 16
    """Number of rows of the model's full length computed at a time; more if rows are shorter. It does not affect the result."""
    dtype: Any = "float32"
    """Dtype of the arithmetic."""
    argument: str = ""
    """Text after the colon in the task's name."""
    field: str = "text"
    """Field of a .jsonl line with the text."""
    length: int = 0
    """Number of tokens in a row; 0 = the model's positions."""
    stride: int = 0
    """New tokens per row; 0 = half a row."""
    words: bool = False
    """Also compute the perplexity per word."""
    labelled: Labelled = Labelled()
    """Options of reading labelled files; those that it does not choose are a run's own."""
    prefix: str = ""
    """Text before every source; empty: the run's own."""
    orders: int = 0
    """Random orders of each document; 0 = the task's choice."""
    limit: int = 0
    """Maximum number of examples to score, the first ones; 0 = all. A task with this option ignores the others."""
    tokens: int = 0
    """Maximum number of tokens of a generated text; 0 = the task's choice."""
    search: Beams = Beams()
    """Options of beam search."""
    rollout: JudgedResponses = JudgedResponses()
    """Responses that are sampled, and what judges them."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a task; every value can be written as JSON."""

    metrics: dict[str, float]
    examples: int
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Facts by name; a dict of dicts is a table with named rows."""
    items: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings other than the files and the options on the command line that determine the scored items, such as a default that
    depends on the model. Results that differ in them are not compared."""
    outcomes: Outcomes | None = dataclasses.field(default=None, compare=False)
    """Outcome of each item; None if the task has none."""
    reward_scale: RewardScale | None = None
    """Normalization of a reward model's scores, which is then stored next to its weights."""


def tasks() -> list[str]:
    """Return the names of the zoo's own tasks, found by listing this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def check_task(name: str) -> None:
    """Refuse a name, TASK or TASK:ARGUMENT, of a task that does not exist; no task is imported.

    Raises:
        BadInput: there is no such task, and the nearest is named; or two distributions have one of this name.
    """
    first, own = name.partition(":")[0], tasks()
    if plugins.find_plugin("zoo.tasks", first, own) is None and first not in own:
        near = difflib.get_close_matches(first, [*own, *plugins.names("zoo.tasks")], n=1, cutoff=0.0)[0]
        choices = ", ".join([*own, *plugins.described("zoo.tasks")])
        raise BadInput(f"--task {name}: no task has this name; the nearest is {near} (all: {choices})")


def require_files(name: str, files: Sequence[str]) -> None:
    """Refuse a task for which no files are named.

    Raises:
        BadInput: there are none.
    """
    if not files:
        raise BadInput(f"--files: name the files that --task {name} reads, or their folder")


def find_task(name: str) -> tuple[Any, str]:
    """Return the module of a task, or the object of a plug-in, and its argument, from TASK or TASK:ARGUMENT.

    Raises:
        BadInput: there is no such task, a plug-in that cannot be used, or a task that takes no argument, or needs one.
    """
    check_task(name)
    first, colon, argument = name.partition(":")
    plugin = plugins.find_plugin("zoo.tasks", first, tasks())
    if plugin is None:
        module = importlib.import_module(f"{__name__}.{first}")
    else:
        expected = "a task: OPTIONS, names of fields of `Settings`, and the functions read and score"
        module = plugins.load_plugin(plugin, expected, _is_task)
    if colon and "argument" not in module.OPTIONS:
        raise BadInput(f"--task {name}: {first} takes nothing after a colon; choose --task {first}")
    if "argument" in module.OPTIONS and not argument and (colon or not getattr(module, "OPTIONAL_ARGUMENT", False)):
        raise BadInput(f"--task {name}: needs an argument, as --task {first}:NAME")
    return module, argument


def read_documents(names: Sequence[str], settings: Settings) -> Documents:
    """Read the documents of all files, each checked once: `read` of the tasks on plain text.

    Raises:
        BadInput: see `train.data.corpus.documents`.
    """
    return corpus.documents(names, TextData(field=settings.field), settings.limit)


def _is_task(value: Any) -> bool:
    fields = {field.name for field in dataclasses.fields(Settings)}
    return (
        plugins.has(value, "read", "score", attributes=("OPTIONS",))
        and isinstance(value.OPTIONS, tuple | list)
        and {*value.OPTIONS} <= fields
    )


def first(examples: list[Any], limit: int) -> list[Any]:
    """Return the first `limit` examples; 0 = all."""
    return examples[:limit] if limit else examples
