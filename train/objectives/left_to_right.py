"""Left-to-right language modelling with an encoder: the left-context-only model of Devlin et al. 2019, section 5.1 (LTR)."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from train.config.objectives import LeftToRightOptions
from train.config.run_config import Run
from train.objectives.masked import EncoderObjective, with_special_tokens
from train.rows.batches import Build
from train.rows.encoder_rows import EncoderRow
from train.rows.example_rows import is_typed
from train.tokenizers.tokenizer import Tokenizer


class LeftToRight(EncoderObjective):
    """Next-token prediction with an encoder's body and rows, under a causal mask."""

    OPTIONS = LeftToRightOptions

    @classmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build(rng, row, length)`, which converts a row to the fields of `Batch`; `rng` is not used.

        tokens, segments, positions and types are those of `train.objectives.masked.Masked.builder`, without masks. targets
        (int32) has the next token of each token, weights (float32) is 1 where that is text, and 0 where it is a special token,
        which masks do not choose either; both are [length].
        """
        special_tokens = tokenizer.special_tokens
        assert special_tokens is not None, "rows are planned with a tokenizer that has special tokens"
        typed, special = is_typed(run.model.types, special_tokens), [special_tokens.cls, special_tokens.sep, special_tokens.end]

        def build(rng: np.random.Generator, row: EncoderRow, length: int) -> dict[str, np.ndarray]:
            del rng
            tokens, targets = np.full((2, length), special_tokens.pad, np.int32)
            segments, positions, types = np.zeros((3, length), np.int32)
            weights = np.zeros(length, np.float32)
            start = 0
            for number, sequence in enumerate(row, 1):
                ids, kinds = with_special_tokens(sequence, special_tokens)
                end = start + len(ids)
                tokens[start:end], segments[start:end], positions[start:end] = ids, number, np.arange(len(ids))
                types[start:end] = kinds * typed
                targets[start : end - 1] = ids[1:]
                weights[start : end - 1] = ~np.isin(ids[1:], special)
                start = end
            arrays = {"tokens": tokens, "segments": segments, "positions": positions, "types": types}
            return arrays | {"targets": targets, "weights": weights}

        return build


OBJECTIVE = LeftToRight
