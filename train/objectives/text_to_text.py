"""Text to text: translation, summaries, answers (Vaswani et al. 2017; Raffel et al. 2020, section 2.4)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from train.config.objectives import TextToTextOptions
from train.config.run_config import Run
from train.objectives.response_student import ResponseStudent
from train.rows import seq2seq_rows
from train.rows.batches import Build
from train.rows.feedback.preference_rows import Side
from train.rows.feedback.response_rows import ResponseRow
from train.rows.seq2seq_rows import PackedPair, SourceTarget, text_special_tokens_of
from train.tokenizers.tokenizer import Tokenizer


class TextToText(ResponseStudent):
    """Prediction of the target text of each source text."""

    OPTIONS = TextToTextOptions

    @classmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build(rng, row, length)`, which converts a row of `train.inputs.seq2seq_inputs` to the fields of `Batch`.

        See `train.rows.seq2seq_rows.encoder_decoder_row`, and `decoder_only_row` for a decoder without an encoder. `rng` is not
        used.
        """
        pad, target = text_special_tokens_of(tokenizer).pad, run.data.target_length or run.data.length
        decoder_only = not run.model.is_encoder_decoder

        def build(rng: np.random.Generator, row: tuple[PackedPair, ...], length: int) -> dict[str, Any]:
            if decoder_only:
                return seq2seq_rows.decoder_only_row(row[0].sides, length + target, pad, causal=run.options.denoising.causal)
            return seq2seq_rows.encoder_decoder_row([pair.sides for pair in row], length, target, pad)

        return build

    @classmethod
    def prompt_of(cls, row: tuple[PackedPair, ...]) -> ResponseRow:
        """Return the source of a pair."""
        (pair,) = row
        return ResponseRow(Side(np.zeros(0, np.int32), 0, pair.sides.source), pair.example)

    @classmethod
    def with_response(cls, row: tuple[PackedPair, ...], response: Int32[np.ndarray, " n"]) -> tuple[PackedPair, ...]:
        """Return the source with another target."""
        (pair,) = row
        return (PackedPair(pair.example, SourceTarget(pair.sides.source, response)),)

    @classmethod
    def response_end(cls, run: Run, inputs: Any) -> int:
        """Return the end token of targets."""
        return text_special_tokens_of(inputs.tokenizer).end


OBJECTIVE = TextToText
