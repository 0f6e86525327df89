"""Inputs of a run with any kind of data, from files to the rows for training and scoring.

The kinds are text, labelled examples, pairs of texts, instructions with responses, preferences, labelled completions, and
prompts.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from train.config import run_config
from train.config.data_options import Kind
from train.inputs import (
    instruction_inputs,
    kto_inputs,
    labelled_inputs,
    preference_inputs,
    prompt_inputs,
    seq2seq_inputs,
    text_inputs,
)
from train.inputs.example_inputs import ExampleKind
from train.objectives import check_run, objective
from train.rows.mixture import Mixture
from train.rows.row_source import RowSource
from train.run.run_dir import RunDir
from train.tokenizers.tokenizer import Tokenizer


@runtime_checkable
class Inputs(Protocol):
    """Tokenized data and its rows, which are numbered (`train.rows.row_source.RowSource`)."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def rows(self) -> Mixture:
        """The rows that the run trains on."""
        ...

    def scored_rows(self, run: run_config.Run, stride: int) -> RowSource:
        """Return rows that cover the held-out data exactly once; if they are windows, each has `stride` new tokens."""
        ...

    def row_origins(self, rows: RowSource) -> Sequence[str]:
        """Return the place that each of `scored_rows` was read from: the file, and the line if it has many."""
        ...

    def validation_rows(self, run: run_config.Run) -> RowSource:
        """Return the rows from which the validations during training use a subsample."""
        ...

    def counts(self) -> np.ndarray:
        """Return the number of occurrences of each id in the training data, int64[V]."""
        ...

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints that a checkpoint stores, so that it is never resumed on other data."""
        ...

    def describe(self, run: run_config.Run) -> dict[str, str]:
        """Return a summary of the data and its use in the run, for the console and the report."""
        ...


EXAMPLES: dict[Kind, ExampleKind] = {
    "labelled": ExampleKind(
        lambda examples, run, tokenizer, left_out: labelled_inputs.rows_of_labels(examples, run, tokenizer),
        split=labelled_inputs.split_labelled,
        complete=labelled_inputs.with_class_weights,
    ),
    "pairs": ExampleKind(
        seq2seq_inputs.rows_of_pairs, split=seq2seq_inputs.split_pairs, files=seq2seq_inputs.pair_files, trains_tokenizer=True
    ),
    "dialogue": ExampleKind(instruction_inputs.rows_of_instructions, trains_tokenizer=True),
    "preference": ExampleKind(preference_inputs.rows_of_preferences),
    "unpaired": ExampleKind(kto_inputs.rows_of_completions, complete=kto_inputs.check_labels),
    "prompts": ExampleKind(
        prompt_inputs.rows_of_prompts, split=prompt_inputs.split_prompts, complete=prompt_inputs.inputs_with_chat_end
    ),
}
"""Kinds of data that consist of examples; all other data is text."""


def resolve_config(run: run_config.Run) -> run_config.Run:
    """Return the run with the values that its data determines, such as the labels of a classifier.

    Raises:
        BadInput: the family does not support the objective, or the data cannot be read or does not fit the run.
    """
    check_run(run)
    return labelled_inputs.with_labels(run) if run.data.kind == "labelled" else run


def read_inputs(run: run_config.Run, folder: RunDir, cache: Path, *, quiet: bool = False) -> Any:
    """Return the `Inputs` of a run that `resolve_config` returned. A resumed run uses the tokenizer in its folder.

    Args:
        cache: folder of the cache of tokenized text.
        quiet: whether to show no progress, because another process does.

    Raises:
        BadInput: the data cannot be read or does not fit the run; see the module that reads it.
    """
    if (kind := EXAMPLES.get(run.data.kind)) is None:
        return text_inputs.read_documents(run, folder, cache, quiet=quiet)
    return kind.read(run, folder)


def builder(run: run_config.Run, data: Inputs) -> Callable[..., dict[str, Any]]:
    """Return the function that turns a row into the arrays of a `Batch`."""
    return objective(run.objective).builder(run, data.tokenizer, data.counts)
