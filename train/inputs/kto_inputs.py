"""Labelled completions, from files to the rows for training and scoring."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from train.config import run_config
from train.data.example_types import UnpairedPreference
from train.inputs import completion_inputs
from train.inputs.completion_inputs import CompletionInputs, CompletionRows, resolve_config
from train.rows.feedback import kto_rows
from train.rows.feedback.kto_rows import UnpairedRow
from train.rows.feedback.preference_rows import Limits
from train.rows.row_source import digest_of, evenly_spaced
from train.run.run_dir import RunDir
from train.tokenizers.chat_template import ChatTemplate
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput

__all__ = ["UnpairedInputs", "UnpairedRows", "read_kto", "resolve_config", "rows_of"]


@dataclasses.dataclass(frozen=True, eq=False)
class UnpairedRows(CompletionRows):
    """Rows in memory, each of one labelled completion."""

    FORMAT = kto_rows

    examples: Sequence[UnpairedPreference]
    rows: tuple[UnpairedRow, ...]

    @classmethod
    def encode(
        cls,
        examples: Sequence[UnpairedPreference],
        run: run_config.Run,
        tokenizer: Tokenizer,
        limits: Limits,
        template: ChatTemplate | None,
    ) -> tuple[list[UnpairedRow], list[str]]:
        """Return the rows of examples, with mismatched completions if there is a reference that they are compared with."""
        mismatched, options = run.options.kto.has_reference, run.options.labelled
        return kto_rows.encode_rows(examples, tokenizer, run.model, options, limits, template, mismatched=mismatched)

    @functools.cached_property
    def content_digest(self) -> str:
        """SHA-256 of the texts and labels, independent of their files and of the tokenizer."""
        return digest_of(repr([(item.prompt, item.completion, item.desired) for item in self.examples]), ())

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


@dataclasses.dataclass(frozen=True, eq=False)
class UnpairedInputs(CompletionInputs[UnpairedRows]):
    """Tokenized labelled completions; see `train.inputs.run_inputs.Inputs`."""

    NOUN = "labelled completions"

    def describe(self, run: run_config.Run) -> dict[str, str]:
        """Return a summary of the data, with the numbers of both labels and their ratio in the loss."""
        desired, options = sum(row.desired for row in self.training.rows), run.options.kto
        undesired = len(self.training) - desired
        ratio = options.desired_weight * desired / (options.undesired_weight * undesired)
        labels = f"{desired:,} desired, {undesired:,} undesired; ratio with their weights {ratio:.3g}"
        return {**super().describe(run), "labels": labels}


def read_kto(run: run_config.Run, folder: RunDir, cache: Path, *, quiet: bool = False) -> UnpairedInputs:
    """Read and tokenize labelled completions; see `train.inputs.completion_inputs.read_completions`.

    Raises:
        BadInput: as `train.inputs.completion_inputs.read_completions`, or all training or all held-out completions have the same
            label.
    """
    inputs = completion_inputs.read_completions(run, folder, "kto", UnpairedInputs, UnpairedRows)
    for name, rows in (("training", inputs.training), ("held-out", inputs.held_out)):
        labels = {row.desired for row in rows.rows}
        if len(labels) == 1:
            problem = f"all {len(rows)} {name} completions are {'desired' if labels == {True} else 'undesired'}"
            fix = "add others, or shuffle the file if it is sorted by label"
            raise BadInput(f"--data.paths {' '.join(run.data.paths)}: {problem}, and kto needs both labels; {fix}")
    return inputs


def rows_of(
    examples: Sequence[UnpairedPreference], run: run_config.Run, tokenizer: Tokenizer, left_out: list[str] | None = None
) -> UnpairedRows:
    """Return the rows of labelled completions for a run; see `train.inputs.completion_inputs.make_rows`."""
    return completion_inputs.make_rows(UnpairedRows, examples, run, tokenizer, left_out)
