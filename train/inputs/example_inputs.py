"""Common parts of the inputs of examples of every kind: rows in memory, held-out rows, fingerprints and the tokenizer."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Int64

from train.config import run_config
from train.config.option_groups import ChatRendering
from train.data.dialogues import texts_of
from train.data.example_types import Dialogue, Pair
from train.rows.lm_rows import csr_offsets
from train.rows.mixture import Mixture
from train.rows.row_source import SampledRows
from train.run.run_dir import RunDir
from train.tokenizers.chat_template import with_template
from train.tokenizers.tokenizer import Tokenizer
from train.weights.tokenizer_choice import check_vocabulary, existing_tokenizer
from zoo.errors import require

Packed = TypeVar("Packed", bound="PackedRows")
HeldOut = TypeVar("HeldOut")
"""Rows with a `content_digest`: the SHA-256 of the examples, independent of their files and of the tokenizer."""


class ExampleInputs(Generic[HeldOut]):
    """Base class of inputs made of tokenized examples; the held-out ones are scored. See `train.inputs.run_inputs.Inputs`."""

    tokenizer: Tokenizer
    rows: Mixture
    held_out: HeldOut

    def scored_rows(self, run: run_config.Run, stride: int) -> HeldOut:
        """Return the rows of the held-out examples."""
        return self.held_out

    def validation_rows(self, run: run_config.Run) -> HeldOut:
        """Return the rows of the held-out examples."""
        return self.held_out

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints that a checkpoint stores, so that it is never resumed on other data.

        The fingerprint of the held-out half depends on its examples alone, so that runs with different tokenizers, lengths and
        weights can be compared.
        """
        held_out: Any = self.held_out
        return {"tokenizer": self.tokenizer.fingerprint, "data": self.rows.fingerprint, "held_out": held_out.content_digest}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PackedRows(SampledRows):
    """Base class of rows in memory, each of one example or of several packed ones."""

    order: Int64[np.ndarray, " examples"]
    """Indices of the examples, row after row."""
    first: Int64[np.ndarray, " rows_and_one"]
    """Index in `order` at which each row begins; the last entry is the end."""
    length: int
    """Number of tokens per row; of a row with a source and a target, those of the source."""
    fingerprint: str
    """SHA-256 of all rows and the tokenizer."""

    def __len__(self) -> int:
        return len(self.first) - 1

    def examples_of(self, number: int) -> list[int]:
        """Return the indices of the examples of a row."""
        return self.order[self.first[number] : self.first[number + 1]].tolist()

    def select_rows(self: Packed, chosen: Int64[np.ndarray, " n"]) -> Packed:
        """Return the rows with the numbers `chosen`, in this order; the examples and the fingerprint remain those of all rows."""
        rows = [self.order[self.first[number] : self.first[number + 1]] for number in chosen]
        return dataclasses.replace(self, order=np.concatenate(rows), first=csr_offsets(np.array([len(row) for row in rows])))


def tokenizer_of(
    run: run_config.Run, folder: RunDir, training: Sequence[Pair | Dialogue], held_out: Sequence[Pair | Dialogue]
) -> Tokenizer:
    """Return the tokenizer of a run, with the chat template that it names. A run without one trains it on the training texts.

    Raises:
        BadInput: a chat template for examples without messages, or one that cannot be read; or the tokenizer has ids beyond the
            vocabulary.
    """
    tokenizer = existing_tokenizer(run, folder)
    if tokenizer is None:
        texts = (text for example in training for text in texts_of(example))
        tokenizer = Tokenizer.train(texts, run.tokenizer.vocab, run.tokenizer.kind, run.tokenizer.lowercase)
    conversations = any(isinstance(example, Dialogue) for example in [*training, *held_out])
    tokenizer = with_run_template(run, tokenizer, conversations=conversations)
    check_vocabulary(run, tokenizer)
    return tokenizer


def with_run_template(run: run_config.Run, tokenizer: Tokenizer, *, conversations: bool) -> Tokenizer:
    """Return a tokenizer with the chat template that a run names with --chat.template, if it names one.

    Args:
        conversations: whether the data have messages.

    Raises:
        BadInput: a chat template for data without messages, or one that cannot be read.
    """
    choice, fix = template_choice(run), "the data has no messages, and plain texts are not rendered; remove it"
    require(conversations or not choice, "chat.template", choice, fix)
    return with_template(tokenizer, choice)


def template_choice(run: run_config.Run) -> str:
    """Return the value of --chat.template; "" for an objective of a plug-in that does not have the option."""
    return getattr(run.options, "chat", ChatRendering()).template


def token_sizes(run: run_config.Run, tokenizer: Tokenizer) -> Int64[np.ndarray, " V"]:
    """Return the UTF-8 bytes of each token; 0 for special tokens and for ids that the tokenizer does not have."""
    sizes = np.zeros(run.model.vocab, np.int64)
    sizes[: tokenizer.vocab_size] = tokenizer.token_bytes()
    return sizes
