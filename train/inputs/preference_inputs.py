"""Preferences: the rows for training and scoring."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from train.config.run_config import Run
from train.data.example_types import Preference
from train.inputs.completion_inputs import CompletionRows
from train.rows.feedback import preference_rows
from train.rows.feedback.preference_rows import PreferenceRow
from train.tokenizers.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class PreferenceRows(CompletionRows):
    """Rows of preferences."""

    FORMAT, NOUN = preference_rows, "preferences"

    rows: tuple[PreferenceRow, ...]

    @staticmethod
    def content_of(example: Preference) -> tuple[Any, ...]:
        """Return the texts and the margin of a preference."""
        return example.prompt, example.chosen, example.rejected, example.margin


def rows_of_preferences(
    examples: Sequence[Preference], run: Run, tokenizer: Tokenizer, left_out: list[str] | None = None
) -> PreferenceRows:
    """Return the rows of preferences for a run; see `train.inputs.completion_inputs.CompletionRows.encode`."""
    return PreferenceRows.encode(examples, run, tokenizer, left_out)
