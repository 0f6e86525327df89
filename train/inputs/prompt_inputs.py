"""Prompts: the rows for training and scoring."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence

import numpy as np

from train.config.run_config import Run
from train.data.example_types import Prompt
from train.data.prompt_records import check_columns
from train.inputs.example_inputs import ExampleInputs, ExampleRows, Halves, keep_messages, run_template, split_examples
from train.rollouts.reward_models import RewardModel
from train.rollouts.rewards import Judge
from train.rows.feedback import prompt_rows
from train.rows.feedback.prompt_rows import row_bytes
from train.rows.feedback.response_rows import ResponseRow
from train.rows.row_source import digest_of
from train.tokenizers.chat_template import ChatTemplate
from train.tokenizers.chat_token_ids import end_mark, rendered_prompts
from train.tokenizers.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class PromptRows(ExampleRows):
    """Rows of one prompt each, without a response."""

    NOUN = "prompts"

    rows: tuple[ResponseRow, ...]

    def id_arrays(self) -> Iterator[np.ndarray]:
        """Yield the ids of each prompt."""
        return (row.prompt for row in self.rows)

    def room(self, run: Run) -> int:
        """Return the number of tokens that the rows have room for; responses are as long as the model writes them."""
        return len(self) * (self.length - (0 if run.model.is_encoder_decoder else run.options.rollout.tokens))

    @property
    def longest(self) -> int:
        """Number of tokens of the longest prompt."""
        return max(len(row.prompt) for row in self.rows)

    @functools.cached_property
    def content_digest(self) -> str:
        """SHA-256 of the prompts and their columns, independent of their files and of the tokenizer."""
        return digest_of(_content(self.examples), ())


@dataclasses.dataclass(frozen=True, eq=False)
class PromptInputs(ExampleInputs):
    """Tokenized prompts; see `train.inputs.run_inputs.Inputs`."""

    rewards: tuple[Judge, ...] = ()
    """The run's reward functions and reward models; empty = they were not loaded."""
    chat_end: int | None = None
    """Id of the special token that a chat template writes after an answer; None: the tokenizer's end-of-text ends responses."""

    @property
    def end_mark(self) -> int:
        """Id that ends a response."""
        return self.tokenizer.end_of_text if self.chat_end is None else self.chat_end

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints of `ExampleInputs`, and those of each reward model."""
        return super().fingerprints() | {
            f"reward {judge.name}": judge.digest for judge in self.rewards if isinstance(judge, RewardModel)
        }

    def facts(self, run: Run) -> dict[str, str]:
        """Return a line about the rewards."""
        rewards = self.rewards or run.options.rollout.reward
        return {"rewards": ", ".join(map(str, rewards))} if rewards else {}

    def use_text(self, run: Run) -> str:
        """Return in words how often a run uses the prompts."""
        samples = run.options.rollout.samples
        per_step = run.data.batch // samples
        seen = f"{run.steps:,} steps of {per_step} prompts with {samples} response{'s' * (samples > 1)}"
        return f"{seen}, {run.batches * per_step / len(self.training):.3g} epochs"


def split_prompts(run: Run, left_out: list[str]) -> Halves:
    """Return (training, held-out) prompts; see `train.inputs.example_inputs.split_examples`.

    Raises:
        BadInput: as there, or the prompts have different columns.
    """
    halves = split_examples(run, left_out)
    check_columns([example for half in halves for example in half])
    return halves


def inputs_with_chat_end(run: Run, inputs: ExampleInputs) -> PromptInputs:
    """Return the inputs with the id that ends a response.

    Raises:
        BadInput: there are conversations, and their chat template writes no single token after an answer.
    """
    # The text of an encoder-decoder ends with end-of-text, like the target of every pair.
    is_chat = bool(inputs.training.examples[0].messages) and not run.model.is_encoder_decoder
    chat_end = end_mark(inputs.tokenizer, run_template(run, inputs.tokenizer)) if is_chat else None
    return PromptInputs(inputs.tokenizer, inputs.rows, inputs.held_out, inputs.left_out, chat_end=chat_end)


def rows_of_prompts(examples: Sequence[Prompt], run: Run, tokenizer: Tokenizer, left_out: list[str] | None = None) -> PromptRows:
    """Return the rows of prompts for a run. Conversations are rendered with the chat template.

    Args:
        left_out: list that gets the message of each prompt that is left out because it does not fit.

    Raises:
        BadInput: see `train.rows.feedback.prompt_rows.encode_rows` and `render`; also if no prompt fits into a row.
    """
    if examples[0].messages:
        examples = render(examples, tokenizer, run_template(run, tokenizer))
    length, tokens = run.data.length, run.options.rollout.tokens
    rows, messages = prompt_rows.encode_rows(examples, tokenizer, run.model, run.options.labelled, length, tokens)
    keep_messages(rows, messages, left_out)
    header = f"{tokenizer.fingerprint} {length} {tokens} {_content([examples[row.example] for row in rows])}"
    return PromptRows(examples, tuple(rows), length, digest_of(header, row_bytes(rows)))


def render(examples: Sequence[Prompt], tokenizer: Tokenizer, template: ChatTemplate) -> list[Prompt]:
    """Return conversations with the texts that the chat template writes.

    Raises:
        BadInput: see `train.tokenizers.chat_token_ids.rendered_prompts`.
    """
    texts = rendered_prompts([(example.origin, example.messages) for example in examples], tokenizer, template)
    return [dataclasses.replace(example, prompt=text) for example, text in zip(examples, texts, strict=True)]


def _content(examples: Sequence[Prompt]) -> str:
    return json.dumps([(item.content, item.columns) for item in examples], sort_keys=True, default=repr)
