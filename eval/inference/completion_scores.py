"""Scores of single completions: those of a reward model, or log-probabilities under a language model.

Log-probabilities of sampled responses are those at the temperature of sampling.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float64, Int64

from eval.inference.batch_loop import BatchLoop, Progress
from eval.inference.likelihood import likelihoods
from train.data.example_types import Content
from train.engine.log_probs import sequence_log_probs, token_log_probs
from train.engine.reward_scores import reward_scores
from train.rows.feedback import preference_rows
from train.rows.feedback.preference_rows import Side
from train.rows.feedback.response_rows import row_builder
from train.rows.row_source import SampledRows
from train.tokenizers.chat_template import chat_template
from train.tokenizers.chat_token_ids import completion_text
from train.weights.load import Loaded
from zoo.batch import Batch
from zoo.configs import longest_row
from zoo.errors import BadInput
from zoo.models import Model

STEP = 32
"""Rows are as long as the longest row, rounded up to a multiple of this: a few shapes to compile for."""


class PromptCompletion(NamedTuple):
    """A completion of a prompt."""

    origin: str
    """Place it was read from, for messages."""
    prompt: Content
    completion: Content
    """A text, or messages that the chat template of the model renders."""


def reward_model_scores(
    subject: Loaded, completions: Sequence[PromptCompletion], *, batch: int, dtype: Any, progress: Progress
) -> Float64[np.ndarray, " N"]:
    """Return the score of each completion, without the normalization of `train.weights.reward_scale`.

    Raises:
        BadInput: a completion is longer than the model's positions, or its score is not finite.
    """
    return _computed(subject, completions, _reward_loop(subject.model, subject.mesh, np.dtype(dtype)), batch, progress)


def log_probabilities(
    subject: Loaded, completions: Sequence[PromptCompletion], *, batch: int, dtype: Any, progress: Progress
) -> Float64[np.ndarray, " N"]:
    """Return the log-probability in nats of each completion with its end mark, summed over its tokens.

    Raises:
        BadInput: a completion is longer than the model's positions, its log-probability is not finite, or the model predicts no
            text from left to right.
    """
    model = subject.model
    if not model.is_encoder_decoder:
        pairs = [(side.ids[: side.first], side.ids[side.first :]) for side in _sides(subject, completions)]
        options: dict[str, Any] = dict(batch=batch, dtype=dtype, name=lambda n: completions[n].origin, progress=progress)
        return np.array([-result.nats for result in likelihoods(subject, pairs, **options)])

    def compute(params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
        return sequence_log_probs(model, params, batch)[0][:, 0], carry

    return _computed(subject, completions, BatchLoop(subject.mesh, np.dtype(dtype), compute), batch, progress)


def response_log_probs(
    subject: Loaded, sides: Sequence[Side], *, tokens: int, temperature: float, batch: int, dtype: Any
) -> Float64[np.ndarray, " N"]:
    """Return the log-probability in nats of each response after its prompt, summed over its tokens.

    Args:
        sides: ids of prompts with their responses; those of a response have the end mark if it was sampled.
        tokens: most tokens of a response.
        temperature: divides the logits.
        batch: rows computed at a time.
    """
    build = row_builder(subject.model.config, subject.tokenizer, target_length=tokens)
    rows = SideRows(sides, max(len(side.ids if side.source is None else side.source) for side in sides))
    loop = _response_loop(subject.model, subject.mesh, np.dtype(dtype), tokens, temperature)
    return loop.all_results(subject.params, rows, lambda rng, side, length: build(side, length), batch)


# The same arguments give the same loop and its compiled programs.
@functools.cache
def _reward_loop(model: Model, mesh: Mesh, dtype: np.dtype) -> BatchLoop:
    return BatchLoop(mesh, dtype, lambda params, batch, carry: (reward_scores(model, params, batch)[:, 0], carry))


@functools.cache
def _response_loop(model: Model, mesh: Mesh, dtype: np.dtype, tokens: int, temperature: float) -> BatchLoop:
    def compute(params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
        return token_log_probs(model, params, batch, temperature=temperature, longest=tokens).sum(1), carry

    return BatchLoop(mesh, dtype, compute)


@dataclasses.dataclass(frozen=True, eq=False)
class SideRows(SampledRows):
    """Rows of one completion each; see `train.rows.row_source.RowSource`."""

    sides: Sequence[Side]
    length: int
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.sides)

    def row(self, number: int) -> Side:
        return self.sides[number]

    @property
    def text_size(self) -> int:
        return sum(side.size for side in self.sides)

    @property
    def targets(self) -> int:
        return self.text_size

    def select_rows(self, chosen: Int64[np.ndarray, " n"]) -> "SideRows":
        return dataclasses.replace(self, sides=[self.sides[number] for number in chosen.tolist()])


def _sides(subject: Loaded, completions: Sequence[PromptCompletion]) -> list[Side]:
    """Return the ids of completions with their prompts; conversations are rendered by the model's chat template.

    Raises:
        BadInput: there are conversations, and no chat template that renders them.
    """
    tokenizer, template = subject.tokenizer, None
    if not all(isinstance(item.prompt, str) for item in completions):
        template = chat_template(tokenizer, subject.name)
    texts = [completion_text(item.origin, item.prompt, item.completion, tokenizer, template) for item in completions]
    return preference_rows.encode_sides(texts, tokenizer, subject.model.config)


def _computed(
    subject: Loaded, completions: Sequence[PromptCompletion], loop: BatchLoop, batch: int, progress: Progress
) -> Float64[np.ndarray, " N"]:
    """Return the results of a loop, whose batches are [B, 1, ...], for all completions, [N]."""
    cfg, sides = subject.model.config, _sides(subject, completions)
    limit = longest_row(cfg)
    lengths = [max(len(side.ids), 0 if side.source is None else len(side.source)) for side in sides]
    longest = int(np.argmax(lengths))
    if limit is not None and lengths[longest] > limit:
        origin = completions[longest].origin
        raise BadInput(f"{origin}: {lengths[longest]} tokens, but the model has {limit} positions; shorten the text")
    length = min(-(-lengths[longest] // STEP) * STEP, limit or 1 << 30)
    one_side = preference_rows.side_builder(cfg, subject.tokenizer, length)

    def build(rng: np.random.Generator, side: Side, length: int) -> dict[str, Any]:
        return jax.tree.map(lambda array: array[None], one_side(side, length))

    numbers = loop.all_results(subject.params, SideRows(sides, length), build, batch, progress=progress)
    if not np.isfinite(numbers).all():
        origin = completions[int(np.argmin(np.isfinite(numbers)))].origin
        raise BadInput(f"{origin}: its number is not finite; the weights are damaged, or too large for bfloat16")
    return numbers
