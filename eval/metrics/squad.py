"""Answers that are spans of a text: decoding a model's logits, and scoring the answers (SQuAD 1.1 and 2.0).

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
"""Number of tokens of the longest answer, as in BERT's and SQuAD's published runs."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


# --- From logits to answers -----------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """A span of a context."""

    text: str
    first: int
    """Position in the context of the answer's first character."""
    score: float
    """Start logit of its first token + end logit of its last one, the best over the windows that contain it."""


@dataclasses.dataclass(frozen=True)
class DecodedAnswers:
    """The answers of a model to a question."""

    answers: list[Answer]
    """The best answers with different texts, best first; empty if no window contains any of the context."""
    null: float
    """Score of "no answer": start + end logit of CLS, the minimum over the windows."""

    @property
    def margin(self) -> float:
        """Null score minus the score of the best span; infinite if there is no candidate span."""
        return self.null - self.answers[0].score if self.answers else np.inf

    def choose(self, threshold: float | None = None) -> str:
        """Return the best answer, or "" if the margin exceeds the threshold; None: always answer (SQuAD 1.1).

        SQuAD 2.0 has a threshold; BERT's is 0 unless tuned.
        """
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
) -> DecodedAnswers:
    """Return the best answers to one question, from the logits of its windows.

    A candidate is a span of tokens in one window's context, of at most `longest` tokens. Its text is that of the context, without
    white space at its ends; a blank text is not an answer. Of candidates with the same text the best counts. Equal scores are
    ordered by their position in the text, the shorter first, so the order of windows has no effect.

    Args:
        start: logits of each token to be the first one of the answer.
        end: logits of each token to be the last one.
        context: first token of the context in each window, and one past the last.
        spans: first character in `text` of each token, and one past its last; read for tokens of the context alone.
        text: the full context.
        best: number of answers to return.
        longest: tokens of the longest answer.
        cls: position of CLS in each window.

    Raises:
        ValueError: no window, or a logit of the context or of CLS that is not finite.
    """
    windows, length = start.shape
    if not windows:
        raise ValueError("no windows")
    place = np.arange(length)
    inside = (place >= context[:, :1]) & (place < context[:, 1:])
    cls = np.broadcast_to(cls, windows)[:, None]
    is_read = inside | (place == cls)
    if not (np.isfinite(start[is_read]).all() and np.isfinite(end[is_read]).all()):
        raise ValueError("a logit is not finite")
    # In float64, so that rounding creates no ties.
    starts, ends = start.astype(np.float64), end.astype(np.float64)
    null = float((np.take_along_axis(starts, cls, 1) + np.take_along_axis(ends, cls, 1)).min())
    starts, ends = np.where(inside, starts, -np.inf), np.where(inside, ends, -np.inf)
    # [W, T, width]: the offset of the last token from the first.
    width = min(longest, length)
    ends = np.pad(ends, ((0, 0), (0, width)), constant_values=-np.inf)[:, place[:, None] + np.arange(width)]
    scores = (starts[:, :, None] + ends).ravel()
    return DecodedAnswers(_best(scores, (windows, length, width), spans, text, best), null)


def _best(scores: np.ndarray, shape: tuple[int, int, int], spans: np.ndarray, text: str, best: int) -> list[Answer]:
    """Return the `best` highest-scoring distinct answers.

    `scores` is flattened from `shape`: windows, first tokens, offsets of the last token. -inf is not a candidate.
    """
    available = int(np.isfinite(scores).sum())
    count = best
    while True:
        count = min(count, available)
        if not count:
            return []
        # Include all ties with the last candidate, since np.partition does not order them.
        candidates = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
        window, first, offset = np.unravel_index(candidates, shape)
        begins, ends = spans[window, first, 0], spans[window, first + offset, 1]
        order = np.lexsort((ends, begins, -scores[candidates]))
        answers: dict[str, Answer] = {}
        for score, begin, end in zip(
            scores[candidates][order].tolist(), begins[order].tolist(), ends[order].tolist(), strict=True
        ):
            span = text[begin:end]
            if (answer := span.strip()) and answer not in answers:
                answers[answer] = Answer(answer, begin + len(span) - len(span.lstrip()), score)
            if len(answers) == best:
                break
        if len(answers) == best or count == available:
            return list(answers.values())
        count *= 4


# --- scores of answers ----------------------------------------------------------------------------------------------------------


