"""Text from a model: prompts of different lengths in one batch, continued by `zoo.generation.decode_loop` up to a stop string."""

import copy
import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32, Integer

from eval.generation.generation_options import Decoding
from eval.inference.token_log_probs import TokenLogProbs, log_probs_with_likeliest
from train.engine import device_mesh
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.configs import longest_row
from zoo.errors import BadInput, require
from zoo.generation import decode_loop
from zoo.generation.decode_loop import Decoder, Sampled, decoding_params, unroll_layers
from zoo.generation.decoding_settings import UNCHANGED, Processors
from zoo.models import Model

Ids = Integer[np.ndarray, "_"] | Sequence[int]
Ended = Literal["limit", "stop", "end of text"]

SHORTEST = 16
"""Slots of the shortest prompts. Longer ones get the next power of two, so that few programs are compiled."""
CHUNK = 16
"""Number of tokens sampled by one dispatch."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""Replacement character, to which the bytes of an incomplete character are decoded."""


@dataclasses.dataclass(frozen=True)
class Generated:
    """A continuation of a prompt."""

    prompt: int
    """Index of the prompt in the list given."""
    sample: int
    ids: tuple[int, ...]
    """Sampled tokens, up to the one that completed a stop string, without end-of-text."""
    text: str
    """Text of the tokens, cut before the stop string."""
    ended: Ended
    score: float | None = None
    """Score by which beam search ranks its texts; see `zoo.generation.beam_search`."""
    end: int | None = None
    """The id that ended the text, if it was sampled; it is not one of `ids`."""


class Part(NamedTuple):
    """A part of a text that is being generated."""

    text: str
    """Complete characters that no later token changes; may be empty."""
    generated: Generated | None = None
    """The complete continuation, with the last part."""


