"""Predictions of a fine-tuned model for one example, from its logits, as dicts that are written as JSON.

`prediction_record` puts before each: `index`, the number of the example from 0; `file`, if several are read; `line`, the number
of its line in the file (the first of several; of its row in .parquet and data sets), and `id`, if it has them; and on request its
texts. In place of a prediction, an example that is malformed or too long has `error`, if such examples are not refused.

- classes of texts: `label`, the most likely one, and `probabilities` of all;
- labels of texts that may have several: `labels`, those of probability 0.5 or more, and `probabilities` of all;
- a number of a text: `number`;
- tags of words: `tags`, with `word`, `tag` and `probability` for each word, the last two null where the row has no token of it;
  if all tags are IOB, also `entities`, with `type`, `first` word, `end`, one past the last word, and `text`;
- an answer in a context: `answer`, its characters [`start`, `end`) of the context, `score`, the sum of its start and end logits,
  and `null_score`, that of no answer; where no answer is the prediction, all but the last are null;
- options of a question: `choice`, the number of the most likely one from 0, `option`, its text, and `probabilities` of all.

Shape letters: R rows of an example (windows of a context; otherwise 1), O outputs, T tokens of a row, C options.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from eval.prediction.span_decoding import decode_question, entities
from train.data.example_types import Choice, Question, Tagged, Text, is_iob
from train.data.unlabelled_reader import UnlabelledExample
from train.rows.example_rows import ExampleRow
from zoo.batch import IGNORED
from zoo.errors import BadInput

Prediction = dict[str, Any]
THRESHOLD = 0.5
"""Least probability of a label that is predicted, if a text may have several labels."""


def of_example(
    example: Any,
    rows: Sequence[ExampleRow],
    logits: Float64[np.ndarray, "R *outputs"],
    labels: Sequence[str],
    *,
    multi_label: bool = False,
    null_threshold: float | None = None,
) -> Prediction:
    """Return the prediction of an example.

    Args:
        rows: the rows of the example; the labels of a sentence's row are the numbers of its words.
        logits: [R, O] for a text, [R, T, O] for a sentence, [R, 2, T] for a question, [R, C] for choices.
        labels: names of the outputs of a text or a sentence; a single one means regression, unless `multi_label`.
        multi_label: True if a text may have several labels.
        null_threshold: a question has no answer if `null_score` exceeds the score of its best answer by more than this; None:
            it always has one.
    """
    match example:
        case Text() if multi_label:
            return _labels(sigmoid(logits[0]), labels)
        case Text() if len(labels) == 1:
            return {"number": round_to_float32(logits[0, 0])}
        case Text():
            return _class(softmax(logits[0]), labels)
        case Tagged():
            return _tags(example.words, rows[0], softmax(logits[0]), labels)
        case Question():
            return _answer(example, rows, logits, null_threshold)
        case Choice():
            probabilities = softmax(logits[0])
            best = int(probabilities.argmax())
            return {"choice": best, "option": example.options[best], "probabilities": list(map(round_to_float32, probabilities))}
    raise TypeError(type(example).__name__)


def prediction_record(
    index: int, item: UnlabelledExample, prediction: Prediction | BadInput, *, with_text: bool = False
) -> Prediction:
    """Return a prediction, or the error of the example, after the number, the place and the id of the example.

    Args:
        with_text: with the example's texts: `text` and `pair`, `question` and `context`, or `article`, `question` and `options`.
    """
    place = {"file": item.file, "line": item.line, "id": item.id}
    texts = example_texts(item.example) if with_text else {}
    result = {"error": str(prediction)} if isinstance(prediction, BadInput) else prediction
    return {"index": index} | {name: value for name, value in place.items() if value is not None} | texts | result


def example_texts(example: Any) -> dict[str, Any]:
    """Return the texts of an example by their names in files; {} for the error of a malformed one."""
    match example:
        case Text():
            return {"text": example.text} | ({} if example.pair is None else {"pair": example.pair})
        case Tagged():
            return {"text": " ".join(example.words)}
        case Question():
            return {"question": example.question, "context": example.context}
        case Choice():
            return {"article": example.article, "question": example.question, "options": list(example.options)}
    return {}


def sigmoid(logits: Float64[np.ndarray, "*N O"]) -> Float64[np.ndarray, "*N O"]:
    """Return the probability of each label of texts that may have several."""
    return np.exp(-np.logaddexp(0, -logits))


def softmax(logits: Float64[np.ndarray, "*N O"]) -> Float64[np.ndarray, "*N O"]:
    """Return the probabilities of logits."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def round_to_float32(value: Any) -> float:
    """Return a float that is printed with no more digits than its float32 has."""
    return float(str(np.float32(value)))


def _class(probabilities: Float64[np.ndarray, " O"], labels: Sequence[str]) -> Prediction:
    return {
        "label": labels[int(probabilities.argmax())],
        "probabilities": dict(zip(labels, map(round_to_float32, probabilities), strict=True)),
    }


def _labels(probabilities: Float64[np.ndarray, " O"], labels: Sequence[str]) -> Prediction:
    return {
        "labels": list(itertools.compress(labels, probabilities >= THRESHOLD)),
        "probabilities": dict(zip(labels, map(round_to_float32, probabilities), strict=True)),
    }


def _tags(words: Sequence[str], row: ExampleRow, probabilities: Float64[np.ndarray, "T O"], labels: Sequence[str]) -> Prediction:
    tags: list[dict[str, Any]] = [{"word": word, "tag": None, "probability": None} for word in words]
    for at in np.flatnonzero(row.labels != IGNORED):
        best = int(probabilities[at].argmax())
        tags[int(row.labels[at])] |= {"tag": labels[best], "probability": round_to_float32(probabilities[at, best])}
    if not is_iob(labels):
        return {"tags": tags}
    records = [
        {"type": entity.type, "first": entity.first, "end": entity.end, "text": " ".join(words[entity.first : entity.end])}
        for entity in entities([tag["tag"] or "O" for tag in tags])
    ]
    return {"tags": tags, "entities": records}


def _answer(
    question: Question, rows: Sequence[ExampleRow], logits: Float64[np.ndarray, "R 2 T"], null_threshold: float | None
) -> Prediction:
    decoded = decode_question(question, rows, logits)
    if not decoded.choose(null_threshold):
        return {"answer": None, "start": None, "end": None, "score": None, "null_score": round_to_float32(decoded.null)}
    best = decoded.answers[0]
    place = {"start": best.first, "end": best.first + len(best.text)}
    return {"answer": best.text, **place, "score": round_to_float32(best.score), "null_score": round_to_float32(decoded.null)}
