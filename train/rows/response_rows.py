"""Rows of sampled responses: a prompt, a response to it, and the numbers for each response that policy gradients read."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from train.rows.preference_rows import Side, side_builder
from train.tokenizers.tokenizer import Tokenizer

NONE = np.zeros(0, np.float32)


class ResponseRow(NamedTuple):
    """A prompt and a response of n tokens, the end mark included if it was sampled; n = 0 for a prompt alone."""

    side: Side
    """The ids. A decoder's prompt has at least one."""
    old: Float32[np.ndarray, " n"] = NONE
    """Log-probability in nats of each token of the response under the parameters at the start of its rollout."""
    advantage: float = 0.0
    reference: Float32[np.ndarray, " n"] = NONE
    """Log-probabilities under the reference, if the loss reads them."""
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


def row_builder(
    cfg: Any, tokenizer: Tokenizer, *, target_length: int, reference: bool = False
) -> Callable[[ResponseRow, int], dict[str, Any]]:
    """Return a function (row, length) -> fields of `zoo.batch.Batch`, right-padded.

    The fields are tokens, segments (1; 0 = padding), positions and targets (the next tokens), int32 [T]; weights, float32 [T],
    1 where a target is a token of the response; and for an encoder-decoder the source, as in `train.rows.preference_rows`. The
    field extra has "old", float32 [T], "advantage", float32 [], and with `reference` also "reference", float32 [T]; "old" and
    "reference" are 0 where the weight is 0.

    Args:
        target_length: T of an encoder-decoder; a decoder's is `length`.

    Raises:
        BadInput: the tokenizer does not fit the model, or the model has no layout of prompts and responses.
    """
    build_side = side_builder(cfg, tokenizer, target_length)

    def build(row: ResponseRow, length: int) -> dict[str, Any]:
        fields = build_side(row.side, length)
        del fields["summary_at"]
        # The token before the response predicts its first one; an encoder-decoder's response begins its row.
        begin, size = max(row.side.first - 1, 0), len(row.side.ids) - row.side.first

        def at_targets(values: Any) -> Float32[np.ndarray, " T"]:
            placed = np.zeros(len(fields["tokens"]), np.float32)
            placed[begin : begin + size] = values
            return placed

        extra = {"old": at_targets(row.old), "advantage": np.array(row.advantage, np.float32)}
        if reference:
            extra["reference"] = at_targets(row.reference)
        return fields | {"weights": at_targets(1), "extra": extra}

    return build
