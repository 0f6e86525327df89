"""Masks: how many tokens, which ones, and what is shown in their place, against probabilities computed by hand."""

import dataclasses
import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from train.targets.masking import Masks, choose_masks, max_predictions_for_packed_row

MASK, VOCAB = 4, 40
RULES = st.sampled_from(["bert", "roberta", "distilbert"])
BERT = Masks(
    rate=0.15, masked=0.8, random=0.1, max_predictions=1000, rule="bert", mask=MASK, entries=np.arange(VOCAB, dtype=np.int32)
)


def masks(**changes) -> Masks:
    return dataclasses.replace(BERT, **changes)


def sequence(size: int):
    """A sequence of marks 2 and 3 around ids that all differ, from 5 on; and which of it is text."""
    tokens = np.arange(4, 4 + size, dtype=np.int32)
    tokens[0], tokens[-1] = 2, 3
    return tokens, (tokens != 2) & (tokens != 3)


def near(found, expected, deviation):
    """Within four deviations of a sum of draws."""
    return np.all(abs(np.asarray(found) - expected) <= 4 * deviation)


def shares(counts, expected):
    """Whether counts of independent draws, of several outcomes, fit their probabilities."""
    total, expected = np.sum(counts), np.asarray(expected)
    return near(counts, total * expected, np.sqrt(total * expected * (1 - expected)) + 1e-9)


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 200), st.floats(0.01, 0.99), st.integers(1, 40), RULES, st.integers(0, 99))
def test_the_number_is_the_share_of_all_tokens_as_the_rule_rounds_it(size, rate, most, rule, seed):
    """But never more than is asked, nor than there is text."""
    down, up = math.floor(rate * size), math.ceil(rate * size)
    numbers = {"bert": [round(rate * size)], "roberta": [down, up], "distilbert": [up]}[rule]
    possible = [min(most, max(1, number), size - 2) for number in numbers]
    chosen = masks(rate=rate, max_predictions=most, rule=rule)
    assert chosen.max_predictions_for(size) == max(possible)
    assert len(choose_masks(np.random.default_rng(seed), *sequence(size), chosen)[0]) in possible
    # Halves are rounded to the even number: 1.5 of 10, 4.5 of 30.
    assert [BERT.max_predictions_for(length) for length in (3, 10, 30, 100)] == [1, 2, 4, 15]


def test_robertas_number_is_the_share_on_average(rng):
    numbers = [len(choose_masks(rng, *sequence(45), masks(rule="roberta"))[0]) for _ in range(2000)]
    assert near(np.mean(numbers), 6.75, math.sqrt(0.75 * 0.25 / 2000))


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 6), st.integers(3, 26), st.floats(0.01, 0.99), st.integers(1, 6), RULES)
def test_no_packing_has_more_predictions_than_the_bound_and_one_has_as_many(shortest, room, rate, most, rule):
    """Against every way to divide a row into sequences."""
    chosen = masks(rate=rate, max_predictions=most, rule=rule)

    def ways(left, smallest):
        yield ()
        for size in range(smallest, left + 1):
            for rest in ways(left - size, size):
                yield (size, *rest)

    most_of_all = max(sum(map(chosen.max_predictions_for, way)) for way in ways(room, shortest))
    assert max_predictions_for_packed_row(chosen, room, shortest) == most_of_all


def test_every_token_of_text_is_as_likely_as_any_other(rng):
    tokens, text = sequence(22)
    tokens[10], text[10] = 3, False
    times = np.zeros(22)
    for _ in range(2000):
        at, shown = choose_masks(rng, tokens, text, BERT)
        assert (np.diff(at) > 0).all() and len(shown) == 3
        times[at] += 1
    assert (times[~text] == 0).all()
    share = 3 / 19
    assert near(times[text], 2000 * share, math.sqrt(2000 * share * (1 - share)))


