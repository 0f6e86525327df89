"""Preferences, from files to the rows for training and scoring."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from train.config import run_config
from train.data.example_types import Preference
from train.inputs import completion_inputs
from train.inputs.completion_inputs import CompletionInputs, CompletionRows, resolve_config
from train.rows.feedback import preference_rows
from train.rows.feedback.preference_rows import PreferenceRow
from train.rows.row_source import digest_of
from train.run.run_dir import RunDir
from train.tokenizers.tokenizer import Tokenizer

__all__ = ["PreferenceInputs", "PreferenceRows", "read_preferences", "resolve_config", "rows_of"]


@dataclasses.dataclass(frozen=True, eq=False)
class PreferenceRows(CompletionRows):
    """Rows in memory, each of one preference."""

    FORMAT = preference_rows

    examples: Sequence[Preference]
    rows: tuple[PreferenceRow, ...]

    @functools.cached_property
    def content_digest(self) -> str:
        """SHA-256 of the texts and margins, independent of their files and of the tokenizer."""
        return digest_of(repr([(item.prompt, item.chosen, item.rejected, item.margin) for item in self.examples]), ())


@dataclasses.dataclass(frozen=True, eq=False)
class PreferenceInputs(CompletionInputs[PreferenceRows]):
    """Tokenized preferences; see `train.inputs.run_inputs.Inputs`."""

    NOUN = "preferences"


def read_preferences(run: run_config.Run, folder: RunDir, cache: Path, *, quiet: bool = False) -> PreferenceInputs:
    """Read and tokenize preferences; see `train.inputs.completion_inputs.read_completions`."""
    return completion_inputs.read_completions(run, folder, "preference", PreferenceInputs, PreferenceRows)


def rows_of(
    examples: Sequence[Preference], run: run_config.Run, tokenizer: Tokenizer, left_out: list[str] | None = None
) -> PreferenceRows:
    """Return the rows of preferences for a run; see `train.inputs.completion_inputs.make_rows`."""
    return completion_inputs.make_rows(PreferenceRows, examples, run, tokenizer, left_out)
