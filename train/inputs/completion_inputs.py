"""Common parts of the inputs whose rows have a prompt with one or two completions: paired and unpaired preferences."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Int64

from train.config import run_config
from train.data import labelled_reader
from train.data.example_types import Example
from train.data.text_files import Document
from train.inputs.example_inputs import ExampleInputs, template_choice, with_run_template
from train.rows.feedback.preference_rows import Limits, layout_of
from train.rows.mixture import Component, Mixture
from train.rows.row_source import SampledRows, digest_of
from train.run.progress_display import short_number
from train.run.run_dir import RunDir
from train.tokenizers.chat_template import ChatTemplate, chat_template
from train.tokenizers.tokenizer import Tokenizer
from train.weights.tokenizer_choice import check_vocabulary, existing_tokenizer
from zoo.errors import BadInput, require

HeldOut = TypeVar("HeldOut")
Chosen = TypeVar("Chosen", bound="CompletionRows")
Inputs = TypeVar("Inputs", bound="CompletionInputs[Any]")


@dataclasses.dataclass(frozen=True, eq=False)
class CompletionRows(SampledRows):
    """Rows in memory, each of one example with one or two completions."""

    FORMAT: ClassVar[Any]
    """Module of `train.rows` with the functions `encode_rows` and `row_bytes` of its rows."""

    examples: Sequence[Any]
    rows: tuple[Any, ...]
    """Rows with `sides`, `example` and `reference`, as `train.rows.feedback.preference_rows.PreferenceRow`."""
    length: int
    """Number of tokens per row, or of an encoder-decoder's source."""
    fingerprint: str
    """SHA-256 of all rows, their lengths and the tokenizer."""

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> Any:
        """Return a row."""
        return self.rows[number]

    @property
    def text_size(self) -> int:
        """Number of tokens of all sides of all rows, each with its prompt, with special tokens and without padding."""
        return sum(side.size for row in self.rows for side in row.sides)

    @property
    def targets(self) -> int:
        """Equals `text_size`, because training uses all tokens of a row."""
        return self.text_size

    @classmethod
    def encode(
        cls, examples: Sequence[Any], run: run_config.Run, tokenizer: Tokenizer, limits: Limits, template: ChatTemplate | None
    ) -> tuple[list[Any], list[str]]:
        """Return the rows of examples, and a message for each that --labelled.skip-bad leaves out.

        Args:
            template: renders conversations; None: there are none.

        Raises:
            BadInput: an error of `encode_rows` of the module `FORMAT`.
        """
        return cls.FORMAT.encode_rows(examples, tokenizer, run.model, run.options.labelled, limits, template)

    def select_rows(self: Chosen, chosen: Int64[np.ndarray, " n"]) -> Chosen:
        """Return the rows with the numbers `chosen`, in this order; the examples and the fingerprint remain those of all rows."""
        return dataclasses.replace(self, rows=tuple(self.rows[number] for number in chosen.tolist()))


