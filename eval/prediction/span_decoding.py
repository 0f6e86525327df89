"""Spans of a text that a model finds: answers from start and end logits, and entities from tags of words.

Sources: Devlin et al. 2019, "BERT", sections 4.2 and 4.3 (score of a span, score of no answer); Rajpurkar et al. 2018, "Know What
You Don't Know: Unanswerable Questions for SQuAD", and the evaluation published with it.

Shape letters: W windows of one question, T tokens of a window.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Integer

from train.data.example_types import IOB_TAG, Question
from train.rows.example_rows import ExampleRow
from zoo.errors import BadInput

LONGEST = 30
"""Number of tokens of the longest answer, as in BERT's and SQuAD's published runs."""


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


def decode_question(question: Question, rows: Sequence[ExampleRow], logits: Float64[np.ndarray, "W 2 T"]) -> DecodedAnswers:
    """Return the best answers to a question over all of its windows, `rows`, from their start and end logits."""
    context_bounds, spans = np.zeros((len(rows), 2), np.int64), np.zeros((len(rows), logits.shape[-1], 2), np.int64)
    cls = np.zeros(len(rows), np.int64)
    for number, row in enumerate(rows):
        context = row.context
        assert context is not None
        context_bounds[number], cls[number] = (context.first, context.first + len(context.spans)), context.summary
        spans[number, context_bounds[number, 0] : context_bounds[number, 1]] = context.spans
    start, end = logits.astype(np.float32).swapaxes(0, 1)
    return decode_answers(start, end, context=context_bounds, spans=spans, text=question.context, cls=cls)


def decode_answers(
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


class Entity(NamedTuple):
    """A span of words with a type."""

    type: str
    first: int
    end: int
    """Number of its last word, plus one."""


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of a sentence, from a tag for each word: O, B-TYPE, I-TYPE (B and I alone if there is one type).

    B begins an entity, I continues one of its type, and an I that has nothing to continue begins one. So both IOB2 and the older
    IOB1 are read, and invalid sequences of a model are handled as by `conlleval`, the evaluation of the shared tasks of CoNLL.

    Raises:
        BadInput: any other tag.
    """
    spans: list[Entity] = []
    open_type, first = None, 0
    for place, tag in enumerate([*tags, "O"]):
        if (match := IOB_TAG.fullmatch(tag)) is None:
            raise BadInput(f"tag {tag!r}: not IOB; write O, B-TYPE or I-TYPE")
        begins, kind = match[1], match[2] or ""
        if open_type is not None and (begins != "I" or kind != open_type):
            spans.append(Entity(open_type, first, place))
            open_type = None
        if begins and open_type is None:
            open_type, first = kind, place
    return spans
