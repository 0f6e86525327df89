"""Rows of labelled examples: templates, truncation, tags on the tokens of words, windows of a context."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int32, Int64

from train.config.option_groups import Choices, LabelledTexts, Questions, TaggedWords
from train.data.example_types import Choice, Question, Tagged, Text
from train.tokenizers.special_tokens import SpecialTokens
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import IGNORED
from zoo.errors import BadInput, require

CONTEXTS_PER_BATCH = 1024
"""Contexts that are tokenized at a time, because the encodings of the library are larger than the ids."""


class TemplateIds(NamedTuple):
    """One text or two with the special tokens of the template, without padding."""

    ids: Int32[np.ndarray, " n"]
    types: Int32[np.ndarray, " n"]


class Context(NamedTuple):
    """The part of a context that a row contains, which maps positions that a model predicts to characters."""

    first: int
    """Position in the row of the first token."""
    summary: int
    """Position in the row of CLS, which a model predicts if there is no answer."""
    spans: Int64[np.ndarray, "tokens 2"]
    """For each token, the index in the context of its first character, and of the one after its last."""


class ExampleRow(NamedTuple):
    """An example as ids, or one window of a question's context."""

    inputs: tuple[TemplateIds, ...]
    """One, or one for each option or text."""
    labels: Int32[np.ndarray, "*S"] | Float[np.ndarray, "*S"]
    """[1] the class or number of a text, or the score of a pair; [O] if it may have several labels, 1 for those it has, else 0;
    [n] the tags of the ids; [2] the first and last position of an answer, or twice the position of CLS if none; [] the index of
    the right option; [C] the numbers of texts, which are equal for equal texts."""
    weights: Float[np.ndarray, " S"]
    """Weights of the labels in the loss: [n] of tags, otherwise [1]."""
    example: int
    """Number of its example."""
    context: Context | None = None
    size: int = 0
    """Number of tokens of the example before truncation; more than the length of a row if the example is too long."""


class Advice(NamedTuple):
    """A command's advice about examples that are longer than a row, in its own options."""

    longer: str = "choose a longer --data.length"
    shorter: str = "leave long ones out with --labelled.skip-bad, or cut them with --labelled.truncate"


TRAINING = Advice()


def refuse_long(make: Callable[..., Iterator[ExampleRow]]) -> Callable[..., Iterator[ExampleRow]]:
    """Decorate a function that yields rows to raise `BadInput` after the last row if examples were longer than a row.

    With --labelled.truncate they are cut instead. With --labelled.skip-bad their rows are yielded, and
    `train.inputs.labelled_inputs.rows_of_labels` leaves them out.
    """

    @functools.wraps(make)
    def checked(
        examples: Sequence[Any],
        tokenizer: Tokenizer,
        options: Choices,
        length: int,
        *labels: Any,
        advice: Advice = TRAINING,
        **more: Any,
    ) -> Iterator[ExampleRow]:
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
        if isinstance(example, Question) and isinstance(options, Questions):
            question_size = size - length + _longest_question(length, options, special_tokens_of(tokenizer))
            raise BadInput(
                f"{example.origin}: a question of {question_size} tokens leaves too little of a row of {length} for a stride of "
                f"{options.stride}{count}; {advice.longer} or a shorter --labelled.stride, {advice.shorter}"
            )
        raise BadInput(f"{example.origin}: {size} tokens, and a row has {length}{count}; {advice.longer}, {advice.shorter}")

    return checked


@refuse_long
def classification_rows(
    examples: Sequence[Text], tokenizer: Tokenizer, options: LabelledTexts, length: int, names: Mapping[str, int]
) -> Iterator[ExampleRow]:
    """Yield `cls text sep`, or `cls text sep pair sep` (Devlin et al. 2019, section 4), with its label.

    The label is a class of `names`, several of them, or a number. XLNet's templates have `cls` at the end, here and in the
    functions below.
    """
    special = special_tokens_of(tokenizer)
    encoded = encoded_texts(tokenizer, (text for item in examples for text in (item.text, item.pair)))
    for number, example in enumerate(examples):
        first, second = encoded[example.text], None if example.pair is None else encoded[example.pair]
        inputs, size = fill_template(first, second, special, length)
        yield ExampleRow((inputs,), _label_array(example, options, names), np.ones(1, np.float32), number, size=size)


