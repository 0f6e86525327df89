"""Inputs of examples of any kind: their rows in memory, and the steps of reading them that all kinds share."""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64

from train.config.declaration import scored_as
from train.config.option_groups import ChatRendering
from train.config.run_config import Run
from train.data import labelled_reader
from train.data.dialogues import texts_of
from train.data.example_types import has_messages
from train.data.text_files import Document
from train.rows.mixture import Component, Mixture
from train.rows.row_source import SampledRows, digest_of
from train.run.progress_display import short_number
from train.run.run_dir import RunDir
from train.tokenizers.chat_template import ChatTemplate, chat_template, with_template
from train.tokenizers.tokenizer import Tokenizer
from train.weights.stored_teacher import StoredTeacher
from train.weights.tokenizer_choice import check_vocabulary, existing_tokenizer
from zoo.errors import BadInput, require

Rows = TypeVar("Rows", bound="ExampleRows")
Inputs = TypeVar("Inputs", bound="ExampleInputs")


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleRows(SampledRows):
    """Base class of rows in memory."""

    NOUN: ClassVar[str] = "examples"
    """Name of several examples."""

    examples: Sequence[Any]
    rows: tuple[Any, ...]
    """Rows of one example, with its number in `example`; of `PackedRows`, tuples of such parts."""
    length: int
    """Number of tokens per row; of a row with a source and a target, those of the source."""
    fingerprint: str
    """SHA-256 of all rows, their lengths and the tokenizer."""

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> Any:
        """Return a row."""
        return self.rows[number]

    def select_rows(self: Rows, chosen: Int64[np.ndarray, " n"]) -> Rows:
        """Return the rows with the numbers `chosen`, in this order; the examples and the fingerprint remain those of all rows."""
        return dataclasses.replace(self, rows=tuple(self.rows[number] for number in chosen.tolist()))

    @abc.abstractmethod
    def id_arrays(self) -> Iterator[np.ndarray]:
        """Yield the ids of all texts in the rows, with special tokens and without padding."""

    @abc.abstractmethod
    def room(self, run: Run) -> int:
        """Return the number of tokens that the rows have room for."""

    @property
    def text_size(self) -> int:
        """Number of tokens of all rows, with special tokens and without padding."""
        return sum(map(len, self.id_arrays()))

    @property
    def targets(self) -> int:
        """Number of tokens that the loss is computed on; by default all."""
        return self.text_size

    @property
    def used_examples(self) -> int:
        """Number of examples that have rows."""
        return len({row.example for row in self.rows})

    @functools.cached_property
    def content_digest(self) -> str:
        """SHA-256 of the examples, independent of their files and of the tokenizer."""
        return digest_of(repr([self.content_of(example) for example in self.examples]), ())

    @staticmethod
    def content_of(example: Any) -> Any:
        """Return what an example consists of, without its origin, as a value with a `repr`."""
        raise NotImplementedError

    def size_text(self) -> str:
        """Return the size of the rows in words."""
        return f"{short_number(self.text_size)} tokens"

    def facts(self, run: Run) -> dict[str, str]:
        """Return further lines for the summary of a run's data."""
        return {}


