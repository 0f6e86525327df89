"""Scores of answers that are spans of a text (SQuAD 1.1 and 2.0), from what `eval.prediction.span_decoding` decodes.

Sources: Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", section 6.1 (exact match, F1);
Rajpurkar et al. 2018, "Know What You Don't Know: Unanswerable Questions for SQuAD", and the evaluation published with it
(normalization, best thresholds).

Shape letter: Q questions.
"""

import collections
import re
import string
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from eval.prediction.span_decoding import DecodedAnswers

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


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
