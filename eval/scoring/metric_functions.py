"""What the answers of a fine-tuned model are worth: agreement with the truth, from arrays on the host.

Every measure takes the truth first and what was found second, and gives a float. Where its definition divides by zero it is 0,
what a model gets that has learned nothing; each says when. Nothing to measure, series of two lengths and numbers that are not
finite are mistakes of the caller: ValueError.
"""

import difflib
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Integer, Real

from train.data.example_types import IOB_TAG
from zoo.errors import BadInput

Classes = Integer[np.ndarray, " N"]
Values = Real[np.ndarray, " N"]


def accuracy(truth: Classes, found: Classes) -> float:
    """Share of examples whose class was found."""
    _check(truth, found)
    return float((truth == found).mean())


def largest_share(classes: Classes) -> float:
    """Share that the most frequent class has: of the truth, the accuracy of always predicting it."""
    _, counts = np.unique(classes, return_counts=True)
    return float(counts.max() / counts.sum())


def confusion(truth: Classes, found: Classes, classes: int) -> Int64[np.ndarray, "C C"]:
    """How many examples of each true class (rows) were given each class (columns), of `classes` classes numbered from 0.

    Raises:
        ValueError: a class outside 0 to `classes` - 1.
    """
    for numbers in (truth, found):
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < classes:
            raise ValueError(f"classes are 0 to {classes - 1}, and there are {numbers.min()} to {numbers.max()}")
    table = np.bincount(truth.astype(np.int64) * classes + found, minlength=classes * classes)
    return table.astype(np.int64).reshape(classes, classes)


def f1(truth: Classes, found: Classes, positive: int = 1) -> float:
    """F1 of one class: 2 tp / (2 tp + fp + fn), the harmonic mean of its precision and recall (van Rijsbergen 1979, chapter 7).

    0 where the class is neither in the truth nor found.
    """
    _check(truth, found)
    true, told = truth == positive, found == positive
    return _share(2 * int((true & told).sum()), int(true.sum()) + int(told.sum()))


def f1_macro(truth: Classes, found: Classes) -> float:
    """Mean of the F1 of every class that is in the truth or was found, each weighing the same.

    The "averaged F1" of Opitz and Burst 2019, "Macro F1 and Macro F1".
    """
    _check(truth, found)
    return float(np.mean([f1(truth, found, int(each)) for each in np.union1d(truth, found)]))


def matthews(truth: Classes, found: Classes) -> float:
    """Matthews correlation of classes, -1 to 1: of two by Matthews 1975, of more by Gorodkin 2004 (R_K).

    It is the correlation of the one-hot matrices of both. 0 where the truth or what was found is a single class.
    """
    _check(truth, found)
    names, numbers = np.unique(np.concatenate([truth, found]), return_inverse=True)
    table = confusion(numbers[: len(truth)], numbers[len(truth) :], len(names))
    # Python's integers: products of counts pass 2**63 at some thousand million examples.
    count, right = int(table.sum()), int(table.trace())
    true, told = table.sum(1).tolist(), table.sum(0).tolist()
    both = count * right - sum(a * b for a, b in zip(true, told, strict=True))
    spread = (count**2 - sum(a * a for a in true)) * (count**2 - sum(b * b for b in told))
    return both / spread**0.5 if spread else 0.0


def pearson(truth: Values, found: Values) -> float:
    """Linear correlation of two series, -1 to 1 (Pearson 1895). 0 where one of them is constant."""
    _check(truth, found)
    # The product of two unit vectors, which rounding may take beyond 1.
    return float(np.clip(_unit(truth) @ _unit(found), -1, 1))


def spearman(truth: Values, found: Values) -> float:
    """Pearson's correlation of the ranks, ties having the average of theirs (Spearman 1904). 0 where one series is constant."""
    _check(truth, found)
    return pearson(ranks(truth), ranks(found))


def ranks(values: Values) -> Float64[np.ndarray, " N"]:
    """Rank of each value, the smallest being 1; equal values have the average of the ranks they take up together."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]


def mean_squared_error(truth: Values, found: Values) -> float:
    """Mean square of the differences, in the truth's unit squared."""
    _check(truth, found)
    return float(((truth.astype(np.float64) - found) ** 2).mean())


