"""Rows of an encoder: texts that are whole, in their place and of their documents, and pairs with the right labels."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.encoder_text import roberta, sentences_of, uncased
from train.config.data_options import EncoderData
from train.rows.encoder_rows import PAIRED, plan_rows
from train.rows.sentence_pairs import NEXT, RANDOM, sentence_pairs
from train.rows.sentences import Sentences, find_sentences
from zoo.errors import BadInput

BERT, ROBERTA = uncased(), roberta()
COVERING = ("full_sentences", "doc_sentences", "windows", "packed")
WHOLE = st.sampled_from([*PAIRED, "full_sentences", "doc_sentences"])
# The sizes of the sentences of some documents.
SEVERAL = st.lists(st.lists(st.integers(2, 12), max_size=8), min_size=2, max_size=8)
DOCUMENTS = SEVERAL.filter(lambda texts: sum(map(bool, texts)) > 1)
ANY = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=12), min_size=2, max_size=6)


def contents(planned):
    """Of each row, of each sequence: its label, and (document, start, ids) of each part."""
    return [
        [(each.label, [(part.document, part.start, part.ids.tolist()) for part in each.parts]) for each in planned.row(number)]
        for number in range(len(planned))
    ]


def sequences(planned):
    return [sequence for row in contents(planned) for sequence in row]


def taken(sequence, marks):
    """Tokens of a row that a sequence takes."""
    label, parts = sequence
    return 1 + sum(len(ids) for _, _, ids in parts) + (len(parts) if label is None else marks.between + 1)


def check(planned, tokens, marks):
    """What holds for every plan."""
    for row in contents(planned):
        assert row and sum(taken(sequence, marks) for sequence in row) <= planned.length
        for label, parts in row:
            assert len(parts) == 2 or label is None
            for document, start, ids in parts:
                first = tokens.offsets[document] + start
                assert ids and ids == tokens.ids[first : first + len(ids)].tolist()
                assert first + len(ids) < tokens.offsets[document + 1]
    assert planned.targets == sum(len(ids) for _, parts in sequences(planned) for _, _, ids in parts)
    assert planned.text_size == len(tokens.ids)


@settings(deadline=None, max_examples=15)
@given(DOCUMENTS, st.integers(4, 30), st.booleans())
@pytest.mark.parametrize("rows", COVERING)
def test_every_token_of_text_is_in_one_row_and_in_order(rows, sizes, length, pack):
    tokens = sentences_of(sizes, BERT)
    planned = plan_rows(tokens, EncoderData(rows=rows, length=length, pack=pack), BERT, 0, "held-out")
    check(planned, tokens, BERT.special_tokens)
    times = np.zeros(len(tokens.ids), int)
    for label, parts in sequences(planned):
        assert label is None
        for document, start, ids in parts:
            times[tokens.offsets[document] + start :][: len(ids)] += 1
    assert (times == (tokens.ids != BERT.end_of_text)).all()
    one_document = rows in ("doc_sentences", "packed")
    for _, parts in sequences(planned):
        assert len(parts) == 1 or not one_document
        assert all(a[0] < b[0] and b[1] == 0 for a, b in itertools.pairwise(parts))
    if not (pack or rows == "packed"):
        order = [part[:2] for _, parts in sequences(planned) for part in parts]
        assert order == sorted(order)


@settings(deadline=None, max_examples=15)
@given(DOCUMENTS, st.integers(4, 30), st.sampled_from(["full_sentences", "doc_sentences"]))
def test_rows_take_whole_sentences_as_long_as_they_fit(sizes, length, rows):
    tokens = sentences_of(sizes, BERT)
    whole = find_sentences(tokens, BERT, length - 2)
    expected, room, last = [], 0, None
    for document, start, size in zip(*(each.tolist() for each in whole), strict=True):
        cost = size + (last is not None and document != last)
        if last is None or cost > room or (rows == "doc_sentences" and document != last):
            expected.append([])
            room, cost = length - 2, size
        expected[-1].append((document, start, size))
        room, last = room - cost, document
    planned = plan_rows(tokens, EncoderData(rows=rows, length=length), BERT, 0, "held-out")
    given = [[(document, start, len(ids)) for document, start, ids in parts] for _, parts in sequences(planned)]
    joined = []
    for row in expected:
        texts = {document: [each for each in row if each[0] == document] for document, _, _ in row}
        joined.append([(document, parts[0][1], sum(size for *_, size in parts)) for document, parts in texts.items()])
    assert given == joined


def test_windows_fill_every_row():
    tokens = sentences_of([[30], [4, 9], [50], [1, 12]], BERT)
    planned = plan_rows(tokens, EncoderData(rows="windows", length=12), BERT, 0)
    full = [taken(sequence, BERT.special_tokens) for sequence in sequences(planned)]
    # A row that would begin or end with the separator between two documents is shorter by it.
    assert set(full[:-1]) == {11, 12} and full.count(12) > full.count(11)


@settings(deadline=None, max_examples=30)
@given(DOCUMENTS, st.integers(6, 40), st.integers(0, 9), st.sampled_from(PAIRED), st.booleans(), st.booleans())
def test_pairs_are_of_the_documents_their_labels_say(sizes, length, seed, rows, pack, two_separators):
    tokenizer = ROBERTA if two_separators else BERT
    length = max(length, tokenizer.special_tokens.between + 4)
    tokens = sentences_of(sizes, tokenizer)
    planned = plan_rows(tokens, EncoderData(rows=rows, length=length, pack=pack), tokenizer, seed, "held-out")
    check(planned, tokens, tokenizer.special_tokens)
    for label, ((document, start, ids), (other, second, _)) in sequences(planned):
        assert (document == other) == (label == NEXT)
        assert label == RANDOM or second >= start + len(ids)


def as_published(sizes, room, draw, short, single):
    """Texts of pairs by the published algorithm, on lists, sentence by sentence; and their sizes after cutting token by token."""
    made = []
    for number, document in enumerate(sizes):
        target = room
        if draw() < short:
            target = 2 + int(draw() * (room - 1))
        chunk, at = [], 0
        while at < len(document):
            chunk.append((number, at))
            full = len(chunk) == 2 if single else sum(document[i] for _, i in chunk) >= target
            if at == len(document) - 1 or full:
                middle = 1 + int(draw() * (len(chunk) - 1))
                a = chunk[:middle]
                if len(chunk) == 1 or draw() < 0.5:
                    others = [i for i in range(len(sizes)) if i != number]
                    other = others[int(draw() * len(others))]
                    b = []
                    for i in range(int(draw() * len(sizes[other])), len(sizes[other])):
                        b.append((other, i))
                        missing = target - sum(document[i] for _, i in a)
                        if single or sum(sizes[other][i] for _, i in b) >= missing:
                            break
                    label = 1
                    at -= len(chunk) - middle
                else:
                    b, label = chunk[middle:], 0
                left = [sum(sizes[d][i] for d, i in text) for text in (a, b)]
                while sum(left) > room:
                    left[0 if left[0] > left[1] else 1] -= 1
                made.append((a[0], b[0], label, left))
                chunk = []
            at += 1
    return made


@settings(deadline=None, max_examples=30)
@given(ANY, st.integers(2, 40), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 9))
def test_pairs_are_made_as_published(sizes, room, single, short, seed):
    cut = [[min(size, room) for size in document] for document in sizes]
    document = np.repeat(np.arange(len(cut)), [len(each) for each in cut])
    start = np.concatenate([np.cumsum([0, *each[:-1]]) for each in cut])
    made = sentence_pairs(
        Sentences(document, start, np.concatenate(cut)), room, np.random.default_rng(seed), short=short, single=single
    )
    places = [(number, nth) for number, each in enumerate(cut) for nth in range(len(each))]
    first = dict(zip(places, start.tolist(), strict=True))
    expected = as_published(cut, room, np.random.default_rng(seed).random, short, single)
    assert made.label.tolist() == [label for _, _, label, _ in expected]
    assert made.size.tolist() == [left for *_, left in expected]
    assert made.document.tolist() == [[a[0], b[0]] for a, b, _, _ in expected]
    moved = made.start - np.array([[first[a], first[b]] for a, b, _, _ in expected])
    assert (moved >= 0).all()
    # Where nothing was cut, the texts begin with their sentences.
    assert (moved[made.size.sum(1) < room] == 0).all()
    limits = np.array([[sum(cut[place[0]]) - first[place] for place in (a, b)] for a, b, _, _ in expected])
    assert (moved + made.size <= limits).all()


def near(found, expected, deviation):
    """Within four deviations of a sum of draws."""
    return abs(found - expected) <= 4 * deviation


def test_long_texts_are_cut_at_both_ends_equally_often():
    sizes = np.full(4000, 30)
    ranges = Sentences(np.arange(4000), np.zeros(4000, np.int64), sizes)
    made = sentence_pairs(ranges, 40, np.random.default_rng(0), short=0.0, single=True)
    assert (made.size == 20).all() and (made.label == RANDOM).all()
    # Each of ten tokens is cut in front with probability one half.
    assert near(made.start.mean(), 5, math.sqrt(2.5 / made.start.size))
    assert near(made.start.var(), 2.5, 2.5 * math.sqrt(2 / made.start.size))


@settings(deadline=None, max_examples=30)
@given(DOCUMENTS, st.integers(8, 40), WHOLE, st.sampled_from([BERT, ROBERTA]))
# The first two documents are a sequence of 8 tokens, the last is one of 9: together one too many.
@example([[3], [2], [12], [7]], 16, "full_sentences", BERT)
def test_packed_rows_have_the_sequences_of_the_rows_alone(sizes, length, rows, tokenizer):
    tokens = sentences_of(sizes, tokenizer)
    alone = plan_rows(tokens, EncoderData(rows=rows, length=length), tokenizer, 3, "held-out")
    together = plan_rows(tokens, EncoderData(rows=rows, length=length, pack=True), tokenizer, 3, "held-out")
    assert all(len(row) == 1 for row in contents(alone))
    room, packed = [], []
    for sequence in sequences(alone):
        size = taken(sequence, tokenizer.special_tokens)
        fits = [number for number, left in enumerate(room) if left >= size]
        number = fits[0] if fits else len(room)
        if not fits:
            room.append(length)
            packed.append([])
        room[number] -= size
        packed[number].append(sequence)
    assert contents(together) == packed


def test_the_seed_decides_the_pairs_and_nothing_else():
    tokens = sentences_of([[3, 4, 5, 6] * 3] * 5, BERT)
    for rows in (*PAIRED, *COVERING):
        plans = [plan_rows(tokens, EncoderData(rows=rows, length=20), BERT, seed) for seed in (0, 1)]
        assert (contents(plans[0]) != contents(plans[1])) == (rows in PAIRED)
        assert (plans[0].fingerprint != plans[1].fingerprint) == (rows in PAIRED)


@pytest.mark.parametrize(
    ("sizes", "rows", "length", "half", "message"),
    [
        ([[5]], "full_sentences", 16, "training", r"--data.length 16: .* 6 tokens.*at most 6"),
        ([[9, 9], []], "sentence_pairs", 12, "held-out", r"--data.rows sentence_pairs: .*--data.valid_paths"),
        ([[], []], "packed", 12, "held-out", r"--data.valid_paths: the held-out text has no tokens"),
        ([[9], [9]], "segment_pairs", 4, "training", r"--data.length 4: .* choose 5"),
    ],
)
def test_text_without_such_rows_is_refused(sizes, rows, length, half, message):
    with pytest.raises(BadInput, match=message):
        plan_rows(sentences_of(sizes, BERT), EncoderData(rows=rows, length=length), BERT, 0, half)