@dataclasses.dataclass(frozen=True, eq=False)
class PackedRows(ExampleRows):
    """Base class of rows of one example or of several packed ones."""

    @functools.cached_property
    def parts(self) -> list[Any]:
        """The parts of all rows, in the order of the examples."""
        return sorted(itertools.chain.from_iterable(self.rows), key=lambda part: part.example)

    @property
    def used_examples(self) -> int:
        """Number of examples that have rows."""
        return len(self.parts)

    @property
    def origins(self) -> list[str]:
        """The place that the first example of each row was read from, as file:line."""
        return [self.examples[row[0].example].origin for row in self.rows]


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleInputs:
    """Tokenized examples; the held-out ones are scored. See `train.inputs.run_inputs.Inputs`."""

    LEFT_OUT: ClassVar[str] = "bad or long"
    """Description of the examples in `left_out`, for the summary."""

    tokenizer: Tokenizer
    """The tokenizer, with the chat template if there are conversations."""
    rows: Mixture
    held_out: Any
    """`ExampleRows`, as those in `rows`."""
    left_out: tuple[str, ...] = ()
    """Error message of each example that --labelled.skip-bad left out."""
    selection: Any = None
    """Rows of examples for validations, if these are not the held-out ones; the checkpoint is selected on them."""
    reference: str = ""
    """Digest of the parameters of a reference that the loss reads log-probabilities of; empty = none."""
    teacher: StoredTeacher | None = None
    """Stored probabilities of a teacher for the training rows; None = there are none."""

    @functools.cached_property
    def training(self) -> Any:
        """The rows in `rows`, of all components."""
        parts: list[Any] = [component.rows for component in self.rows.components]
        rows = itertools.chain.from_iterable(part.rows for part in parts)
        return dataclasses.replace(parts[0], rows=tuple(rows)) if len(parts) > 1 else parts[0]

    def with_training(self: Inputs, rows: ExampleRows) -> Inputs:
        """Return the inputs with other training rows."""
        return dataclasses.replace(self, rows=Mixture((dataclasses.replace(self.rows.components[0], rows=rows),)))

    def scored_rows(self, run: Run, stride: int) -> Any:
        """Return the rows of the held-out examples."""
        return self.held_out

    def row_origins(self, rows: PackedRows) -> list[str]:
        """Return the place that the first example of each row was read from, as file:line."""
        return rows.origins

    def validation_rows(self, run: Run) -> Any:
        """Return the rows of the examples of `--data.validation-share`, or without it of the held-out examples."""
        return self.held_out if self.selection is None else self.selection

    def counts(self) -> Int64[np.ndarray, " V"]:
        """Return the number of occurrences of each id in the training rows."""
        counts = np.zeros(self.tokenizer.vocab_size, np.int64)
        for ids in self.training.id_arrays():
            counts += np.bincount(ids, minlength=len(counts))
        return counts

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints that a checkpoint stores, so that it is never resumed on other data.

        The fingerprint of the held-out half depends on its examples alone, so that runs with different tokenizers, lengths and
        weights can be compared.
        """
        data = {"tokenizer": self.tokenizer.fingerprint, "data": self.rows.fingerprint, "held_out": self.held_out.content_digest}
        data |= {} if self.teacher is None else {"teacher": self.teacher.digest}
        return data | ({"reference": self.reference} if self.reference else {})

    def describe(self, run: Run) -> dict[str, str]:
        """Return a summary of the data and its use in the run, for the console and the report."""
        rows, count = self.training, self.training.used_examples
        several = f" in {len(rows):,} rows" if len(rows) != count else ""
        names = ", ".join(component.name for component in self.rows.components)
        facts = {
            "data": f"{names}: {count:,} {rows.NOUN}{several}, {rows.size_text()}",
            "held out": f"{self.held_out.used_examples:,} {rows.NOUN}",
            **self.facts(run),
        }
        if any(map(has_messages, rows.examples)):
            facts["chat template"] = template_choice(run) or "the tokenizer's own"
        if self.left_out:
            facts["left out"] = f"{len(self.left_out):,} {self.LEFT_OUT} {rows.NOUN}; the first: {self.left_out[0]}"
        return {**facts, "seen": self.use_text(run)}

    def facts(self, run: Run) -> dict[str, str]:
        """Return the lines of the summary that are particular to the kind of data."""
        return self.training.facts(run)

    def use_text(self, run: Run) -> str:
        """Return in words how often a run uses the training rows."""
        return f"{run.steps:,} steps of {run.data.sizes}, {run.examples / len(self.training):.3g} epochs"


Halves = tuple[list[Any], list[Any]]
"""Training and held-out examples."""


def split_examples(run: Run, left_out: list[str]) -> Halves:
    """Return (training, held-out) examples of the files of a run; see `train.data.labelled_reader.split_examples`."""
    return labelled_reader.split_examples(scored_as(type(run.options)), run.data, run.options.labelled, left_out)


class ExampleKind(NamedTuple):
    """The steps of reading that are particular to a kind of examples."""

    rows_of: Callable[[Sequence[Any], Run, Tokenizer, list[str]], ExampleRows]
    """Returns the rows of examples; appends the message of each example that is left out because it does not fit."""
    split: Callable[[Run, list[str]], Halves] = split_examples
    """Returns (training, held-out) examples; appends the message of each that is malformed and left out."""
    complete: Callable[[Run, ExampleInputs], Any] = lambda run, inputs: inputs
    """Checks the inputs, and adds what they have beside rows."""
    trains_tokenizer: bool = False
    """True if a run without a tokenizer trains one on the training texts."""
    files: Callable[[Run], tuple[str, ...]] = lambda run: run.data.paths
    """Returns the names of the training files."""

    def read(self, run: Run, folder: RunDir) -> Any:
        """Read and tokenize examples. A resumed run uses the tokenizer in its folder, a new one that of `init`.

        Raises:
            BadInput: the data cannot be read, there is no tokenizer or it does not fit the model, an example is too long, or
                there are conversations and no chat template that renders them.
        """
        left_out: list[str] = []
        training, held_out = self.split(run, left_out)
        selected: list[Any] = []
        if share := getattr(run.data, "validation_share", 0.0):
            training, selected = labelled_reader.split_evenly_spaced(training, share)
        tokenizer = self._tokenizer(run, folder, training)
        conversations = any(map(has_messages, itertools.chain(training, held_out)))
        tokenizer = _with_run_template(run, tokenizer, conversations=conversations)
        rows, held_out_rows = (self.rows_of(half, run, tokenizer, left_out) for half in (training, held_out))
        selected_rows = self.rows_of(selected, run, tokenizer, left_out) if selected else None
        documents = [Document(example.origin, "") for example in rows.examples]
        mixture = Mixture((Component(", ".join(self.files(run)), 1.0, documents, rows),))
        return self.complete(run, ExampleInputs(tokenizer, mixture, held_out_rows, tuple(left_out), selected_rows))

    def _tokenizer(self, run: Run, folder: RunDir, training: Sequence[Any]) -> Tokenizer:
        tokenizer = existing_tokenizer(run, folder)
        if tokenizer is None and not self.trains_tokenizer:
            fix = "name the run or the weights to start from, or set --tokenizer.path to train from random weights"
            raise BadInput(f"--init: {fix}")
        if tokenizer is None:
            texts = (text for example in training for text in texts_of(example))
            tokenizer = Tokenizer.train(texts, run.tokenizer.vocab, run.tokenizer.kind, run.tokenizer.lowercase)
        check_vocabulary(run, tokenizer)
        return tokenizer


def pack_rows(
    parts: Sequence[Any], numbers: Int64[np.ndarray, " parts"], header: str, contents: Iterable[bytes]
) -> tuple[tuple[Any, ...], str]:
    """Return (rows, fingerprint): each row is the tuple of its parts, in their order.

    Args:
        numbers: the row of each part.
        header: what determines the rows beside their contents and numbers.
        contents: the ids of all parts.
    """
    rows: list[list[Any]] = [[] for _ in range(int(numbers.max()) + 1)]
    for number, part in zip(numbers.tolist(), parts, strict=True):
        rows[number].append(part)
    places = np.argsort(numbers, kind="stable").tobytes() + numbers.tobytes()
    return tuple(map(tuple, rows)), digest_of(header, itertools.chain(contents, (places,)))


def run_template(run: Run, tokenizer: Tokenizer) -> ChatTemplate:
    """Return the chat template of a run's tokenizer.

    Raises:
        BadInput: it has none, or one that cannot be used.
    """
    return chat_template(tokenizer, run.tokenizer.path or run.init or "the tokenizer")


def keep_messages(rows: Sequence[Any], messages: Sequence[str], left_out: list[str] | None) -> None:
    """Append the messages of examples that do not fit into rows to `left_out`.

    Raises:
        BadInput: no example fits; the message is the first.
    """
    if not rows:
        raise BadInput(messages[0])
    if left_out is not None:
        left_out += messages


def _with_run_template(run: Run, tokenizer: Tokenizer, *, conversations: bool) -> Tokenizer:
    """Return a tokenizer with the chat template that a run names with --chat.template, if it names one.

    Args:
        conversations: whether the data have messages.

    Raises:
        BadInput: a chat template for data without messages, or one that cannot be read.
    """
    choice, fix = template_choice(run), "the data has no messages, and plain texts are not rendered; remove it"
    require(conversations or not choice, "chat.template", choice, fix)
    return with_template(tokenizer, choice)


def template_choice(run: Run) -> str:
    """Return the value of --chat.template; "" for an objective of a plug-in that does not have the option."""
    return getattr(run.options, "chat", ChatRendering()).template