@refuse_long
def tagging_rows(
    examples: Sequence[Tagged], tokenizer: Tokenizer, options: TaggedWords, length: int, names: Mapping[str, int]
) -> Iterator[ExampleRow]:
    """Yield `cls words sep`, with each tag at the first id of its word, if it has ids (Devlin et al. 2019, section 5.3)."""
    special = special_tokens_of(tokenizer)
    for number, example in enumerate(examples):
        ids, word = tokenizer.encode_words(example.words)
        inputs, size = fill_template(ids, None, special, length)
        classes = np.array([class_of(names, tag, example.origin) for tag in example.tags], np.int32)
        first = np.diff(word, prepend=-1) > 0
        labels = np.full(len(inputs.ids), IGNORED, np.int32)
        words = slice(special.before, special.before + len(labels) - 2)
        labels[words] = np.where(first, classes[word], IGNORED)[: len(labels) - 2]
        if (labels == IGNORED).all() and (size <= length or options.truncate):
            raise BadInput(f"{example.origin}: the tokenizer returns no ids for these words; fix them or remove the sentence")
        yield ExampleRow((inputs,), labels, (labels != IGNORED).astype(np.float32), number, size=size)


@refuse_long
def choice_rows(examples: Sequence[Choice], tokenizer: Tokenizer, options: Choices, length: int) -> Iterator[ExampleRow]:
    """Yield `cls article sep question option sep` for each option (Radford et al. 2018, 3.2; Liu et al. 2019, 5.3)."""
    special = special_tokens_of(tokenizer)
    seconds_of = [[f"{item.question} {option}" for option in item.options] for item in examples]
    texts_of = ((item.article, *second_texts) for item, second_texts in zip(examples, seconds_of, strict=True))
    encoded = encoded_texts(tokenizer, (text for texts in texts_of for text in texts))
    for number, (example, second_texts) in enumerate(zip(examples, seconds_of, strict=True)):
        if len(second_texts) != len(seconds_of[0]):
            raise BadInput(
                f"{example.origin}: {len(second_texts)} options, but {examples[0].origin} has {len(seconds_of[0])}; write as "
                "many for every question"
            )
        article = encoded[example.article]
        inputs, sizes = zip(*(fill_template(article, encoded[text], special, length) for text in second_texts), strict=True)
        yield ExampleRow(inputs, np.array(example.answer, np.int32), np.ones(1, np.float32), number, size=max(sizes))


@refuse_long
def question_rows(examples: Sequence[Question], tokenizer: Tokenizer, options: Questions, length: int) -> Iterator[ExampleRow]:
    """Yield `cls question sep window sep` for each window of the context (Devlin et al. 2019, sections 4.2 and 4.3).

    A window has all tokens of the row that the question leaves, and begins `stride` tokens after the one before it; the last one
    ends with the context. A window that does not contain the whole answer is labelled as having none.
    """
    special = special_tokens_of(tokenizer)
    questions, contexts = encoded_texts(tokenizer, (item.question for item in examples)), _encoded_contexts(tokenizer, examples)
    for number, example in enumerate(examples):
        question, (ids, spans) = questions[example.question], contexts(example.context)
        longest_question = _longest_question(length, options, special)
        if longest_question <= 0 and len(question) > longest_question:
            raise BadInput(
                f"{example.origin}: a question of {len(question)} tokens leaves too little of a row of {length} for a stride "
                f"of {options.stride}; choose longer rows or a shorter --labelled.stride"
            )
        size, question = length - longest_question + len(question), question[:longest_question]
        answer = _answer_tokens(example, spans)
        window = length - 2 - special.between - len(question)
        for start in _window_starts(len(ids), window, options.stride):
            end = min(start + window, len(ids))
            first = special.before + len(question) + special.between
            inputs = TemplateIds(*special.pair(question, ids[start:end]))
            summary = special.summary(len(inputs.ids))
            labels = np.full(2, summary, np.int32)
            if answer and start <= answer[0] and answer[1] < end:
                labels = np.array(answer, np.int32) - np.int32(start - first)
            yield ExampleRow((inputs,), labels, np.ones(1, np.float32), number, Context(first, summary, spans[start:end]), size)


def _label_array(example: Text, options: LabelledTexts, names: Mapping[str, int]) -> np.ndarray:
    """Return the label or labels of a text in the format of `ExampleRow.labels`."""
    if options.regression:
        return np.array([example.label], np.float32)
    if not isinstance(example.label, tuple):
        return np.array([class_of(names, example.label, example.origin)], np.int32)
    labels = np.zeros(len(names), np.int32)
    labels[[class_of(names, label, example.origin) for label in example.label]] = 1
    return labels


def class_of(names: Mapping[str, int], label: Any, origin: str) -> int:
    """Return the number of a label.

    Raises:
        BadInput: the label is not in `names`.
    """
    if label not in names:
        classes = ", ".join(list(names)[:20])
        raise BadInput(
            f"{origin}: label {label} is none of the {len(names)} that the model learns ({classes}); fix it or remove the example"
        )
    return names[label]