def test_rare_tokens_are_preferred_as_their_weights_say(rng):
    """Drawn one after the other: the chance of a set is the sum over its orders of w1 / W * w2 / (W - w1)."""
    weights = np.zeros(VOCAB)
    weights[5:9] = [1, 0, 3, 6]
    chosen = masks(rule="distilbert", weights=weights, rate=0.3)
    tokens, text = sequence(6)
    expected = dict.fromkeys(itertools.combinations(range(4), 2), 0.0)
    for first, second in itertools.permutations(range(4), 2):
        w = weights[5:9]
        expected[min(first, second), max(first, second)] += w[first] / w.sum() * w[second] / (w.sum() - w[first])
    counts = dict.fromkeys(expected, 0)
    for _ in range(3000):
        at, _ = choose_masks(rng, tokens, text, chosen)
        counts[tuple((at - 1).tolist())] += 1
    assert shares(list(counts.values()), list(expected.values()))


WORDS = np.zeros(VOCAB, bool)
WORDS[[5, 6, 9, 11, 12, 13, 14, 15]] = True
"""Of the text 5 .. 19: words of 1, 3, 2, 1, 1, 1, 1 and 5 tokens."""


def test_words_are_masked_whole_or_not_at_all(rng):
    tokens, text = sequence(17)
    bounds = [*np.flatnonzero(text & WORDS[tokens]).tolist(), 16]
    words = [set(range(a, b)) for a, b in itertools.pairwise(bounds)]
    assert list(map(len, words)) == [1, 3, 2, 1, 1, 1, 1, 5]
    times = np.zeros(8)
    for _ in range(2000):
        at = set(choose_masks(rng, tokens, text, masks(starts=WORDS, rate=0.25))[0].tolist())
        # round(0.25 * 17) = 4: the word of five is skipped, and the rest, with words of one among them, always fills it up.
        assert len(at) == 4
        assert all(word <= at or not word & at for word in words)
        times += [word <= at for word in words]
    assert times[7] == 0 and (times[:7] > 0).all()
    singles = times[[0, 3, 4, 5, 6]]
    assert near(singles, singles.mean(), math.sqrt(singles.mean()))


def test_a_word_ends_at_a_special_token_and_may_begin_without_its_start(rng):
    """[CLS] ##a ##b [SEP] ##c ##d [SEP]: two words of two tokens."""
    tokens = np.array([2, 20, 21, 3, 22, 23, 3], np.int32)
    chosen = masks(starts=WORDS, rate=0.3)
    assert {tuple(choose_masks(rng, tokens, tokens >= 20, chosen)[0].tolist()) for _ in range(50)} == {(1, 2), (4, 5)}


def test_a_word_longer_than_the_share_leaves_nothing_to_predict(rng):
    at, shown = choose_masks(rng, *sequence(5), masks(starts=np.zeros(VOCAB, bool)))
    assert at.dtype == np.int64 and len(at) == len(shown) == 0


def test_four_in_five_are_shown_as_the_mask_and_one_in_ten_as_any_entry(rng):
    tokens, text = sequence(30)
    chosen, shown = zip(*(choose_masks(rng, tokens, text, masks(rate=0.9)) for _ in range(1500)), strict=True)
    true, shown = tokens[np.concatenate(chosen)], np.concatenate(shown)
    # A random entry is the mask or the token itself as often as any other entry.
    masked, kept = 0.8 + 0.1 / VOCAB, 0.1 + 0.1 / VOCAB
    others = shown[(shown != MASK) & (shown != true)]
    assert shares([(shown == MASK).sum(), (shown == true).sum(), len(others)], [masked, kept, 1 - masked - kept])
    # Special tokens among them. Every true token is as frequent, so its being left out changes all entries of text alike.
    counts = np.bincount(others, minlength=VOCAB)
    assert counts[MASK] == 0 and (np.delete(counts, MASK) > 0).all()
    assert near(counts[[0, 1, 2, 3]], len(others) / (VOCAB - 2), math.sqrt(len(others) / (VOCAB - 2)))
    assert shares(counts[5:33], np.full(28, 1 / 28))


def test_replacements_of_neighbours_are_independent(rng):
    """Neighbours are masked and kept independently: pairs of outcomes are as frequent as their product."""
    both = [choose_masks(rng, *sequence(4), masks(rate=0.9, masked=0.5, random=0.0))[1] == MASK for _ in range(2000)]
    counts = np.bincount([2 * int(a) + int(b) for a, b in both], minlength=4)
    assert shares(counts, [0.25] * 4)
