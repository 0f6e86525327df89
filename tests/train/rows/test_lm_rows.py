"""Rows of a language model: every token is counted once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config.data_options import CausalData
from train.objectives import causal
from train.rows.lm_rows import Tokens, packed_documents, stream_windows, training_rows
from zoo.errors import BadInput


def stream(lengths, end_of_text=0, begin=None):
    """Tokens of documents of these lengths, end-of-text included; every other id occurs once."""
    ids = np.arange(1, sum(lengths) + 1, dtype=np.uint32)
    offsets = np.cumsum([0, *lengths])
    ids[offsets[1:] - 1] = end_of_text
    return Tokens(ids, offsets, np.array(lengths), end_of_text, "tokens", begin)


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=30)


def counted(rows):
    """How often each target of the stream is counted, and checks that hold for every row."""
    times = np.zeros(len(rows.tokens.ids), int)
    for number in range(len(rows)):
        row = rows.row(number)
        seen = 0
        for piece in row.pieces:
            first = rows.tokens.offsets[piece.document] + piece.start
            assert 0 < len(piece.ids) <= rows.length
            assert first + len(piece.ids) <= rows.tokens.offsets[piece.document + 1]
            assert (piece.ids == rows.tokens.ids[first : first + len(piece.ids)]).all()
            assert piece.before == (rows.tokens.ids[first - 1] if piece.start else rows.tokens.begin_of_text)
            times[first + max(row.context - seen, 0) : first + len(piece.ids)] += 1
            seen += len(piece.ids)
        assert row.context < seen <= rows.length
    return times


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(1, 40), st.data())
def test_windows_count_every_target_once_at_any_stride(lengths, length, data):
    tokens = stream(lengths)
    stride = data.draw(st.integers(1, length))
    rows = stream_windows(tokens, length, stride)
    assert (counted(rows) == 1).all()
    assert rows.targets == sum(lengths)
    for number in range(len(rows)):
        row = rows.row(number)
        targets = np.concatenate([piece.ids for piece in row.pieces])
        assert (targets == tokens.ids[number * stride :][: len(targets)]).all()
        assert len(targets) == length or number == len(rows) - 1
        assert row.context == (length - stride if number else 0)
        assert not row.isolated


@pytest.mark.planted
def test_a_document_begins_with_the_begin_of_the_template() -> None:
    """In windows and in packed rows; the targets are the same as without one, and rows of another begin are other rows."""
    for plan in (stream_windows, packed_documents):
        rows, plain = (plan(stream([3, 6, 2], begin=begin), 4) for begin in (77, None))
        assert (counted(rows) == 1).all() and rows.targets == plain.targets
        begins = [piece.before for number in range(len(rows)) for piece in rows.row(number).pieces if not piece.start]
        assert begins == [77] * 3
        assert rows.fingerprint != plain.fingerprint
        assert plain.fingerprint == plan(stream([3, 6, 2], begin=0), 4).fingerprint


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(1, 40))
def test_packing_counts_every_target_once_first_fit(lengths, length):
    rows = packed_documents(stream(lengths), length)
    assert (counted(rows) == 1).all()
    room = []
    for document, size in enumerate(lengths):
        for start in range(0, size, length):
            need = min(length, size - start)
            fits = [number for number, left in enumerate(room) if left >= need]
            number = fits[0] if fits else len(room)
            room[number:] = room[number:] or [length]
            room[number] -= need
            assert (document, start) in [(piece.document, piece.start) for piece in rows.row(number).pieces]
    assert len(rows) == len(room)
    assert rows.isolated


def test_rows_that_would_lose_targets_and_text_shorter_than_a_row_are_refused():
    with pytest.raises(ValueError, match="stride 5"):
        stream_windows(stream([20]), 4, 5)
    tokens = stream([5, 9])
    assert len(training_rows(tokens, CausalData(length=4))) == 4
    assert training_rows(tokens, CausalData(length=14, rows="packed")).isolated
    with pytest.raises(BadInput, match=r"--data.length 15: .*at most 14"):
        training_rows(tokens, CausalData(length=15))


def test_causal_rows_of_a_window():
    rows = stream_windows(stream([3, 4], end_of_text=99), 4, 2)
    rng = np.random.default_rng(0)
    first = causal.build(rng, rows.row(0), 4)
    assert first["tokens"].tolist() == [99, 1, 2, 99]
    assert first["targets"].tolist() == [1, 2, 99, 4]
    assert first["weights"].tolist() == [1, 1, 1, 1]
    assert set(first) == {"tokens", "targets", "weights"}
    last = causal.build(rng, rows.row(2), 4)
    assert last["tokens"].tolist() == [4, 5, 6, 0]
    assert last["targets"].tolist() == [5, 6, 99, 0]
    assert last["weights"].tolist() == [0, 0, 1, 0]
    assert {array.dtype.name for array in last.values()} == {"int32", "float32"}


def test_causal_rows_of_packed_documents():
    rows = packed_documents(stream([2, 6, 1], end_of_text=99), 5)
    row = causal.build(np.random.default_rng(0), rows.row(0), 5)
    assert row["tokens"].tolist() == [99, 1, 7, 99, 0]
    assert row["targets"].tolist() == [1, 99, 99, 99, 0]
    assert row["segments"].tolist() == [1, 1, 2, 3, 0]
    assert row["positions"].tolist() == [0, 1, 0, 0, 0]
    assert row["weights"].tolist() == [1, 1, 1, 1, 0]
    assert causal.build(np.random.default_rng(0), rows.row(1), 5)["tokens"].tolist() == [99, 3, 4, 5, 6]
