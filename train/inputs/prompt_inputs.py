"""Prompts, from files to the rows for training and scoring."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from train.config import run_config
from train.data import labelled_reader
from train.data.example_types import Prompt
from train.data.prompt_records import check_columns
from train.data.text_files import Document
from train.inputs.example_inputs import ExampleInputs, with_run_template
from train.rollouts.reward_models import RewardModel
from train.rollouts.rewards import Judge
from train.rows.feedback import prompt_rows
from train.rows.feedback.prompt_rows import row_bytes
from train.rows.feedback.response_rows import ResponseRow
from train.rows.mixture import Component, Mixture
from train.rows.row_source import SampledRows, digest_of
from train.run.progress_display import short_number
from train.run.run_dir import RunDir
from train.tokenizers.chat_template import ChatTemplate, chat_template
from train.tokenizers.chat_token_ids import end_mark, rendered_prompts
from train.tokenizers.tokenizer import Tokenizer
from train.weights.tokenizer_choice import check_vocabulary, existing_tokenizer
from zoo.configs import longest_row
from zoo.errors import BadInput, require


@dataclasses.dataclass(frozen=True, eq=False)
class PromptRows(SampledRows):
    """Rows in memory, each of one prompt without a response."""

    examples: Sequence[Prompt]
    rows: tuple[ResponseRow, ...]
    length: int
    """Number of tokens per row, or of an encoder-decoder's source."""
    fingerprint: str
    """SHA-256 of all rows, their lengths, the columns of the prompts, and the tokenizer."""

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> ResponseRow:
        """Return a row."""
        return self.rows[number]

    @property
    def text_size(self) -> int:
        """Number of tokens of all prompts, without padding."""
        return sum(len(row.prompt) for row in self.rows)

    @property
    def targets(self) -> int:
        """Equals `text_size`: the tokens of responses are not part of the data."""
        return self.text_size

    @property
    def longest(self) -> int:
        """Number of tokens of the longest prompt."""
        return max(len(row.prompt) for row in self.rows)

    @functools.cached_property
    def content_digest(self) -> str:
        """SHA-256 of the prompts and their columns, independent of their files and of the tokenizer."""
        return digest_of(_content(self.examples), ())

    def select_rows(self, chosen: Int64[np.ndarray, " n"]) -> "PromptRows":
        """Return the rows with the numbers `chosen`, in this order; the examples and the fingerprint remain those of all rows."""
        return dataclasses.replace(self, rows=tuple(self.rows[number] for number in chosen.tolist()))


