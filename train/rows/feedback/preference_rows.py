"""Rows of preferences: a prompt with the completion that was chosen, and the same prompt with the one that was rejected."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32

from train.config.option_groups import Preferences
from train.data.example_types import Content, Preference
from train.rows import seq2seq_rows
from train.rows.batches import Build
from train.rows.example_rows import TemplateIds, is_typed, padded_row, special_tokens_of
from train.rows.seq2seq_rows import SourceTarget, text_special_tokens_of
from train.tokenizers.chat_template import ChatTemplate
from train.tokenizers.chat_token_ids import CompletionText, completion_text, missing_end
from train.tokenizers.continuations import encode_continuations
from train.tokenizers.text_borders import common_prefix_length
from train.tokenizers.tokenizer import Tokenizer
from zoo.configs._encoder import BodyConfig
from zoo.errors import BadInput

Layout = Literal["decoder", "encoder", "joined", "encoder_decoder"]
"""decoder: prompt and completion in one row. encoder: both in the template of two texts. joined: both as one text in an encoder's
template of one text. encoder_decoder: the prompt in the source and the completion in the target."""


class Side(NamedTuple):
    """The ids of a prompt and one of its completions, without padding."""

    ids: Int32[np.ndarray, " n"]
    """A decoder's prompt, completion and end mark; an encoder-decoder's completion and end mark; an encoder's template."""
    first: int
    """Index in `ids` of the first token of the completion; not used by encoders."""
    source: Int32[np.ndarray, " s"] | None = None
    """An encoder-decoder's prompt and end mark."""
    types: Int32[np.ndarray, " n"] | None = None
    """Token types of an encoder's template."""

    @property
    def size(self) -> int:
        """Number of tokens, special tokens included."""
        return len(self.ids) + (0 if self.source is None else len(self.source))


class Completions(NamedTuple):
    """A prompt and one or two completions of it, before tokenization."""

    origin: str
    """Place it was read from, for error messages."""
    prompt: Content
    completions: tuple[Content, ...]


class PreferenceRow(NamedTuple):
    """A preference as ids."""

    sides: tuple[Side, Side]
    """Chosen, rejected."""
    margin: float
    example: int
    """Number of its example."""
    reference: Float32[np.ndarray, " 2"] | None = None
    """Log-probabilities of both completions under a reference, if an objective reads them."""


class Limits(NamedTuple):
    """Sizes of a row in tokens."""

    length: int
    """Number of tokens in a row, or in an encoder-decoder's source."""
    target_length: int = 0
    """Number of tokens of an encoder-decoder's target; 0 = as `length`."""

    @property
    def target(self) -> int:
        return self.target_length or self.length


def layout_of(cfg: Any) -> Layout:
    """Return the layout of the rows of a model.

    Raises:
        BadInput: a decoder that reads a prefix both ways, for which preferences have no layout.
    """
    if cfg.is_encoder_decoder:
        return "encoder_decoder"
    if getattr(cfg, "architecture", "") == "decoder":
        raise BadInput("model.architecture decoder: preferences need encoder_decoder, shared, or a model of another family")
    return "encoder" if isinstance(cfg, BodyConfig) else "decoder"


def encode_rows(
    examples: Sequence[Preference],
    tokenizer: Tokenizer,
    cfg: Any,
    options: Preferences,
    limits: Limits,
    template: ChatTemplate | None = None,
) -> tuple[list[PreferenceRow], list[str]]:
    """Return the rows of preferences, and a message for each that --labelled.skip-bad leaves out.

    See `encode_example_completions`.
    """
    texts = [Completions(item.origin, item.prompt, (item.chosen, item.rejected)) for item in examples]
    encoded, messages = encode_example_completions(texts, tokenizer, cfg, options, limits, ("chosen", "rejected"), template)
    return [PreferenceRow((chosen, rejected), examples[at].margin, at) for at, (chosen, rejected) in encoded], messages


