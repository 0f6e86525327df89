"""Types of a task: its options, the reader of its files, the function that scores a model on them, and its result."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from eval.inference.batch_loop import Progress
from eval.inference.encoder_inputs import TaskVectors
from eval.inference.likelihood_methods import LikelihoodMethod
from train.config.option_groups import Labelled
from train.config.rollout_options import JudgedResponses
from train.run.item_outcomes import Outcomes
from train.weights.load import Loaded
from train.weights.reward_scale import RewardScale
from zoo.generation.decoding_settings import Beams

Data = TypeVar("Data")
Example = TypeVar("Example")


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
    likelihood: LikelihoodMethod = "auto"
    """How the likelihood of a text is computed, see `eval.inference.text_likelihoods`; auto: as the model was trained."""
    pmi: bool = False
    """Also compare choices by how much likelier their context makes them."""
    limit: int = 0
    """Maximum number of examples to score, the first ones; 0 = all. A task with this option ignores the others."""
    tokens: int = 0
    """Maximum number of tokens of a generated text; 0 = the task's choice."""
    search: Beams = Beams()
    """Options of beam search."""
    rollout: JudgedResponses = JudgedResponses()
    """Responses that are sampled, and what judges them."""
    vectors: TaskVectors = TaskVectors()
    """Options of the vectors that are compared."""


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(Generic[Data]):
    """A task; `eval.tasks.task_table` has the zoo's own, and another distribution names one in an entry point of `zoo.tasks`.

    The docstring of its module defines the format of its files and its metrics.
    """

    read: Callable[[Sequence[str], Settings], Data]
    """Reads the named files or folders, and refuses bad input before a model is loaded."""
    score: Callable[[Loaded, Data, Settings, Progress], Result]
    """Scores a model on what was read, after refusing a model that cannot do the task."""
    metrics: tuple[str, ...] = ()
    """Names of its metrics; empty: they depend on the files."""
    per_token: tuple[str, ...] = ()
    """Those of them that are comparable with one tokenizer only."""
    options: tuple[str, ...] = ()
    """Fields of `Settings` that it uses besides `argument`, `batch` and `dtype`."""
    argument: Literal["none", "optional", "required"] = "none"
    """True if a text follows the name and a colon, as in TASK:ARGUMENT."""


def first(examples: list[Example], limit: int) -> list[Example]:
    """Return the first `limit` examples; 0 = all."""
    return examples[:limit] if limit else examples


def shown_numbers(count: int) -> list[int]:
    """Return the numbers of the texts that are shown among the details, at most 10, evenly spaced over `count` texts."""
    return np.unique(np.linspace(0, count - 1, 10).astype(int)).tolist()