class Generator:
    """Continues prompts with one model; programs are compiled at first use and kept, also for other generators.

    A continuation is a function of the parameters, its prompt, the settings, the seed and the numbers of prompt and sample.
    The other prompts, the number of rows, padding and the mesh affect it only through rounding.
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        mesh: Mesh,
        tokenizer: Tokenizer,
        *,
        dtype: Any,
        batch: int = 16,
        option: str = "--limit",
        ends: Sequence[int] = (),
        first: int | None = None,
        shared: bool = False,
    ) -> None:
        """Prepare a model for generation.

        Args:
            params: sharded over `mesh`; they are copied on one CPU device, and elsewhere if `dtype`, that of the arithmetic and
                the cache, differs.
            batch: rows continued at a time; padded to a number that the mesh divides.
            option: name of `Decoding.limit` on the command line, for messages.
            ends: the ids that end a text; empty = the tokenizer's end-of-text.
            first: the first input of an encoder-decoder's decoder; None = the padding.
            shared: compile programs that serve all limits, numbers of prompts and values of sampling settings, for a process that
                gets many requests. It changes texts only through rounding.

        Raises:
            BadInput: the family does not generate, the mesh does not divide its heads, or the tokenizer has no padding token,
                with which an encoder-decoder's text begins.
        """
        require(batch >= 1, "batch", batch, "choose 1 or more rows")
        jax.eval_shape(lambda: model.init_cache(1, 1, dtype))
        device_mesh.check_heads(model.config, mesh)
        special_tokens = tokenizer.text_special_tokens
        if model.is_encoder_decoder and special_tokens is None and first is None:
            raise BadInput(f"{model.family} begins its output with a padding token, which this tokenizer does not have")
        self._first = (special_tokens.pad if special_tokens else 0) if first is None else first
        self._continues_prompt = not model.is_encoder_decoder
        model = unroll_layers(model)
        self.model, self.mesh, self.tokenizer = model, mesh, tokenizer
        self._batch, self._option, self._shared = batch, option, shared
        self._ends = tuple(ends) or (tokenizer.end_of_text,)
        self._decoder = Decoder(model, tokenizer.vocab_size, np.dtype(dtype))
        with jax.set_mesh(mesh):
            self._params = jax.jit(decoding_params, static_argnums=1)(params, np.dtype(dtype))

    def generate(
        self,
        prompts: Sequence[Ids],
        decoding: Decoding,
        *,
        numbers: Sequence[int] | None = None,
        progress: Callable[[int, int], None] = lambda done, count: None,
        poll: Callable[[], None] = lambda: None,
    ) -> list[Generated]:
        """Continue every prompt `decoding.samples` times, and return the samples in the order of the prompts.

        The samples of a prompt follow each other; those of beam search are its best texts, best first.

        Args:
            prompts: token ids of each prompt, at least one; for an encoder-decoder the source, end-of-text included. (A text
                without a prompt begins with end-of-text.)
            numbers: the prompts' numbers, on which sampling depends; None = 0, 1, 2, ...
            progress: called with (continuations done, total continuations) after each batch.
            poll: called after every dispatch of sampling; an exception that it raises ends the generation.

        Raises:
            BadInput: an empty prompt, an id outside the vocabulary, a prompt that with the limit is longer than the model's
                positions, a family that does not read both ways, or logits that are not finite.
        """
        self._check(prompts, decoding)
        beams = decoding.search.beams
        entries = self.tokenizer.vocab_size
        require(beams <= entries, "beams", beams, f"the vocabulary has {entries} entries; choose at most as many")
        keys = range(len(prompts)) if numbers is None else numbers
        texts = [
            self._text(decoding, prompt, sample, prompts[prompt], key)
            for prompt, key in zip(range(len(prompts)), keys, strict=True)
            for sample in range(decoding.samples)
        ]
        by_length: dict[tuple[int, int], list[_Text]] = {}
        for text in texts:
            by_length.setdefault((_slots(len(text.prompt_ids)), text.limit), []).append(text)
        # A beam search finds all samples of a prompt together.
        group_size = self._batch if beams == 1 else decoding.samples * max(1, self._batch // beams)
        for (slots, _), group in sorted(by_length.items(), reverse=True):
            for first in range(0, len(group), group_size):
                batch, rows = group[first : first + group_size], min(group_size, len(texts))
                rows = min(group_size, 1 << (rows - 1).bit_length()) if self._shared else rows
                if beams > 1:
                    self._search(batch, slots, rows // decoding.samples, decoding)
                else:
                    for _ in self._continue(batch, slots, rows, decoding, CHUNK):
                        poll()
                progress(sum(text.ended is not None for text in texts), len(texts))
        return [text.generated() for text in texts]

    def stream(self, prompt: Ids, decoding: Decoding, *, number: int = 0, chunk: int = 1) -> Iterator[str]:
        """Yield the text of one continuation in parts, while it is sampled; joined they are the text that `generate` returns.

        The bytes of an unfinished character are held back, and so is text that may become a stop string. Beam search has no text
        before its end: use `generate`.

        Args:
            number: the prompt's number, on which sampling depends.
            chunk: tokens sampled by one dispatch.

        Raises:
            BadInput: as for `generate`.
        """
        return (part.text for part in self.parts(prompt, decoding, number=number, chunk=chunk) if part.text)

    def parts(self, prompt: Ids, decoding: Decoding, *, number: int = 0, chunk: int = 1) -> Iterator[Part]:
        """Yield one part after each dispatch, perhaps without text, and the complete continuation with the last; see `stream`."""
        self._check([prompt], decoding)
        text, emitted = self._text(decoding, 0, 0, prompt, number), 0
        for _ in self._continue([text], _slots(len(text.prompt_ids)), 1, decoding, chunk):
            final = text.final()
            yield Part(final[emitted:], text.generated() if text.ended else None)
            emitted = max(emitted, len(final))

    def room(self, size: int) -> int | None:
        """Return the most new tokens after a prompt of `size` tokens, below 1 if it is too long; None if there is no limit."""
        longest = longest_row(self.model.config)
        if longest is None:
            return None
        # Source and target of an encoder-decoder have positions of their own.
        return longest - size if self._continues_prompt else longest * (size <= longest)

    def log_probs(self, ids: Int32[np.ndarray, " m"], top: int) -> TokenLogProbs:
        """Return the log-probabilities of the tokens of a text with its prompt; see `log_probs_with_likeliest`."""
        entries = self.tokenizer.vocab_size
        return log_probs_with_likeliest(self.model, self._params, self.mesh, ids, top=top, entries=entries)

    def ending_at(self, ends: Sequence[int]) -> "Generator":
        """Return a generator of texts that end at other ids, which shares the parameters and the programs."""
        other = copy.copy(self)
        other._ends = tuple(ends)
        return other

    def _text(self, decoding: Decoding, prompt: int, sample: int, ids: Ids, key: int) -> "_Text":
        options: dict[str, Any] = {"continues_prompt": self._continues_prompt, "ends": self._ends}
        return _Text(self.tokenizer, decoding, prompt, sample, np.asarray(ids, np.int32), key, **options)

    def _check(self, prompts: Sequence[Ids], decoding: Decoding) -> None:
        decoding.check_search()
        self._check_processors(decoding.processors)
        supported = decoding.read == "left-to-right" or self.model.reads_both_ways
        require(supported, "read", decoding.read, f"{self.model.family} generates from left to right only; leave the option out")
        entries = self.tokenizer.vocab_size
        for number, prompt in enumerate(prompts, 1):
            name, ids = f"prompt {number} of {len(prompts)}", np.asarray(prompt)
            if not ids.size:
                raise BadInput(f"{name} is empty; begin it with end-of-text, as a document begins")
            if ids.min() < 0 or ids.max() >= entries:
                raise BadInput(f"{name} has ids from {ids.min()} to {ids.max()}; the vocabulary ends at {entries - 1}")
            self._check_length(name, ids.size, decoding)

    def _check_length(self, name: str, size: int, decoding: Decoding) -> None:
        """Refuse a prompt that leaves no room for a token, or that with the limit is longer than the model's positions."""
        separate, longest = self.model.is_encoder_decoder, longest_row(self.model.config)
        context = math.inf if longest is None else longest
        limit = decoding.tokens_after(1 if separate else size)
        if limit < 1:
            what = "its first token" if separate else f"its {size} tokens"
            fix = f"choose {self._option}, the number of new tokens"
            raise BadInput(f"{name}: {what} and a continuation may have {decoding.total} tokens in total; {fix}")
        # Source and target of an encoder-decoder have positions of their own.
        if (max if separate else operator.add)(size, limit) > context:
            room = context if separate else context - size
            fits = size <= context and room >= 1
            fix = f"choose {self._option} {room} or less, or shorten the prompt" if fits else "shorten the prompt"
            raise BadInput(
                f"{name}: its {size} tokens and {self._option} {limit} are more than the model's {context} positions; {fix}"
            )

    def _check_processors(self, processors: Processors) -> None:
        """Refuse ids that must be generated, or that end a sequence of bad words, and are no entries of the vocabulary."""
        first = () if processors.forced_first is None else (processors.forced_first,)
        ids = {"forced_first": first, "forced_end": processors.forced_end, "bad_words": sum(processors.bad_words, ())}
        for name, values in ids.items():
            entries = self.model.config.vocab if name == "bad_words" else self.tokenizer.vocab_size
            require(max(values, default=0) < entries, name, max(values, default=0), f"the vocabulary ends at {entries - 1}")

    def _decoder_for(self, decoding: Decoding, *, searches: bool) -> Decoder:
        """Return the decoder for the settings; it names end tokens only where the programs depend on them."""
        ends = self._ends if not decoding.past_end and (searches or decoding.processors.uses_ends) else ()
        return self._decoder._replace(reread=decoding.reread, processors=decoding.processors, ends=ends)

    def _continue(self, texts: "list[_Text]", slots: int, rows: int, decoding: Decoding, chunk: int) -> Iterator[None]:
        """Sample tokens for a batch of texts until each has ended; yields after every dispatch."""
        rows = device_mesh.round_up_rows(self.mesh, rows)
        decoder, limit = self._decoder_for(decoding, searches=False), texts[0].limit
        with jax.set_mesh(self.mesh):
            local = device_mesh.local_rows(self.mesh, rows)
            local_prompts = jax.tree.map(lambda leaf: leaf[local], self._prompts(texts, slots, rows))
            prompts, numbers = device_mesh.shard_batch(local_prompts, self.mesh, rows), np.zeros((2, rows), np.uint32)
            numbers[:, : len(texts)] = np.array([(text.number, text.sample) for text in texts]).T
            arguments = (self._params, prompts, np.uint32(decoding.seed), numbers)
            options: dict[str, Any] = {"limit": limit, "chunk": chunk, "shared": self._shared}
            for sampled in decode_loop.decode_continuation(decoder, decoding.sampling, *arguments, **options):
                self._take(texts, sampled)
                yield
                if all(text.ended for text in texts):
                    break

    def _prompts(self, texts: "list[_Text]", slots: int, rows: int) -> Batch:
        """Return the input before the first sampled token; for an encoder-decoder the source and the first token of texts."""
        batch = _padded(texts, slots, rows)
        if not self.model.is_encoder_decoder:
            return batch
        assert batch.segments is not None
        begin = np.full((rows, 1), self._first, np.int32)
        return Batch(tokens=begin, segments=batch.segments[:, -1:], positions=np.zeros_like(begin), source=batch)

    def _search(self, texts: "list[_Text]", slots: int, rows: int, decoding: Decoding) -> None:
        """Find the best texts of a batch of prompts; `texts` are the samples of each in turn."""
        rows, several = device_mesh.round_up_rows(self.mesh, rows), texts[:: decoding.samples]
        decoder, limit = self._decoder_for(decoding, searches=True), texts[0].limit
        with jax.set_mesh(self.mesh):
            local = device_mesh.local_rows(self.mesh, rows)
            local_prompts = jax.tree.map(lambda leaf: leaf[local], self._prompts(several, slots, rows))
            prompts = device_mesh.shard_batch(local_prompts, self.mesh, rows)
            results = decode_loop.decode_beams(decoder, decoding.search, limit, self._params, prompts)
        tokens, scores, finite = jax.device_get(results)
        for number, text in enumerate(texts):
            row, sample = divmod(number, decoding.samples)
            text.take(tokens[row, sample].tolist(), [bool(finite[row])] * limit)
            text.score = float(scores[row, sample])

    @staticmethod
    def _take(texts: "list[_Text]", sampled: Sampled) -> None:
        tokens, finite = jax.device_get((sampled.tokens, sampled.finite))
        for row, text in enumerate(texts):
            text.take(tokens[:, row].tolist(), finite[:, row].tolist())


