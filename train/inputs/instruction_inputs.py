"""Instructions and conversations, from files to the rows for training and scoring."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int64

from train.config import run_config
from train.data import labelled_reader
from train.data.example_types import Dialogue, Pair
from train.data.text_files import Document
from train.inputs.example_inputs import ExampleInputs, PackedRows, token_sizes, tokenizer_of
from train.rows.instruction_rows import PackedDialogue, encode_completions, fit
from train.rows.lm_rows import csr_offsets, first_fit
from train.rows.mixture import Component, Mixture
from train.rows.row_source import digest_of
from train.run.progress_display import short_number
from train.run.run_dir import RunDir
from train.tokenizers.chat_template import chat_template
from train.tokenizers.chat_token_ids import CountedIds, encode_dialogues
from train.tokenizers.tokenizer import Tokenizer

EXAMPLES_PER_BATCH = 1024
"""Number of conversations that are tokenized at once, because their texts need more memory than their ids."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DialogueRows(PackedRows):
    """Rows of instructions with responses."""

    examples: Sequence[Pair | Dialogue]
    texts: Sequence[CountedIds]
    """Ids of each example."""

    def row(self, number: int) -> tuple[PackedDialogue, ...]:
        """Return the examples of a row."""
        return tuple(PackedDialogue(example, self.texts[example]) for example in self.examples_of(number))

    @property
    def text_size(self) -> int:
        """Number of tokens of the examples, without padding."""
        return sum(len(text.ids) for text in self.texts)

    @property
    def targets(self) -> int:
        """Number of counted tokens in all rows."""
        return sum(int(text.counted.sum()) for text in self.texts)

    @functools.cached_property
    def content_digest(self) -> str:
        """SHA-256 of the texts of the examples, independent of their files, the chat template and the tokenizer."""
        texts = [
            (example.source, example.target) if isinstance(example, Pair) else tuple(map(tuple, example.messages))
            for example in self.examples
        ]
        return digest_of(repr(texts), ())


@dataclasses.dataclass(frozen=True, eq=False)
class DialogueInputs(ExampleInputs[DialogueRows]):
    """Tokenized instructions with responses; see `train.inputs.run_inputs.Inputs`."""

    tokenizer: Tokenizer
    """The tokenizer, with the chat template if there are conversations."""
    token_bytes: Int[np.ndarray, " V"]
    """UTF-8 bytes of each token; 0 for special tokens and for ids that the tokenizer does not have."""
    rows: Mixture
    training: DialogueRows
    """The rows in `rows`."""
    held_out: DialogueRows

    def counts(self) -> Int64[np.ndarray, " V"]:
        """Return the number of occurrences of each id in the training rows."""
        counts = np.zeros(len(self.token_bytes), np.int64)
        for text in self.training.texts:
            counts += np.bincount(text.ids, minlength=len(counts))
        return counts

    def describe(self, run: run_config.Run) -> dict[str, str]:
        """Return a summary of the data and its use in the run, for the console and the report."""
        rows, epochs = self.training, run.steps * run.data.batch / len(self.training)
        several = f" in {len(rows):,} rows" if len(rows) < len(rows.examples) else ""
        counted = f"{short_number(rows.text_size)} tokens, {rows.targets / rows.text_size:.1%} of them responses"
        return {
            "data": f"{self.rows.components[0].name}: {len(rows.examples):,} examples{several}, {counted}",
            "held out": f"{len(self.held_out.examples):,} examples",
            "seen": f"{run.steps:,} steps of {run.data.batch}, {epochs:.3g} epochs",
            **({"chat template": run.options.chat.template or "the tokenizer's own"} if _has_messages(rows.examples) else {}),
        }


def resolve_config(run: run_config.Run, folder: RunDir) -> run_config.Run:
    """Return the run unchanged: instructions determine no value of it."""
    return run


def read_instructions(run: run_config.Run, folder: RunDir, cache: Path, *, quiet: bool = False) -> DialogueInputs:
    """Read and tokenize instructions and plan their rows. A run without a tokenizer trains one on their texts.

    Raises:
        BadInput: the data cannot be read, there are conversations and no chat template, an example is too long, or the tokenizer
            has ids beyond the vocabulary.
    """
    training, held_out = split(run)
    tokenizer = tokenizer_of(run, folder, training, held_out)
    rows = rows_of(training, run, tokenizer)
    named = [Document(example.origin, "") for example in training]
    component = Component(", ".join(run.data.paths), 1.0, named, rows)
    return DialogueInputs(tokenizer, token_sizes(run, tokenizer), Mixture((component,)), rows, rows_of(held_out, run, tokenizer))


def split(run: run_config.Run) -> tuple[list[Pair | Dialogue], list[Pair | Dialogue]]:
    """Return (training, held-out) examples; see `train.data.labelled_reader.split`."""
    return labelled_reader.split("instruction", run.data, run.options.labelled)  # pyright: ignore[reportReturnType]


def rows_of(examples: Sequence[Pair | Dialogue], run: run_config.Run, tokenizer: Tokenizer) -> DialogueRows:
    """Return the rows of examples for a run.

    Raises:
        BadInput: an example is too long or has no tokens, or its conversation cannot be rendered.
    """
    length, options = run.data.length, run.options
    encoded = zip(examples, _encoded(examples, run, tokenizer), strict=True)
    texts = [fit(text, length, example.origin, truncate=options.labelled.truncate) for example, text in encoded]
    row = np.array(first_fit([len(text.ids) for text in texts], length)) if run.data.pack else np.arange(len(texts))
    order = np.argsort(row, kind="stable")
    contents = (part for text in texts for part in (len(text.ids).to_bytes(8), text.ids.tobytes(), text.counted.tobytes()))
    fingerprint = digest_of(f"{tokenizer.fingerprint} {length}", itertools.chain(contents, (order.tobytes() + row.tobytes(),)))
    first = csr_offsets(np.bincount(row))
    return DialogueRows(examples=examples, texts=texts, order=order, first=first, length=length, fingerprint=fingerprint)


def _encoded(examples: Sequence[Pair | Dialogue], run: run_config.Run, tokenizer: Tokenizer) -> Iterator[CountedIds]:
    """Yield the ids of each example, in order."""
    pairs = iter(encode_completions([example for example in examples if isinstance(example, Pair)], tokenizer))
    chats = _encoded_chats([example for example in examples if isinstance(example, Dialogue)], run, tokenizer)
    return (next(pairs if isinstance(example, Pair) else chats) for example in examples)


def _encoded_chats(chats: Sequence[Dialogue], run: run_config.Run, tokenizer: Tokenizer) -> Iterator[CountedIds]:
    if chats:
        template = chat_template(tokenizer, run.tokenizer.path or run.init or "the tokenizer")
        for start in range(0, len(chats), EXAMPLES_PER_BATCH):
            yield from encode_dialogues(chats[start : start + EXAMPLES_PER_BATCH], tokenizer, template, run.options.chat.turns)


def _has_messages(examples: Sequence[Pair | Dialogue]) -> bool:
    return any(isinstance(example, Dialogue) for example in examples)
