"""Labelled examples, from files to the rows for training and scoring."""

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from train.config.data_options import Data
from train.config.objectives import ClassificationOptions, TaggingOptions
from train.config.option_groups import ExampleFileOptions
from train.config.rerank_options import RerankOptions
from train.config.run_config import Run
from train.data import labelled_reader
from train.data.example_types import Example, Tagged, Text
from train.inputs.example_inputs import ExampleInputs, ExampleRows, Halves
from train.inputs.source_batches import by_source
from train.rows import embedding_rows, example_rows, late_interaction_rows, rerank_rows
from train.rows.example_rows import ExampleRow
from train.rows.row_source import digest_of, evenly_spaced
from train.tokenizers.tokenizer import Tokenizer
from zoo.configs._encoder import LABELLED
from zoo.errors import BadInput

MANY_LABELS = 20
"""Number of labels from which it is an error that there are more labels than half of the examples; fewer may be intended."""


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledRows(ExampleRows):
    """Rows of one example each; a question has a row for each window of its context."""

    rows: tuple[ExampleRow, ...]
    labels: tuple[str, ...] = ()
    """Names of the classes, by number."""
    too_long: int = 0
    """Number of examples longer than a row: cut with --labelled.truncate, left out with --labelled.skip-bad."""
    longest: tuple[str, int] = ("", 0)
    """Origin of the longest example, and its number of tokens before truncation."""

    def id_arrays(self) -> Iterator[np.ndarray]:
        """Yield the ids of each input, with special tokens."""
        return (inputs.ids for row in self.rows for inputs in row.inputs)

    def room(self, run: Run) -> int:
        """Return the number of tokens that the inputs of the rows have room for."""
        return self.length * sum(len(row.inputs) for row in self.rows)

    @functools.cached_property
    def content_digest(self) -> str:
        """SHA-256 of the examples and the possible labels, independent of their files and of the tokenizer."""
        unread = ("origin", "document", "path_number", "id")
        fields = ({name: value for name, value in vars(example).items() if name not in unread} for example in self.examples)
        return digest_of(repr(self.labels), (repr(sorted(values.items())).encode() for values in fields))

    def sampled_rows(self, count: int) -> Int64[np.ndarray, " n"]:
        """Return the numbers of all rows of at most `count` evenly spaced examples.

        Examples are chosen, not rows, so that a question whose context is cut into several windows keeps all of them.
        """
        chosen = set(evenly_spaced(len(self.examples), count).tolist())
        return np.array([number for number, row in enumerate(self.rows) if row.example in chosen], np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledInputs(ExampleInputs):
    """Tokenized labelled examples; see `train.inputs.run_inputs.Inputs`. `left_out` has malformed examples only."""

    LEFT_OUT = "bad"

    def facts(self, run: Run) -> dict[str, str]:
        """Return lines about the examples for validations, the labels, and the examples that are too long."""
        facts, training, labels = {}, self.training, run.model.labels
        if self.selection is not None:
            facts["selection"] = f"{len(self.selection.examples):,} other examples of the training files"
        if labels:
            facts["labels"] = f"{len(labels)}: {', '.join(labels[:8])}" + (", ..." if len(labels) > 8 else "")
        if too_long := [rows for rows in (training, self.held_out) if rows.too_long]:
            origin, longest = max((rows.longest for rows in too_long), key=lambda longest: longest[1])
            treatment = "cut" if run.options.labelled.truncate else "left out"
            count = f"{training.too_long:,} training and {self.held_out.too_long:,} held-out examples"
            facts["too long"] = f"{count}, {treatment}: a row has {run.data.length} tokens; the longest has {longest:,}, {origin}"
        return facts

    @property
    def trained_examples(self) -> Sequence[Example]:
        """The examples of the training files that are not held out, also those that select the checkpoint."""
        return [*self.training.examples, *(self.selection.examples if self.selection else ())]


def with_labels(run: Run) -> Run:
    """Return the run with the labels of its training data, unless it names its own.

    Raises:
        BadInput: the data cannot be read, or the number of labels does not fit the head.
    """
    (regression, multi_label), chosen = outputs(run), run.model.labels
    if run.model.task not in LABELLED:
        return run
    _read_once.cache_clear()
    labels = chosen or (("score",) if regression else labels_of(_split(run)[0]))
    if not labels:
        raise BadInput("--data.paths: no example has a label; use data with 1 label or more")
    if not (regression or multi_label):
        if not chosen:
            _check_label_count(labels, _split(run)[0])
        if len(labels) == 1:
            others = _split(run)[1]
            # One document is held out at least.
            smaller = "choose a smaller --data.valid-fraction, " * (not run.data.valid_paths and len(others) > 1)
            raise _single_label(labels[0], others, "held-out", f"{smaller}or hold out other files with --data.valid-paths")
    return dataclasses.replace(run, model=dataclasses.replace(run.model, labels=labels, multi_label=multi_label))


def split_labelled(run: Run, left_out: list[str]) -> Halves:
    """Return (training, held-out) examples; the files are read once for `with_labels` and for the rows."""
    training, held_out, malformed = _split(run)
    left_out += malformed
    _read_once.cache_clear()
    return training, held_out


def with_class_weights(run: Run, inputs: ExampleInputs) -> LabelledInputs:
    """Return the inputs, whose training rows have the weights of their classes.

    Raises:
        BadInput: all training examples have one label, since the others were chosen for validations.
    """
    selection = inputs.selection
    has_classes = run.model.task in LABELLED and not any(outputs(run))
    if selection is not None and has_classes and len(single := labels_of(inputs.training.examples)) == 1:
        raise _single_label(single[0], selection.examples, "validation", "or choose --data.validation-share 0")
    labelled = LabelledInputs(inputs.tokenizer, inputs.rows, inputs.held_out, inputs.left_out, selection)
    if getattr(getattr(run.options, run.objective, None), "one_source", False):
        return dataclasses.replace(labelled, rows=by_source(inputs.rows, run))
    return labelled.with_training(_with_class_weights(inputs.training, run))


def rows_of_labels(
    examples: Sequence[Example],
    run: Run,
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
    group = getattr(run.options, run.objective, None)
    more = {} if group is None else {"group": group}
    rows = tuple(FEATURES[run.objective](examples, tokenizer, options, length, names, advice=advice, **more))
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
    "classification": example_rows.classification_rows,
    "tagging": example_rows.tagging_rows,
    "span": lambda examples, tokenizer, options, length, names, **more: example_rows.question_rows(
        examples, tokenizer, options, length, **more
    ),
    "choice": lambda examples, tokenizer, options, length, names, **more: example_rows.choice_rows(
        examples, tokenizer, options, length, **more
    ),
    "contrastive": lambda examples, tokenizer, options, length, names, **more: embedding_rows.ranked_rows(
        examples, tokenizer, options, length, **more
    ),
    "late_interaction": lambda examples, tokenizer, options, length, names, **more: late_interaction_rows.token_rows(
        examples, tokenizer, options, length, **more
    ),
    "ranking": lambda examples, tokenizer, options, length, names, **more: embedding_rows.group_rows(
        examples, tokenizer, options, length, **more
    ),
    "sentence_denoising": lambda examples, tokenizer, options, length, names, **more: embedding_rows.plain_rows(
        examples, tokenizer, options, length, **more
    ),
    "similarity": lambda examples, tokenizer, options, length, names, **more: embedding_rows.scored_rows(
        examples, tokenizer, options, length, **more
    ),
    "rerank": lambda examples, tokenizer, options, length, names, **more: rerank_rows.candidate_rows(
        examples, tokenizer, options, length, **more
    ),
}
"""Objective -> `(examples, tokenizer, options, length, names, *, advice) -> rows`; with the argument `group` the options of the
objective itself, if it has a group of its name."""


def outputs(run: Run) -> tuple[bool, bool]:
    """Return whether the model learns numbers, and whether it learns several labels of a text."""
    if not isinstance(run.options, ClassificationOptions):
        return isinstance(run.options, RerankOptions), False
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


def _split(run: Run) -> tuple[list[Example], list[Example], list[str]]:
    """Return (training examples, held-out examples, error messages of those that are left out)."""
    return _read_once(run.objective, run.data, run.options.labelled)


@functools.lru_cache(maxsize=1)
def _read_once(objective: str, data: Data, options: ExampleFileOptions) -> Any:
    """Read the files of a run once, for its labels and later for its rows. The next run reads them again."""
    malformed: list[str] = []
    return *labelled_reader.split_examples(objective, data, options, malformed), malformed


def _with_class_weights(rows: LabelledRows, run: Run) -> LabelledRows:
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
