"""The base class of students that learn responses to prompts, which may be their own (Agarwal et al. 2024, algorithm 1)."""

import abc
import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32

from train.config.run_config import Run
from train.objectives.student import StudentObjective
from train.rollouts.student_feed import StudentFeed
from train.rows.batch_feed import Feed, FeedSource
from train.rows.feedback.response_rows import ResponseRow
from zoo.errors import BadInput, require


class ResponseStudent(StudentObjective):
    """Base class of objectives of prompts with responses.

    With --distillation.on-policy, the response of a row is replaced by one that the student samples before the step. The loss of
    the batch is the same as of a given response: no gradient is taken through the sampling.
    """

    @classmethod
    @abc.abstractmethod
    def prompt_of(cls, row: Any) -> ResponseRow:
        """Return the prompt of a row, of which the student reads nothing else to sample its last response."""

    @classmethod
    @abc.abstractmethod
    def with_response(cls, row: Any, response: Int32[np.ndarray, " n"]) -> Any:
        """Return a row with its prompt and another response, whose ids end with the end mark unless it is cut off."""

    @classmethod
    @abc.abstractmethod
    def response_end(cls, run: Run, inputs: Any) -> int:
        """Return the id that ends a response.

        Raises:
            BadInput: responses end with different ids, or a chat template writes no single token after an answer.
        """

    @classmethod
    def extend_inputs(cls, run: Run, mesh: Mesh, inputs: Any, cache: Path, *, progress: Callable[[int, int], None]) -> Any:
        """Return the run's inputs; see `train.objectives.student.StudentObjective.extend_inputs`.

        Raises:
            BadInput: as there; the longest prompt leaves no room for a sampled response; or an error of `response_end`.
        """
        options = run.options.distillation
        if options.on_policy:
            cls.response_end(run, inputs)
            if not run.model.is_encoder_decoder:
                longest, length = max(len(cls.prompt_of(row).prompt) for row in inputs.training.rows), run.data.length
                fix = f"the longest prompt has {longest} tokens, and a row {length}; choose fewer, or a longer --data.length"
                fits = longest + options.response_tokens <= length
                require(fits, "distillation.response_tokens", options.response_tokens, fix)
        return super().extend_inputs(run, mesh, inputs, cache, progress=progress)

    def feed(self, source: FeedSource, first: int) -> AbstractContextManager[Feed]:
        """Return the batches of the data, or with --distillation.on-policy those of the student's own responses too."""
        run, data = source.run, source.data
        if not run.options.distillation.on_policy:
            return super().feed(source, first)
        feed = StudentFeed(
            source,
            run.options.distillation,
            prompt_of=self.prompt_of,
            with_response=self.with_response,
            build=self.builder(run, data.tokenizer, data.counts),
            end=self.response_end(run, data),
        )
        return contextlib.nullcontext(feed)


def check_one_kind(examples: Any, *, conversations: bool) -> None:
    """Refuse conversations beside prompts with completions, since their responses end with different tokens.

    Args:
        conversations: the first example is a conversation.

    Raises:
        BadInput: names the first example of another kind.
    """
    for example in examples:
        if hasattr(example, "messages") != conversations:
            kinds = ["a prompt with a completion", "a conversation"]
            what = f"it is {kinds[not conversations]}, and {examples[0].origin} {kinds[conversations]}"
            fix = "sampled responses end with one token; write all examples alike, or leave out --distillation.on-policy"
            raise BadInput(f"{example.origin}: {what}; {fix}")