def encode_example_completions(
    examples: Sequence[Completions],
    tokenizer: Tokenizer,
    cfg: Any,
    options: Preferences,
    limits: Limits,
    names: tuple[str, ...],
    template: ChatTemplate | None = None,
) -> tuple[list[tuple[int, tuple[Side, ...]]], list[str]]:
    """Return (number, a side for each completion) of each example that fits, and a message for each that does not.

    With --labelled.skip-bad the latter are left out. A decoder reads prompt and completion as one text (see
    `train.tokenizers.continuations`); an encoder or encoder-decoder reads each separately. With --labelled.truncate the beginning
    of the prompt is cut, by the same number of tokens for all of its completions.

    Args:
        cfg: configuration of the model, which determines the layout.
        names: names of the completions of an example, for error messages; an example with one completion has the first name.
        template: renders conversations; None: there are none.

    Raises:
        BadInput: a completion has no ids, an example is too long, the tokenizer lacks special tokens, the template cannot render
            a conversation, or it writes no special token after a completion of a decoder.
    """
    layout = layout_of(cfg)
    texts = [
        completion_text(item.origin, item.prompt, completion, tokenizer, template)
        for item in examples
        for completion in item.completions
    ]
    encoded = zip(texts, _encoded(texts, tokenizer, layout), strict=True)
    rows, too_long, special = [], [], _SpecialTokens(layout, tokenizer)
    for number, item in enumerate(examples):
        ids, ends = [], []
        for name, _ in zip(names, item.completions, strict=False):
            text, (prompt, completion) = next(encoded)
            if not len(completion):
                raise BadInput(f"{item.origin}: the tokenizer returns no ids for the {name} completion; leave it out")
            if text.rendered and text.end is None and layout == "decoder":
                assert template is not None
                raise BadInput(missing_end(item.origin, template))
            ids.append((prompt, completion))
            ends.append(text.end)
        sizes = [special.size(prompt, completion) for prompt, completion in ids]
        excess = max(max(sizes) - limits.length, 0)
        longest_cut = min(len(prompt) for prompt, _ in ids) - 1
        targets = [len(completion) + 1 for _, completion in ids] if layout == "encoder_decoder" else [0]
        if max(targets) > limits.target or excess > (longest_cut if options.truncate else 0):
            too_long.append((max(*sizes, *targets), _too_long(item.origin, names, sizes, targets, limits)))
            continue
        sides = (special.fill(prompt[excess:], text, end) for (prompt, text), end in zip(ids, ends, strict=True))
        rows.append((number, tuple(sides)))
    if too_long and not options.skip_bad:
        count = f" (the longest of {len(too_long):,} that are too long, of {len(examples):,})" if len(too_long) > 1 else ""
        raise BadInput(max(too_long)[1] + count)
    return rows, [message for _, message in too_long]


def encode_sides(
    texts: Sequence[CompletionText],
    tokenizer: Tokenizer,
    cfg: Any,
    prompt_limit: int | None = None,
    row_limit: int | None = None,
    *,
    longest: int | None = None,
    joined: bool = False,
) -> list[Side]:
    """Return the ids of prompts and completions of any length, as `encode_rows` does.

    Args:
        prompt_limit: longest prompt in tokens; a longer one loses its beginning. None = prompts are not cut.
        row_limit: tokens of a row, for which the beginning of its prompt is cut further, up to its last token, if the row is
            longer; None: nothing more is cut. An encoder-decoder's completion is not in the row of its prompt.
        longest: tokens of `Side.ids`, for which the end of a completion is cut if they are more; None: it is not cut.
        joined: True if an encoder reads prompt and completion as one text, as a classifier of single texts does.

    Raises:
        BadInput: the tokenizer lacks special tokens.
    """
    layout = "joined" if joined else layout_of(cfg)
    special = _SpecialTokens(layout, tokenizer)
    sides = []
    for text, (prompt, completion) in zip(texts, _encoded(texts, tokenizer, layout), strict=True):
        cut = 0 if prompt_limit is None else max(0, len(prompt) - prompt_limit)
        if row_limit is not None and layout != "encoder_decoder":
            cut = max(cut, min(special.size(prompt, completion) - row_limit, len(prompt) - 1))
        side = special.fill(prompt[cut:], completion, text.end)
        if longest is not None and (excess := len(side.ids) - longest) > 0:
            side = special.fill(prompt[cut:], completion[: max(len(completion) - excess, 0)], text.end)
        sides.append(side)
    return sides


def template_size(tokenizer: Tokenizer, cfg: Any, *, joined: bool = False) -> int:
    """Return the number of special tokens in the row of a prompt and a completion, or in an encoder-decoder's source.

    Args:
        joined: see `encode_sides`.

    Raises:
        BadInput: the tokenizer lacks special tokens.
    """
    one = np.zeros(1, np.int32)
    layout = "joined" if joined else layout_of(cfg)
    return _SpecialTokens(layout, tokenizer).size(one, one) - (1 if layout == "encoder_decoder" else 2)


