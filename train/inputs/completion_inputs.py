"""Inputs whose rows have a prompt with one or two completions: paired and unpaired preferences."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from train.config.run_config import Run
from train.data.example_types import has_messages
from train.inputs.example_inputs import ExampleRows, keep_messages, run_template
from train.rows.feedback.preference_rows import Limits
from train.rows.row_source import digest_of
from train.tokenizers.tokenizer import Tokenizer

Completions = TypeVar("Completions", bound="CompletionRows")


@dataclasses.dataclass(frozen=True, eq=False)
class CompletionRows(ExampleRows):
    """Rows of one example each, with one or two completions in `sides`."""

    FORMAT: ClassVar[Any]
    """Module of `train.rows` with the functions `encode_rows` and `row_bytes` of its rows."""

    def id_arrays(self) -> Iterator[np.ndarray]:
        """Yield the ids of each side, with its prompt, and of the sources."""
        for side in (side for row in self.rows for side in row.sides):
            yield side.ids
            if side.source is not None:
                yield side.source

    def room(self, run: Run) -> int:
        """Return the number of tokens that two completions of each row have room for."""
        target = (run.data.target_length or self.length) if run.model.is_encoder_decoder else 0
        return 2 * len(self) * (self.length + target)

    def size_text(self) -> str:
        """Return the size of the rows in words."""
        return f"{super().size_text()} in all completions and their prompts"

    @classmethod
    def encode(
        cls: type[Completions],
        examples: Sequence[Any],
        run: Run,
        tokenizer: Tokenizer,
        left_out: list[str] | None,
        **options: Any,
    ) -> Completions:
        """Return the rows of examples for a run.

        Args:
            left_out: list that gets the message of each example that is left out because it does not fit.
            options: further arguments of the function `encode_rows` of `FORMAT`.

        Raises:
            BadInput: an error of `encode_rows`, no example fits, or there is no chat template for conversations.
        """
        limits = Limits(run.data.length, run.data.target_length)
        template = run_template(run, tokenizer) if any(map(has_messages, examples)) else None
        arguments = (examples, tokenizer, run.model, run.options.labelled, limits, template)
        rows, messages = cls.FORMAT.encode_rows(*arguments, **options)
        keep_messages(rows, messages, left_out)
        fingerprint = digest_of(f"{tokenizer.fingerprint} {limits}", cls.FORMAT.row_bytes(rows))
        return cls(examples, tuple(rows), run.data.length, fingerprint)
