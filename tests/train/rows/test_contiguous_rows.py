"""Rows that read on: which ids each has, that each continues the one before it, and where its two texts are cut."""

import itertools

import numpy as np
import pytest

from tests.support.encoder_text import LETTERS, stream, uncased
from train.batches import Batches
from train.mixture import Component, Mixture
from train.streams import Streams, streams, texts
from zoo.errors import BadInput

TOKENIZER = uncased()


def text(*documents: tuple[int, ...]):
    """Documents of sentences of so many ids."""
    letters = itertools.cycle(LETTERS)
    spelled = [" ".join(" ".join(itertools.islice(letters, size - 1)) + " !" for size in sizes) for sizes in documents]
    return stream(spelled, TOKENIZER)


TEXT = text((7, 5, 9, 4, 6, 8) * 12, (5, 7, 11) * 9, (30,))


def planned(length: int = 24, reuse: int = 8, batch: int = 4, bidirectional: bool = False, ordered: bool = True) -> Streams:
    return streams(
        TEXT,
        TOKENIZER,
        length=length,
        reuse=reuse,
        batch=batch,
        bidirectional=bidirectional,
        ordered=ordered,
        predictions=4,
    )


@pytest.mark.parametrize("reuse", [8, 0, 5])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_row_continues_the_same_row_of_the_batch_before(reuse: int, bidirectional: bool):
    rows = planned(reuse=reuse, bidirectional=bidirectional)
    advance = reuse or 21
    for number in range(len(rows) - rows.batch):
        row, after = rows.row(number), rows.row(number + rows.batch)
        assert after.reading is row.reading
        assert after.begin == row.begin + advance
        assert after.begin + reuse + 24 - 3 - reuse <= len(TEXT.ids)


def test_streams_share_the_text_and_reach_its_end():
    rows = planned()
    each = len(TEXT.ids) // 4
    assert [rows.row(number).begin for number in range(4)] == [0, each, 2 * each, 3 * each]
    last = rows.row(len(rows) - 4)
    assert each - 8 < last.begin + 24 - 3 <= each


def test_half_of_bidirectional_rows_are_read_backward():
    rows = planned(bidirectional=True)
    assert [rows.row(number).reading.backward for number in range(8)] == [False, False, True, True] * 2
    forward, backward = rows.readings
    np.testing.assert_array_equal(backward.ids, forward.ids[::-1])
    stop = TOKENIZER.encode("!")[0]
    # Read backward, a sentence begins with its last token.
    assert set(backward.ids[backward.breaks].tolist()) <= {stop, TEXT.end_of_text}
    assert set(forward.ids[forward.breaks - 1].tolist()) <= {stop, TEXT.end_of_text}


@pytest.mark.parametrize("bidirectional", [False, True])
def test_two_texts_fill_the_room_from_the_reused_stretch_on(bidirectional: bool):
    rows, followed = planned(bidirectional=bidirectional), []
    for number in range(len(rows)):
        row = rows.row(number)
        a, b, follows = texts(np.random.default_rng(number), row, 13)
        ids, begin = row.reading.ids, row.begin + row.reuse
        assert len(a) + len(b) == 13 and min(len(a), len(b)) >= 1
        np.testing.assert_array_equal(a, ids[begin : begin + len(a)])
        if follows:
            # B begins with the sentence after A; A may have lost its end.
            starts = [cut for cut in row.reading.breaks if begin < cut < begin + 13]
            assert any(np.array_equal(b, ids[cut : cut + len(b)]) and cut >= begin + len(a) for cut in starts)
        followed.append(follows)
    assert 0.3 < np.mean(followed) < 0.6


def test_a_random_text_begins_with_a_sentence():
    starts, ids = {0, *planned().readings[0].breaks.tolist()}, TEXT.ids
    for number in range(40):
        row = planned().row(number)
        _, b, follows = texts(np.random.default_rng(number), row, 13)
        if not follows:
            assert any(np.array_equal(b, ids[start : start + len(b)]) for start in starts)


def test_ordered_rows_are_not_shuffled_and_others_are():
    def build(rng, row, length):
        return {"tokens": np.full(1, row.begin, np.int32)}

    def used(ordered: bool) -> list[int]:
        rows = planned(ordered=ordered)
        batches = Batches(Mixture((Component("all", 1.0, (), rows),)), build, 0, rows.batch, np.arange(rows.batch))
        return [batches.use(example).row for example in range(2 * len(rows))]

    count = len(planned())
    assert used(True) == [*range(count), *range(count)]
    assert used(False)[:count] != [*range(count)]
    assert sorted(used(False)[:count]) == [*range(count)]


def test_a_sample_is_the_beginning_of_every_stream():
    rows = planned()
    assert [rows.spread(9).row(number) for number in range(8)] == [rows.row(number) for number in range(8)]
    assert len(rows.spread(9)) == 8
    assert len(rows.spread(1)) == 4
    assert len(rows.spread(10**6)) == len(rows)


def test_the_fingerprint_tells_plans_apart():
    same = {planned().fingerprint for _ in range(2)}
    others = [planned(length=25), planned(reuse=9), planned(batch=2), planned(bidirectional=True), planned(ordered=False)]
    assert len({*same, *(other.fingerprint for other in others)}) == 6


def test_too_little_text_is_refused():
    with pytest.raises(BadInput, match=r"the training text has .* tokens, .* for each of 64 streams, fewer than a row of 24"):
        planned(batch=64)
