"""Metrics of a fine-tuned model's predictions against the truth, from arrays on the host.

Every metric takes the truth first and the predictions second, and returns a float. If its definition divides by zero, it is 0,
the value of a model that has learned nothing; its docstring says when. Empty arrays, different lengths and non-finite numbers
raise ValueError.
"""

import difflib
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Integer, Real

from eval.prediction.span_decoding import entities
from zoo.errors import BadInput

Classes = Integer[np.ndarray, " N"]
Values = Real[np.ndarray, " N"]


def accuracy(truth: Classes, predicted: Classes) -> float:
    """Return the share of examples whose class was predicted."""
    _check(truth, predicted)
    return float((truth == predicted).mean())


def largest_share(classes: Classes) -> float:
    """Return the share of the most frequent class; of the truth, it is the accuracy of always predicting that class."""
    _, counts = np.unique(classes, return_counts=True)
    return float(counts.max() / counts.sum())


def confusion(truth: Classes, predicted: Classes, classes: int) -> Int64[np.ndarray, "C C"]:
    """Return the number of examples of each true class (rows) and predicted class (columns), both from 0 to `classes` - 1.

    Raises:
        ValueError: a class outside 0 to `classes` - 1.
    """
    for numbers in (truth, predicted):
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < classes:
            raise ValueError(f"classes are 0 to {classes - 1}, and there are {numbers.min()} to {numbers.max()}")
    table = np.bincount(truth.astype(np.int64) * classes + predicted, minlength=classes * classes)
    return table.astype(np.int64).reshape(classes, classes)


def f1(truth: Classes, predicted: Classes, positive: int = 1) -> float:
    """Return the F1 of one class: 2 tp / (2 tp + fp + fn), the harmonic mean of its precision and recall.

    Source: van Rijsbergen 1979, chapter 7. 0 where the class is neither in the truth nor predicted.
    """
    _check(truth, predicted)
    is_true, is_predicted = truth == positive, predicted == positive
    return _share(2 * int((is_true & is_predicted).sum()), int(is_true.sum()) + int(is_predicted.sum()))


def f1_macro(truth: Classes, predicted: Classes) -> float:
    """Return the mean of the F1 of every class that is in the truth or was predicted, with equal weights.

    It is the "averaged F1" of Opitz and Burst 2019, "Macro F1 and Macro F1".
    """
    _check(truth, predicted)
    return float(np.mean([f1(truth, predicted, int(number)) for number in np.union1d(truth, predicted)]))


def multi_label(truth: Integer[np.ndarray, "N L"], predicted: Integer[np.ndarray, "N L"]) -> dict[str, float]:
    """Return the metrics of examples that may have several labels, 1 for those they have, else 0; they equal scikit-learn's.

    `f1_micro` is the F1 of all labels of all examples together; `f1_macro` the mean of the F1 of every label, 0 for a label that
    is neither in the truth nor predicted; `subset_accuracy` the share of examples whose labels are all right.
    """
    _check(truth, predicted)
    return {
        "f1_micro": f1(truth.ravel(), predicted.ravel()),
        "f1_macro": float(np.mean([f1(*pair) for pair in zip(truth.T, predicted.T, strict=True)])),
        "subset_accuracy": float((truth == predicted).all(-1).mean()),
    }


def matthews(truth: Classes, predicted: Classes) -> float:
    """Return the Matthews correlation of classes, -1 to 1: Matthews 1975 for two, Gorodkin 2004 (R_K) for more.

    It is the correlation of the one-hot matrices of both. 0 where the truth or the predictions are a single class.
    """
    _check(truth, predicted)
    names, numbers = np.unique(np.concatenate([truth, predicted]), return_inverse=True)
    table = confusion(numbers[: len(truth)], numbers[len(truth) :], len(names))
    # Python's integers: products of counts exceed 2**63 at a few billion examples.
    count, right = int(table.sum()), int(table.trace())
    true_counts, predicted_counts = table.sum(1).tolist(), table.sum(0).tolist()
    covariance = count * right - sum(a * b for a, b in zip(true_counts, predicted_counts, strict=True))
    variances = (count**2 - sum(a * a for a in true_counts)) * (count**2 - sum(b * b for b in predicted_counts))
    return covariance / variances**0.5 if variances else 0.0


