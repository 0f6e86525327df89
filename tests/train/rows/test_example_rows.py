"""Examples as rows of ids: the same as `transformers` makes, windows that reach everything, and answers in their places."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.encoders import tokenizer
from train.config.option_groups import Labelled
from train.data.example_types import Answer, Choice, Question, Tagged, Text
from train.rows import example_rows
from train.rows.example_rows import ExampleRow
from train.tokenizers import hf_files
from train.tokenizers.special_tokens import SpecialTokens
from train.tokenizers.tokenizer import Kind, Tokenizer
from zoo.batch import IGNORED
from zoo.errors import BadInput

KINDS: tuple[Kind, ...] = ("wordpiece", "roberta", "xlnet")
NAMES = {"no": 0, "perhaps": 1, "yes": 2}
WORDS = st.sampled_from(["the", "Whale's", "na\u00efve", "(sleeps)", "\U0001f433\U0001f433", "4.2", "France", "xyz", "\u00fcber"])
LISTS = st.lists(WORDS, min_size=1, max_size=30)
kinds = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def theirs(kind: Kind, **options: Any) -> Any:
    """The tokenizer of `transformers`, from the files that we write."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        hf_files.write_tokenizer(Path(folder), tokenizer(kind), longest=1 << 20)
        model = {"wordpiece": "bert"}.get(kind, kind)
        Path(folder, "config.json").write_text(json.dumps({"model_type": model}))
        return transformers.AutoTokenizer.from_pretrained(folder, **options)


def assert_theirs(kind: Kind, row: example_rows.TemplateIds, found: Any) -> None:
    """The same ids and token types, of which RoBERTa has one."""
    assert row.ids.tolist() == found["input_ids"]
    assert row.types.tolist() == ([0] * len(row.ids) if kind == "roberta" else found["token_type_ids"])


