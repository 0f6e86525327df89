"""Labelled examples to rows of ids: templates, truncation, tags on the pieces of words, windows of a context."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int32, Int64

from train.config.objective_options import Labelled
from train.data.example_types import Choice, Question, Tagged, Text
from train.tokenizers.special_tokens import Marks
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import IGNORED
from zoo.errors import BadInput, require

TOGETHER = 1024
"""Contexts that are tokenized at a time: what the library keeps of each is larger than its ids."""


class Inputs(NamedTuple):
    """One text or two with the marks around them, without padding."""

    ids: Int32[np.ndarray, " n"]
    types: Int32[np.ndarray, " n"]


class Context(NamedTuple):
    """What part of a context is in a row, to find in the text what the model points at."""

    first: int
    """Position in the row of the first token."""
    summary: int
    """Position in the row of the mark that says that there is no answer (its CLS)."""
    spans: Int64[np.ndarray, "tokens 2"]
    """For each token its first character in the context and the one after its last."""


class Row(NamedTuple):
    """An example as ids, or one window of a question's context."""

    inputs: tuple[Inputs, ...]
    """One, or one for each option."""
    labels: Int32[np.ndarray, "*S"] | Float[np.ndarray, "*S"]
    """[1] the class or number of a text; [n] the tags of the ids; [2] first and last position of an answer, both CLS's where
    there is none; [] the right option."""
    weights: Float[np.ndarray, " S"]
    """What the labels count in the loss: [n] of tags, otherwise [1]."""
    example: int
    """Number of the example it is made of."""
    context: Context | None = None
    size: int = 0
    """Tokens that the example needs, before it is cut: more than a row has if it is too long."""


def _refuse_long(make: Callable[..., Iterator[Row]]) -> Callable[..., Iterator[Row]]:
    """Let a function that makes rows refuse the examples that are longer than a row, once all of them are counted.

    They are cut with --labelled.truncate. With --labelled.skip-bad their rows are made, and
    `train.inputs.labelled_inputs.rows_of` leaves them out.
    """

    @functools.wraps(make)
    def checked(
        examples: Sequence[Any], tokenizer: Tokenizer, options: Labelled, length: int, *labels: Any, **more: Any
    ) -> Iterator[Row]:
        too_long: dict[int, int] = {}
        for row in make(examples, tokenizer, options, length, *labels, **more):
            if row.size > length:
                too_long[row.example] = row.size
            yield row
        if not too_long or options.truncate or options.skip_bad:
            return
        longest = max(too_long, key=too_long.__getitem__)
        example, size = examples[longest], too_long[longest]
        count = f" (the longest of {len(too_long):,} that are too long, of {len(examples):,})" if len(too_long) > 1 else ""
        leave_out = "leave such out with --labelled.skip-bad, or cut them with --labelled.truncate"
        if isinstance(example, Question):
            asked = size - length + _question_room(length, options, _marks(tokenizer))
            raise BadInput(
                f"{example.origin}: a question of {asked} tokens leaves too little of a row of {length} for a stride of "
                f"{options.stride}{count}; choose a longer --data.length or a shorter --labelled.stride, {leave_out}"
            )
        raise BadInput(
            f"{example.origin}: {size} tokens, and a row has {length}{count}; choose a longer --data.length, {leave_out}"
        )

    return checked


@_refuse_long
def texts(
    examples: Sequence[Text], tokenizer: Tokenizer, options: Labelled, length: int, names: Mapping[str, int]
) -> Iterator[Row]:
    """`cls text sep`, or `cls text sep pair sep` (Devlin et al. 2019, section 4), with a class of `names` or a number.

    Here as below, XLNet's marks put `cls` last.
    """
    marks, encoded = _marks(tokenizer), _encoded(tokenizer, (text for each in examples for text in (each.text, each.pair)))
    for number, example in enumerate(examples):
        first, second = encoded[example.text], None if example.pair is None else encoded[example.pair]
        inputs, size = _fitted(first, second, marks, length)
        label = np.float32(example.label) if options.regression else np.int32(class_of(names, example.label, example.origin))
        yield Row((inputs,), np.array([label]), np.ones(1, np.float32), number, size=size)


