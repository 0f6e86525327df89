"""Preferences, from files to the rows for training and scoring."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from train.config import run_config
from train.data import labelled_reader
from train.data.example_types import Preference
from train.data.text_files import Document
from train.inputs.example_inputs import ExampleInputs
from train.rows import preference_rows
from train.rows.mixture import Component, Mixture
from train.rows.preference_rows import Limits, PreferenceRow, layout_of, row_bytes
from train.rows.row_source import SampledRows, digest_of
from train.run.console import short
from train.run.run_dir import RunDir
from train.tokenizers.tokenizer import Tokenizer
from train.weights.tokenizer_choice import check_vocabulary, existing_tokenizer
from zoo.errors import BadInput, require


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(SampledRows):
    """Rows of one preference each. They are in memory."""

    examples: Sequence[Preference]
    rows: tuple[PreferenceRow, ...]
    length: int
    """Tokens per row, or of an encoder-decoder's source."""
    fingerprint: str
    """SHA-256 of all rows, their lengths and the tokenizer."""

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> PreferenceRow:
        """Return a row."""
        return self.rows[number]

    @property
    def text_size(self) -> int:
        """Number of tokens of both sides of all rows, the prompt twice, with special tokens and without padding."""
        return sum(side.size for row in self.rows for side in row.sides)

    @property
    def targets(self) -> int:
        """Equals `text_size`, because training uses all tokens of a row."""
        return self.text_size

    @functools.cached_property
    def content_digest(self) -> str:
        """SHA-256 of the texts and margins, independent of their files and of the tokenizer."""
        return digest_of(repr([(item.prompt, item.chosen, item.rejected, item.margin) for item in self.examples]), ())

    def select_rows(self, chosen: Int64[np.ndarray, " n"]) -> "Rows":
        """Return the rows with the numbers `chosen`, in this order; the examples and the fingerprint stay those of all rows."""
        return dataclasses.replace(self, rows=tuple(self.rows[number] for number in chosen.tolist()))


@dataclasses.dataclass(frozen=True, eq=False)
class Preferences(ExampleInputs[Rows]):
    """Tokenized preferences; see `train.inputs.dataset.Inputs`."""

    tokenizer: Tokenizer
    rows: Mixture
    training: Rows
    """The rows in `rows`."""
    held_out: Rows
    left_out: tuple[str, ...] = ()
    """Error message of each preference that --labelled.skip-bad left out."""
    reference: str = ""
    """Digest of the parameters of a reference whose log-probabilities the rows have; empty = they have none."""

    def counts(self) -> Int64[np.ndarray, " V"]:
        """Return the number of occurrences of each id in the training rows."""
        counts = np.zeros(self.tokenizer.vocab_size, np.int64)
        for side in (side for row in self.training.rows for side in row.sides):
            for ids in (side.ids, () if side.source is None else side.source):
                counts += np.bincount(np.asarray(ids, np.int64), minlength=len(counts))
        return counts

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints of `ExampleInputs`, and that of a reference."""
        return super().fingerprints() | ({"reference": self.reference} if self.reference else {})

    def facts(self, run: run_config.Run) -> dict[str, str]:
        """Return a summary of the data and its use in the run, for the console and the report."""
        rows, epochs = self.training, run.steps * run.data.batch / len(self.training)
        size = f"{len(rows):,} preferences, {short(rows.text_size)} tokens in both completions and their prompts"
        facts = {"data": f"{', '.join(run.data.paths)}: {size}", "held out": f"{len(self.held_out):,} preferences"}
        if self.left_out:
            facts["left out"] = f"{len(self.left_out):,} bad or long preferences; the first: {self.left_out[0]}"
        return {**facts, "seen": f"{run.steps:,} steps of {run.data.batch}, {epochs:.3g} epochs"}


def resolve_config(run: run_config.Run, folder: RunDir) -> run_config.Run:
    """Return the run unchanged: preferences determine no value of it.

    Raises:
        BadInput: an option has no effect, or the model has no layout for preferences.
    """
    require(run.selection.share == 0, "selection.share", run.selection.share, "it has no effect on preferences; remove it")
    require(run.label_smoothing == 0, "label_smoothing", run.label_smoothing, "it has no effect on preferences; remove it")
    has_target = layout_of(run.model) == "encoder_decoder"
    fix = "only an encoder-decoder has a target; remove it"
    require(has_target or not run.data.target_length, "data.target_length", run.data.target_length, fix)
    return run


def read(run: run_config.Run, folder: RunDir, cache: Path, *, quiet: bool = False) -> Preferences:
    """Read and tokenize preferences. A resumed run uses the tokenizer in its folder, a new one that of `init`.

    Raises:
        BadInput: the data cannot be read, there is no tokenizer or it does not fit the model, or a preference is too long.
    """
    left_out: list[str] = []
    halves: Any = labelled_reader.split("preference", run.data, run.options.labelled, left_out)
    tokenizer = existing_tokenizer(run, folder)
    if tokenizer is None:
        raise BadInput("--init: name the run or the weights to start from, or set --tokenizer.path to train from random weights")
    check_vocabulary(run, tokenizer)
    rows, held_out_rows = (rows_of(half, run, tokenizer, left_out) for half in halves)
    named = [Document(example.origin, "") for example in rows.examples]
    component = Component(", ".join(run.data.paths), 1.0, named, rows)
    return Preferences(tokenizer, Mixture((component,)), rows, held_out_rows, tuple(left_out))


def rows_of(examples: Sequence[Preference], run: run_config.Run, tokenizer: Tokenizer, left_out: list[str] | None = None) -> Rows:
    """Return the rows of preferences for a run.

    Args:
        left_out: list to which the message of each preference that does not fit and is left out is appended.

    Raises:
        BadInput: as `train.rows.preference_rows.encode_rows`, or no preference fits.
    """
    limits = Limits(run.data.length, run.data.target_length)
    rows, messages = preference_rows.encode_rows(examples, tokenizer, run.model, run.options.labelled, limits)
    if not rows:
        raise BadInput(messages[0])
    if left_out is not None:
        left_out += messages
    fingerprint = digest_of(f"{tokenizer.fingerprint} {limits}", row_bytes(rows))
    return Rows(examples, tuple(rows), run.data.length, fingerprint)
