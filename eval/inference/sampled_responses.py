"""Responses that a model samples to prompts, batch by batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt32

from eval.inference.batch_loop import Progress
from train.data.example_types import Prompt
from train.rollouts.rewards import Completion
from train.rollouts.sampler import Sampler
from train.rows.feedback.response_rows import ResponseRow


class SampledResponse(NamedTuple):
    """A response to a prompt."""

    completion: Completion
    row: ResponseRow
    ids: Int32[np.ndarray, " r"]
    """Its tokens, with the end mark unless the limit cut it off."""
    ended: bool
    """True if it has an end mark."""


def sample_responses(
    sampler: Sampler,
    params: Any,
    prompts: Sequence[Prompt],
    rows: Sequence[ResponseRow],
    numbers: UInt32[np.ndarray, "2 N"],
    progress: Progress,
) -> list[SampledResponse]:
    """Return a response to each of N rows, in order.

    Args:
        prompts: the prompts by `ResponseRow.example`.
        numbers: see `Sampler.sample`.
        progress: called with (batches done, total batches).
    """
    params, begins, sampled = sampler.decoding_params(params), range(0, len(rows), sampler.rows), []
    progress(0, len(begins))
    for done, begin in enumerate(begins, 1):
        batch = rows[begin : begin + sampler.rows]
        responses = sampler.sample(params, batch, numbers[:, begin : begin + sampler.rows])
        for place, row in enumerate(batch):
            completion = Completion(prompts[row.example], sampler.text(responses, place), responses.text_ids(place))
            sampled.append(SampledResponse(completion, row, responses.ids(place), bool(responses.ended[place])))
        progress(done, len(begins))
    return sampled