@dataclasses.dataclass(frozen=True, eq=False)
class PromptInputs(ExampleInputs[PromptRows]):
    """Tokenized prompts; see `train.inputs.run_inputs.Inputs`."""

    tokenizer: Tokenizer
    rows: Mixture
    training: PromptRows
    """The rows in `rows`."""
    held_out: PromptRows
    left_out: tuple[str, ...] = ()
    """Error message of each prompt that --labelled.skip-bad left out."""
    rewards: tuple[Judge, ...] = ()
    """The run's reward functions and reward models; empty = they were not loaded."""
    chat_end: int | None = None
    """Id of the special token that a chat template writes after an answer; None: the tokenizer's end-of-text ends responses."""
    reference: str = ""
    """Digest of the parameters of --init, the reference of the KL divergence; empty = there is no KL divergence."""

    @property
    def end_mark(self) -> int:
        """Id that ends a response."""
        return self.tokenizer.end_of_text if self.chat_end is None else self.chat_end

    def counts(self) -> Int64[np.ndarray, " V"]:
        """Return the number of occurrences of each id in the training prompts."""
        counts = np.zeros(self.tokenizer.vocab_size, np.int64)
        for row in self.training.rows:
            counts += np.bincount(row.prompt, minlength=len(counts))
        return counts

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints of `ExampleInputs`, of the reference and of each reward model."""
        models = {f"reward {judge.name}": judge.digest for judge in self.rewards if isinstance(judge, RewardModel)}
        return super().fingerprints() | ({"reference": self.reference} if self.reference else {}) | models

    def describe(self, run: run_config.Run) -> dict[str, str]:
        """Return a summary of the data and its use in the run, for the console and the report."""
        rows, rollout = self.training, run.options.rollout
        per_step = run.data.batch // rollout.samples
        size = f"{len(rows):,} prompts, {short_number(rows.text_size)} tokens"
        facts = {"data": f"{', '.join(run.data.paths)}: {size}", "held out": f"{len(self.held_out):,} prompts"}
        if self.left_out:
            facts["left out"] = f"{len(self.left_out):,} bad or long prompts; the first: {self.left_out[0]}"
        if rows.examples[0].messages:
            facts["chat template"] = run.options.chat.template or "the tokenizer's own"
        if rollout.reward:
            facts["rewards"] = ", ".join(map(str, self.rewards or rollout.reward))
        seen = f"{run.steps:,} steps of {per_step} prompts with {rollout.samples} response{'s' * (rollout.samples > 1)}"
        return {**facts, "seen": f"{seen}, {run.batches * per_step / len(rows):.3g} epochs"}


def resolve_config(run: run_config.Run, folder: RunDir) -> run_config.Run:
    """Return the run unchanged: prompts determine no value of it.

    Raises:
        BadInput: an option has no effect, or a response does not fit the model.
    """
    require(run.label_smoothing == 0, "label_smoothing", run.label_smoothing, "it has no effect on prompts; remove it")
    longest, tokens = longest_row(run.model), run.options.rollout.tokens
    fix = f"the model has {longest} positions; choose at most {longest}"
    require(longest is None or tokens <= longest, "rollout.tokens", tokens, fix)
    return run


def read_prompts(run: run_config.Run, folder: RunDir, cache: Path, *, quiet: bool = False) -> PromptInputs:
    """Read and tokenize prompts. A resumed run uses the tokenizer in its folder, a new one that of `init`.

    Raises:
        BadInput: the data cannot be read, there is no tokenizer or it does not fit the model, prompts have different columns, a
            prompt is too long, or there are conversations and no chat template that renders them.
    """
    left_out: list[str] = []
    halves: Any = labelled_reader.split("policy_gradient", run.data, run.options.labelled, left_out)
    check_columns([example for half in halves for example in half])
    tokenizer = existing_tokenizer(run, folder)
    if tokenizer is None:
        raise BadInput("--init: name the run or the weights to start from, or set --tokenizer.path to train from random weights")
    check_vocabulary(run, tokenizer)
    chat_end, conversations = None, bool(halves[0][0].messages)
    tokenizer = with_run_template(run, tokenizer, conversations=conversations)
    if conversations:
        template = chat_template(tokenizer, run.tokenizer.path or run.init or "the tokenizer")
        halves = [render(half, tokenizer, template) for half in halves]
        # The text of an encoder-decoder ends with end-of-text, like the target of every pair.
        chat_end = None if run.model.is_encoder_decoder else end_mark(tokenizer, template)
    rows, held_out_rows = (rows_of(half, run, tokenizer, left_out) for half in halves)
    named = [Document(example.origin, "") for example in rows.examples]
    component = Component(", ".join(run.data.paths), 1.0, named, rows)
    return PromptInputs(tokenizer, Mixture((component,)), rows, held_out_rows, tuple(left_out), chat_end=chat_end)


def rows_of(
    examples: Sequence[Prompt], run: run_config.Run, tokenizer: Tokenizer, left_out: list[str] | None = None
) -> PromptRows:
    """Return the rows of prompts for a run.

    Args:
        left_out: list that gets the message of each prompt that is left out because it does not fit.

    Raises:
        BadInput: see `train.rows.feedback.prompt_rows.encode_rows`; also if no prompt fits into a row.
    """
    length, tokens = run.data.length, run.options.rollout.tokens
    rows, messages = prompt_rows.encode_rows(examples, tokenizer, run.model, run.options.labelled, length, tokens)
    if not rows:
        raise BadInput(messages[0])
    if left_out is not None:
        left_out += messages
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
