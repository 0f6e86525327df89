"""Contiguous rows: which ids each has, that each continues the one before it, and where its two texts are cut."""

from typing import Any

import numpy as np
import pytest

from tests.support.encoder_text import sentences_of, uncased
from train.rows.batches import Batches
from train.rows.continued_rows import ContiguousRows, plan_streams, sample_texts
from train.rows.mixture import Component, Mixture
from zoo.errors import BadInput

TOKENIZER = uncased()
TEXT = sentences_of([(7, 5, 9, 4, 6, 8) * 12, (5, 7, 11) * 9, (30,)], TOKENIZER)


def planned(**changes: Any) -> ContiguousRows:
    options = dict(length=24, reuse=8, batch=4, bidirectional=False, ordered=True, predictions=4)
    return plan_streams(TEXT, TOKENIZER, **{**options, **changes})


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
    """B begins with the sentence after A, which may have lost its end, or with any sentence."""
    rows, followed = planned(bidirectional=bidirectional), []
    for number in range(len(rows)):
        row = rows.row(number)
        a, b, follows = sample_texts(np.random.default_rng(number), row, 13)
        ids, begin = row.reading.ids, row.begin + row.reuse
        assert len(a) + len(b) == 13 and min(len(a), len(b)) >= 1
        np.testing.assert_array_equal(a, ids[begin : begin + len(a)])
        starts = {0, *row.reading.breaks.tolist()}
        if follows:
            starts = [cut for cut in starts if begin < cut < begin + 13 and cut >= begin + len(a)]
        assert any(np.array_equal(b, ids[start : start + len(b)]) for start in starts)
        followed.append(follows)
    assert 0.3 < np.mean(followed) < 0.6


def test_ordered_rows_are_not_shuffled_and_others_are():
    def used(ordered: bool) -> list[int]:
        rows = planned(ordered=ordered)
        batches = Batches(Mixture((Component("all", 1.0, (), rows),)), lambda *_: {}, 0, rows.batch, np.arange(rows.batch))
        return [batches.use(example).row for example in range(2 * len(rows))]

    count = len(planned())
    assert used(True) == [*range(count), *range(count)]
    assert used(False)[:count] != [*range(count)] == sorted(used(False)[:count])


def test_too_little_text_is_refused():
    with pytest.raises(BadInput, match=r"the training text has .* tokens, .* for each of 64 streams, fewer than a row of 24"):
        planned(batch=64)
