"""Text to text: translation, summaries, answers (Vaswani et al. 2017; Raffel et al. 2020, section 2.4)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int64

from train.config.objectives import TextToTextOptions
from train.config.run_config import Run
from train.objectives.student import StudentObjective
from train.rows import seq2seq_rows
from train.rows.batches import Build
from train.rows.seq2seq_rows import PackedPair, text_special_tokens_of
from train.tokenizers.tokenizer import Tokenizer


class TextToText(StudentObjective):
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


OBJECTIVE = TextToText