@_refuse_long
def tags(
    examples: Sequence[Tagged], tokenizer: Tokenizer, options: Labelled, length: int, names: Mapping[str, int]
) -> Iterator[Row]:
    """`cls words sep`, each tag at the first id of its word (Devlin et al. 2019, section 5.3). A word without ids has none."""
    marks = _marks(tokenizer)
    for number, example in enumerate(examples):
        ids, word = tokenizer.encode_words(example.words)
        inputs, size = _fitted(ids, None, marks, length)
        classes = np.array([class_of(names, tag, example.origin) for tag in example.tags], np.int32)
        first = np.diff(word, prepend=-1) > 0
        labels = np.full(len(inputs.ids), IGNORED, np.int32)
        words = slice(marks.before, marks.before + len(labels) - 2)
        labels[words] = np.where(first, classes[word], IGNORED)[: len(labels) - 2]
        if (labels == IGNORED).all() and (size <= length or options.truncate):
            raise BadInput(f"{example.origin}: the tokenizer gives no ids to these words; mend them or leave the sentence out")
        yield Row((inputs,), labels, (labels != IGNORED).astype(np.float32), number, size=size)


@_refuse_long
def choices(examples: Sequence[Choice], tokenizer: Tokenizer, options: Labelled, length: int) -> Iterator[Row]:
    """For each option `cls article sep question option sep` (Radford et al. 2018, section 3.2; Liu et al. 2019, section 5.3)."""
    marks = _marks(tokenizer)
    asked = [[f"{each.question} {option}" for option in each.options] for each in examples]
    encoded = _encoded(
        tokenizer, (text for each, seconds in zip(examples, asked, strict=True) for text in (each.article, *seconds))
    )
    for number, (example, seconds) in enumerate(zip(examples, asked, strict=True)):
        if len(seconds) != len(asked[0]):
            raise BadInput(
                f"{example.origin}: {len(seconds)} options, but {examples[0].origin} has {len(asked[0])}; all need as many"
            )
        inputs, sizes = zip(*(_fitted(encoded[example.article], encoded[text], marks, length) for text in seconds), strict=True)
        yield Row(inputs, np.array(example.answer, np.int32), np.ones(1, np.float32), number, size=max(sizes))


@_refuse_long
def windows(examples: Sequence[Question], tokenizer: Tokenizer, options: Labelled, length: int) -> Iterator[Row]:
    """`cls question sep window sep` for each window of the context (Devlin et al. 2019, sections 4.2 and 4.3).

    A window has all the room that the question leaves and begins `stride` tokens after the one before; the last one ends with the
    context. One that does not hold the whole answer has none.
    """
    marks = _marks(tokenizer)
    questions, contexts = _encoded(tokenizer, (each.question for each in examples)), _placed(tokenizer, examples)
    for number, example in enumerate(examples):
        question, (ids, spans) = questions[example.question], contexts(example.context)
        most = _question_room(length, options, marks)
        if most <= 0 and len(question) > most:
            raise BadInput(
                f"{example.origin}: a question of {len(question)} tokens leaves too little of a row of {length} for a stride "
                f"of {options.stride}; choose a longer --data.length or a shorter --labelled.stride"
            )
        size, question = length - most + len(question), question[:most]
        answer = _tokens_of(example, spans)
        room = length - 2 - marks.between - len(question)
        for start in _starts(len(ids), room, options.stride):
            end = min(start + room, len(ids))
            first = marks.before + len(question) + marks.between
            inputs = Inputs(*marks.pair(question, ids[start:end]))
            summary = marks.summary(len(inputs.ids))
            labels = np.full(2, summary, np.int32)
            if answer and start <= answer[0] and answer[1] < end:
                labels = np.array(answer, np.int32) - np.int32(start - first)
            yield Row((inputs,), labels, np.ones(1, np.float32), number, Context(first, summary, spans[start:end]), size)


def class_of(names: Mapping[str, int], label: Any, origin: str) -> int:
    """Number of a label.

    Raises:
        BadInput: it is none of `names`.
    """
    if label not in names:
        known = ", ".join(list(names)[:20])
        raise BadInput(
            f"{origin}: label {label} is none of the {len(names)} that the model learns ({known}); mend or leave it out"
        )
    return names[label]


