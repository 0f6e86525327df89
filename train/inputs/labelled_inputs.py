"""Labelled examples, from files to the rows for training and scoring."""

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from train.config import run_config
from train.config.data_options import Data
from train.config.objectives import ClassificationOptions, TaggingOptions
from train.config.option_groups import ExampleFileOptions
from train.data import labelled_reader
from train.data.example_types import Example, Tagged, Text
from train.data.text_files import Document
from train.inputs.example_inputs import ExampleInputs
from train.rows import example_rows
from train.rows.example_rows import ExampleRow
from train.rows.mixture import Component, Mixture
from train.rows.row_source import SampledRows, digest_of, evenly_spaced
from train.run.progress_display import short_number
from train.run.run_dir import RunDir
from train.tokenizers.tokenizer import Tokenizer
from train.weights.tokenizer_choice import check_vocabulary, existing_tokenizer
from zoo.configs._encoder import LABELLED
from zoo.errors import BadInput, require

MANY_LABELS = 20
"""Number of labels from which it is an error that there are more labels than half of the examples; fewer may be intended."""


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledRows(SampledRows):
    """Rows in memory, one per example; a question has a row for each window of its context."""

    examples: Sequence[Example]
    rows: tuple[ExampleRow, ...]
    length: int
    """Number of tokens per row, T."""
    fingerprint: str
    """SHA-256 of all rows, their length and the tokenizer."""
    labels: tuple[str, ...] = ()
    """Names of the classes, by number."""
    too_long: int = 0
    """Number of examples longer than a row: cut with --labelled.truncate, left out with --labelled.skip-bad."""
    longest: tuple[str, int] = ("", 0)
    """Origin of the longest example, and its number of tokens before truncation."""

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> ExampleRow:
        """Return a row."""
        return self.rows[number]

    @property
    def text_size(self) -> int:
        """Number of tokens of all rows, with special tokens and without padding."""
        return sum(len(inputs.ids) for row in self.rows for inputs in row.inputs)

    @property
    def targets(self) -> int:
        """Equals `text_size`, because training uses all tokens of a row."""
        return self.text_size

    @functools.cached_property
    def content_digest(self) -> str:
        """SHA-256 of the examples and the possible labels, independent of their files and of the tokenizer."""
        unread = ("origin", "document", "id")
        fields = ({name: value for name, value in vars(example).items() if name not in unread} for example in self.examples)
        return digest_of(repr(self.labels), (repr(sorted(values.items())).encode() for values in fields))

    def select_rows(self, chosen: Int64[np.ndarray, " n"]) -> "LabelledRows":
        """Return the rows with the numbers `chosen`, in this order; the examples and the fingerprint remain those of all rows."""
        return dataclasses.replace(self, rows=tuple(self.rows[number] for number in chosen.tolist()))

    def sampled_rows(self, count: int) -> Int64[np.ndarray, " n"]:
        """Return the numbers of all rows of at most `count` evenly spaced examples.

        Examples are chosen, not rows, so that a question whose context is cut into several windows keeps all of them.
        """
        chosen = set(evenly_spaced(len(self.examples), count).tolist())
        return np.array([number for number, row in enumerate(self.rows) if row.example in chosen], np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledInputs(ExampleInputs[LabelledRows]):
    """Tokenized labelled examples; see `train.inputs.run_inputs.Inputs`."""

    tokenizer: Tokenizer
    rows: Mixture
    held_out: LabelledRows
    malformed: tuple[str, ...] = ()
    """Error message of each example that was left out when the files were read."""
    selection: LabelledRows | None = None
    """Examples for validations, if these are not the held-out ones; the checkpoint is selected on them."""

    def validation_rows(self, run: run_config.Run) -> LabelledRows:
        """Return the rows of the examples of `--data.validation-share`, or without it of the held-out examples."""
        return self.held_out if self.selection is None else self.selection

    def counts(self) -> np.ndarray:
        """Return the number of occurrences of each id in the training rows, int64[V]."""
        counts = np.zeros(self.tokenizer.vocab_size, np.int64)
        for row in self._training.rows:
            for inputs in row.inputs:
                counts += np.bincount(inputs.ids, minlength=len(counts))
        return counts

    def describe(self, run: run_config.Run) -> dict[str, str]:
        """Return a summary of the data and its use in the run, for the console and the report."""
        training = self._training
        several = "" if len(training) == len(training.examples) else f" in {len(training):,} rows"
        size = f"{len(training.examples):,} examples{several}, {short_number(training.text_size)} tokens"
        epochs = run.steps * run.data.batch / len(training)
        facts = {"data": f"{', '.join(run.data.paths)}: {size}", "held out": f"{len(self.held_out.examples):,} examples"}
        if self.selection is not None:
            facts["selection"] = f"{len(self.selection.examples):,} other examples of the training files"
        if run.model.labels:
            names = ", ".join(run.model.labels[:8])
            facts["labels"] = f"{len(run.model.labels)}: {names}" + (", ..." if len(run.model.labels) > 8 else "")
        if self.malformed:
            facts["left out"] = f"{len(self.malformed):,} bad examples; the first: {self.malformed[0]}"
        if too_long := [rows for rows in (training, self.held_out) if rows.too_long]:
            origin, longest = max((rows.longest for rows in too_long), key=lambda longest: longest[1])
            treatment = "cut" if run.options.labelled.truncate else "left out"
            count = f"{training.too_long:,} training and {self.held_out.too_long:,} held-out examples"
            facts["too long"] = f"{count}, {treatment}: a row has {run.data.length} tokens; the longest has {longest:,}, {origin}"
        return {**facts, "seen": f"{run.steps:,} steps of {run.data.batch}, {epochs:.3g} epochs"}

    @property
    def trained_examples(self) -> Sequence[Example]:
        """The examples of the training files that are not held out, also those that select the checkpoint."""
        return [*self._training.examples, *(self.selection.examples if self.selection else ())]

    @property
    def _training(self) -> LabelledRows:
        rows = self.rows.components[0].rows
        assert isinstance(rows, LabelledRows)
        return rows


def resolve_config(run: run_config.Run, folder: RunDir) -> run_config.Run:
    """Return the run with the labels of its training data, unless it names its own.

    Raises:
        BadInput: the data cannot be read, or the number of labels does not fit the head.
    """
    (regression, multi_label), chosen = outputs(run), run.model.labels
    one_class = not (regression or multi_label)
    fix = "neither regression nor multi-label classification can smooth labels; remove it"
    require(run.label_smoothing == 0 or one_class, "label_smoothing", run.label_smoothing, fix)
    if run.model.task not in LABELLED:
        return run
    if regression:
        fix = "a regression has one output; name one, or remove --labelled.regression"
        require(len(chosen) <= 1, "model.labels", " ".join(chosen), fix)
    _read_once.cache_clear()
    labels = chosen or (("score",) if regression else labels_of(_split(run)[0]))
    if not labels:
        raise BadInput("--data.paths: no example has a label; use data with 1 label or more")
    if one_class:
        if not chosen:
            _check_label_count(labels, _split(run)[0])
        if len(labels) == 1:
            others = _split(run)[1]
            # One document is held out at least.
            smaller = "choose a smaller --data.valid-fraction, " * (not run.data.valid_paths and len(others) > 1)
            raise _single_label(labels[0], others, "held-out", f"{smaller}or hold out other files with --data.valid-paths")
    return dataclasses.replace(run, model=dataclasses.replace(run.model, labels=labels, multi_label=multi_label))


def read_labelled(run: run_config.Run, folder: RunDir, cache: Path, *, quiet: bool = False) -> LabelledInputs:
    """Read and tokenize examples. A resumed run uses the tokenizer in its folder, a new one that of `init`.

    Raises:
        BadInput: the data cannot be read, there is no tokenizer, the head lacks a label, or a sequence is too long.
    """
    training, held_out, malformed = _split(run)
    _read_once.cache_clear()
    tokenizer = existing_tokenizer(run, folder)
    if tokenizer is None:
        raise BadInput(
            "--init: name the run or the published weights to fine-tune, or set --tokenizer.path to train from random weights"
        )
    check_vocabulary(run, tokenizer)
    selected: list[Example] = []
    if run.data.validation_share:
        training, selected = labelled_reader.split_evenly_spaced(training, run.data.validation_share)
        if run.model.task in LABELLED and not any(outputs(run)) and len(single := labels_of(training)) == 1:
            raise _single_label(single[0], selected, "validation", "or choose --data.validation-share 0")
    rows = _with_class_weights(rows_of(training, run, tokenizer), run)
    named = [Document(example.origin, "") for example in rows.examples]
    component = Component(", ".join(run.data.paths), 1.0, named, rows)
    selection = rows_of(selected, run, tokenizer) if selected else None
    return LabelledInputs(tokenizer, Mixture((component,)), rows_of(held_out, run, tokenizer), tuple(malformed), selection)


def rows_of(
    examples: Sequence[Example],
    run: run_config.Run,
    tokenizer: Tokenizer,
    advice: example_rows.Advice = example_rows.TRAINING,
) -> LabelledRows:
    """Return the rows of examples for a run.

    Args:
        advice: advice to the user if examples are too long.

    Raises:
        BadInput: the head lacks a label, or a sequence is too long.
    """
    options, length = run.options.labelled, run.data.length
    names = {name: number for number, name in enumerate(getattr(run.model, "labels", ()))}
    rows = tuple(FEATURES[run.objective](examples, tokenizer, options, length, names, advice=advice))
    sizes = {row.example: row.size for row in rows}
    too_long = sum(size > length for size in sizes.values())
    number, size = max(sizes.items(), key=lambda item: item[1], default=(0, 0))
    longest = (examples[number].origin if examples else "", size)
    if too_long and options.skip_bad and not options.truncate:
        examples, rows = _without_long(examples, rows, length)
        if not rows:
            fix = f"all examples are too long; {advice.longer}"
            raise BadInput(f"{longest[0]}: {size} tokens, and a row has {length}; {fix}")
    fingerprint = digest_of(f"{tokenizer.fingerprint} {length} {names}", _contents(rows))
    return LabelledRows(examples, rows, length, fingerprint, tuple(names), too_long, longest)


def _contents(rows: Iterable[ExampleRow]) -> Iterator[bytes]:
    """Yield the bytes of all ids, token types and labels."""
    for row in rows:
        for inputs in row.inputs:
            yield inputs.ids.tobytes() + inputs.types.tobytes()
        yield np.asarray(row.labels).tobytes()


def _without_long(
    examples: Sequence[Example], rows: tuple[ExampleRow, ...], length: int
) -> tuple[Sequence[Example], tuple[ExampleRow, ...]]:
    """Return the examples that fit into a row, and their rows, renumbered."""
    rows = tuple(row for row in rows if row.size <= length)
    numbers = {example: place for place, example in enumerate(dict.fromkeys(row.example for row in rows))}
    return [examples[example] for example in numbers], tuple(row._replace(example=numbers[row.example]) for row in rows)


def labels_of(examples: Iterable[Example]) -> tuple[str, ...]:
    """Return the labels of examples, sorted by name, or by value if all are integers."""
    labels = {label for example in examples for label in labels_of_example(example)}
    all_integers = all(re.fullmatch(r"-?\d{1,18}", name) for name in labels)
    return tuple(sorted(labels, key=lambda name: (int(name), name) if all_integers else (0, name)))


def labels_of_example(example: Example) -> tuple[str, ...]:
    """Return the labels of a text, or the tags of a sentence; () for other examples."""
    if isinstance(example, Tagged):
        return example.tags
    if isinstance(example, Text):
        return example.label if isinstance(example.label, tuple) else (str(example.label),)
    return ()


FEATURES: dict[str, Callable[..., Iterable[ExampleRow]]] = {
    "classification": example_rows.texts,
    "tagging": example_rows.tags,
    "span": lambda examples, tokenizer, options, length, names, **more: example_rows.windows(
        examples, tokenizer, options, length, **more
    ),
    "choice": lambda examples, tokenizer, options, length, names, **more: example_rows.choices(
        examples, tokenizer, options, length, **more
    ),
}
"""Objective -> `(examples, tokenizer, options, length, names, *, advice) -> rows`."""


def outputs(run: run_config.Run) -> tuple[bool, bool]:
    """Return whether the model learns numbers, and whether it learns several labels of a text."""
    if not isinstance(run.options, ClassificationOptions):
        return False, False
    return run.options.labelled.regression, run.options.labelled.multi_label


def _single_label(label: str, others: Iterable[Example], half: str, fix: str) -> BadInput:
    """Return the error for training examples that all have one label.

    Args:
        others: examples that are not trained on, which may have other labels.
        half: what they are.
        fix: what helps beside more rows if they have.
    """
    for example in others:
        if other := next((name for name in labels_of_example(example) if name != label), None):
            what = f"every training example has the label {label}, and {other} is only among the {half} ones ({example.origin})"
            return BadInput(f"--data.paths: {what}; add or reorder rows, {fix}")
    return BadInput(f"--data.paths: every example has the label {label}; use data with 2 labels or more")


def _check_label_count(labels: Sequence[str], examples: Sequence[Example]) -> None:
    """Refuse so many labels that they are unlikely to be classes, as when the column of texts is read as that of labels."""
    count = sum(len(example.tags) if isinstance(example, Tagged) else 1 for example in examples)
    if len(labels) >= MANY_LABELS and 2 * len(labels) > count:
        what = "tags for" if isinstance(examples[0], Tagged) else "classes in"
        raise BadInput(
            f"--labelled.label: {len(labels):,} {what} {count:,} {'words' if what == 'tags for' else 'examples'}, such as "
            f"{json.dumps(labels[-1][:60])}; name the column of the label, or the classes themselves with --model.labels"
        )


def _split(run: run_config.Run) -> tuple[list[Example], list[Example], list[str]]:
    """Return (training examples, held-out examples, error messages of those that are left out)."""
    return _read_once(run.objective, run.data, run.options.labelled)


@functools.lru_cache(maxsize=1)
def _read_once(objective: str, data: Data, options: ExampleFileOptions) -> Any:
    """Read the files of a run once, for its labels and later for its rows. The next run reads them again."""
    malformed: list[str] = []
    return *labelled_reader.split(objective, data, options, malformed), malformed


def _with_class_weights(rows: LabelledRows, run: run_config.Run) -> LabelledRows:
    """Return the training rows with the weights of their classes."""
    weighted = isinstance(run.options, ClassificationOptions | TaggingOptions) and run.options.labelled.class_weights != "none"
    if not weighted or run.model.task not in LABELLED:
        return rows
    counts = collections.Counter(
        label
        for row in rows.rows
        for label, weight in zip(row.labels.ravel().tolist(), row.weights.tolist(), strict=True)
        if weight
    )
    mean_count = sum(counts.values()) / len(counts)

    def with_weights(row: ExampleRow) -> ExampleRow:
        labels = row.labels.ravel().tolist()
        class_weights = np.array([mean_count / counts[label] if label in counts else 0.0 for label in labels], np.float32)
        return row._replace(weights=row.weights * class_weights)

    return dataclasses.replace(rows, rows=tuple(map(with_weights, rows.rows)))