def _encoded(
    texts: Sequence[CompletionText], tokenizer: Tokenizer, layout: Layout
) -> Iterator[tuple[Int32[np.ndarray, " p"], Int32[np.ndarray, " c"]]]:
    """Yield the ids of prompts and completions without special tokens around them."""
    plain = _encoded_alike([(text.prompt, text.text) for text in texts if not text.rendered], tokenizer, layout)
    rendered = _encoded_alike([(text.prompt, text.text) for text in texts if text.rendered], tokenizer, layout, rendered=True)
    return (next(rendered if text.rendered else plain) for text in texts)


def _encoded_alike(
    texts: Sequence[tuple[str, str]], tokenizer: Tokenizer, layout: Layout, *, rendered: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the ids of prompts and completions, all of which a chat template has rendered, or none."""
    if layout == "decoder" and not rendered:
        return encode_continuations(tokenizer, texts)
    encode = tokenizer.encode_rendered if rendered else tokenizer.encode_many
    if layout in ("joined", "decoder"):
        prompts = encode([prompt for prompt, _ in texts])
        both = encode([prompt + completion for prompt, completion in texts])
        borders = ((common_prefix_length(prompt, ids), ids) for prompt, ids in zip(prompts, both, strict=True))
        # A decoder predicts from at least one token.
        empty = np.array([tokenizer.end_of_text] if layout == "decoder" else [], np.int32)
        return ((ids[:border] if border else empty, ids[border:]) for border, ids in borders)
    # White space at the ends of what a template writes belongs to its special tokens, which are not in these rows.
    ids = iter(encode([text.strip() if rendered else text for pair in texts for text in pair]))
    return zip(ids, ids, strict=True)


def builder(cfg: Any, tokenizer: Tokenizer, target_length: int = 0) -> Build:
    """Return `build(rng, row, length)`, which converts a `PreferenceRow` to fields of `Batch` with an axis C = 2, chosen first.

    tokens, segments (1; 0 = padding) and positions, int32 [2, T]; an encoder's types, int32 [2, T], and an encoder-decoder's
    source [2, S] of the same fields. targets, int32 [2, T], are the next tokens, and weights, float32 [2, T], are 1 where a
    target is a token of the completion or its end mark; encoders have neither. summary_at, int32 [2, 1], is the position that a
    score is read at: the last token, or an encoder's CLS. extra has the margin, float32 []. `rng` is not used.

    Raises:
        BadInput: the tokenizer or the number of token types does not fit the model.
    """
    both_sides = sides_builder(cfg, tokenizer, target_length)

    def build(rng: np.random.Generator, row: PreferenceRow, length: int) -> dict[str, Any]:
        return both_sides(row.sides, length) | {"extra": {"margin": np.array(row.margin, np.float32)}}

    return build


def sides_builder(cfg: Any, tokenizer: Tokenizer, target_length: int = 0) -> Callable[[tuple[Side, ...], int], dict[str, Any]]:
    """Return a function (C sides, length) -> fields of `Batch`, which are those of `builder` without `extra`.

    Raises:
        BadInput: see `builder`.
    """
    one_side = side_builder(cfg, tokenizer, target_length)

    def all_sides(sides: tuple[Side, ...], length: int) -> dict[str, Any]:
        return jax.tree.map(lambda *arrays: np.stack(arrays), *(one_side(side, length) for side in sides))

    return all_sides


def side_builder(cfg: Any, tokenizer: Tokenizer, target_length: int = 0) -> Callable[[Side, int], dict[str, Any]]:
    """Return a function (side, length) -> fields of `Batch`: those of `builder` without `extra` and axis C.

    Raises:
        BadInput: see `builder`.
    """
    layout = layout_of(cfg)
    if layout == "encoder":
        special = special_tokens_of(tokenizer)
        typed, causal = is_typed(cfg.types, special), getattr(cfg, "causal", False)

        def one_side(side: Side, length: int) -> dict[str, Any]:
            assert side.types is not None
            fields = padded_row(TemplateIds(side.ids, side.types), length, special, typed=typed, causal=causal)
            return {"summary_at": np.zeros(1, np.int32)} | fields

    elif layout == "encoder_decoder":
        pad = text_special_tokens_of(tokenizer).pad

        def one_side(side: Side, length: int) -> dict[str, Any]:
            assert side.source is not None
            example = [SourceTarget(side.source, side.ids)]
            fields = seq2seq_rows.encoder_decoder_row(example, length, target_length or length, pad)
            return fields | {"summary_at": _last(side)}

    else:
        one_side = _decoder_row
    return one_side


def row_bytes(rows: Iterable[PreferenceRow]) -> Iterable[bytes]:
    """Yield the bytes of all ids and margins, for a fingerprint."""
    for row in rows:
        yield from side_bytes(row.sides, row.margin)


def side_bytes(sides: tuple[Side, ...], number: float | bool) -> Iterator[bytes]:
    """Yield the bytes of the ids of sides, each with the number of their row."""
    for side in sides:
        source = b"" if side.source is None else side.source.tobytes()
        yield f"{side.first} {len(source)} {side.ids.size} {number!r} ".encode() + source + side.ids.tobytes()


class _SpecialTokens:
    """The special tokens around a prompt and its completion."""

    def __init__(self, layout: Layout, tokenizer: Tokenizer) -> None:
        self._layout, self._end = layout, tokenizer.end_of_text
        self._special = special_tokens_of(tokenizer) if layout in ("encoder", "joined") else None
        if layout == "encoder_decoder":
            self._end = text_special_tokens_of(tokenizer).end

    def size(self, prompt: np.ndarray, completion: np.ndarray) -> int:
        """Return the number of tokens of the row, or of the source."""
        if self._layout == "encoder_decoder":
            return len(prompt) + 1
        if self._special is None:
            return len(prompt) + len(completion) + 1
        return len(prompt) + len(completion) + 2 + (self._special.between if self._two_texts(prompt) else 0)

    def fill(self, prompt: np.ndarray, completion: np.ndarray, end_mark: int | None = None) -> Side:
        """Return the ids of a prompt and its completion with the special tokens; an empty prompt is left out of a template.

        Args:
            end_mark: id that ends a decoder's completion; None = end-of-text.
        """
        end = np.array([self._end if end_mark is None or self._layout != "decoder" else end_mark], np.int32)
        if self._layout == "encoder_decoder":
            return Side(np.append(completion, end), 0, np.append(prompt, end))
        if self._special is None:
            return Side(np.concatenate([prompt, completion, end]), len(prompt))
        if self._two_texts(prompt):
            ids, types = self._special.pair(prompt, completion)
        else:
            ids, types = self._special.single(np.concatenate([prompt, completion]))
        return Side(ids, 0, None, types)

    def _two_texts(self, prompt: np.ndarray) -> bool:
        return self._layout == "encoder" and len(prompt) > 0


def _decoder_row(side: Side, length: int) -> dict[str, Any]:
    """Return the fields of a decoder's row, each [length], and summary_at [1]; ids beyond the end are 0."""
    size = len(side.ids)
    tokens, targets, segments, positions = np.zeros((4, length), np.int32)
    weights = np.zeros(length, np.float32)
    tokens[:size], segments[:size], positions[:size] = side.ids, 1, np.arange(size)
    targets[: size - 1] = side.ids[1:]
    weights[side.first - 1 : size - 1] = 1
    arrays = {"tokens": tokens, "segments": segments, "positions": positions, "targets": targets, "weights": weights}
    return arrays | {"summary_at": _last(side)}


def _last(side: Side) -> Int32[np.ndarray, " 1"]:
    # A position, never a comparison with an id: the end mark may also be the id of padding.
    return np.array([len(side.ids) - 1], np.int32)


def _too_long(origin: str, names: tuple[str, ...], sizes: Sequence[int], targets: Sequence[int], limits: Limits) -> str:
    skip = "or leave long examples out with --labelled.skip-bad"
    if max(targets) > limits.target:
        lengths = " and ".join(f"{size} ({name})" for size, name in zip(targets, names, strict=False))
        what = f"completions of {lengths} tokens, and a target has {limits.target}"
        return f"{origin}: {what}; choose a longer --data.target-length, {skip}"
    cut = "cut the beginning of prompts with --labelled.truncate"
    if max(targets):
        what = f"a prompt of {sizes[0]} tokens, and a source has {limits.length}"
    else:
        second = f" and {sizes[1]} with the {names[1]}" if len(sizes) > 1 else ""
        what = f"{sizes[0]} tokens with the {names[0]} completion{second}, and a row has {limits.length}"
    return f"{origin}: {what}; choose a longer --data.length, {cut}, {skip}"
