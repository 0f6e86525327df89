"""Labelled examples, from their files to the rows that a model is fitted to and the rows it is scored on."""

import collections
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.config import run_config
from train.data import labelled_reader
from train.data.example_types import Example, Tagged, Text
from train.data.text_files import Document
from train.rows import example_rows
from train.rows.example_rows import Row
from train.rows.mixture import Component, Mixture
from train.run.console import short
from train.run.run_dir import Folder
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import check_vocabulary, chosen_tokenizer
from zoo.configs._encoder import LABELLED
from zoo.errors import BadInput, require

MANY_LABELS = 20
"""From so many labels on, more than one for two examples is refused: few examples may well have a label each."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Examples as rows of ids; of a question as many as its context has windows. They are held in memory."""

    examples: Sequence[Example]
    rows: tuple[Row, ...]
    length: int
    """Tokens a row has room for, T."""
    fingerprint: str
    """Of all rows, their length and the tokenizer."""
    labels: tuple[str, ...] = ()
    """What the numbers of classes are called."""
    too_long: int = 0
    """Examples longer than a row: cut with --labelled.truncate, left out with --labelled.skip-bad."""
    longest: tuple[str, int] = ("", 0)
    """Where the longest example was read, and its tokens before it was cut."""

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> Row:
        """A row."""
        return self.rows[number]

    @property
    def text_size(self) -> int:
        """Tokens of all rows, marks included and padding not."""
        return sum(len(inputs.ids) for row in self.rows for inputs in row.inputs)

    @property
    def targets(self) -> int:
        """As many: what of a row is learned from is all of it."""
        return self.text_size

    @functools.cached_property
    def asked(self) -> str:
        """A fingerprint of the examples and of what they may be told to be, wherever they were read and whatever reads them."""
        digest = hashlib.sha256(repr(self.labels).encode())
        for example in self.examples:
            said = {name: value for name, value in vars(example).items() if name not in ("origin", "document", "id")}
            digest.update(repr(sorted(said.items())).encode())
        return digest.hexdigest()

    def spread(self, count: int) -> "Rows":
        """The rows of at most `count` examples, evenly spaced: a sample that is the same each time."""
        size = len(self.examples)
        chosen = set(np.linspace(0, size - 1, min(count, size)).round().astype(int).tolist())
        return dataclasses.replace(self, rows=tuple(row for row in self.rows if row.example in chosen))


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """Labelled examples, tokenized; see `train.inputs.dataset.Inputs`."""

    tokenizer: Tokenizer
    rows: Mixture
    held_out: Rows
    malformed: tuple[str, ...] = ()
    """What is wrong with each example that was left out when the files were read."""

    def scored(self, run: run_config.Run, stride: int) -> Rows:
        """The rows of the held-out examples."""
        return self.held_out

    def counts(self) -> np.ndarray:
        """How often each id occurs in the training rows, int64[V]."""
        found = np.zeros(self.tokenizer.vocab_size, np.int64)
        for row in self._training.rows:
            for inputs in row.inputs:
                found += np.bincount(inputs.ids, minlength=len(found))
        return found

    def fingerprints(self) -> dict[str, str]:
        """What a checkpoint remembers of its data, so that it is never resumed on other data.

        Of what is held out, the examples: runs of any tokenizer, length and weights are asked the same and can be compared.
        """
        return {"tokenizer": self.tokenizer.fingerprint, "data": self.rows.fingerprint, "held_out": self.held_out.asked}

    def facts(self, run: run_config.Run) -> dict[str, str]:
        """The data and what the run does with it, as the console and the report show it."""
        training = self._training
        several = "" if len(training) == len(training.examples) else f" in {len(training):,} rows"
        said = f"{', '.join(run.data.paths)}: {len(training.examples):,} examples{several}, {short(training.text_size)} tokens"
        epochs = run.steps * run.data.batch / len(training)
        facts = {"data": said, "held out": f"{len(self.held_out.examples):,} examples"}
        if run.model.labels:
            shown = ", ".join(run.model.labels[:8])
            facts["labels"] = f"{len(run.model.labels)}: {shown}" + (", ..." if len(run.model.labels) > 8 else "")
        if self.malformed:
            facts["left out"] = f"{len(self.malformed):,} bad examples; the first: {self.malformed[0]}"
        if too_long := [rows for rows in (training, self.held_out) if rows.too_long]:
            origin, size = max((rows.longest for rows in too_long), key=lambda longest: longest[1])
            done = "cut" if run.labelled.truncate else "left out"
            count = f"{training.too_long:,} training and {self.held_out.too_long:,} held-out examples"
            facts["too long"] = f"{count}, {done}: a row has {run.data.length} tokens; the longest has {size:,}, {origin}"
        return {**facts, "seen": f"{run.steps:,} steps of {run.data.batch}, {epochs:.3g} epochs"}

    @property
    def _training(self) -> Rows:
        rows = self.rows.components[0].rows
        assert isinstance(rows, Rows)
        return rows


