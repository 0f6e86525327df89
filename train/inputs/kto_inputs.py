"""Labelled completions: the rows for training and scoring."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from train.config.run_config import Run
from train.data.example_types import UnpairedPreference
from train.inputs.completion_inputs import CompletionRows
from train.inputs.example_inputs import ExampleInputs
from train.rows.feedback import kto_rows
from train.rows.feedback.kto_rows import UnpairedRow
from train.rows.row_source import evenly_spaced
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput


@dataclasses.dataclass(frozen=True, eq=False)
class UnpairedRows(CompletionRows):
    """Rows of labelled completions."""

    FORMAT, NOUN = kto_rows, "labelled completions"

    rows: tuple[UnpairedRow, ...]

    @staticmethod
    def content_of(example: UnpairedPreference) -> tuple[Any, ...]:
        """Return the texts and the label of a completion."""
        return example.prompt, example.completion, example.desired

    def sampled_rows(self, count: int) -> Int64[np.ndarray, " n"]:
        """Return the numbers of the rows that `subsample` selects: of both labels, in about their shares, evenly spaced.

        At least one row of each label is selected, so at least two rows, so that a validation measures both labels.
        """
        labels = np.array([row.desired for row in self.rows])
        desired, undesired = np.flatnonzero(labels), np.flatnonzero(~labels)
        share = max(1, min(round(count * len(desired) / len(labels)), count - 1))
        parts = [
            part[evenly_spaced(len(part), size)]
            for part, size in ((desired, share), (undesired, max(count - share, 1)))
            if len(part)
        ]
        return np.sort(np.concatenate(parts)).astype(np.int64)

    def facts(self, run: Run) -> dict[str, str]:
        """Return a line with the numbers of both labels and their ratio in the loss."""
        desired, options = sum(row.desired for row in self.rows), run.options.kto
        undesired = len(self) - desired
        ratio = options.desired_weight * desired / (options.undesired_weight * undesired)
        return {"labels": f"{desired:,} desired, {undesired:,} undesired; ratio with their weights {ratio:.3g}"}


def check_labels(run: Run, inputs: ExampleInputs) -> ExampleInputs:
    """Return the inputs.

    Raises:
        BadInput: all training or all held-out completions have the same label.
    """
    for name, rows in (("training", inputs.training), ("held-out", inputs.held_out)):
        labels = {row.desired for row in rows.rows}
        if len(labels) == 1:
            problem = f"all {len(rows)} {name} completions are {'desired' if labels == {True} else 'undesired'}"
            fix = "add others, or shuffle the file if it is sorted by label"
            raise BadInput(f"--data.paths {' '.join(run.data.paths)}: {problem}, and kto needs both labels; {fix}")
    return inputs


def rows_of_completions(
    examples: Sequence[UnpairedPreference], run: Run, tokenizer: Tokenizer, left_out: list[str] | None = None
) -> UnpairedRows:
    """Return the rows of labelled completions for a run, with mismatched ones if they are compared with a reference.

    See `train.inputs.completion_inputs.CompletionRows.encode`.
    """
    return UnpairedRows.encode(examples, run, tokenizer, left_out, mismatched=run.options.kto.has_reference)
