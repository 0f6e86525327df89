"""Reading times of people, explained by a model's surprisal: how much better a linear regression becomes with it.

Source: the measure of Goodkind and Bicknell 2018, "Predictive power of word surprisal for reading times is a linear function of
language model quality", on data such as de Varda et al. 2024, "Cloze probability, predictability ratings, and computational
estimates for 205 English sentences, aligned with existing EEG and reading time data", which the BabyLM challenges of 2025 and
later use. The columns, and the predictors of the baseline, are choices of this
project.

Format: .csv or .tsv with a header, one word a row, in the order of the text: `item` (its sentence), `word`, `length` (in
characters), `frequency` (logarithm) and a column for each measure of time: those of `TIMES` that are there. A cell without a time
is empty.

A sentence is the beginning of a document; the surprisal of a word is -log p of its tokens, with the space before it, after the
words before it, in nats. The baseline predicts a time from length, frequency and their product, and for self-paced reading also
from those of the word before. An encoder sees the words after a word only in its own way: see --likelihood.

Metrics:
- gain: mean over the measures of the share of the remaining variance, in percent, that the surprisal of the word explains (with
  self-paced reading also that of the word before): 100 (R2 with - R2 without) / (1 - R2 without);
- NAME, for each measure: the same for it.
Details: words and sentences; the method of the likelihoods.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from eval import task_data_files
from eval.inference.batch_loop import Progress
from eval.inference.text_likelihoods import find_method, method_items, text_likelihoods
from eval.tasks.task import Result, Settings, Task, first
from train.weights.load import Loaded
from zoo.errors import BadInput
from zoo.file_access import read_regular

SELF_PACED = "self_paced_reading_time"
TIMES = (SELF_PACED, "RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")
"""Measures of time: self-paced reading, and durations of first fixation, first pass, go-past and right-bounded reading."""
NUMBERS = ("length", "frequency")
PREDICTORS = 5
"""Columns of a regression with surprisal: a constant, length, frequency, their product, and surprisal."""
LARGEST_FILE = 1 << 26


class Word(NamedTuple):
    """A word of a sentence."""

    where: str
    """file:line."""
    sentence: tuple[str, str]
    """File and item."""
    word: str
    length: float
    frequency: float
    times: Mapping[str, float]
    """Time by measure, in milliseconds; those that were not measured are absent."""


def read_words(names: Sequence[str], settings: Settings) -> list[Word]:
    """Read the words of all files.

    Raises:
        BadInput: no such column, a short row, a cell that is no number, or no measure, by file and line; too few words for a
            regression, by the limit if it is the cause.
    """
    words: list[Word] = []
    for file in task_data_files.find_data_files(names, (".csv", ".tsv")):
        text = read_regular(file, LARGEST_FILE).decode("utf-8", "replace")
        rows = csv.DictReader(io.StringIO(text), delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        columns = rows.fieldnames or ()
        absent = [name for name in ("item", "word", *NUMBERS) if name not in columns]
        if absent or not {*TIMES} & {*columns}:
            wrong = f"no column {absent[0]}" if absent else f"none of the columns {', '.join(TIMES)}"
            raise BadInput(f"{file}: {wrong}; its header has {', '.join(columns) or 'nothing'}")
        for row in rows:
            where = f"{file}:{rows.line_num}"
            if None in (row["item"], row["word"]):
                raise BadInput(f"{where}: has fewer cells than the header; correct the line")
            times = {name: _number(row[name], where, name) for name in TIMES if (row.get(name) or "").strip()}
            length, frequency = (_number(row[name], where, name) for name in NUMBERS)
            words.append(Word(where, (str(file), row["item"]), row["word"].strip(), length, frequency, times))
    if not words:
        raise BadInput(f"--files {names[0]}: holds no words after its header; write some")
    if problem := _too_few(words):
        raise BadInput(f"--files {names[0]}: {problem}; name a larger file")
    chosen = first(words, settings.limit)
    if problem := _too_few(chosen):
        raise BadInput(f"--limit {settings.limit}: {problem}; choose more words, or 0 for all")
    return chosen


def score_words(subject: Loaded, words: Sequence[Word], settings: Settings, progress: Progress) -> Result:
    """Compute the surprisal of each word, and what it adds to a regression.

    Raises:
        BadInput: a sentence longer than the model's positions; see also `find_method`.
    """
    method = find_method(subject, settings.likelihood)
    texts, before = [], ""
    for number, word in enumerate(words):
        before = before if number and words[number - 1].sentence == word.sentence else ""
        texts.append((before, f" {word.word}" if before else word.word))
        before += texts[-1][1]
    results = text_likelihoods(
        subject,
        texts,
        method=method,
        orders=settings.orders,
        batch=settings.batch,
        dtype=settings.dtype,
        name=lambda number: words[number].where,
        progress=progress,
    )
    surprisal = np.array([result.nats for result in results])
    gains = {name: explained_gain(words, surprisal, name) for name in _measures(words)}
    details: dict[str, Any] = {"sentences": len({word.sentence for word in words}), "likelihood": method}
    return Result(
        {"gain": float(np.mean([*gains.values()])), **gains}, len(words), details, items=method_items(method, settings.orders)
    )


def explained_gain(words: Sequence[Word], surprisal: np.ndarray, measure: str) -> float:
    """Return the percentage of the remaining variance of a measure that surprisal explains."""
    chosen = _regressed(words, measure)
    places = [chosen, chosen - 1] if measure == SELF_PACED else [chosen]
    table = np.array([[word.length, word.frequency] for word in words], np.float64)
    baseline = [np.ones(len(chosen))]
    for at in places:
        baseline += [table[at, 0], table[at, 1], table[at, 0] * table[at, 1]]
    added = [*baseline, *(surprisal[at] for at in places)]
    times = np.array([words[number].times[measure] for number in chosen])
    rest, with_surprisal = (_residual(np.stack(columns, 1), times) for columns in (baseline, added))
    # The rest of constant times is a rounding error.
    return 100 * (1 - with_surprisal / rest) if rest > 1e-12 * (times**2).sum() else 0.0


def _measures(words: Sequence[Word]) -> list[str]:
    return [name for name in TIMES if any(name in word.times for word in words)]


def _regressed(words: Sequence[Word], measure: str) -> np.ndarray:
    """Return the numbers of the words with a time; of self-paced reading only those after another one of their sentence."""
    numbers = [number for number, word in enumerate(words) if measure in word.times]
    if measure == SELF_PACED:
        numbers = [number for number in numbers if number and words[number - 1].sentence == words[number].sentence]
    return np.array(numbers, np.int64)


def _too_few(words: Sequence[Word]) -> str:
    """Return which measure has no more words than its regression has columns, as text; "" if none has."""
    counts = {name: len(_regressed(words, name)) for name in _measures(words)}
    for name, count in counts.items():
        columns = 2 * PREDICTORS - 1 if name == SELF_PACED else PREDICTORS
        if count <= columns:
            return f"{count} words with {name}, and its regression needs {columns + 1}"
    return "" if counts else f"no word has a time of {', '.join(TIMES)}"


def _residual(columns: np.ndarray, values: np.ndarray) -> float:
    """Return the sum of squares that a least-squares fit leaves."""
    fit = np.linalg.lstsq(columns, values, rcond=None)[0]
    return float(((values - columns @ fit) ** 2).sum())


def _number(text: str | None, where: str, name: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise BadInput(f"{where}: column {name} has {text!r}; write a number")
    return value


TASK = Task(read=read_words, score=score_words, metrics=("gain", *TIMES), options=("limit", "likelihood", "orders"))