def _slots(length: int) -> int:
    """Return the number of slots that a prompt of this many tokens is padded to."""
    return max(SHORTEST, 1 << (length - 1).bit_length())


def _padded(texts: "list[_Text]", slots: int, rows: int) -> Batch:
    """Return prompts padded on the left; rows of padding complete the batch."""
    tokens, segments, positions = np.zeros((3, rows, slots), np.int32)
    for row, text in enumerate(texts):
        size = len(text.prompt_ids)
        tokens[row, slots - size :] = text.prompt_ids
        segments[row, slots - size :] = 1
        positions[row, slots - size :] = np.arange(size)
    return Batch(tokens=tokens, segments=segments, positions=positions)


class _Text:
    """A continuation during generation."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        decoding: Decoding,
        prompt: int,
        sample: int,
        prompt_ids: np.ndarray,
        number: int,
        *,
        continues_prompt: bool = False,
        ends: Sequence[int] = (),
    ) -> None:
        """Begin a continuation.

        Args:
            continues_prompt: whether it continues its prompt, unlike the text of an encoder-decoder.
            ends: the ids that end it; empty = the tokenizer's end-of-text.
        """
        self._decode = tokenizer.continuation if continues_prompt else tokenizer.decode
        self._contracts_spaces = tokenizer.contracts_spaces
        self.prompt, self.sample, self.prompt_ids, self.number = prompt, sample, prompt_ids, number
        self.ids: list[int] = []
        self.ended: Ended | None = None
        self.score: float | None = None
        self._end: int | None = None
        self._stop = decoding.stop
        self.limit = decoding.tokens_after(len(prompt_ids) if continues_prompt else 1)
        self._ends = () if decoding.past_end else tuple(ends) or (tokenizer.end_of_text,)
        self._excludes = decoding.processors != UNCHANGED

    def take(self, tokens: Sequence[int], finite: Sequence[bool]) -> None:
        """Add tokens until one of them ends the text; the tokens after that are ignored."""
        before = len(self.ids)
        for token, usable in zip(tokens, finite, strict=True):
            if self.ended:
                break
            if not usable:
                where = f"prompt {self.prompt + 1}, token {len(self.ids) + 1}"
                cause = " or the settings exclude every token" if self._excludes else ""
                raise BadInput(
                    f"{where}: the model's logits are not finite{cause}, so there is no next token; its weights are damaged, or "
                    "too large for --precision bfloat16"
                )
            if token in self._ends:
                self.ended, self._end = "end of text", token
                break
            self.ids.append(token)
            self.ended = "limit" if len(self.ids) == self.limit else None
        if self._stop and self._cut(self._decoded()) is not None:
            size = next(n for n in range(before + 1, len(self.ids) + 1) if self._cut(self._decode(self.ids[:n])) is not None)
            del self.ids[size:]
            self.ended, self._end = "stop", None

    def final(self) -> str:
        """Return the part of the text that no later token changes."""
        text = self._decoded()
        if self.ended:
            return text[: self._cut(text)]
        # An incomplete character is one replacement character, or with bytes as entries of a unigram model one for each byte.
        text = text.rstrip(REPLACEMENT)
        if self._contracts_spaces:
            text = " ".join(text.split(" ")[:-2])
        partial = (size for stop in self._stop for size in range(1, len(stop)) if text.endswith(stop[:size]))
        return text[: len(text) - max(partial, default=0)]

    def generated(self) -> Generated:
        assert self.ended
        return Generated(self.prompt, self.sample, tuple(self.ids), self.final(), self.ended, self.score, self._end)

    def _decoded(self) -> str:
        return self._decode(self.ids)

    def _cut(self, text: str) -> int | None:
        """Return the position of the first stop string; None if there is none."""
        return min((text.index(stop) for stop in self._stop if stop in text), default=None)
