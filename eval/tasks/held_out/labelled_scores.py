"""Scores of fine-tuned models: accuracy, F1 and correlations of classes and numbers, F1 of entities, exact match of answers.

The metrics are functions in `metric_functions` and `squad`. They are applied here to the logits of all rows of a task; a score
also has the confusion matrix of a classifier and the examples with the greatest losses.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Integer

from eval.inference.head_logits import logits_loop
from eval.metrics import metric_functions, squad
from eval.prediction.prediction_records import THRESHOLD, sigmoid
from eval.prediction.span_decoding import decode_question
from eval.tasks.held_out.scoring_inputs import Score, ScoringInputs
from train.config import run_config
from train.data.example_types import Choice, Example, Question, Tagged, Text, is_iob
from train.inputs.labelled_inputs import LabelledRows, outputs
from train.run.item_outcomes import Outcomes
from zoo.batch import IGNORED

WORST = 20
"""Number of examples with the greatest losses that are shown, at most."""


def score_labelled(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return a function of parameters that scores every example of the rows, `inputs.batch` rows at a time over the mesh."""
    run, rows, labels = inputs.run, inputs.rows, getattr(inputs.run.model, "labels", ())
    loop = logits_loop(inputs.model, inputs.mesh, run.objective, np.dtype(inputs.dtype))
    metrics = metrics_of(run)

    def score(params: Any) -> Score:
        return metrics(rows, loop.all_results(params, rows, inputs.build, inputs.batch, progress=inputs.progress), labels)

    return score


def metrics_of(run: run_config.Run) -> Callable[..., Score]:
    """Return the function `(rows, logits, labels) -> score` of a run."""
    return _multi_label if outputs(run)[1] else METRICS[run.objective]


