"""Supervised fine-tuning on responses to instructions (Ouyang et al. 2022, section 3.1): the loss counts the responses only."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64

from train.config.objectives import InstructionOptions
from train.config.run_config import Run
from train.objectives.response_student import ResponseStudent, check_one_kind
from train.rows.batches import Build
from train.rows.feedback.preference_rows import Side
from train.rows.feedback.response_rows import ResponseRow
from train.rows.instruction_rows import PackedDialogue, dialogue_row
from train.tokenizers.chat_template import chat_template
from train.tokenizers.chat_token_ids import CountedIds, end_mark
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch


class Instruction(ResponseStudent):
    """Prediction of the tokens of each response and of the end mark after it, from the prompt and the response so far.

    The loss is the mean over the counted tokens of the global batch, so a long response weighs more than a short one.
    """

    OPTIONS = InstructionOptions

    @classmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build(rng, row, length)`, which converts a row of `train.inputs.instruction_inputs` to the fields of `Batch`.

        See `train.rows.instruction_rows.dialogue_row`; `rng` is not used.
        """
        pad = tokenizer.end_of_text

        def build(rng: np.random.Generator, row: tuple[PackedDialogue, ...], length: int) -> dict[str, Any]:
            del rng
            return dialogue_row([packed.text for packed in row], length, pad)

        return build

    @classmethod
    def text_ids(cls, run: Run, batch: Batch) -> list[Int[np.ndarray, " _"]]:
        """Return the ids of prompts and responses: all inputs, since the first token of a prompt is not a target."""
        assert batch.segments is not None
        return [batch.tokens[batch.segments > 0]]

    @classmethod
    def prompt_of(cls, row: tuple[PackedDialogue, ...]) -> ResponseRow:
        """Return the text before the last response; at least its first token, which is never predicted."""
        (packed,) = row
        ids, counted = packed.text.ids, packed.text.counted
        begins = counted & ~np.append(False, counted[:-1])
        first = max(1, int(np.flatnonzero(begins)[-1]))
        return ResponseRow(Side(ids[:first], first), packed.example)

    @classmethod
    def with_response(cls, row: tuple[PackedDialogue, ...], response: Int32[np.ndarray, " n"]) -> tuple[PackedDialogue, ...]:
        """Return the row with another response, whose tokens alone count."""
        prompt = cls.prompt_of(row)
        ids = prompt.with_response(response).ids
        return (PackedDialogue(prompt.example, CountedIds(ids, np.arange(len(ids)) >= len(prompt.prompt))),)

    @classmethod
    def response_end(cls, run: Run, inputs: Any) -> int:
        """Return end-of-text, or for conversations the token that the chat template writes after an answer.

        Raises:
            BadInput: some examples are conversations and others are not, or the template writes no single token.
        """
        tokenizer, examples = inputs.tokenizer, inputs.training.examples
        is_chat = hasattr(examples[0], "messages")
        check_one_kind(examples, conversations=is_chat)
        if not is_chat:
            return tokenizer.end_of_text
        return end_mark(tokenizer, chat_template(tokenizer, run.tokenizer.path or run.init or "the tokenizer"))


OBJECTIVE = Instruction
