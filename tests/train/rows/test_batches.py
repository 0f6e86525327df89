"""The stream of examples is a pure function of (seed, number), whichever process makes it and wherever it begins."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config.batch_sizes import BatchSizes, batch_sizes
from train.objectives import causal
from train.rows.batches import Batches, in_order
from train.rows.lm_rows import Tokens, stream_windows
from train.rows.mixture import Component, Mixture


def plan(count, length=4):
    """`count` windows of `length` targets over one document; the last one is a target short."""
    size = count * length - 1
    return stream_windows(Tokens(np.arange(size, dtype=np.uint32), np.array([0, size]), np.array([size]), 0, ""), length)


def alone(rows):
    return Mixture((Component("all", 1.0, (), rows),))


def mixed(*parts, length=4):
    """A mixture of (weight, rows of the plan)."""
    return Mixture(tuple(Component(f"{i}", float(weight), (), plan(count, length)) for i, (weight, count) in enumerate(parts)))


def drawn(rng, row, length):
    """As causal, but the inputs are random: they show which generator was used."""
    return {**causal.build(rng, row, length), "tokens": rng.integers(0, 1 << 30, length).astype(np.int32)}


def take(batches, first_step, steps):
    with batches.read(first_step) as stream:
        return list(itertools.islice(stream, steps))


def fields(batch):
    return {name: value for name, value in vars(batch).items() if value is not None}


def assert_same(a, b):
    assert fields(a).keys() == fields(b).keys()
    for name, value in fields(a).items():
        assert value.dtype == fields(b)[name].dtype
        np.testing.assert_array_equal(value, fields(b)[name])


ANY = {"one component": alone(plan(23)), "three": mixed((0.7, 11), (0.2, 5), (0.1, 9))}


@pytest.mark.parametrize("rows", ANY)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_order_does_not_depend_on_who_makes_it_nor_on_where_it_begins(processes, rows):
    rows, size = ANY[rows], 8
    whole = take(Batches(rows, drawn, 3, size, np.arange(size)), 0, 9)
    parts = np.random.default_rng(0).permutation(size).reshape(processes, -1)
    for part, first in itertools.product(parts, (0, 1, 8)):
        for full, local in zip(whole[first:], take(Batches(rows, drawn, 3, size, part), first, 9 - first), strict=True):
            assert_same(local, type(full)(**{name: value[part] for name, value in fields(full).items()}))


def test_epochs_seeds_and_components_differ_in_order():
    batches = [Batches(mixed((1, 50), (1, 50)), causal.build, seed, 100, np.arange(1)) for seed in range(3)]
    orders = [batch.rows_of(step) for batch in batches for step in range(3)]
    assert len({tuple(order[order // 50 == component] % 50) for order in orders for component in (0, 1)}) == 18


def test_repeated_rows_follow_each_other_in_the_order_of_the_others():
    once, thrice = (Batches(alone(plan(10)), causal.build, 7, size, np.arange(size), repeat=size // 5) for size in (5, 15))
    for step in range(4):
        assert thrice.rows_of(step).tolist() == np.repeat(once.rows_of(step), 3).tolist()
    np.testing.assert_array_equal(take(thrice, 1, 1)[0].index, np.arange(15, 30))


def test_the_order_is_the_one_runs_have_been_made_with():
    """A change here, by us or by Grain, means that no earlier run can be resumed."""
    assert Batches(alone(plan(10)), causal.build, 7, 5, np.arange(5)).rows_of(1).tolist() == [2, 5, 6, 3, 1]

    rows = mixed((3, 10), (1, 10))
    assert Batches(rows, causal.build, 7, 5, np.arange(5)).rows_of(1).tolist() == [10, 4, 2, 5, 17]


@settings(deadline=None, max_examples=8)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_every_component_gives_each_of_its_rows_once_an_epoch(parts, seed):
    rows = mixed(*parts)
    batches = Batches(rows, causal.build, seed, 1, np.arange(1))
    used = [[] for _ in parts]
    for example in range(60):
        row, epoch = batches.use(example)
        component, number = rows.locate(row)
        used[component].append((epoch, number))
    for (_, count), uses in zip(parts, used, strict=True):
        epochs = [sorted(number for epoch, number in uses if epoch == each) for each in range(len(uses) // count)]
        assert epochs == [list(range(count))] * len(epochs)
        assert [epoch for epoch, _ in uses] == [nth // count for nth in range(len(uses))]


@pytest.mark.parametrize("rows", ANY)
def test_the_ledger_says_what_is_read(rows):
    rows = ANY[rows]
    batches = Batches(rows, causal.build, 1, 6, np.array([1, 4]))
    for step, batch in enumerate(take(batches, 0, 10)):
        numbers = batches.rows_of(step)[[1, 4]]
        expected = [causal.build(np.random.default_rng(), rows.row(int(number)), 4)["targets"] for number in numbers]
        np.testing.assert_array_equal(batch.targets, expected)
        assert batch.index.tolist() == [step * 6 + 1, step * 6 + 4]
        assert batch.index.dtype == np.uint32


def test_no_two_uses_of_a_row_have_the_same_random_numbers():
    """In no epoch and for no seed, though components of different sizes and weights are in different epochs at one time."""
    rows = mixed((5, 3), (1, 3), (1, 1))
    batches = [batch for seed in (3, 4) for batch in take(Batches(rows, drawn, seed, 8, np.arange(8)), 0, 15)]
    assert len(np.unique(np.concatenate([batch.tokens for batch in batches]), axis=0)) == 240


def test_numbers_beyond_32_bits():
    step = 2**31
    batches = Batches(alone(plan(7)), drawn, 2**32 - 1, 16, np.arange(16))
    (batch,) = take(batches, step, 1)
    assert batch.index.tolist() == list(range(16))
    assert set(batches.rows_of(step)) == set(range(7))
    assert len(set(Batches(mixed((1, 7), (1, 7)), drawn, 2**32 - 1, 28, np.arange(28)).rows_of(step))) == 14
    assert take(batches, 2**27, 1)[0].index[0] == 2**31


def test_a_failing_row_ends_the_stream_where_it_comes():
    """Grain alone would go on with the batch after it."""

    def build(rng, row, length):
        if row.pieces[0].start == 4 * 8:
            raise RuntimeError("row 8")
        return causal.build(rng, row, length)

    batches = Batches(alone(plan(10)), build, 0, 1, np.arange(1))
    step = int(np.flatnonzero([batches.rows_of(step)[0] == 8 for step in range(10)])[0])
    with batches.read(0) as stream:
        for _ in range(step):
            next(stream)
        with pytest.raises(RuntimeError, match="row 8"):
            next(stream)
        assert next(stream, None) is None


def test_threads_end_with_the_block():
    before = set(threading.enumerate())
    with Batches(alone(plan(10)), causal.build, 0, 2, np.arange(2)).read(0) as stream:
        next(stream)
        started = set(threading.enumerate()) - before
        assert started
    for thread in started:
        thread.join(60)
        assert not thread.is_alive()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(1, 9), st.sampled_from([1, 2, 3]))
def test_in_order_counts_every_row_once(count, batch, processes):
    rows = plan(count)
    size = batch * processes
    parts = np.arange(size).reshape(processes, batch)
    streams = zip(*[in_order(rows, causal.build, size, part) for part in parts], strict=True)
    batches = [{name: np.concatenate([fields(part)[name] for part in step]) for name in fields(step[0])} for step in streams]
    assert len(batches) == -(-count // size)
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert joined["index"].tolist() == list(range(len(batches) * size))
    assert joined["weights"].sum() == rows.targets
    np.testing.assert_array_equal(joined["targets"].ravel()[: rows.targets], rows.tokens.ids)


RAMP = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 400)), max_size=4)


@settings(deadline=None, max_examples=60)
@given(RAMP, st.integers(1, 7), st.integers(1, 9))
def test_sizes_are_those_of_a_loop_over_the_steps(growth, length, last):
    """Each step has the rows of the first item whose tokens were not all seen; empty items have no step."""
    items = list(itertools.accumulate(growth, lambda item, more: (item[0] + more[0], item[1] + more[1])))
    batch = last + (items[-1][0] if items else 0)
    sizes = batch_sizes(batch, [f"{rows}@{tokens}" for rows, tokens in items], length)
    seen = 0
    for step in range(120):
        rows = next((rows for rows, tokens in items if seen * length < tokens), batch)
        assert (sizes.rows(step), sizes.examples(step)) == (rows, seen)
        assert [sizes.place_of(seen + place) for place in (0, rows - 1)] == [(step, 0), (step, rows - 1)]
        seen += rows


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_that_grow_have_the_stream_of_those_that_do_not(processes):
    rows, sizes = mixed((0.7, 11), (0.2, 5)), batch_sizes(8, ("2@20", "4@60"), 4)
    stream = np.concatenate([batch.tokens for batch in take(Batches(rows, drawn, 3, 1, np.arange(1)), 0, 60)])
    parts = [lambda size, part=part: np.arange(size).reshape(processes, -1)[part] for part in range(processes)]
    batches = [Batches(rows, drawn, 3, 8, part(8), sizes=sizes, local_of=part) for part in parts]
    assert [sizes.rows(step) for step in range(9)] == [2, 2, 2, 4, 4, 4, 8, 8, 8]
    for first in (0, 2, 3, 5):
        for step, shares in enumerate(zip(*(take(own, first, 9 - first) for own in batches), strict=True), first):
            begin, end = sizes.examples(step), sizes.examples(step + 1)
            np.testing.assert_array_equal(np.concatenate([share.tokens for share in shares]), stream[begin:end])
            assert np.concatenate([share.index for share in shares]).tolist() == list(range(begin, end))
            assert len(batches[0].rows_of(step)) == end - begin


@pytest.mark.planted
def test_a_place_as_in_batches_of_one_size_is_noticed(monkeypatch):
    monkeypatch.setattr(BatchSizes, "examples", lambda self, steps: steps * self.stages[-1].rows)
    with pytest.raises(AssertionError):
        test_batches_that_grow_have_the_stream_of_those_that_do_not(1)