@dataclasses.dataclass(frozen=True, eq=False)
class CompletionInputs(ExampleInputs[HeldOut]):
    """Tokenized preferences; see `train.inputs.run_inputs.Inputs`."""

    NOUN: ClassVar[str]
    """Name of several examples."""

    tokenizer: Tokenizer
    rows: Mixture
    training: HeldOut
    """The rows in `rows`."""
    held_out: HeldOut
    left_out: tuple[str, ...] = ()
    """Error message of each example that --labelled.skip-bad left out."""
    reference: str = ""
    """Digest of the parameters of a reference whose log-probabilities the rows have; empty = they have none."""

    def counts(self) -> Int64[np.ndarray, " V"]:
        """Return the number of occurrences of each id in the training rows."""
        counts, training = np.zeros(self.tokenizer.vocab_size, np.int64), self.training
        assert isinstance(training, CompletionRows)
        for side in (side for row in training.rows for side in row.sides):
            for ids in (side.ids, () if side.source is None else side.source):
                counts += np.bincount(np.asarray(ids, np.int64), minlength=len(counts))
        return counts

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints of `ExampleInputs`, and the digest of a reference if there is one."""
        return super().fingerprints() | ({"reference": self.reference} if self.reference else {})

    def describe(self, run: run_config.Run) -> dict[str, str]:
        """Return a summary of the data and its use in the run, for the console and the report."""
        rows, held_out = self.training, self.held_out
        assert isinstance(rows, CompletionRows) and isinstance(held_out, CompletionRows)
        epochs = run.steps * run.data.batch / len(rows)
        size = f"{len(rows):,} {self.NOUN}, {short_number(rows.text_size)} tokens in all completions and their prompts"
        facts = {"data": f"{', '.join(run.data.paths)}: {size}", "held out": f"{len(held_out):,} {self.NOUN}"}
        if has_conversations(rows.examples):
            facts["chat template"] = template_choice(run) or "the tokenizer's own"
        if self.left_out:
            facts["left out"] = f"{len(self.left_out):,} bad or long {self.NOUN}; the first: {self.left_out[0]}"
        return {**facts, "seen": f"{run.steps:,} steps of {run.data.batch}, {epochs:.3g} epochs"}


def resolve_config(run: run_config.Run, folder: RunDir) -> run_config.Run:
    """Return the run unchanged: none of its values depends on the preferences.

    Raises:
        BadInput: an option has no effect, or the model has no layout for preferences.
    """
    require(run.label_smoothing == 0, "label_smoothing", run.label_smoothing, "it has no effect on preferences; remove it")
    has_target = layout_of(run.model) == "encoder_decoder"
    fix = "only an encoder-decoder has a target; remove it"
    require(has_target or not run.data.target_length, "data.target_length", run.data.target_length, fix)
    return run


def read_completions(
    run: run_config.Run, folder: RunDir, task: str, kind: type[Inputs], rows_kind: type[CompletionRows]
) -> Inputs:
    """Read and tokenize examples. A resumed run uses the tokenizer in its folder, a new run that of `init`.

    Args:
        task: key of `train.data.labelled_reader.TASKS`.
        kind: class of the inputs.
        rows_kind: class of their rows.

    Raises:
        BadInput: the data cannot be read, there is no tokenizer or it does not fit the model, an example is too long, or there
            are conversations and no chat template that renders them.
    """
    left_out: list[str] = []
    halves = labelled_reader.split(task, run.data, run.options.labelled, left_out)
    tokenizer = existing_tokenizer(run, folder)
    if tokenizer is None:
        raise BadInput("--init: name the run or the weights to start from, or set --tokenizer.path to train from random weights")
    check_vocabulary(run, tokenizer)
    tokenizer = with_run_template(run, tokenizer, conversations=any(map(has_conversations, halves)))
    rows, held_out_rows = (make_rows(rows_kind, half, run, tokenizer, left_out) for half in halves)
    named = [Document(example.origin, "") for example in rows.examples]
    component = Component(", ".join(run.data.paths), 1.0, named, rows)
    return kind(tokenizer, Mixture((component,)), rows, held_out_rows, tuple(left_out))


def make_rows(
    kind: type[Chosen], examples: Sequence[Example], run: run_config.Run, tokenizer: Tokenizer, left_out: list[str] | None
) -> Chosen:
    """Return the rows of examples for a run.

    Args:
        left_out: list that gets the message of each example that is left out because it does not fit.

    Raises:
        BadInput: as `CompletionRows.encode`, no example fits, or there is no chat template for conversations.
    """
    limits, template = Limits(run.data.length, run.data.target_length), None
    if has_conversations(examples):
        template = chat_template(tokenizer, run.tokenizer.path or run.init or "the tokenizer")
    rows, messages = kind.encode(examples, run, tokenizer, limits, template)
    if not rows:
        raise BadInput(messages[0])
    if left_out is not None:
        left_out += messages
    fingerprint = digest_of(f"{tokenizer.fingerprint} {limits}", kind.FORMAT.row_bytes(rows))
    return kind(examples, tuple(rows), run.data.length, fingerprint)


def has_conversations(examples: Sequence[Any]) -> bool:
    """Return whether the prompts of some preferences are messages."""
    return not all(isinstance(example.prompt, str) for example in examples)