def settled(run: run_config.Run, folder: Folder) -> run_config.Run:
    """The run with the labels of its training data, unless it names its own.

    Raises:
        BadInput: data that cannot be read; or a number of labels that the head has not.
    """
    refuse_idle(run)
    _refuse_unlearned(run)
    if run.model.task not in LABELLED:
        return run
    regression, named = run.labelled.regression, run.model.labels
    if regression:
        fix = "a regression has one output; name one, or leave out --labelled.regression"
        require(len(named) <= 1, "model.labels", " ".join(named), fix)
    _read_once.cache_clear()
    labels = named or (("score",) if regression else labels_of(_split(run)[0]))
    if not named and not regression:
        _refuse_many(labels, _split(run)[0])
    if len(labels) == 1 and not regression:
        raise BadInput(f"--data.paths: every example has the label {labels[0]}; there is nothing to tell apart")
    return dataclasses.replace(run, model=dataclasses.replace(run.model, labels=labels))


def read(run: run_config.Run, folder: Folder, cache: Path, *, quiet: bool = False) -> Labelled:
    """Read and tokenize. A resumed run uses the tokenizer in its folder, a new one that of `init`.

    Raises:
        BadInput: data that cannot be read, no tokenizer, labels that the head has not, or a sequence that is too long.
    """
    training, held_out, malformed = _split(run)
    _read_once.cache_clear()
    tokenizer = chosen_tokenizer(run, folder)
    if tokenizer is None:
        raise BadInput(
            "--init: name the run or the published weights to begin from, or give --tokenizer.path to begin from nothing"
        )
    check_vocabulary(run, tokenizer)
    rows = _weighed(rows_of(training, run, tokenizer), run)
    named = [Document(example.origin, "") for example in rows.examples]
    component = Component(", ".join(run.data.paths), 1.0, named, rows)
    return Labelled(tokenizer, Mixture((component,)), rows_of(held_out, run, tokenizer), tuple(malformed))


def rows_of(examples: Sequence[Example], run: run_config.Run, tokenizer: Tokenizer) -> Rows:
    """The rows of some examples as a run makes them.

    Raises:
        BadInput: labels that the head has not, or a sequence that is too long.
    """
    options, length = run.labelled, run.data.length
    names = {name: number for number, name in enumerate(getattr(run.model, "labels", ()))}
    made = tuple(FEATURES[run.objective](examples, tokenizer, options, length, names))
    sizes = {row.example: row.size for row in made}
    too_long = sum(size > length for size in sizes.values())
    number, size = max(sizes.items(), key=lambda item: item[1], default=(0, 0))
    longest = (examples[number].origin if examples else "", size)
    if too_long and options.skip_bad and not options.truncate:
        examples, made = _without_long(examples, made, length)
        if not made:
            raise BadInput(f"{longest[0]}: {size} tokens, and a row has {length}; all examples are too long, so none is left")
    digest = hashlib.sha256(f"{tokenizer.fingerprint} {length} {names}".encode())
    for row in made:
        for inputs in row.inputs:
            digest.update(inputs.ids.tobytes() + inputs.types.tobytes())
        digest.update(np.asarray(row.labels).tobytes())
    return Rows(examples, made, length, digest.hexdigest(), tuple(names), too_long, longest)


def _without_long(examples: Sequence[Example], rows: tuple[Row, ...], length: int) -> tuple[Sequence[Example], tuple[Row, ...]]:
    """The examples that fit into a row, and their rows, numbered anew."""
    rows = tuple(row for row in rows if row.size <= length)
    numbers = {example: place for place, example in enumerate(dict.fromkeys(row.example for row in rows))}
    return [examples[example] for example in numbers], tuple(row._replace(example=numbers[row.example]) for row in rows)


