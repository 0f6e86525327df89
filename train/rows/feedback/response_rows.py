"""Rows of sampled responses: a prompt, and a response to it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from train.rows.feedback.preference_rows import Side, side_builder
from train.tokenizers.tokenizer import Tokenizer


class ResponseRow(NamedTuple):
    """A prompt without a response, to which the model in training responds."""

    side: Side
    """The ids. A decoder's prompt has at least one."""
    example: int = -1
    """Number of the prompt's example; -1 if it has none."""

    @property
    def prompt(self) -> Int32[np.ndarray, " p"]:
        """The ids of the prompt, for an encoder-decoder with the end mark."""
        return self.side.ids[: self.side.first] if self.side.source is None else self.side.source

    def with_response(self, response: Int32[np.ndarray, " n"]) -> Side:
        """Return the ids of the prompt with a response, which has the end mark if it was sampled."""
        if self.side.source is not None:
            return Side(response, 0, self.side.source)
        return Side(np.concatenate([self.prompt, response]), self.side.first)


def row_builder(cfg: Any, tokenizer: Tokenizer, *, target_length: int) -> Callable[[Side, int], dict[str, Any]]:
    """Return a function (ids of a prompt with its response, length) -> fields of `zoo.batch.Batch`, right-padded.

    The fields are tokens, segments (1; 0 = padding), positions and targets (the next tokens), int32 [T]; weights, float32 [T],
    1 where a target is a token of the response; and for an encoder-decoder the source, as in `preference_rows`.

    Args:
        target_length: T of an encoder-decoder; a decoder's is `length`.

    Raises:
        BadInput: the tokenizer does not fit the model, or the model has no layout of prompts and responses.
    """
    build_side = side_builder(cfg, tokenizer, target_length)

    def build(side: Side, length: int) -> dict[str, Any]:
        fields = build_side(side, length)
        del fields["summary_at"]
        # The token before the response predicts its first one; an encoder-decoder's response begins its row.
        begin = max(side.first - 1, 0)
        weights = np.zeros(len(fields["tokens"]), np.float32)
        weights[begin : begin + len(side.ids) - side.first] = 1
        return fields | {"weights": weights}

    return build
