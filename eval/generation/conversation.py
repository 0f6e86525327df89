"""Answers to conversations: a model with its chat template, and what of a conversation fits into its context."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from eval.generation.folder_settings import end_ids
from eval.generation.generation_options import Decoding
from eval.generation.generator import Generator
from train.data.example_types import Message
from train.tokenizers.chat_template import ChatTemplate, chat_template, has_template, with_template
from train.tokenizers.chat_token_ids import end_mark, rendered_prompts
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import Loaded
from zoo.errors import BadInput, require

RESERVED = 4
"""A conversation leaves at least this fraction of the context, 1 / RESERVED, to an answer, or as many tokens as it may have."""


class FittedPrompt(NamedTuple):
    """A conversation as the input of a model, with settings that the context permits."""

    ids: Int32[np.ndarray, " n"]
    decoding: Decoding
    dropped: int
    """Number of the oldest turns that are left out."""


@dataclasses.dataclass(frozen=True, eq=False)
class ChatModel:
    """A model that answers conversations, which its chat template renders."""

    tokenizer: Tokenizer
    template: ChatTemplate
    generator: Generator
    """Its texts end at the end mark of the template."""

    @staticmethod
    def of(loaded: Loaded, generator: Generator, template: str = "") -> "ChatModel":
        """Return a model that answers conversations.

        Args:
            generator: generates texts with the model; the result shares its parameters.
            template: a file, "builtin", or "" for that of the tokenizer.

        Raises:
            BadInput: the model has no template, or one that writes no special token after an answer.
        """
        tokenizer = with_template(loaded.tokenizer, template, "--template")
        if not has_template(tokenizer):
            raise BadInput(
                f"{loaded.where}: no chat template; models that were trained on conversations have one (`zoo train sft`, or "
                'published ones with Instruct or Chat in their name); choose one, or --template builtin for "User: ..."'
            )
        rendering = chat_template(tokenizer, loaded.where)
        # The text of an encoder-decoder ends with end-of-text, like the target of every pair.
        mark = None if loaded.model.is_encoder_decoder else end_mark(tokenizer, rendering)
        ends = end_ids(loaded.generation, tokenizer.end_of_text, is_run=loaded.run is not None, mark=mark)
        return ChatModel(tokenizer, rendering, generator.ending_at(ends))

    def prompt_ids(self, messages: Sequence[Message], where: str) -> Int32[np.ndarray, " n"]:
        """Return the ids of a conversation that ends with a turn of the user, and of the beginning of an answer.

        Args:
            where: the conversation, for messages.

        Raises:
            BadInput: a message spells a special token, or the template cannot render it.
        """
        (ids,) = self.tokenizer.encode_rendered(rendered_prompts([(where, messages)], self.tokenizer, self.template))
        end = [self.tokenizer.end_of_text] if self.generator.model.is_encoder_decoder else []
        return np.array([*ids, *end], np.int32)

    def fit(self, messages: Sequence[Message], decoding: Decoding, where: str) -> FittedPrompt:
        """Return the input for an answer, without the oldest turns if the conversation is longer than the context.

        A system message stays, and the turns after it begin with the user's. The answer may have as many tokens as the settings
        and the context permit.

        Raises:
            BadInput: see `prompt_ids`; or the last turn alone is too long.
        """
        system = [message for message in messages[:1] if message.role == "system"]
        turns, dropped = list(messages[len(system) :]), 0
        while True:
            ids = self.prompt_ids([*system, *turns], where)
            context, permitted = self._permitted(len(ids), decoding)
            if len(turns) == 1 or permitted >= min(decoding.limit, context // RESERVED):
                break
            del turns[:2]
            dropped += 2
        if permitted < 1:
            raise BadInput(f"{where}: its {len(ids)} tokens leave no room for an answer in a context of {context}; shorten it")
        return FittedPrompt(ids, dataclasses.replace(decoding, limit=min(decoding.limit, permitted), total=0), dropped)

    def _permitted(self, size: int, decoding: Decoding) -> tuple[int, int]:
        """Return (the most tokens of prompt and answer, the most tokens of an answer to a prompt of `size`)."""
        room, context = self.generator.room(size), self.generator.room(0)
        total = decoding.tokens_after(1 if self.generator.model.is_encoder_decoder else size) if decoding.total else sys.maxsize
        context = min(sys.maxsize if context is None else context, decoding.total or sys.maxsize)
        return context, min(sys.maxsize if room is None else room, total)


def check_streams(decoding: Decoding) -> None:
    """Refuse settings with which a text is not sampled token by token, or is one of several.

    Raises:
        BadInput: beam search, or several samples.
    """
    require(decoding.search.beams == 1, "beams", decoding.search.beams, "a text is sent while it is sampled; choose --beams 1")
    require(decoding.samples == 1, "samples", decoding.samples, "a conversation has one answer; choose --samples 1")


def without_first_space(parts: Iterator[str]) -> Iterator[str]:
    """Yield a text in parts without the white space at its beginning."""
    started = False
    for part in parts:
        rest = part if started else part.lstrip()
        started = started or bool(rest)
        if rest:
            yield rest