def class_metrics(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a text classifier's metrics in `metric_functions.MEASURES`; a single label means regression.

    The F1 of two classes is that of the second one.
    """
    if len(labels) == 1:
        return "pearson", "spearman", "mean_squared_error"
    return "accuracy", "f1" if len(labels) == 2 else "f1_macro", "matthews"


def _classes(rows: LabelledRows, logits: Float64[np.ndarray, "N O"], labels: tuple[str, ...]) -> Score:
    """Score texts: accuracy, F1, Matthews' correlation and confusion matrix of classes, or the correlations of numbers."""
    truth = np.concatenate([row.labels for row in rows.rows])
    if len(labels) == 1:
        predicted = logits[:, 0]
        metrics = metric_functions.score_predictions(class_metrics(labels), truth.astype(np.float64), predicted)
        losses = np.square(predicted - truth)
        answers = [(f"{true:g}", f"{value:g}") for true, value in zip(truth.tolist(), predicted.tolist(), strict=True)]
        return _score(rows, metrics, losses, answers, right=np.full(len(truth), np.nan))
    predicted = logits.argmax(-1)
    answers = [(labels[true], labels[value]) for true, value in zip(truth.tolist(), predicted.tolist(), strict=True)]
    metrics = {**metric_functions.score_predictions(class_metrics(labels), truth, predicted), **_shares(truth, predicted)}
    score = _score(rows, metrics, _nll(logits, truth), answers, right=predicted == truth)
    confusion = metric_functions.confusion(truth, predicted, len(labels)).tolist()
    return dataclasses.replace(score, mistakes={**score.mistakes, "labels": list(labels), "confusion": confusion})


def _multi_label(rows: LabelledRows, logits: Float64[np.ndarray, "N O"], labels: tuple[str, ...]) -> Score:
    """Score texts that may have several labels: micro and macro F1, and the share of texts whose labels are all right."""
    truth = np.stack([row.labels for row in rows.rows])  # [N, O]
    predicted = (sigmoid(logits) >= THRESHOLD).astype(np.int32)
    losses = np.logaddexp(0, np.where(truth == 1, -logits, logits)).mean(-1)
    answers = [
        tuple(", ".join(itertools.compress(labels, chosen)) or "(none)" for chosen in pair)
        for pair in zip(truth, predicted, strict=True)
    ]
    right = (predicted == truth).all(-1)
    return _score(rows, metric_functions.multi_label(truth, predicted), losses, answers, right=right)


def _tags(rows: LabelledRows, logits: Float64[np.ndarray, "N T O"], labels: tuple[str, ...]) -> Score:
    """Score tags: F1 of whole entities if they are IOB, else accuracy; words without tokens in a row do not count."""
    truths, predictions, losses, words, answers = [], [], [], [], []
    for row, row_logits in zip(rows.rows, logits, strict=True):
        labelled = np.flatnonzero(row.labels != IGNORED)
        truths.append([labels[label] for label in row.labels[labelled].tolist()])
        predictions.append([labels[label] for label in row_logits[labelled].argmax(-1).tolist()])
        losses.append(_nll(row_logits[labelled], row.labels[labelled]).mean())
        words.append(len(labelled))
        wrong = [
            (place, true, predicted)
            for place, (true, predicted) in enumerate(zip(truths[-1], predictions[-1], strict=True))
            if true != predicted
        ]
        answers.append(tuple(", ".join(f"{place + 1} {pair[side]}" for place, *pair in wrong) for side in (0, 1)))
    metrics: dict[str, Any] = {}
    if is_iob(labels):
        names = ("entity_precision", "entity_recall", "entity_f1")
        metrics |= zip(names, metric_functions.entity_f1(truths, predictions), strict=True)
    else:
        numbers = {name: number for number, name in enumerate(labels)}
        truth, predicted = (np.array([numbers[tag] for tags in sentences for tag in tags]) for sentences in (truths, predictions))
        metrics |= {"accuracy": metric_functions.accuracy(truth, predicted), **_shares(truth, predicted)}
    right = np.array([true == tags for true, tags in zip(truths, predictions, strict=True)])
    return _score(rows, {**metrics, "words": sum(words)}, np.array(losses), answers, counts=words, right=right)


def _answers(rows: LabelledRows, logits: Float64[np.ndarray, "N 2 T"], labels: Sequence[str]) -> Score:
    """Score answers: exact match and F1 of the best answer to each question over all of its windows."""
    windows: dict[int, list[int]] = {}
    for number, row in enumerate(rows.rows):
        windows.setdefault(row.example, []).append(number)
    decoded, truths, losses = [], [], []
    for example, numbers in windows.items():
        question = rows.examples[example]
        assert isinstance(question, Question)
        decoded.append(decode_question(question, [rows.rows[number] for number in numbers], logits[numbers]))
        truths.append([reference.text for reference in question.answers])
        ends = np.array([rows.rows[number].labels for number in numbers])
        losses.append(_nll(logits[numbers], ends).mean())
    metrics = squad.score_answers(decoded, truths)
    chosen = [answer.choose(None if all(truths) else 0.0) for answer in decoded]
    answers = [(texts[0] if texts else "(no answer)", text or "(no answer)") for text, texts in zip(chosen, truths, strict=True)]
    by_question = dataclasses.replace(rows, examples=[rows.examples[example] for example in windows])
    counts = [len(numbers) for numbers in windows.values()]
    right = np.array([squad.exact_match(text, texts) for text, texts in zip(chosen, truths, strict=True)])
    return _score(by_question, metrics, np.array(losses), answers, counts=counts, by_example=True, right=right)


def _options(rows: LabelledRows, logits: Float64[np.ndarray, "N C"], labels: Sequence[str]) -> Score:
    """Score choices: the share of questions whose right option has the greatest logit."""
    truth, predicted, answers = np.array([int(row.labels) for row in rows.rows]), logits.argmax(-1), []
    for row, true, chosen in zip(rows.rows, truth.tolist(), predicted.tolist(), strict=True):
        example = rows.examples[row.example]
        assert isinstance(example, Choice)
        answers.append((example.options[true], example.options[chosen]))
    metrics = {"accuracy": metric_functions.accuracy(truth, predicted), **_shares(truth, predicted)}
    return _score(rows, metrics, _nll(logits, truth), answers, right=predicted == truth)


def _shares(truth: Integer[np.ndarray, " N"], predicted: Integer[np.ndarray, " N"]) -> dict[str, float]:
    """Return the shares of the most frequent class among the labels and among the predictions, to compare an accuracy with."""
    return {"majority_share": metric_functions.largest_share(truth), "predicted_share": metric_functions.largest_share(predicted)}


METRICS: dict[str, Callable[..., Score]] = {"classification": _classes, "tagging": _tags, "span": _answers, "choice": _options}
"""Objective -> function that scores the logits of all rows."""


def _score(
    rows: LabelledRows,
    metrics: dict[str, Any],
    losses: np.ndarray,
    answers: Sequence[tuple[str, ...]],
    *,
    right: np.ndarray,
    counts: Sequence[int] | None = None,
    by_example: bool = False,
) -> Score:
    """Return the score of rows (or of examples, with `by_example`), from a loss and (true, predicted) texts for each.

    `right` is 1 or True for each that is right, NaN for numbers. `counts`: words or windows that each loss is the mean of; every
    one of them has the same weight, as in training.
    """
    order = np.argsort(-losses, kind="stable")[:WORST]
    worst = []
    for number in order.tolist():
        example = rows.examples[number if by_example else rows.rows[number].example]
        text, pair = _texts(example)
        truth, predicted = answers[number]
        worst.append({"text": text, "pair": pair, "truth": truth, "found": predicted, "loss": float(losses[number])})
    numbers = {"loss": float(np.average(losses, weights=counts)), **metrics, "examples": len(losses)}
    examples = [rows.examples[number if by_example else rows.rows[number].example] for number in range(len(losses))]
    outcomes = Outcomes.of((example.origin for example in examples), right, losses)
    return Score(numbers=numbers, mistakes={"labels": [], "confusion": [], "worst": worst}, outcomes=outcomes)


def _texts(example: Example) -> tuple[str, str]:
    """Return the text of an example and its second text, as they are shown."""
    match example:
        case Text():
            return example.text, example.pair or ""
        case Tagged():
            return " ".join(example.words), ""
        case Question():
            return example.question, example.context
        case Choice():
            return example.question, example.article
    raise TypeError(type(example).__name__)


def _nll(logits: Float64[np.ndarray, "*N O"], truth: Integer[np.ndarray, "*N"]) -> Float64[np.ndarray, "*N"]:
    """Return -log of the probability of the truth, in nats."""
    log_p = logits - logits.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, truth[..., None], -1)[..., 0]
