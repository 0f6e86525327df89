"""Answers from logits, against every pair of tokens tried in turn; and what they are worth, against the published evaluation's
rules followed step by step."""

import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import spans
from eval.spans import Decoded

TEXT = "Der Fox, the fox and  a Fox met in Köln; the fox  won. "


def words(text: str) -> np.ndarray:
    """First character of each word with the blanks before it, as byte-level BPE has them, and one past its last."""
    return np.array([match.span() for match in re.finditer(r"\s*\S+", text)])


def windows(rng: np.random.Generator, count: int, length: int, *, text: str = TEXT) -> dict:
    """Windows that hold overlapping stretches of a text's words, after CLS and a question, with padding at the end."""
    tokens = words(text)
    context, places = np.zeros((count, 2), np.int64), rng.integers(-5, 500, (count, length, 2))
    for window in range(count):
        first = int(rng.integers(1, 4))
        size = int(rng.integers(0, min(length - first, len(tokens)) + 1))
        begin = int(rng.integers(0, len(tokens) - size + 1))
        context[window] = first, first + size
        places[window, first : first + size] = tokens[begin : begin + size]
    # Few values, so that there are ties; or many, so that rounding would make some.
    logits = rng.integers(-2, 3, (2, count, length)) / 2 if rng.random() < 0.5 else 100 + rng.normal(size=(2, count, length))
    start, end = logits.astype(np.float32)
    return dict(start=start, end=end, context=context, spans=places, text=text)


def brute(start, end, *, context, spans: np.ndarray, text: str, best: int, longest: int) -> tuple[list, float]:
    """Every pair of every window, one after the other."""
    pairs = []
    for window in range(len(start)):
        first, stop = context[window]
        for a in range(first, stop):
            for b in range(a, min(stop, a + longest)):
                begin, over = int(spans[window, a, 0]), int(spans[window, b, 1])
                pairs.append((-(float(start[window, a]) + float(end[window, b])), begin, over))
    answers: dict[str, tuple[int, float]] = {}
    for score, begin, over in sorted(pairs):
        piece = text[begin:over]
        if piece.strip() and len(answers) < best:
            answers.setdefault(piece.strip(), (begin + len(piece) - len(piece.lstrip()), -score))
    null = min(float(start[window, 0]) + float(end[window, 0]) for window in range(len(start)))
    return [(text, *rest) for text, rest in answers.items()], null


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 1 << 30), st.integers(1, 4), st.integers(5, 16), st.integers(1, 25), st.integers(1, 20))
def test_the_best_answers_are_those_of_trying_all_pairs(seed: int, count: int, length: int, best: int, longest: int) -> None:
    made = windows(np.random.default_rng(seed), count, length)
    found = spans.decode(**made, best=best, longest=longest)
    answers, null = brute(**made, best=best, longest=longest)
    assert [tuple(each) for each in found.answers] == answers
    assert found.null == null
    for answer in found.answers:
        assert TEXT[answer.first :].startswith(answer.text)
    order = np.random.default_rng(seed).permutation(count)
    shuffled = {name: value if name == "text" else value[order] for name, value in made.items()}
    assert spans.decode(**shuffled, best=best, longest=longest) == found


def test_an_answer_of_a_full_size_question_is_the_best_pair(rng: np.random.Generator) -> None:
    text = " ".join(f"w{number}" for number in range(600))
    count, length = 3, 384
    places = np.zeros((count, length, 2), np.int64)
    context = np.array([[20, 383]] * count)
    for window in range(count):
        places[window, 20:383] = words(text)[window * 100 : window * 100 + 363]
    start, end = rng.normal(size=(2, count, length)).astype(np.float32)
    start[1, 30], end[1, 59], end[1, 60] = 20, 20, 30
    found = spans.decode(start, end, context=context, spans=places, text=text)
    # Thirty tokens at most: w110 to w139, although the thirty-first would score more.
    assert found.answers[0].text == " ".join(f"w{number}" for number in range(110, 140))
    assert found.answers[0].score == 40
    assert len({answer.text for answer in found.answers}) == 20


def test_ties_are_put_in_the_order_of_the_text_and_the_best_window_counts() -> None:
    flat = np.zeros((2, 6), np.float32)
    given_ = dict(context=np.array([[1, 4], [2, 5]]), text="one two three four")
    places = np.zeros((2, 6, 2), np.int64)
    places[0, 1:4], places[1, 2:5] = words(given_["text"])[:3], words(given_["text"])[1:]
    found = spans.decode(flat, flat, spans=places, **given_, best=5)
    assert [answer.text for answer in found.answers] == ["one", "one two", "one two three", "two", "two three"]
    better = flat.copy()
    better[1, 3] = 1
    found = spans.decode(better, better, spans=places, **given_, best=2)
    assert [(answer.text, answer.score) for answer in found.answers] == [("three", 2), ("two three", 1)]


