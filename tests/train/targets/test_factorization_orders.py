"""Which tokens are predicted and in which order: exact numbers, spans, and which token sees which, against the authors' rules."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config.option_groups import Permutation
from train.targets import factorization_orders


def draw(size: int = 256, number: int = 43, seed: int = 0, every: int = 2, **options) -> np.ndarray:
    """Targets of a text in which each `every`-th token begins a word, and its last one is a mark."""
    starts = np.arange(size) % every == 0
    text = np.append(np.ones(size - 1, bool), False)
    return factorization_orders.choose_targets(np.random.default_rng(seed), starts, text, number, Permutation(**options))


@given(size=st.integers(2, 200), share=st.floats(0.01, 1), seed=st.integers(0, 100), spans=st.booleans())
@settings(max_examples=60, deadline=None)
def test_targets_have_the_requested_number_and_are_never_special_tokens(size: int, share: float, seed: int, spans: bool):
    number = max(1, int(share * (size - 1)))
    found = draw(size, number, seed, spans=spans)
    assert found.sum() == number
    assert not found[-1]


def runs(targets: np.ndarray) -> list[tuple[int, int]]:
    """(first, size) of each run of targets."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], targets.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), (edges[1::2] - edges[::2]).tolist(), strict=True))


def test_spans_begin_words_and_their_lengths_fall_as_one_over_n():
    sizes = np.zeros(6)
    for seed in range(300):
        # Far fewer than a sixth: the text does not end before there are enough, so every run is a span.
        found = runs(draw(512, 20, seed, context=12.0))
        assert all(first % 2 == 0 for first, _ in found)
        for _, size in found[:-1]:
            sizes[size] += 1
    shares = sizes[1:] / sizes.sum()
    np.testing.assert_allclose(shares, (1 / np.arange(1, 6)) / (1 / np.arange(1, 6)).sum(), atol=0.03)


def test_all_places_are_equally_likely():
    hits = sum(draw(256, 43, seed).astype(int) for seed in range(600)) / 600
    np.testing.assert_allclose(hits.reshape(4, 64).mean(1), 43 / 256, atol=0.05)
    hits = sum(draw(64, 10, seed, spans=False).astype(int) for seed in range(3000))
    np.testing.assert_allclose(hits[:-1] / 3000, 10 / 63, atol=0.03)


def authors(targets: np.ndarray, marks: np.ndarray, places: np.ndarray) -> np.ndarray:
    """[n, n]: whether i sees j in the content stream of one part, as the authors' `_local_perm` says it, i itself included.

    A token that is predicted, or a mark, is seen by those whose place is not before its own; one that is neither by all.
    """
    size = len(targets)
    later = targets | marks
    rank = np.where(later, places, -1)
    seen = np.ones((size, size), bool)
    for i in range(size):
        for j in range(size):
            if later[j] and i != j:
                seen[i, j] = rank[i] > rank[j]
    return seen


@pytest.mark.parametrize("window", [0, 4, 12])
def test_ranks_give_the_mask_of_the_authors_code(window: int):
    rng = np.random.default_rng(0)
    for seed in range(20):
        targets, marks = np.zeros((2, 12), bool)
        targets[rng.permutation(11)[:4]] = True
        marks[-1] = True
        found = factorization_orders.factorization_ranks(np.random.default_rng(seed), targets | marks, window, -1)
        size = window or 12
        places = np.concatenate([np.random.default_rng(seed).permutation(size) + first for first in range(0, 12, size)])
        np.testing.assert_array_equal(found[None] <= found[:, None], authors(targets, marks, places))
