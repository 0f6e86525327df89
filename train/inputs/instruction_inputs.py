"""Instructions and conversations: the rows for training and scoring."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from train.config.run_config import Run
from train.data.example_types import Dialogue, Pair
from train.inputs.example_inputs import PackedRows, pack_rows, run_template
from train.rows.instruction_rows import PackedDialogue, encode_completions, fit_text
from train.rows.lm_rows import first_fit
from train.run.progress_display import short_number
from train.tokenizers.chat_token_ids import CountedIds, encode_dialogues
from train.tokenizers.tokenizer import Tokenizer

EXAMPLES_PER_BATCH = 1024
"""Number of conversations that are tokenized at once, because their texts need more memory than their ids."""


@dataclasses.dataclass(frozen=True, eq=False)
class DialogueRows(PackedRows):
    """Rows of instructions with responses."""

    rows: tuple[tuple[PackedDialogue, ...], ...]

    @property
    def texts(self) -> list[CountedIds]:
        """Ids of each example."""
        return [part.text for part in self.parts]

    def id_arrays(self) -> Iterator[np.ndarray]:
        """Yield the ids of each example."""
        return (text.ids for text in self.texts)

    def room(self, run: Run) -> int:
        """Return the number of tokens that the rows have room for."""
        return len(self) * self.length

    @property
    def targets(self) -> int:
        """Number of counted tokens in all rows."""
        return sum(int(text.counted.sum()) for text in self.texts)

    @staticmethod
    def content_of(example: Pair | Dialogue) -> tuple[object, ...]:
        """Return the texts of an example; they do not depend on the chat template."""
        return (example.source, example.target) if isinstance(example, Pair) else tuple(map(tuple, example.messages))

    def size_text(self) -> str:
        """Return the size of the rows in words."""
        return f"{short_number(self.text_size)} tokens, {self.targets / self.text_size:.1%} of them responses"


def rows_of_instructions(
    examples: Sequence[Pair | Dialogue], run: Run, tokenizer: Tokenizer, left_out: list[str] | None = None
) -> DialogueRows:
    """Return the rows of examples for a run; none is left out.

    Raises:
        BadInput: an example is too long or has no tokens, or its conversation cannot be rendered.
    """
    length, options = run.data.length, run.options
    encoded = zip(examples, _encoded(examples, run, tokenizer), strict=True)
    texts = [fit_text(text, length, example.origin, truncate=options.labelled.truncate) for example, text in encoded]
    numbers = np.array(first_fit([len(text.ids) for text in texts], length)) if run.data.pack else np.arange(len(texts))
    contents = (part for text in texts for part in (len(text.ids).to_bytes(8), text.ids.tobytes(), text.counted.tobytes()))
    parts = [PackedDialogue(number, text) for number, text in enumerate(texts)]
    rows, fingerprint = pack_rows(parts, numbers, f"{tokenizer.fingerprint} {length}", contents)
    return DialogueRows(examples, rows, length, fingerprint)


def _encoded(examples: Sequence[Pair | Dialogue], run: Run, tokenizer: Tokenizer) -> Iterator[CountedIds]:
    """Yield the ids of each example, in order."""
    pairs = iter(encode_completions([example for example in examples if isinstance(example, Pair)], tokenizer))
    chats = _encoded_chats([example for example in examples if isinstance(example, Dialogue)], run, tokenizer)
    return (next(pairs if isinstance(example, Pair) else chats) for example in examples)


def _encoded_chats(chats: Sequence[Dialogue], run: Run, tokenizer: Tokenizer) -> Iterator[CountedIds]:
    if chats:
        template = run_template(run, tokenizer)
        for start in range(0, len(chats), EXAMPLES_PER_BATCH):
            yield from encode_dialogues(chats[start : start + EXAMPLES_PER_BATCH], tokenizer, template, run.options.chat.turns)