def pearson(truth: Values, predicted: Values) -> float:
    """Return the linear correlation of two series, -1 to 1 (Pearson 1895); 0 where one of them is constant."""
    # Imported here, because the import takes a second.
    from scipy import stats

    _check(truth, predicted)
    # Constant series are found by comparison: the mean of equal numbers is rounded, so differences from it may not be 0.
    if truth.min() == truth.max() or predicted.min() == predicted.max():
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        result: Any = stats.pearsonr(truth.astype(np.float64), predicted.astype(np.float64))
    return float(result.statistic)


def spearman(truth: Values, predicted: Values) -> float:
    """Return Pearson's correlation of the ranks, where ties have their average rank (Spearman 1904); 0 for a constant series."""
    from scipy import stats

    _check(truth, predicted)
    return pearson(stats.rankdata(truth), stats.rankdata(predicted))


def mean_squared_error(truth: Values, predicted: Values) -> float:
    """Return the mean square of the differences, in the truth's unit squared."""
    _check(truth, predicted)
    return float(((truth.astype(np.float64) - predicted) ** 2).mean())


class Agreement(NamedTuple):
    """Precision, recall and their harmonic mean, each 0 to 1; 0 where it would divide by zero."""

    precision: float
    recall: float
    f1: float


def entity_f1(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Agreement:
    """Return the agreement on the entities of all sentences (micro average); type, first and last word must be the same.

    Source: Tjong Kim Sang and De Meulder 2003, "Introduction to the CoNLL-2003 Shared Task". The results equal those of
    `conlleval`, and of `seqeval` with its defaults. All are 0 where neither the truth nor the prediction has an entity.

    Args:
        truth: the tags of each sentence, see `entities`.
        predicted: the same number of tags for each sentence.

    Raises:
        BadInput: a tag that is not IOB.
        ValueError: no sentences, or a sentence with another number of tags in `predicted`.
    """
    if not truth:
        raise ValueError("no sentences")
    num_both = num_true = num_predicted = 0
    for number, (true_tags, tags) in enumerate(zip(truth, predicted, strict=True)):
        if len(true_tags) != len(tags):
            raise ValueError(f"sentence {number}: {len(true_tags)} tags, and {len(tags)} predicted")
        a, b = set(entities(true_tags)), set(entities(tags))
        num_both, num_true, num_predicted = num_both + len(a & b), num_true + len(a), num_predicted + len(b)
    return Agreement(_share(num_both, num_predicted), _share(num_both, num_true), _share(2 * num_both, num_true + num_predicted))


MEASURES: dict[str, Callable[..., float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "mean_squared_error": mean_squared_error,
}
"""Name in a score -> function of (truth [N], predicted [N])."""

GLUE: dict[str, tuple[str, ...]] = {
    "cola": ("matthews",),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}
"""Task -> its metrics: Wang et al. 2019, "GLUE: A Multi-Task Benchmark and Analysis Platform", table 1."""


def glue(task: str) -> tuple[str, ...]:
    """Return the names of the metrics of a GLUE task.

    Raises:
        BadInput: there is no such task; the nearest is named.
    """
    _refuse_unknown(task, GLUE, "task of GLUE")
    return GLUE[task]


def score_predictions(names: Sequence[str], truth: Values, predicted: Values) -> dict[str, float]:
    """Return the values of some of `MEASURES`, by name.

    Args:
        truth: classes (integers), or values for `pearson`, `spearman` and `mean_squared_error`.

    Raises:
        BadInput: there is no such measure; the nearest is named.
    """
    for name in names:
        _refuse_unknown(name, MEASURES, "measure")
    return {name: MEASURES[name](truth, predicted) for name in names}


def _check(truth: np.ndarray, predicted: np.ndarray) -> None:
    if truth.shape != predicted.shape or not truth.size:
        raise ValueError(f"{truth.size} true values, {predicted.size} predicted; both must have the same size, at least 1")
    if not (np.isfinite(truth).all() and np.isfinite(predicted).all()):
        raise ValueError("a value is not finite")


def _share(part: int, total: int) -> float:
    return part / total if total else 0.0


def _refuse_unknown(name: str, names: Collection[str], kind: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise BadInput(f"{name}: no {kind} has this name; the nearest is {near} (all: {', '.join(names)})")
