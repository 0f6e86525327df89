"""Answers that are pieces of a text: from a model's logits to the likeliest ones, and what they are worth (SQuAD 1.1 and 2.0).

Sources: Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", section 6.1 (exact match, F1);
Rajpurkar et al. 2018, "Know What You Don't Know: Unanswerable Questions for SQuAD", and the evaluation published with it
(normalization, best thresholds); Devlin et al. 2019, "BERT", sections 4.2 and 4.3 (score of a span, score of no answer).

Shape letters: W windows of one question, T tokens of a window, Q questions.
"""

import collections
import dataclasses
import re
import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Integer

LONGEST = 30
"""Tokens of the longest answer, as in BERT's and SQuAD's published runs."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


# --- From logits to answers -----------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """A piece of a context."""

    text: str
    first: int
    """Its first character in the context."""
    score: float
    """Start logit of its first token + end logit of its last one, the best over the windows that hold it."""


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What a model says to a question."""

    answers: list[Answer]
    """The best ones, of different texts, the best first; none where no window holds any of the context."""
    null: float
    """Score of "no answer": start + end logit of CLS, the least over the windows: the one surest of an answer."""

    @property
    def margin(self) -> float:
        """How much likelier no answer is than the best one; infinite without one."""
        return self.null - self.answers[0].score if self.answers else np.inf

    def choose(self, threshold: float | None = None) -> str:
        """The best answer, or "" where the margin passes the threshold (SQuAD 2.0; BERT's is 0 unless tuned). None: always answer
        (SQuAD 1.1)."""
        return "" if not self.answers or (threshold is not None and self.margin > threshold) else self.answers[0].text


def decode(
    start: Float32[np.ndarray, "W T"],
    end: Float32[np.ndarray, "W T"],
    *,
    context: Integer[np.ndarray, "W 2"],
    spans: Integer[np.ndarray, "W T 2"],
    text: str,
    best: int = 20,
    longest: int = LONGEST,
    cls: Integer[np.ndarray, " W"] | int = 0,
) -> Decoded:
    """The best answers to one question, from the logits of its windows.

    A candidate is a pair of tokens of one window's context, the last not before the first, at most `longest` tokens in all. Its
    text is theirs in the context, less white space at its ends; a blank one is no answer. Of candidates with one text the best
    counts. Equal scores are put in the order of their places in the text, the shorter first: the windows' order decides nothing.

    Args:
        start: logits of each token to be the first one of the answer.
        end: logits of each token to be the last one.
        context: first token of the context in each window, and one past the last.
        spans: first character in `text` of each token, and one past its last; read for tokens of the context alone.
        text: the whole context.
        best: answers wanted.
        longest: tokens of the longest answer.
        cls: place of CLS in each window.

    Raises:
        ValueError: no window, or a logit of the context or of CLS that is not finite.
    """
    windows, length = start.shape
    if not windows:
        raise ValueError("no windows")
    place = np.arange(length)
    inside = (place >= context[:, :1]) & (place < context[:, 1:])
    cls = np.broadcast_to(cls, windows)[:, None]
    read = inside | (place == cls)
    if not (np.isfinite(start[read]).all() and np.isfinite(end[read]).all()):
        raise ValueError("a logit is not finite")
    # In float64: rounding shall make no ties.
    starts, ends = start.astype(np.float64), end.astype(np.float64)
    null = float((np.take_along_axis(starts, cls, 1) + np.take_along_axis(ends, cls, 1)).min())
    starts, ends = np.where(inside, starts, -np.inf), np.where(inside, ends, -np.inf)
    # [W, T, width]: the last token is so many after the first.
    width = min(longest, length)
    ends = np.pad(ends, ((0, 0), (0, width)), constant_values=-np.inf)[:, place[:, None] + np.arange(width)]
    scores = (starts[:, :, None] + ends).ravel()
    return Decoded(_best(scores, (windows, length, width), spans, text, best), null)


def _best(scores: np.ndarray, shape: tuple[int, int, int], spans: np.ndarray, text: str, best: int) -> list[Answer]:
    """The best answers among the candidates that are not -inf, numbered as in an array of `shape`."""
    there = int(np.isfinite(scores).sum())
    wanted = best
    while True:
        wanted = min(wanted, there)
        if not wanted:
            return []
        # All that tie with the last one wanted are taken in: which of them comes first is not for the partition to say.
        chosen = np.flatnonzero(scores >= np.partition(scores, -wanted)[-wanted])
        window, first, offset = np.unravel_index(chosen, shape)
        begins, ends = spans[window, first, 0], spans[window, first + offset, 1]
        order = np.lexsort((ends, begins, -scores[chosen]))
        found: dict[str, Answer] = {}
        for score, begin, end in zip(scores[chosen][order].tolist(), begins[order].tolist(), ends[order].tolist(), strict=True):
            piece = text[begin:end]
            if (answer := piece.strip()) and answer not in found:
                found[answer] = Answer(answer, begin + len(piece) - len(piece.lstrip()), score)
            if len(found) == best:
                break
        if len(found) == best or wanted == there:
            return list(found.values())
        wanted *= 4


