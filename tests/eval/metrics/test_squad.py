"""Answers from logits equal those of trying every pair of tokens, and their scores follow the published evaluation."""

import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics import squad
from eval.prediction.span_decoding import Answer, DecodedAnswers, decode_answers

TEXT = "Der Fox, the fox and  a Fox met in Köln; the fox  won. "


def words(text: str) -> np.ndarray:
    """Return the first character of each word with the blanks before it, as byte-level BPE has them, and one past its last."""
    return np.array([match.span() for match in re.finditer(r"\s*\S+", text)])


def windows(rng: np.random.Generator, count: int, length: int) -> dict:
    """Sample windows of overlapping stretches of a text's words, after CLS and a question, with padding at the end."""
    tokens = words(TEXT)
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
    return dict(start=start, end=end, context=context, spans=places, text=TEXT)


def brute(start, end, *, context, spans: np.ndarray, text: str, best: int, longest: int) -> tuple[list, float]:
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
def test_best_answers_are_those_of_trying_all_pairs(seed: int, count: int, length: int, best: int, longest: int) -> None:
    made = windows(np.random.default_rng(seed), count, length)
    result = decode_answers(**made, best=best, longest=longest)
    answers, null = brute(**made, best=best, longest=longest)
    assert [tuple(each) for each in result.answers] == answers
    assert result.null == null
    for answer in result.answers:
        assert TEXT[answer.first :].startswith(answer.text)
    order = np.random.default_rng(seed).permutation(count)
    shuffled = {name: value if name == "text" else value[order] for name, value in made.items()}
    assert decode_answers(**shuffled, best=best, longest=longest) == result


def test_20_answers_of_at_most_30_tokens_are_given() -> None:
    text = " ".join(f"w{number}" for number in range(40))
    places = np.zeros((1, 41, 2), np.int64)
    places[0, 1:] = words(text)
    start, end = np.zeros((2, 1, 41), np.float32)
    # The first 31 words would score more than the first 30.
    start[0, 1], end[0, 30], end[0, 31] = 20, 20, 30
    result = decode_answers(start, end, context=np.array([[1, 41]]), spans=places, text=text)
    assert result.answers[0] == (" ".join(f"w{number}" for number in range(30)), 0, 40)
    assert len({answer.text for answer in result.answers}) == 20


def test_window_without_context_has_no_answer_and_logits_that_are_not_finite_are_refused() -> None:
    flat = np.zeros((1, 4), np.float32)
    nothing = dict(context=np.array([[2, 2]]), spans=np.zeros((1, 4, 2), np.int64), text="")
    result = decode_answers(flat, flat, **nothing)
    assert (result.answers, result.margin, result.choose(), result.choose(0.0)) == ([], math.inf, "", "")
    outside = flat.copy()
    outside[0, 3] = -np.inf
    assert decode_answers(outside, outside, **nothing) == result
    outside[0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        decode_answers(outside, outside, **nothing)
    with pytest.raises(ValueError, match="no windows"):
        decode_answers(flat[:0], flat[:0], context=np.zeros((0, 2), int), spans=np.zeros((0, 4, 2), int), text="")


def test_answer_is_normalized_as_published() -> None:
    for answer, expected in (
        ("The  Cat's \t“an” apple.", "cats “ ” apple"),
        ("U.S.A.", "usa"),
        ("a-the-an", "athean"),
        ("Another theory, anyway", "another theory anyway"),
        ("the—end", "—end"),
        ("The", ""),
        ("\u00a0x\u3000y\n", "x y"),
    ):
        assert squad.normalized(answer) == expected


def test_exact_match_and_f1_equal_values_by_hand() -> None:
    for answer, truths, exact, f1 in (
        ("the Denver Broncos!", ["Denver Broncos", "Broncos"], 1, 1),
        ("Denver", ["Denver Broncos", "Carolina"], 0, 2 / 3),
        # A word counts as often as both have it.
        ("very very good", ["very good good"], 0, 2 / 3),
        ("a", [], 1, 1),
        ("x", [], 0, 0),
        ("", ["x"], 0, 0),
        ("x", ["!", "x y"], 0, 2 / 3),
    ):
        assert squad.exact_match(answer, truths) == exact
        assert squad.token_f1(answer, truths) == pytest.approx(f1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.booleans(), st.integers(-3, 3)), min_size=1, max_size=15))
def test_best_threshold_is_that_of_trying_every_one(questions: Sequence[tuple[float, bool, int]]) -> None:
    answered = np.array([0.0 if unanswerable else worth for worth, unanswerable, _ in questions])
    silent = np.array([float(unanswerable) for _, unanswerable, _ in questions])
    margins = np.array([float(margin) for *_, margin in questions])
    thresholds = [min(margins) - 1, *sorted(set(margins))]
    means = [float(np.where(margins <= threshold, answered, silent).mean()) for threshold in thresholds]
    value, threshold = squad.best_threshold(answered, silent, margins)
    assert value == pytest.approx(max(means))
    assert threshold == next(each for each, mean in zip(thresholds, means, strict=True) if mean == pytest.approx(max(means)))


def decoded(text: str, margin: float) -> DecodedAnswers:
    return DecodedAnswers([Answer(text, 0, 1.0)], 1.0 + margin)


def test_where_some_questions_have_no_answer_it_is_right_to_give_none() -> None:
    answers = [
        decoded("Denver", -1.0),
        decoded("gold", 2.0),
        decoded("wrong", -3.0),
        decoded("wrong", 4.0),
        DecodedAnswers([], 0.0),
    ]
    truths = [["Denver"], ["gold"], [], [], []]
    best = {"best_exact": 4 / 5, "best_exact_threshold": 2.0, "best_f1": 4 / 5, "best_f1_threshold": 2.0}
    parts = {"has_answer_exact": 1 / 2, "has_answer_f1": 1 / 2, "no_answer_exact": pytest.approx(2 / 3)}
    assert squad.score_answers(answers, truths) == {"exact": 3 / 5, "f1": 3 / 5, "questions": 5} | parts | best
    for threshold in (-4.0, -2.0, 2.0):
        by_hand = [squad.exact_match(each.choose(threshold), given_) for each, given_ in zip(answers, truths, strict=True)]
        assert squad.score_answers(answers, truths, threshold)["exact"] == sum(by_hand) / 5


def test_threshold_lies_below_all_margins_where_giving_no_answer_is_best() -> None:
    result = squad.score_answers([decoded("x", -3.0), DecodedAnswers([], 0.0)], [[], []])
    assert (result["exact"], result["best_exact"], result["best_exact_threshold"]) == (0.5, 1.0, -4.0)
    assert "has_answer_exact" not in result
    assert squad.score_answers([DecodedAnswers([], 0.0)], [[]])["best_f1_threshold"] == 0.0
    for wrong in (lambda: squad.score_answers([], []), lambda: squad.best_threshold(*np.zeros((3, 0)))):
        with pytest.raises(ValueError, match="no questions"):
            wrong()
