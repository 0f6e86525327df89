"""Supervised fine-tuning on responses to instructions (Ouyang et al. 2022, section 3.1): the loss counts the responses only."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

from train.config.objectives import InstructionOptions
from train.config.run_config import Run
from train.objectives.student import StudentObjective
from train.rows.batches import Build
from train.rows.instruction_rows import PackedDialogue, dialogue_row
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch


class Instruction(StudentObjective):
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


OBJECTIVE = Instruction