# --- What answers are worth -----------------------------------------------------------------------------------------------------


def normalized(answer: str) -> str:
    """An answer without what does not count: in lower case, without ASCII punctuation, the articles a, an, the, and with single
    spaces between its words."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """1 if an answer is one of those given, both normalized, else 0. With no answer given, "" is right."""
    return max(float(normalized(answer) == normalized(truth)) for truth in _given(truths))


def token_f1(answer: str, truths: Sequence[str]) -> float:
    """The best F1 of an answer's words against those of one answer given, as bags of words, both normalized.

    Where one of the two has no words it is 1 if neither has, else 0: so "" is right where no answer is given.
    """
    return max(_token_f1(normalized(answer).split(), normalized(truth).split()) for truth in _given(truths))


def _given(truths: Sequence[str]) -> Sequence[str]:
    """The answers given that have a word; none of them: the question has no answer, and "" is the right one."""
    return [truth for truth in truths if normalized(truth)] or [""]


def _token_f1(answer: Sequence[str], truth: Sequence[str]) -> float:
    if not answer or not truth:
        return float(answer == truth)
    shared = (collections.Counter(answer) & collections.Counter(truth)).total()
    return 2 * shared / (len(answer) + len(truth))


def best_threshold(
    answered: Float[np.ndarray, " Q"], silent: Float[np.ndarray, " Q"], margins: Float[np.ndarray, " Q"]
) -> tuple[float, float]:
    """The best mean that one threshold on the margins gives, and the smallest such threshold.

    A question is answered where its margin is at most the threshold. Questions of equal margins are answered together or not at
    all, so the mean is one that `Decoded.choose` attains. Where it is best to answer none, the threshold is 1 below the least
    margin.

    Args:
        answered: what each question is worth with its best answer.
        silent: what it is worth without an answer.
        margins: see `Decoded.margin`; an infinite one is never answered.

    Raises:
        ValueError: no questions.
    """
    if not len(margins):
        raise ValueError("no questions")
    order = np.argsort(margins, kind="stable")
    order = order[np.isfinite(margins[order])]
    means = (silent.sum() + np.cumsum(answered[order] - silent[order])) / len(margins)
    sorted_margins = margins[order]
    # A threshold lies at the last question of each margin.
    ends = np.flatnonzero(np.diff(sorted_margins, append=np.inf))
    floor = sorted_margins[0] - 1 if len(order) else 0.0
    totals = np.concatenate([[silent.mean()], means[ends]])
    choice = int(totals.argmax())
    return float(totals[choice]), float(np.concatenate([[floor], sorted_margins[ends]])[choice])


def score(decoded: Sequence[Decoded], truths: Sequence[Sequence[str]], threshold: float = 0.0) -> dict[str, float | int]:
    """The score of a data set's answers, every share 0 to 1 (the published evaluation prints percent).

    Where every question has an answer (SQuAD 1.1), the best answer of each counts: `exact`, `f1`, `questions`. Where some have
    none (SQuAD 2.0), "" is said where the margin passes `threshold`; then there are also `has_answer_exact`, `has_answer_f1` of
    the questions with an answer, `no_answer_exact` of those without, and `best_exact`, `best_f1` with the thresholds that give
    them, `best_exact_threshold` and `best_f1_threshold`. Those are tuned on the very questions they are measured on.

    Args:
        truths: the answers given to each question; none where it has no answer.

    Raises:
        ValueError: no questions, or not as many of both.
    """
    if not decoded:
        raise ValueError("no questions")
    able = np.array([len(given) > 0 for given in truths])
    measures = {"exact": exact_match, "f1": token_f1}
    full = {
        name: np.array([measure(each.choose(), given) for each, given in zip(decoded, truths, strict=True)])
        for name, measure in measures.items()
    }
    if able.all():
        return {**{name: float(each.mean()) for name, each in full.items()}, "questions": len(decoded)}
    margins, silent = np.array([each.margin for each in decoded]), (~able).astype(np.float64)
    told = {name: np.where(margins <= threshold, each, silent) for name, each in full.items()}
    result: dict[str, float | int] = {name: float(each.mean()) for name, each in told.items()}
    if able.any():
        result |= {f"has_answer_{name}": float(each[able].mean()) for name, each in told.items()}
    result["no_answer_exact"] = float(told["exact"][~able].mean())
    for name, each in full.items():
        result[f"best_{name}"], result[f"best_{name}_threshold"] = best_threshold(each, silent, margins)
    return {**result, "questions": len(decoded)}