def test_a_window_without_context_has_no_answer_and_a_logit_that_is_not_finite_is_refused() -> None:
    flat = np.zeros((1, 4), np.float32)
    nothing = dict(context=np.array([[2, 2]]), spans=np.zeros((1, 4, 2), np.int64), text="")
    found = spans.decode(flat, flat, **nothing)
    assert (found.answers, found.margin, found.choose(), found.choose(0.0)) == ([], math.inf, "", "")
    outside = flat.copy()
    outside[0, 3] = -np.inf
    assert spans.decode(outside, outside, **nothing) == found
    outside[0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        spans.decode(outside, outside, **nothing)
    with pytest.raises(ValueError, match="no windows"):
        spans.decode(flat[:0], flat[:0], context=np.zeros((0, 2), int), spans=np.zeros((0, 4, 2), int), text="")


# --- worth ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Cat's \t“an” apple.", "cats “ ” apple"),
        ("U.S.A.", "usa"),
        ("a-the-an", "athean"),
        ("Another theory, anyway", "another theory anyway"),
        ("the—end", "—end"),
        ("ÄRGER", "ärger"),
        ("The", ""),
        ("\u00a0x\u3000y\n", "x y"),
    ],
)
def test_an_answer_is_normalized(answer: str, expected: str) -> None:
    assert spans.normalized(answer) == expected


@pytest.mark.parametrize(
    ("answer", "truths", "exact", "f1"),
    [
        ("the Denver Broncos!", ["Denver Broncos", "Broncos"], 1, 1),
        ("Denver", ["Denver Broncos", "Carolina"], 0, 2 / 3),
        # Bags: a word counts as often as both have it.
        ("very very good", ["very good good"], 0, 2 / 3),
        ("x y", ["z"], 0, 0),
        ("", [], 1, 1),
        ("a", [], 1, 1),
        ("x", [], 0, 0),
        ("", ["x"], 0, 0),
        ("x", ["!", "x y"], 0, 2 / 3),
    ],
)
def test_answers_by_hand(answer: str, truths: list[str], exact: float, f1: float) -> None:
    assert spans.exact_match(answer, truths) == exact
    assert spans.token_f1(answer, truths) == pytest.approx(f1)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.booleans(), st.integers(-3, 3)), min_size=1, max_size=15))
def test_the_best_threshold_is_that_of_trying_every_one(questions: Sequence[tuple[float, bool, int]]) -> None:
    answered = np.array([0.0 if unanswerable else worth for worth, unanswerable, _ in questions])
    silent = np.array([float(unanswerable) for _, unanswerable, _ in questions])
    margins = np.array([float(margin) for *_, margin in questions])

    def mean(threshold: float) -> float:
        return float(np.where(margins <= threshold, answered, silent).mean())

    tried = {threshold: mean(threshold) for threshold in [min(margins) - 1, *sorted(set(margins))]}
    best = max(tried.values())
    got, threshold = spans.best_threshold(answered, silent, margins)
    assert got == pytest.approx(best) == mean(threshold)
    assert threshold == next(each for each, value in tried.items() if value == pytest.approx(best))


def said(text: str, margin: float) -> Decoded:
    return Decoded([spans.Answer(text, 0, 1.0)], 1.0 + margin)


def test_a_data_set_of_answers_alone_is_scored_by_the_best_of_each() -> None:
    decoded = [said("Denver", 5.0), said("gold", -5.0), Decoded([], 0.0)]
    assert spans.score(decoded, [["Denver Broncos"], ["gold"], ["$"]]) == {
        "exact": pytest.approx(2 / 3),
        "f1": pytest.approx((2 / 3 + 1 + 1) / 3),
        "questions": 3,
    }


def test_questions_without_an_answer_are_answered_by_silence() -> None:
    decoded = [said("Denver", -1.0), said("gold", 2.0), said("wrong", -3.0), said("wrong", 4.0), Decoded([], 0.0)]
    truths = [["Denver"], ["gold"], [], [], []]
    found = spans.score(decoded, truths)
    assert found == {
        "exact": 3 / 5,
        "f1": 3 / 5,
        "has_answer_exact": 1 / 2,
        "has_answer_f1": 1 / 2,
        "no_answer_exact": pytest.approx(2 / 3),
        "best_exact": 4 / 5,
        "best_exact_threshold": 2.0,
        "best_f1": 4 / 5,
        "best_f1_threshold": 2.0,
        "questions": 5,
    }
    for threshold in (-4.0, -2.0, 0.0, 2.0, 9.0):
        by_hand = [spans.exact_match(each.choose(threshold), given_) for each, given_ in zip(decoded, truths, strict=True)]
        assert spans.score(decoded, truths, threshold)["exact"] == sum(by_hand) / 5


def test_where_silence_is_best_the_threshold_lies_below_all_margins() -> None:
    found = spans.score([said("x", -3.0), Decoded([], 0.0)], [[], []])
    assert (found["exact"], found["best_exact"], found["best_exact_threshold"]) == (0.5, 1.0, -4.0)
    assert "has_answer_exact" not in found
    assert spans.score([Decoded([], 0.0)], [[]])["best_f1_threshold"] == 0.0
    for wrong in (lambda: spans.score([], []), lambda: spans.best_threshold(*np.zeros((3, 0)))):
        with pytest.raises(ValueError, match="no questions"):
            wrong()