class Entity(NamedTuple):
    """A stretch of words of a type."""

    type: str
    first: int
    end: int
    """One past its last word."""


class Agreement(NamedTuple):
    """Precision, recall and their harmonic mean, each 0 to 1; 0 where it would divide by zero."""

    precision: float
    recall: float
    f1: float


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence, from a tag a word: O, B-TYPE, I-TYPE (B and I alone where there is one type).

    B begins an entity, I continues one of its type, and an I that has nothing to continue begins one: so both IOB2 and the older
    IOB1 are read, and a model's slips are forgiven as by `conlleval`, the evaluation of the shared tasks
    of CoNLL.

    Raises:
        BadInput: another tag.
    """
    found: list[Entity] = []
    open_type, first = None, 0
    for place, tag in enumerate([*tags, "O"]):
        if (match := IOB_TAG.fullmatch(tag)) is None:
            raise BadInput(f"tag {tag!r}: not IOB; write O, B-TYPE or I-TYPE")
        begins, kind = match[1], match[2] or ""
        if open_type is not None and (begins != "I" or kind != open_type):
            found.append(Entity(open_type, first, place))
            open_type = None
        if begins and open_type is None:
            open_type, first = kind, place
    return found


def entity_f1(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> Agreement:
    """Agreement on the entities of all sentences (micro average). One counts where type, first and last word are the same.

    Tjong Kim Sang and De Meulder 2003, "Introduction to the CoNLL-2003 Shared Task"; the numbers of `conlleval`, and of `seqeval`
    as it is called by default. All 0 where neither the truth nor what was found has an entity.

    Args:
        truth: the tags of each sentence, see `entities`.
        found: as many for each word.

    Raises:
        BadInput: a tag that is not IOB.
        ValueError: no sentence, or one with another number of tags in `found`.
    """
    if not truth:
        raise ValueError("no sentences")
    both = true = told = 0
    for number, (right, ours) in enumerate(zip(truth, found, strict=True)):
        if len(right) != len(ours):
            raise ValueError(f"sentence {number}: {len(right)} tags, and {len(ours)} found")
        a, b = set(entities(right)), set(entities(ours))
        both, true, told = both + len(a & b), true + len(a), told + len(b)
    return Agreement(_share(both, told), _share(both, true), _share(2 * both, true + told))


MEASURES: dict[str, Callable[..., float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "mean_squared_error": mean_squared_error,
}
"""Those of (truth [N], found [N]), by the names they have in a score."""

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
"""Task -> what it is judged by: Wang et al. 2019, "GLUE: A Multi-Task Benchmark and Analysis Platform", table 1."""


def glue(task: str) -> tuple[str, ...]:
    """The measures of a task of GLUE.

    Raises:
        BadInput: there is no such task; the nearest is named.
    """
    _refuse_unknown(task, GLUE, "task of GLUE")
    return GLUE[task]


def score(names: Sequence[str], truth: Values, found: Values) -> dict[str, float]:
    """Some of `MEASURES`, by name.

    Args:
        truth: classes (integers), or values for `pearson`, `spearman` and `mean_squared_error`.

    Raises:
        BadInput: there is no such measure; the nearest is named.
    """
    for name in names:
        _refuse_unknown(name, MEASURES, "measure")
    return {name: MEASURES[name](truth, found) for name in names}


def _check(truth: np.ndarray, found: np.ndarray) -> None:
    if truth.shape != found.shape or not truth.size:
        raise ValueError(f"{truth.size} true values, {found.size} found; as many of both are needed, and one at least")
    if not (np.isfinite(truth).all() and np.isfinite(found).all()):
        raise ValueError("a value is not finite")


def _unit(values: Values) -> Float64[np.ndarray, " N"]:
    """Values less their mean, as a vector of length 1; zeros where they are all the same."""
    # Compared, not subtracted: the mean of equal numbers is rounded, and their differences to it would be taken for values.
    if values.min() == values.max():
        return np.zeros(len(values))
    centred = values - values.mean(dtype=np.float64)
    # Scaled to 1 first, so that no square overflows or vanishes.
    centred = centred / np.abs(centred).max()
    return centred / np.linalg.norm(centred)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _refuse_unknown(name: str, known: Collection[str], what: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise BadInput(f"{name}: no {what} is called so; the nearest is {near} (all: {', '.join(known)})")
