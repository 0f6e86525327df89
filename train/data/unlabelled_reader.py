"""Examples without labels, for a model that is to predict them: from files of the formats of `train.data.labelled_reader`, or
from texts.

Labels that a file holds are left out, so that a labelled file gives the same examples as one without labels. Records are read as
they are taken; only a .json is read at once.
"""

import functools
import itertools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from train.config.objective_options import Labelled
from train.config.run_config import Data
from train.data import dataset_formats, labelled_reader, records
from train.data.dataset_formats import get
from train.data.example_types import Choice, Example, Question, Tagged, Text
from train.data.labelled_reader import ANY, Task
from train.data.records import TO_UTF8, Record, column
from train.data.text_files import kind_of, lines, string
from zoo.errors import BadInput, require

Lines = Literal["auto", "text", "labelled"]
"""What a line of a .txt is (classification): a text, or a label, a space and a text."""
UNKNOWN = "0"
"""The label of a text, which is to be predicted: a class of this name, or a number."""
FIRST = 10
"""Lines of a .txt that are looked at to tell whether they begin with labels."""


class Item(NamedTuple):
    """An example, and what identifies it."""

    id: str | int | None
    """What its file has as "id"."""
    example: Example


def read(
    objective: str, paths: Sequence[str], options: Labelled, *, line: Lines = "auto", labels: Collection[str] = ()
) -> Iterator[Item]:
    """Yield the examples that some paths name, in order.

    A .txt holds a text a line: of classification a text, of tagging a sentence whose words stand between spaces.

    Args:
        line: what a line of a .txt is; "auto" is a text, and lines that begin with `labels` are refused.
        labels: those of the model.

    Raises:
        BadInput: a file that cannot be read or holds no examples, a bad line or row (with its number), or lines that seem to
            begin with labels.
    """
    task = _task(objective, line, labels)
    fix = f"it is not read without labels; choose {', '.join(task.formats)}"
    require(options.format in ("auto", *task.formats), "labelled.format", options.format, fix)
    for path in paths:
        for _, where, found in labelled_reader.sources(path, task, Data(), options):
            some = False
            for record in found:
                if isinstance(record, BadInput):
                    raise record
                some = True
                yield Item(_id(record), task.example(record, options))
            if not some:
                raise BadInput(f"{where}: holds no examples")


def texts(
    objective: str, some: Sequence[str], *, pair: str | None = None, context: str = "", options: Sequence[str] = ()
) -> list[Item]:
    """Return the examples of texts: of tagging sentences, of a span and of choices questions.

    Args:
        pair: the second text, of classification.
        context: where the answer is (span), or what the question is about (choice).
        options: what is chosen from.
    """

    def example(text: str, where: str) -> Example:
        match objective:
            case "classification":
                return Text(origin=where, text=text, pair=pair, label=UNKNOWN)
            case "tagging":
                return _sentence(text.split(), where)
            case "span":
                return Question(origin=where, id=where, question=text, context=context, answers=())
            case _:
                return Choice(origin=where, article=context, question=text, options=tuple(options), answer=0)

    return [Item(None, example(text, f"text {number}")) for number, text in enumerate(some, 1)]


def _task(objective: str, line: Lines, labels: Collection[str]) -> Task:
    article, column_of_words = (
        functools.partial(dataset_formats.race, answered=False),
        functools.partial(dataset_formats.conll, least=1),
    )
    texts = functools.partial(_lines, line=line, labels=labels)
    sentences = functools.partial(_lines, line="text", labels=())
    tasks = {
        "classification": Task(
            {".tsv": records.tsv, ".csv": records.comma_separated, ".txt": texts, **ANY}, _text, ("tsv", "csv", "jsonl")
        ),
        "tagging": Task(
            {".conll": column_of_words, ".annotated": column_of_words, ".txt": sentences, **ANY}, _tagged, ("conll", "jsonl")
        ),
        "span": Task({".json": dataset_formats.squad_questions, **ANY}, _question, ("squad", "jsonl")),
        "choice": Task({".json": article, ".txt": article, **ANY}, _choice, ("race", "jsonl")),
    }
    return tasks[objective]


def _lines(file: Path, options: Labelled, *, line: Lines, labels: Collection[str]) -> Iterator[Record]:
    """Lines of text, without blank ones; the label before a text is left out."""
    some = ((number, text.strip()) for number, text in lines(file, options.encoding, TO_UTF8) if text.strip())
    if line == "auto":
        first = list(itertools.islice(some, FIRST))
        if len(first) > 1 and all(_begins(text, labels) for _, text in first):
            raise BadInput(
                f"{file}: each of its first {len(first)} lines begins with a label of the model; choose --line labelled to leave "
                "the labels out, or --line text if they are part of the texts"
            )
        some = itertools.chain(first, some)
    for number, text in some:
        text = text.partition(" ")[2] if line == "labelled" else text
        yield Record(f"{file}:{number}", {options.text or "text": text})


def _begins(text: str, labels: Collection[str]) -> bool:
    """Whether the first word is a label, or one with a finer label behind a colon."""
    word = text.partition(" ")[0]
    return word in labels or word.partition(":")[0] in labels


def _id(record: Record) -> str | int | None:
    value = None if record.numbered else record.values.get("id")
    return value if isinstance(value, str | int) else None


def _text(record: Record, options: Labelled) -> Text:
    where = record.where
    text = string(column(record, options.text, "text", 0, "text"), f"{where}: the text")
    pair = string(column(record, options.pair, "", 0, "pair"), f"{where}: the second text") if options.pair else None
    return Text(origin=where, text=text, pair=pair, label=UNKNOWN)


def _tagged(record: Record, options: Labelled) -> Tagged:
    where = record.where
    usual = "text" if "text" in record.values and "tokens" not in record.values else "tokens"
    words = column(record, options.text, usual, 0, "text")
    words = words.split() if isinstance(words, str) else words
    if not isinstance(words, list):
        raise BadInput(f"{where}: the column of words holds {kind_of(words)}, not a list; choose another with --labelled.text")
    return _sentence([string(word, f"{where}: the column of words") for word in words], where)


def _sentence(words: Sequence[str], where: str) -> Tagged:
    """A sentence whose tags are the numbers of its words."""
    if not words:
        raise BadInput(f"{where}: no words; write some, or leave the sentence out")
    return Tagged(origin=where, words=tuple(words), tags=tuple(map(str, range(len(words)))))


def _question(record: Record, options: Labelled) -> Question:
    del options
    where, values = record.where, record.values
    question, context = (string(get(values, key, str, where), f"{where}: {key}") for key in ("question", "context"))
    return Question(origin=where, id=str(values.get("id") or where), question=question, context=context, answers=())


def _choice(record: Record, options: Labelled) -> Choice:
    del options
    where, values = record.where, record.values
    article, question = (string(get(values, key, str, where), f"{where}: {key}") for key in ("article", "question"))
    choices: list[Any] = get(values, "options", list, where)
    if len(choices) < 2:
        raise BadInput(f"{where}: {len(choices)} options; a question has 2 or more")
    named = tuple(string(choice, f"{where}: an option") for choice in choices)
    return Choice(origin=where, article=article, question=question, options=named, answer=0)
