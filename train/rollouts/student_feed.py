"""Training batches of a student whose responses it samples itself, or that the data give (Agarwal et al. 2024, algorithm 1).

The responses of a batch are a function of the parameters before its step, the seed and the numbers of its examples, so a run that
continues from a checkpoint samples the same ones.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32

from train.config.distillation_options import ResponseDistillation
from train.rollouts.sampler import SALT, Responses, Sampler
from train.rows.batch_feed import Feed, FeedMetrics, FeedSource
from train.rows.batches import Build
from train.rows.feedback.response_rows import ResponseRow
from zoo.batch import Batch
from zoo.fault_points import fault_point
from zoo.generation.decoding_settings import Sampling
from zoo.precision import cast_params
from zoo.runtime.progress import this_process


class StudentFeed(Feed):
    """The batches of a student: each has the responses of the data, or responses that the student samples before its step."""

    category = "rollouts"

    def __init__(
        self,
        source: FeedSource,
        options: ResponseDistillation,
        *,
        prompt_of: Callable[[Any], ResponseRow],
        with_response: Callable[[Any, Int32[np.ndarray, " n"]], Any],
        build: Build,
        end: int,
    ) -> None:
        """Prepare the programs, which are compiled at the first response.

        Args:
            prompt_of: function from a row to its prompt.
            with_response: function from a row and the ids of another response to the row with this response.
            build: function that makes the arrays of a row.
            end: id that ends a response.
        """
        run, rows = source.run, source.data.rows
        self._source, self._share, self._build = source, options.on_policy, build
        self._prompt_of, self._with_response = prompt_of, with_response
        self._sampler = Sampler(
            source.model,
            source.mesh,
            source.data.tokenizer,
            source.dtype,
            rows=run.data.batch,
            slots=max(len(prompt_of(rows.row(number)).prompt) for number in range(len(rows))),
            limit=options.response_tokens,
            settings=Sampling(temperature=options.sampling_temperature),
            end=end,
            seed=(run.seed + SALT) % (1 << 32),
        )
        self._cast = jax.jit(lambda params: cast_params(params, source.dtype))
        self._metrics = FeedMetrics({}, {})

    def batch(self, step: int, state: Any) -> Batch:
        """Return this process's part of the batch of a step.

        Raises:
            BadInput: logits are not finite.
        """
        self._metrics = FeedMetrics({}, {})
        if not is_on_policy(self._source.run.seed, step, self._share):
            return self._source.batches.batch(step)
        with this_process.phase("sampling responses"):
            return self._sampled(step, state)

    def rows_of(self, step: int) -> np.ndarray:
        """Return the numbers of the rows in the global batch of a step, int64 [B]."""
        return self._source.batches.rows_of(step)

    def metrics(self) -> FeedMetrics:
        """Return numbers about the responses of the last step; there are none if the data gave them."""
        return self._metrics

    def _sampled(self, step: int, state: Any) -> Batch:
        fault_point("train.respond")
        source = self._source
        rows = [source.data.rows.row(number) for number in self.rows_of(step).tolist()]
        examples = (source.run.data.sizes.examples(step) + np.arange(len(rows))) % (1 << 32)
        local_rows = source.batches.local_rows(step)
        params = self._sampler.decoding_params(self._cast(source.params(state)))
        numbers = np.stack([examples, np.zeros_like(examples)]).astype(np.uint32)
        responses: Responses = self._sampler.sample(params, [self._prompt_of(row) for row in rows], numbers)
        mean_length, unended = float(responses.lengths.mean()), float(1 - responses.ended.mean())
        self._metrics = FeedMetrics({"response_length": mean_length, "unended_share": unended}, {})
        rng = np.random.default_rng(0)  # These rows have no random targets.
        local = [self._with_response(rows[at], responses.ids(at)) for at in local_rows.tolist()]
        fields: dict[str, Any] = jax.tree.map(
            lambda *arrays: np.stack(arrays), *(self._build(rng, row, source.run.data.length) for row in local)
        )
        return Batch(**fields, index=examples[local_rows].astype(np.uint32))


def is_on_policy(seed: int, step: int, share: float) -> bool:
    """Return whether the responses of a step's batch are sampled, which has the probability `share`."""
    key, counter = np.array([seed, SALT], np.uint64), np.array([0, 0, 0, step], np.uint64)
    return bool(np.random.Generator(np.random.Philox(key=key, counter=counter)).random() < share)