def popped(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """Truncation as BERT's own program does it: a token at a time from the longer text, of equal ones from the second."""
    first, second = first.copy(), second.copy()
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second


def text(first: str, second: str | None = None, label: str | float = "yes") -> Text:
    return Text(origin="a.tsv:2", text=first, pair=second, label=label)


@kinds
def test_texts_and_pairs_are_those_of_transformers(kind: Kind) -> None:
    examples = [text("The whale sleeps.", None, "y"), text("", "a", "n")]
    examples += [text("  na\u00efve \U0001f433 ", "The whale sleeps.", "y"), text("[SEP] </s> is no mark", "", "y")]
    rows = list(example_rows.classification_rows(examples, tokenizer(kind), Labelled(), 99, {"n": 0, "y": 1}))
    for row, each in zip(rows[:3], examples, strict=False):
        assert_theirs(kind, row.inputs[0], theirs(kind)(each.text, each.pair))
        assert (row.weights.tolist(), row.labels.tolist(), row.labels.dtype) == ([1.0], [int(each.label == "y")], np.int32)
    assert [row.example for row in rows] == [0, 1, 2, 3]
    marks = tokenizer(kind).special_tokens
    assert marks is not None
    # What looks like a special token is spelled.
    assert np.isin(rows[3].inputs[0].ids, [marks.cls, marks.sep]).sum() == 3 + (kind == "roberta")


@kinds
@settings(deadline=None, max_examples=40)
@given(LISTS, LISTS, st.integers(8, 60))
@example(["the"] * 20, ["the"] * 20, 20)
@example(["the"] * 20, ["the"] * 20, 21)
@example(["the"] * 2, ["the"] * 20, 12)
def test_the_longer_text_is_cut_first(kind: Kind, left: list[str], right: list[str], length: int) -> None:
    words, options = tokenizer(kind), Labelled(truncate=True)
    marks = words.special_tokens
    assert marks is not None
    first, second = (words.encode(" ".join(each)).tolist() for each in (left, right))
    (row,) = example_rows.classification_rows([text(" ".join(left), " ".join(right))], words, options, length, NAMES)
    expected = marks.pair(*map(np.array, popped(first, second, length - 2 - marks.between)))
    assert [each.tolist() for each in row.inputs[0]] == [each.tolist() for each in expected]
    (alone,) = example_rows.classification_rows([text(" ".join(left))], words, options, length, NAMES)
    assert_theirs(kind, alone.inputs[0], theirs(kind)(" ".join(left), truncation=True, max_length=length))


@kinds
def test_a_text_that_just_fits_is_a_row_and_a_longer_one_is_refused(kind: Kind) -> None:
    for each in (text("The whale sleeps."), text("The whale", "sleeps.")):
        size = len(theirs(kind)(each.text, each.pair)["input_ids"])
        (row,) = example_rows.classification_rows([each], tokenizer(kind), Labelled(), size, NAMES)
        assert len(row.inputs[0].ids) == size
        with pytest.raises(BadInput, match=rf"^a\.tsv:2: {size} tokens, and a row has {size - 1}; .* --labelled\.truncate$"):
            list(example_rows.classification_rows([each], tokenizer(kind), Labelled(), size - 1, NAMES))


def test_numbers_of_a_regression_are_their_labels() -> None:
    examples = [text("a", label=2.5), text("b", label=-1.0)]
    rows = list(example_rows.classification_rows(examples, tokenizer("wordpiece"), Labelled(regression=True), 9, {"score": 0}))
    assert [(row.labels.dtype, row.labels.tolist()) for row in rows] == [(np.float32, [2.5]), (np.float32, [-1.0])]


def tagged(*words: str) -> Tagged:
    return Tagged(origin="a.conll:3", words=words, tags=tuple(f"t{number % 5}" for number in range(len(words))))


@kinds
@settings(deadline=None, max_examples=40)
@given(st.lists(WORDS | st.sampled_from(["\x00", ""]), max_size=20), st.integers(4, 40))
def test_tags_are_at_the_first_pieces_of_their_words(kind: Kind, several: list[str], length: int) -> None:
    """As `word_ids` aligns them."""
    sentence = tagged("the", *several)
    tags = {f"t{number}": number for number in range(5)}
    (row,) = example_rows.tagging_rows([sentence], tokenizer(kind), Labelled(truncate=True), length, tags)
    options = dict(is_split_into_words=True, truncation=True, max_length=length)
    found = theirs(kind, add_prefix_space=True)(list(sentence.words), **options)
    assert_theirs(kind, row.inputs[0], found)
    words = found.word_ids()
    expected = [
        IGNORED if word is None or word == before else tags[sentence.tags[word]]
        for before, word in zip([None, *words], words, strict=False)
    ]
    assert row.labels.tolist() == expected
    assert row.weights.tolist() == [float(label != IGNORED) for label in expected]


def choice(*options: str, article: str = "The whale sleeps.") -> Choice:
    return Choice(origin="a.json: question 1", article=article, question="Who sleeps?", options=options, answer=1)


@kinds
def test_each_option_is_a_row_with_the_article_and_the_question(kind: Kind) -> None:
    example = choice("the whale", "the men", "")
    (row,) = example_rows.choice_rows([example], tokenizer(kind), Labelled(), 60)
    assert (len(row.inputs), row.labels.tolist(), row.labels.shape, row.weights.tolist()) == (3, 1, (), [1.0])
    for inputs, option in zip(row.inputs, example.options, strict=True):
        assert_theirs(kind, inputs, theirs(kind)(example.article, f"Who sleeps? {option}"))


def question(asked: str, context: str, *answers: Answer) -> Question:
    return Question(origin="a.json: question q", id="q", question=asked, context=context, answers=answers)


def windows(kind: Kind, asked: Question, length: int, stride: int, **options: Any) -> list[ExampleRow]:
    return list(example_rows.question_rows([asked], tokenizer(kind), Labelled(stride=stride, **options), length))


@kinds
@settings(deadline=None, max_examples=60)
@given(LISTS, st.integers(0, 29), st.integers(1, 4), st.integers(14, 60), st.integers(1, 60))
def test_windows_are_those_of_transformers_and_hold_what_they_say(
    kind: Kind, several: list[str], first: int, size: int, length: int, stride: int
) -> None:
    first %= len(several)
    context, answer = " ".join(several), " ".join(several[first : first + size])
    start = len(" ".join([*several[:first], ""]))
    asked = question("who is it", context, Answer(answer, start))
    words = tokenizer(kind)
    assert words.special_tokens is not None
    room = length - len(words.special_tokens.pair(words.encode(asked.question), words.encode(""))[0])
    stride = 1 + stride % room
    rows = windows(kind, asked, length, stride)
    # Theirs is how much two windows share.
    found = theirs(kind)(
        *(asked.question, context),
        truncation="only_second",
        max_length=length,
        stride=room - stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert [row.inputs[0].ids.tolist() for row in rows] == found["input_ids"]
    everything = words.encode_spans([context])[0][1]
    touched = np.flatnonzero((everything[:, 1] > start) & (everything[:, 0] < start + len(answer)))
    covered = set()
    for number, row in enumerate(rows):
        assert row.context is not None
        assert_theirs(kind, row.inputs[0], {name: values[number] for name, values in found.items()})
        inside = [place for place, side in enumerate(found.sequence_ids(number)) if side == 1]
        assert row.context.first == inside[0] and len(row.context.spans) == len(inside)
        assert row.context.spans.tolist() == [list(found["offset_mapping"][number][place]) for place in inside]
        covered |= {number * stride + token for token in range(len(inside))}
        # The answer's tokens, or CLS where the window has not all of them.
        first, last = touched[[0, -1]] - number * stride
        whole = first >= 0 and last < len(inside)
        assert row.labels.tolist() == ([inside[first], inside[last]] if whole else [row.context.summary] * 2)
        assert row.labels.dtype == np.int32 and row.weights.tolist() == [1.0]
        if whole:
            assert row.context.spans[first, 0] <= start and start + len(answer) <= row.context.spans[last, 1]
    assert covered == set(range(len(everything)))


def test_the_first_answer_is_learned_and_without_one_no_window_has_any() -> None:
    rows = windows("wordpiece", question("who", "the whale " * 20), 20, 7)
    assert len(rows) > 3 and all(row.context and row.labels.tolist() == [row.context.summary] * 2 for row in rows)
    context = "the whale is the men"
    (row,) = windows("wordpiece", question("who", context, Answer("the men", 13), Answer("the whale", 0)), 30, 5)
    assert row.context is not None
    first, last = (row.labels - row.context.first).tolist()
    assert context[row.context.spans[first, 0] : row.context.spans[last, 1]] == "the men"


def test_a_question_leaves_room_for_a_stride_or_is_refused_or_cut() -> None:
    words = tokenizer("wordpiece")
    asked = question("the whale " * 8, "the men " * 20, Answer("the men", 0))
    size = len(words.encode(asked.question))
    length = size + 3 + 5
    rows = windows("wordpiece", asked, length, 5)
    assert {len(row.inputs[0].ids) for row in rows} == {length}
    told = r"^a\.json: question q: a question of {} tokens leaves too little of a row of {} for a stride of {}; choose"
    with pytest.raises(BadInput, match=told.format(size, length, 6) + ".* --labelled.truncate$"):
        windows("wordpiece", asked, length, 6)
    cut = windows("wordpiece", asked, length, 6, truncate=True)
    assert [row.context.first if row.context else 0 for row in cut] == [length - 6 - 1] * len(cut)
    with pytest.raises(BadInput, match=r"for a stride of 99; .*--labelled\.stride$"):
        windows("wordpiece", asked, length, 99, truncate=True)


def test_examples_that_make_no_row_are_refused_by_name() -> None:
    words, gpt, options = tokenizer("wordpiece"), Tokenizer.train(["the whale"], 300), Labelled(stride=5)
    article = question("who", "a \x00 b", Answer("\x00", 2))
    for rows, message in (
        (
            example_rows.classification_rows([text("a", label="maybe")], words, options, 9, NAMES),
            r"a\.tsv:2: label maybe is none of the 3 ",
        ),
        (
            example_rows.tagging_rows([tagged("the", "a")], words, options, 9, {"t0": 0}),
            r"a\.conll:3: label t1 is none of the 1 .* \(t0\)",
        ),
        (
            example_rows.tagging_rows([tagged("\x00")], words, options, 9, {"t0": 0}),
            r"a\.conll:3: the tokenizer returns no ids for these words",
        ),
        (
            example_rows.question_rows([question("who", "\x00 ")], words, options, 20),
            r"a\.json: question q: .* no ids for the context",
        ),
        (example_rows.question_rows([article], words, options, 20), r"a\.json: question q: .* no ids for the answer"),
        (
            example_rows.choice_rows([choice("a", "b"), choice("a")], words, options, 60),
            r"a\.json: question 1: 1 options, but .* has 2;",
        ),
        (
            example_rows.classification_rows([text("a")], gpt, options, 9, NAMES),
            r"--tokenizer\.path: this tokenizer .* cls and sep",
        ),
    ):
        with pytest.raises(BadInput, match=message):
            list(rows)


@pytest.mark.parametrize("typed", [True, False])
def test_a_row_is_filled_up_with_padding_of_segment_0(typed: bool) -> None:
    inputs = example_rows.TemplateIds(np.array([2, 7, 3, 8, 3], np.int32), np.array([0, 0, 0, 1, 1], np.int32))
    found = example_rows.padded_row(inputs, 8, SpecialTokens(pad=9, unk=1, cls=2, sep=3, mask=4), typed=typed)
    assert {name: array.tolist() for name, array in found.items()} == {
        "tokens": [2, 7, 3, 8, 3, 9, 9, 9],
        "segments": [1, 1, 1, 1, 1, 0, 0, 0],
        "positions": [0, 1, 2, 3, 4, 0, 0, 0],
        "types": [0, 0, 0, 1, 1, 0, 0, 0] if typed else [0] * 8,
    }
    assert {array.dtype for array in found.values()} == {np.dtype(np.int32)}