def normalized(answer: str) -> str:
    """Return an answer in lower case without ASCII punctuation and the articles a, an, the, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """Return 1 if an answer equals one of the reference answers, both normalized, else 0; without references "" is right."""
    return max(float(normalized(answer) == normalized(truth)) for truth in _references(truths))


def token_f1(answer: str, truths: Sequence[str]) -> float:
    """Return the best F1 of an answer's words with those of a reference answer, as bags of words, both normalized.

    If one of the two has no words, it is 1 if neither has any, else 0: so "" is right if there is no reference answer.
    """
    return max(_token_f1(normalized(answer).split(), normalized(truth).split()) for truth in _references(truths))


def _references(truths: Sequence[str]) -> Sequence[str]:
    """Return the reference answers that have a word. Without such answers return [""], since "" is then the right answer."""
    return [truth for truth in truths if normalized(truth)] or [""]


def _token_f1(answer: Sequence[str], truth: Sequence[str]) -> float:
    if not answer or not truth:
        return float(answer == truth)
    shared = (collections.Counter(answer) & collections.Counter(truth)).total()
    return 2 * shared / (len(answer) + len(truth))


def best_threshold(
    answered: Float[np.ndarray, " Q"], silent: Float[np.ndarray, " Q"], margins: Float[np.ndarray, " Q"]
) -> tuple[float, float]:
    """Return the best mean that a threshold on the margins attains, and the smallest such threshold.

    A question is answered if its margin is at most the threshold. Questions with equal margins are answered together or not at
    all, so the mean is one that `DecodedAnswers.choose` attains. If it is best to answer none, the threshold is 1 below the least
    margin.

    Args:
        answered: value of each question with its best answer.
        silent: value of each question without an answer.
        margins: see `DecodedAnswers.margin`; an infinite one is never answered.

    Raises:
        ValueError: no questions.
    """
    if not len(margins):
        raise ValueError("no questions")
    order = np.argsort(margins, kind="stable")
    order = order[np.isfinite(margins[order])]
    means = (silent.sum() + np.cumsum(answered[order] - silent[order])) / len(margins)
    sorted_margins = margins[order]
    # The candidates for the threshold are after the last question of each margin.
    ends = np.flatnonzero(np.diff(sorted_margins, append=np.inf))
    floor = sorted_margins[0] - 1 if len(order) else 0.0
    totals = np.concatenate([[silent.mean()], means[ends]])
    choice = int(totals.argmax())
    return float(totals[choice]), float(np.concatenate([[floor], sorted_margins[ends]])[choice])


def score_answers(
    decoded: Sequence[DecodedAnswers], truths: Sequence[Sequence[str]], threshold: float = 0.0
) -> dict[str, float | int]:
    """Return the score of a data set's answers, every share 0 to 1 (the published evaluation prints percent).

    Where every question has an answer (SQuAD 1.1), the best answer of each counts: `exact`, `f1`, `questions`. Where some have
    none (SQuAD 2.0), the answer is "" if the margin exceeds `threshold`; then there are also `has_answer_exact`, `has_answer_f1`
    of the questions with an answer, `no_answer_exact` of those without, and `best_exact`, `best_f1` with the thresholds that give
    them, `best_exact_threshold` and `best_f1_threshold`. Those are tuned on the same questions that they are measured on.

    Args:
        truths: the reference answers of each question; empty if it has none.

    Raises:
        ValueError: no questions, or different numbers of answers and references.
    """
    if not decoded:
        raise ValueError("no questions")
    has_answer = np.array([len(references) > 0 for references in truths])
    measures = {"exact": exact_match, "f1": token_f1}
    full = {
        name: np.array([measure(answer.choose(), references) for answer, references in zip(decoded, truths, strict=True)])
        for name, measure in measures.items()
    }
    if has_answer.all():
        return {**{name: float(values.mean()) for name, values in full.items()}, "questions": len(decoded)}
    margins, silent = np.array([answer.margin for answer in decoded]), (~has_answer).astype(np.float64)
    decided = {name: np.where(margins <= threshold, values, silent) for name, values in full.items()}
    result: dict[str, float | int] = {name: float(values.mean()) for name, values in decided.items()}
    if has_answer.any():
        result |= {f"has_answer_{name}": float(values[has_answer].mean()) for name, values in decided.items()}
    result["no_answer_exact"] = float(decided["exact"][~has_answer].mean())
    for name, values in full.items():
        result[f"best_{name}"], result[f"best_{name}_threshold"] = best_threshold(values, silent, margins)
    return {**result, "questions": len(decoded)}