def is_typed(types: int, special: SpecialTokens) -> bool:
    """Return whether a model of `types` token types distinguishes the texts of a pair.

    Raises:
        BadInput: the model has several token types, but fewer than the template.
    """
    fix = f"the tokenizer's pairs have {special.types} token types; choose as many, or 1 (none)"
    require(types <= 1 or types >= special.types, "model.types", types, fix)
    return types > 1


def padded_row(
    inputs: TemplateIds, length: int, special: SpecialTokens, *, typed: bool, causal: bool = False
) -> dict[str, Int32[np.ndarray, "..."]]:
    """Return the fields of `Batch` for a row: tokens, segments (1; 0 = padding), positions and types (all 0 unless `typed`).

    If CLS is not the first token, the field summary_at [1] has its position; if the model is `causal`, that of the last token.
    """
    # On the right for XLNet too, which others pad on the left: its positions are relative, and nothing attends to segment 0.
    tokens = np.full(length, special.pad, np.int32)
    segments, positions, types = np.zeros((3, length), np.int32)
    size = len(inputs.ids)
    tokens[:size], segments[:size], positions[:size], types[:size] = inputs.ids, 1, np.arange(size), inputs.types * typed
    arrays = {"tokens": tokens, "segments": segments, "positions": positions, "types": types}
    if not (special.cls_last or causal):
        return arrays
    return arrays | {"summary_at": np.array([size - 1 if causal else special.summary(size)], np.int32)}


# --- Helpers ---


def special_tokens_of(tokenizer: Tokenizer) -> SpecialTokens:
    """Return the special tokens of an encoder's tokenizer.

    Raises:
        BadInput: the tokenizer has none.
    """
    if tokenizer.special_tokens is None:
        raise BadInput("--tokenizer.path: this tokenizer has no special tokens cls and sep; choose one of an encoder")
    return tokenizer.special_tokens


def encoded_texts(tokenizer: Tokenizer, texts: Iterable[str | None]) -> dict[str, Int32[np.ndarray, " n"]]:
    """Return the ids of each text; a text that occurs several times is tokenized once."""
    unique = [text for text in dict.fromkeys(texts) if text is not None]
    return dict(zip(unique, tokenizer.encode_many(unique), strict=True))


def _encoded_contexts(tokenizer: Tokenizer, examples: Sequence[Question]) -> Callable[[str], Any]:
    """Return a function from a context to its ids and spans."""
    unique = list(dict.fromkeys(item.context for item in examples))
    encoded = {}
    for start in range(0, len(unique), CONTEXTS_PER_BATCH):
        batch = unique[start : start + CONTEXTS_PER_BATCH]
        encoded.update(zip(batch, tokenizer.encode_spans(batch), strict=True))
    return encoded.__getitem__


def _longest_question(length: int, options: Questions, special: SpecialTokens) -> int:
    """Return the number of tokens of the longest question that leaves `options.stride` tokens for its context."""
    return length - 2 - special.between - options.stride


def fill_template(
    first: Int[np.ndarray, " a"], second: Int[np.ndarray, " b"] | None, special: SpecialTokens, length: int
) -> tuple[TemplateIds, int]:
    """Return the template cut to `length`, and its size before; the end of the longer text is cut until both are equally long."""
    available = max(0, length - 2 - (0 if second is None else special.between))
    size = len(first) + (0 if second is None else len(second)) + 2 + (0 if second is None else special.between)
    if second is None:
        return TemplateIds(*special.single(first[:available])), size
    first_size = min(len(first), max(available - len(second), (available + 1) // 2))
    return TemplateIds(*special.pair(first[:first_size], second[: available - first_size])), size


def _window_starts(size: int, window: int, stride: int) -> range:
    """Return the first token of each window: the fewest windows that reach the end."""
    return range(0, 1 + stride * -(-max(size - window, 0) // stride), stride)


def _answer_tokens(example: Question, spans: Int64[np.ndarray, "tokens 2"]) -> tuple[int, int] | None:
    """Return the first and last token that overlap with the first answer, which is the training target."""
    if not len(spans):
        raise BadInput(f"{example.origin}: the tokenizer returns no ids for the context; fix it or remove the question")
    if not example.answers:
        return None
    text, start = example.answers[0]
    inside = np.flatnonzero((spans[:, 1] > start) & (spans[:, 0] < start + len(text)))
    if not len(inside):
        raise BadInput(f"{example.origin}: the tokenizer returns no ids for the answer; fix it or remove the question")
    return int(inside[0]), int(inside[-1])
