"""Requests in the form of OpenAI's interface, as settings of generation."""

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

from eval.generation.folder_settings import resolve_settings
from eval.generation.generation_options import Decoding
from eval.inference.token_log_probs import MOST
from eval.serving.request_fields import RequestError, check_characters, check_names, read_field, read_integer, read_texts
from train.data.dialogues import MESSAGES, check_unanswered, parse_turns
from train.data.example_types import Message
from train.weights.generation_settings import PublishedGeneration
from zoo.errors import BadInput
from zoo.generation.decoding_settings import Sampling

SETTINGS = {"model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "seed", "stop", "stream", "stream_options"}
WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
"""Fields about the account of a user, which have no effect on the text."""
NEUTRAL: dict[str, tuple[Any, ...]] = {"presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},)}
NEUTRAL_CHAT = NEUTRAL | {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
LONGEST_ANSWER = 1 << 16
"""Largest max_tokens, for models whose context has no end."""
MOST_PROMPTS, MOST_CHOICES, MOST_STOPS, MOST_TEXTS = 256, 64, 16, 2048


@dataclasses.dataclass(frozen=True)
class Defaults:
    """The settings of a request that names none: those of the command line, and then of the model's folder."""

    decoding: Decoding
    explicit: frozenset[str] = frozenset()
    """Names of the settings that were given on the command line."""
    folder: PublishedGeneration | None = None

    def resolve(self, values: Mapping[str, Any]) -> Decoding:
        """Return the settings with values of a request, which have the names of the options of `zoo generate`.

        Raises:
            BadInput: a value out of range, or several samples that would be equal.
        """
        sampling = {field.name for field in dataclasses.fields(Sampling)}
        decoding = dataclasses.replace(
            self.decoding,
            sampling=dataclasses.replace(self.decoding.sampling, **{name: values[name] for name in sampling & values.keys()}),
            **{name: value for name, value in values.items() if name not in sampling},
        )
        return resolve_settings(decoding, self.explicit | values.keys(), self.folder).decoding


@dataclasses.dataclass(frozen=True)
class TextRequest:
    """A request for texts."""

    decoding: Decoding
    max_tokens: int | None
    """None: as many as `Decoding.limit` and the context permit."""
    stream: bool
    stream_usage: bool
    """Send the numbers of tokens at the end of a stream."""
    messages: tuple[Message, ...] = ()
    """The conversation to answer; empty for completions."""
    prompts: tuple[str | tuple[int, ...], ...] = ()
    """Texts or token ids to continue."""
    echo: bool = False
    logprobs: int | None = None
    """Number of likeliest tokens whose log-probabilities are returned; None: no log-probabilities."""


def chat_request(body: Mapping[str, Any], defaults: Defaults) -> TextRequest:
    """Return a request to /v1/chat/completions; see `_settings`.

    Raises:
        RequestError: a field is unknown, not supported, or has a wrong value.
    """
    check_names(body, SETTINGS | WITHOUT_EFFECT | {MESSAGES, "max_completion_tokens"}, NEUTRAL_CHAT)
    if body.get(MESSAGES) is None:
        raise RequestError(f"{MESSAGES} is missing; send a list of objects with role and content", param=MESSAGES)
    turns = [_message(item, number) for number, item in enumerate(read_field(body, MESSAGES, list), 1)]
    try:
        messages = check_unanswered(parse_turns(turns, "the request", MESSAGES), "the request")
    except BadInput as error:
        raise RequestError(str(error), param=MESSAGES) from None
    limits = [name for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
    if len(limits) > 1:
        raise RequestError("max_tokens: not with max_completion_tokens, its new name; send one of them", param="max_tokens")
    limit = limits[0] if limits else "max_tokens"
    return TextRequest(messages=messages, **_settings(body, defaults, limit))


def completion_request(body: Mapping[str, Any], defaults: Defaults) -> TextRequest:
    """Return a request to /v1/completions; see `_settings`.

    Raises:
        RequestError: a field is unknown, not supported, or has a wrong value.
    """
    best_of = body.get("n") or 1
    names = SETTINGS | WITHOUT_EFFECT | {"prompt", "echo", "logprobs"}
    check_names(body, names, NEUTRAL | {"suffix": ("",), "best_of": (best_of,)})
    prompts, echo = _prompts(body), read_field(body, "echo", bool, False)
    settings = _settings(body, defaults, "max_tokens", least=0 if echo else 1)
    logprobs = read_integer(body, "logprobs", None, 0, MOST)
    if settings["stream"] and (echo or logprobs is not None or len(prompts) > 1):
        name = "echo" if echo else "logprobs" if logprobs is not None else "several prompts"
        raise RequestError(f"{name}: not with stream; send one request without stream", param="stream")
    return TextRequest(prompts=prompts, echo=echo, logprobs=logprobs, **settings)


def _settings(body: Mapping[str, Any], defaults: Defaults, limit: str, *, least: int = 1) -> dict[str, Any]:
    """Return the fields of `TextRequest` that both kinds of requests have.

    A request without a seed has that of the command line, or else a random one.

    Args:
        limit: name of the field with the most new tokens.
        least: smallest number of new tokens.
    """
    values = {name: read_field(body, name, float) for name in ("temperature", "top_p", "min_p")}
    top_k = read_integer(body, "top_k", None, -1, 1 << 24)
    # -1 is another way to write that it is off.
    values["top_k"] = 0 if top_k == -1 else top_k
    values["samples"] = read_integer(body, "n", None, 1, MOST_CHOICES)
    seed = None if "seed" in defaults.explicit else secrets.randbelow(1 << 32)
    values["seed"] = read_integer(body, "seed", seed, 0, (1 << 32) - 1)
    values["stop"] = tuple(read_texts(body, "stop", MOST_STOPS)) or None
    max_tokens = read_integer(body, limit, None, least, LONGEST_ANSWER)
    stream, options = read_field(body, "stream", bool, False), read_field(body, "stream_options", dict, {})
    check_names(options, {"include_usage"}, {"include_obfuscation": (False,)})
    if stream and (values["samples"] or 1) > 1:
        raise RequestError("n: a stream has one choice; send n 1, or no stream", param="n")
    try:
        decoding = defaults.resolve({name: value for name, value in values.items() if value is not None})
    except BadInput as error:
        # The message begins with the option of the command line.
        raise RequestError(str(error).removeprefix("--").replace("top-", "top_").replace("min-", "min_")) from None
    usage = read_field(options, "include_usage", bool, False)
    return {"decoding": decoding, "max_tokens": max_tokens, "stream": stream, "stream_usage": usage}


def _message(item: Any, number: int) -> Any:
    """Return a message whose content is a text, also if it was sent as a list of parts that are texts."""
    if not isinstance(item, dict):
        return item
    message = {name: value for name, value in item.items() if name != "name" or value}
    role = message.get("role")
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise RequestError(f"messages: message {number} has a part that is not a text; send texts", param=MESSAGES)
        message["content"] = "".join(map(str, parts))
    if isinstance(message.get("content"), str):
        check_characters(message["content"], f"messages: message {number}")
    return {**message, "role": "system"} if role == "developer" else message


def _prompts(body: Mapping[str, Any]) -> tuple[str | tuple[int, ...], ...]:
    value = body.get("prompt")
    if isinstance(value, list) and value and not isinstance(value[0], str):
        lists = value if all(isinstance(item, list) for item in value) else [value]
        for ids in lists:
            if not ids or not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
                raise RequestError(
                    "prompt: write a text, a list of texts, a list of token ids, or a list of such lists", param="prompt"
                )
            if not all(0 <= token < 1 << 31 for token in ids):
                raise RequestError("prompt: a token id is not in the vocabulary", param="prompt")
        prompts: list[Any] = [tuple(ids) for ids in lists]
    else:
        prompts = read_texts(body, "prompt", MOST_PROMPTS)
    if not prompts or "" in prompts:
        raise RequestError("prompt is missing or empty; write some text", param="prompt")
    if len(prompts) > MOST_PROMPTS:
        raise RequestError(f"prompt has {len(prompts):,} prompts; send at most {MOST_PROMPTS}", param="prompt")
    return tuple(prompts)