def labels_of(examples: Iterable[Example]) -> tuple[str, ...]:
    """The labels of some examples, in the order of their names; numbers in theirs."""
    found: set[str] = set()
    for example in examples:
        if isinstance(example, Tagged):
            found |= set(example.tags)
        elif isinstance(example, Text):
            found.add(str(example.label))
    whole = all(re.fullmatch(r"-?\d{1,18}", name) for name in found)
    return tuple(sorted(found, key=lambda name: (int(name), name) if whole else (0, name)))


FEATURES: dict[str, Callable[..., Iterable[Row]]] = {
    "classification": example_rows.texts,
    "tagging": example_rows.tags,
    "span": lambda examples, tokenizer, options, length, names: example_rows.windows(examples, tokenizer, options, length),
    "choice": lambda examples, tokenizer, options, length, names: example_rows.choices(examples, tokenizer, options, length),
}
"""Objective -> `(examples, tokenizer, options, length, names) -> rows`."""


READ = ("encoding", "format", "truncate")
MEANT = {
    "classification": (*READ, "skip_bad", "text", "pair", "label", "header", "coarse", "regression", "class_weights"),
    "tagging": (*READ, "skip_bad", "text", "label", "class_weights"),
    "span": (*READ, "skip_bad", "stride"),
    "choice": (*READ, "skip_bad"),
    "text_to_text": (*READ, "text", "label", "header"),
}
"""Objective -> the fields of `Labelled` that mean something to it."""


def refuse_idle(run: run_config.Run) -> None:
    """Refuse options that would change nothing."""
    for field in dataclasses.fields(run_config.Labelled):
        value = getattr(run.labelled, field.name)
        idle = field.name not in MEANT[run.objective] and value != field.default
        require(not idle, f"labelled.{field.name}", value, f"it means nothing to {run.objective}; leave it out")
    several = " ".join(f"{weight:g}" for weight in run.data.weights)
    require(not several, "data.weights", several, "labelled data are one source; leave it out")


def _refuse_many(labels: Sequence[str], examples: Sequence[Example]) -> None:
    """Refuse so many labels that they are hardly classes: as where the column of the text is read as that of the label."""
    count = sum(len(example.tags) if isinstance(example, Tagged) else 1 for example in examples)
    if len(labels) >= MANY_LABELS and 2 * len(labels) > count:
        what = "tags for" if isinstance(examples[0], Tagged) else "classes in"
        raise BadInput(
            f"--labelled.label: {len(labels):,} {what} {count:,} {'words' if what == 'tags for' else 'examples'}, such as "
            f"{json.dumps(labels[-1][:60])}; name the column of the label, or the classes themselves with --model.labels"
        )


def _refuse_unlearned(run: run_config.Run) -> None:
    """Refuse options of a loss that labels have not."""
    require(run.loss_chunk == 0, "loss_chunk", run.loss_chunk, "labels are few, and their loss is computed at once; leave it out")
    smooth = run.label_smoothing == 0 or not run.labelled.regression
    require(smooth, "label_smoothing", run.label_smoothing, "a regression has no labels to smooth; leave it out")


def _split(run: run_config.Run) -> tuple[list[Example], list[Example], list[str]]:
    """(training examples, held-out examples, what is wrong with those that are left out)."""
    return _read_once(run.objective, run.data, run.labelled)


@functools.lru_cache(maxsize=1)
def _read_once(objective: str, data: run_config.Data, options: run_config.Labelled) -> Any:
    """A run asks for its labels first and for its rows later: its files are read once. The next run reads them anew."""
    malformed: list[str] = []
    return *labelled_reader.split(objective, data, options, malformed), malformed


def _weighed(rows: Rows, run: run_config.Run) -> Rows:
    """Training rows with the weights of their classes."""
    if run.labelled.class_weights == "none" or run.model.task not in LABELLED:
        return rows
    counts = collections.Counter(
        label
        for row in rows.rows
        for label, weight in zip(row.labels.ravel().tolist(), row.weights.tolist(), strict=True)
        if weight
    )
    even = sum(counts.values()) / len(counts)

    def weighed(row: Row) -> Row:
        each = np.array([even / counts[label] if label in counts else 0.0 for label in row.labels.ravel().tolist()], np.float32)
        return row._replace(weights=row.weights * each)

    return dataclasses.replace(rows, rows=tuple(map(weighed, rows.rows)))
