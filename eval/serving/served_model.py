"""The computation of answers to requests, as the objects of OpenAI's interface."""

import base64
import dataclasses
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from eval.generation.conversation import ChatModel, without_first_space
from eval.generation.generator import Ended, Generated, Generator, Part
from eval.serving.openai_requests import MOST_TEXTS, WITHOUT_EFFECT, Defaults, TextRequest, chat_request, completion_request
from eval.serving.request_fields import RequestError, check_names, read_field, read_integer, read_texts
from train.weights.load import Loaded
from zoo.errors import BadInput

CHUNK = 4
"""Tokens of a stream that are sampled by one dispatch."""
Poll = Callable[[], None]
"""Called between dispatches; raises an exception if nobody waits for the answer."""
Embed = Callable[[Sequence[str], int], Float32[np.ndarray, "N D"]]
"""(texts, number of first dimensions; 0 = all) -> a vector for each text."""
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


@dataclasses.dataclass(frozen=True, eq=False)
class ServedModel:
    """A model, and which kinds of requests it answers. The methods may be called by one thread at a time."""

    loaded: Loaded
    defaults: Defaults
    generator: Generator | None = None
    """None for an encoder."""
    chat: ChatModel | None = None
    no_chat: str = ""
    """Why there is no `chat`."""
    embed: Embed | None = None
    """None for a model that generates text."""
    started: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @property
    def routes(self) -> tuple[str, ...]:
        """The paths that this model answers."""
        if self.embed is not None:
            return (EMBEDDINGS,)
        return (COMPLETIONS,) if self.chat is None else (COMPLETIONS, CHAT)

    def description(self) -> dict[str, Any]:
        """Return the model as an entry of /v1/models, with the paths that it answers and its context in tokens, or null."""
        context = self.generator.room(0) if self.generator is not None else None
        entry = {"id": self.loaded.name, "object": "model", "created": self.started, "owned_by": "transformer-zoo"}
        return {**entry, "routes": list(self.routes), "max_model_len": context}

    def read_request(self, path: str, body: Mapping[str, Any]) -> TextRequest:
        """Return a request for texts, after checking its fields and that this model answers it.

        Raises:
            RequestError: it does not, or a field is wrong.
        """
        self._check_model(path, body)
        parse = chat_request if path == CHAT else completion_request
        request = parse(body, self.defaults)
        model = self.loaded.model
        if request.echo and model.is_encoder_decoder:
            raise RequestError(f"echo: a {model.family} writes its text apart from the prompt; remove it", param="echo")
        if request.logprobs is not None and "causal" not in model.definition.objectives:
            raise RequestError(f"logprobs: a {model.family} is not scored from left to right; remove it", param="logprobs")
        return request

    def answer(self, request: TextRequest, poll: Poll) -> dict[str, Any]:
        """Return the complete answer to a request for texts.

        Raises:
            RequestError: the prompt is too long, or the settings exclude every token.
        """
        prompts, generator = self._prompts(request), self._generator(request)
        limits = [self._limit(len(ids), request) for ids in prompts]
        results: list[Generated] = []
        # Prompts with one limit are computed together.
        groups = [[*range(len(prompts))]] if len({*limits}) == 1 else [[number] for number in range(len(prompts))]
        for group in groups:
            if limits[group[0]]:
                decoding = dataclasses.replace(request.decoding, limit=limits[group[0]], total=0)
                chosen = [prompts[number] for number in group]
                texts = _refusals(generator.generate, chosen, decoding, numbers=group, poll=poll)
                results += [dataclasses.replace(text, prompt=group[text.prompt]) for text in texts]
            else:
                results += [
                    Generated(number, sample, (), "", "limit") for number in group for sample in range(request.decoding.samples)
                ]
        choices = [self._choice(index, text, request, prompts[text.prompt], poll) for index, text in enumerate(results)]
        counts = sum(map(len, prompts)), sum(len(text.ids) for text in results)
        kind = "chat.completion" if request.messages else "text_completion"
        return {**self._head(kind, request), "choices": choices, "usage": usage(*counts)}

    def stream(self, request: TextRequest, poll: Poll) -> Iterator[dict[str, Any]]:
        """Yield the parts of the answer to a request for one text.

        Raises:
            RequestError: see `answer`.
        """
        (ids,), generator = self._prompts(request), self._generator(request)
        decoding = dataclasses.replace(request.decoding, limit=self._limit(len(ids), request), total=0)
        head = self._head("chat.completion.chunk" if request.messages else "text_completion", request)
        results: list[Generated] = []
        texts = _texts(generator.parts(ids, decoding, chunk=CHUNK), results, poll)
        is_chat = bool(request.messages)
        # The first part is computed before anything is sent, so that a refusal is the answer.
        texts = without_first_space(texts) if is_chat else texts
        first = _refusals(next, texts, "")
        if is_chat:
            yield head | {"choices": [_chunk({"role": "assistant", "content": ""}, None)]}
        while first:
            yield head | {"choices": [_chunk({"content": first}, None) if is_chat else _completion_chunk(first, None)]}
            first = _refusals(next, texts, "")
        reason = finish_reason(results[0].ended)
        yield head | {"choices": [_chunk({}, reason) if is_chat else _completion_chunk("", reason)]}
        if request.stream_usage:
            yield head | {"choices": [], "usage": usage(len(ids), len(results[0].ids))}

    def embeddings(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a request for vectors.

        Raises:
            RequestError: a field is wrong, a text is empty or too long, or this model has no vectors.
        """
        self._check_model(EMBEDDINGS, body)
        assert self.embed is not None
        names = {"model", "input", "encoding_format", "dimensions"} | WITHOUT_EFFECT
        check_names(body, names, {})
        texts, form = read_texts(body, "input", MOST_TEXTS), read_field(body, "encoding_format", str, "float")
        if not texts or not all(map(str.strip, texts)):
            raise RequestError("input is missing or empty; write some text", param="input")
        if form not in ("float", "base64"):
            raise RequestError(f"encoding_format {form[:20]}: choose float or base64", param="encoding_format")
        dimensions = read_integer(body, "dimensions", None, 1, 1 << 20) or 0
        vectors = _refusals(self.embed, texts, dimensions)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if form == "base64" else row.tolist(),
            }
            for index, row in enumerate(vectors)
        ]
        count = sum(map(len, self.loaded.tokenizer.encode_many(texts)))
        return {
            "object": "list",
            "model": self.loaded.name,
            "data": data,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    def _check_model(self, path: str, body: Mapping[str, Any]) -> None:
        name = read_field(body, "model", str, self.loaded.name)
        if name != self.loaded.name:
            message = f"model {name[:60]}: this server has {self.loaded.name} only; name it, or leave the field out"
            raise RequestError(message, status=404, param="model", code="model_not_found")
        if path not in self.routes:
            reason = self.no_chat if path == CHAT and self.generator is not None else ""
            family = self.loaded.model.family
            what = reason or f"{self.loaded.name}, a {family}, does not answer {path}"
            raise RequestError(f"{what}; this model has {', '.join(self.routes)}", param="model")

    def _generator(self, request: TextRequest) -> Generator:
        if not request.messages:
            assert self.generator is not None
            return self.generator
        assert self.chat is not None
        return self.chat.generator

    def _prompts(self, request: TextRequest) -> list[np.ndarray]:
        """Return the token ids of the prompts, or of the conversation."""
        if request.messages:
            assert self.chat is not None
            return [_refusals(self.chat.prompt_ids, request.messages, "the request")]
        tokenizer, texts = self.loaded.tokenizer, [prompt for prompt in request.prompts if isinstance(prompt, str)]
        encoded = [*tokenizer.encode_many(texts)] if texts else [np.array(prompt, np.int32) for prompt in request.prompts]
        end = [tokenizer.end_of_text] if self.loaded.model.is_encoder_decoder else []
        for number, ids in enumerate(encoded, 1):
            if not len(ids) or max(ids) >= tokenizer.vocab_size:
                problem = f"ends at {tokenizer.vocab_size - 1}" if len(ids) else "has no entry for the text"
                raise RequestError(f"prompt {number}: the vocabulary {problem}; send another prompt", param="prompt")
        return [np.array([*ids, *end], np.int32) for ids in encoded]

    def _limit(self, size: int, request: TextRequest) -> int:
        """Return the most new tokens after a prompt of `size` tokens.

        Raises:
            RequestError: the context has less room than `max_tokens`, or none.
        """
        generator = self._generator(request)
        room, max_tokens = generator.room(size), request.max_tokens
        if room is not None and room < (1 if max_tokens is None else max_tokens):
            text = "a new token" if max_tokens is None else f"max_tokens {max_tokens}"
            raise RequestError(
                f"the prompt has {size} tokens, with {text} more than the context of {generator.room(0)} tokens; shorten it",
                param="messages" if request.messages else "prompt",
                code="context_length_exceeded",
            )
        if max_tokens is not None:
            return max_tokens
        # A folder may limit prompt and text together.
        permitted = request.decoding.tokens_after(1 if self.loaded.model.is_encoder_decoder else size)
        return max(1, permitted if room is None else min(room, permitted))

    def _choice(self, index: int, text: Generated, request: TextRequest, prompt: np.ndarray, poll: Poll) -> dict[str, Any]:
        head = {"index": index, "finish_reason": finish_reason(text.ended), "logprobs": None}
        if request.messages:
            return {**head, "message": {"role": "assistant", "content": text.text.lstrip(), "refusal": None}}
        source = request.prompts[text.prompt]
        before = (source if isinstance(source, str) else self.loaded.tokenizer.decode(list(source))) if request.echo else ""
        if request.logprobs is not None:
            poll()
            head["logprobs"] = self._log_probs(text, request, prompt)
        return {**head, "text": before + text.text}

    def _log_probs(self, text: Generated, request: TextRequest, prompt: np.ndarray) -> dict[str, Any]:
        """Return the log-probabilities of the new tokens, with the one that ended the text, and with echo of the prompt's.

        They are those of the model, before temperature and other settings.
        """
        assert request.logprobs is not None
        tokenizer = self.loaded.tokenizer
        ids = np.array([*prompt, *text.ids, *(() if text.end is None else (text.end,))], np.int32)
        first = 0 if request.echo else len(prompt)
        room = self.generator.room(0) if self.generator is not None else None
        # A model whose context is full of tokens predicts one more.
        assert room is None or len(ids) <= room + 1
        count = max(1, request.logprobs)
        scores = self._generator(request).log_probs(ids, count) if len(ids) > 1 else None
        tokens = [tokenizer.decode([int(token)]) for token in ids]
        chosen: list[Any] = [None, *(scores.chosen.tolist() if scores else ())]
        top: list[Any] = [None]
        for values, best in zip(scores.top.tolist(), scores.top_ids.tolist(), strict=True) if scores else ():
            entry: dict[str, float] = {}
            for value, token in zip(values, best, strict=True):
                # Several tokens may be parts of a character, which are written alike: the likeliest is shown.
                entry.setdefault(tokenizer.decode([token]), value)
            top.append(entry)
        offsets = np.cumsum([0, *map(len, tokens[first:-1])]).tolist()
        return {
            "tokens": tokens[first:],
            "token_logprobs": chosen[first:],
            "top_logprobs": top[first:] if request.logprobs else None,
            "text_offset": offsets,
        }

    def _head(self, kind: str, request: TextRequest) -> dict[str, Any]:
        prefix = "chatcmpl" if request.messages else "cmpl"
        head = {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": self.loaded.name}
        return {**head, "seed": request.decoding.seed}


def finish_reason(ended: Ended) -> str:
    """Return why a text ended, in OpenAI's words."""
    return "length" if ended == "limit" else "stop"


def usage(prompt: int, new: int) -> dict[str, int]:
    """Return numbers of tokens in OpenAI's form."""
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _chunk(delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}


def _completion_chunk(text: str, reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}


def _texts(parts: Iterator[Part], results: list[Generated], poll: Poll) -> Iterator[str]:
    """Yield the texts of parts, which are not empty; the complete continuation is appended to `results`."""
    for part in parts:
        poll()
        if part.text:
            yield part.text
        if part.generated is not None:
            results.append(part.generated)


def _refusals(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return the result of a function, with what is wrong about the input as the error of a request."""
    try:
        return function(*args, **options)
    except BadInput as error:
        raise RequestError(str(error)) from None