def is_typed(types: int, marks: Marks) -> bool:
    """Whether a model of so many token types tells those of a pair apart.

    Raises:
        BadInput: it has several, but fewer than the marks.
    """
    fix = f"the tokenizer's pairs have {marks.types} token types; choose as many, or 1 (none)"
    require(types <= 1 or types >= marks.types, "model.types", types, fix)
    return types > 1


def padded(inputs: Inputs, length: int, marks: Marks, *, typed: bool) -> dict[str, Int32[np.ndarray, "..."]]:
    """The fields of `Batch` that hold a row: tokens, segments (1; 0 = padding), positions and, where they are `typed`, types; and
    summary_at [1], the place of CLS, where that is not the first."""
    # On the right for XLNet too, which others pad on the left: its positions are relative, and nothing sees segment 0.
    tokens = np.full(length, marks.pad, np.int32)
    segments, positions, types = np.zeros((3, length), np.int32)
    size = len(inputs.ids)
    tokens[:size], segments[:size], positions[:size], types[:size] = inputs.ids, 1, np.arange(size), inputs.types * typed
    arrays = {"tokens": tokens, "segments": segments, "positions": positions, "types": types}
    return arrays | {"summary_at": np.array([marks.summary(size)], np.int32)} if marks.cls_last else arrays


# --- Pieces of the above ---


def _marks(tokenizer: Tokenizer) -> Marks:
    if tokenizer.marks is None:
        raise BadInput("--tokenizer.path: this tokenizer has no marks (cls, sep) to set off a text; choose an encoder's")
    return tokenizer.marks


def _encoded(tokenizer: Tokenizer, wanted: Iterable[str | None]) -> dict[str, Int32[np.ndarray, " n"]]:
    """The ids of each text, which is tokenized once however often it occurs."""
    once = [text for text in dict.fromkeys(wanted) if text is not None]
    return dict(zip(once, tokenizer.encode_many(once), strict=True))


def _placed(tokenizer: Tokenizer, examples: Sequence[Question]) -> Callable[[str], Any]:
    """Ids and spans of each context."""
    once = list(dict.fromkeys(each.context for each in examples))
    found = {}
    for start in range(0, len(once), TOGETHER):
        some = once[start : start + TOGETHER]
        found.update(zip(some, tokenizer.encode_spans(some), strict=True))
    return found.__getitem__


def _question_room(length: int, options: Labelled, marks: Marks) -> int:
    """Tokens of the longest question that leaves room for a stride of its context."""
    return length - 2 - marks.between - options.stride


def _fitted(first: Int[np.ndarray, " a"], second: Int[np.ndarray, " b"] | None, marks: Marks, length: int) -> tuple[Inputs, int]:
    """The template, shortened to `length`, and its tokens before that. The longer text loses its end until both are alike."""
    room = max(0, length - 2 - (0 if second is None else marks.between))
    size = len(first) + (0 if second is None else len(second)) + 2 + (0 if second is None else marks.between)
    if second is None:
        return Inputs(*marks.single(first[:room])), size
    kept = min(len(first), max(room - len(second), (room + 1) // 2))
    return Inputs(*marks.pair(first[:kept], second[: room - kept])), size


def _starts(size: int, room: int, stride: int) -> range:
    """First token of each window: the fewest that reach the end."""
    return range(0, 1 + stride * -(-max(size - room, 0) // stride), stride)


def _tokens_of(example: Question, spans: Int64[np.ndarray, "tokens 2"]) -> tuple[int, int] | None:
    """First and last token that share a character with the answer that is learned."""
    if not len(spans):
        raise BadInput(f"{example.origin}: the tokenizer gives no ids to the context; mend it or leave the question out")
    if not example.answers:
        return None
    text, start = example.answers[0]
    inside = np.flatnonzero((spans[:, 1] > start) & (spans[:, 0] < start + len(text)))
    if not len(inside):
        raise BadInput(f"{example.origin}: the tokenizer gives no ids to the answer; mend it or leave the question out")
    return int(inside[0]), int(inside[-1])
