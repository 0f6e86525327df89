"""Unlabelled examples for prediction, from files in the formats of `train.data.labelled_reader` or from texts.

Labels in a file are ignored, so that a labelled file gives the same examples as one without labels. Records are read lazily;
only a .json is read into memory as a whole.
"""

import functools
import itertools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from train.config.data_options import Data
from train.config.option_groups import Columns, ExampleFileOptions, LabelledTexts
from train.data import dataset_formats, labelled_reader, records
from train.data.dataset_formats import get_field
from train.data.example_types import Choice, Example, Question, Tagged, Text
from train.data.labelled_reader import ANY, Task
from train.data.records import TO_UTF8, Record, column_value
from train.data.text_files import check_string, json_type, lines
from zoo.errors import BadInput, require

Lines = Literal["auto", "text", "labelled"]
"""Content of a line of a .txt (classification): "text", or "labelled": a label, a space and a text."""
UNKNOWN = "0"
"""Placeholder for the label of a text, which is to be predicted; valid as a class name and as a number."""
FIRST = 10
"""Number of lines of a .txt that are inspected to detect labels at the beginning of lines."""


class UnlabelledExample(NamedTuple):
    """An example and its id."""

    id: str | int | None
    """The value of the field "id" in its file, else None."""
    example: Example


def read_examples(
    objective: str, paths: Sequence[str], options: ExampleFileOptions, *, line: Lines = "auto", labels: Collection[str] = ()
) -> Iterator[UnlabelledExample]:
    """Yield the examples that some paths name, in order.

    Each line of a .txt is one example: a text for classification, and for tagging a sentence whose words are separated by spaces.

    Args:
        line: content of a line of a .txt; "auto" means "text", but raises an error if the lines begin with `labels`.
        labels: the class names of the model.

    Raises:
        BadInput: a file that cannot be read or holds no examples, a bad line or row (with its number), or lines that appear
            to begin with labels.
    """
    task = _task(objective, line, labels)
    fix = f"not a format of data without labels; choose {', '.join(task.formats)}"
    require(options.format in ("auto", *task.formats), "labelled.format", options.format, fix)
    for path in paths:
        for _, where, source_records in labelled_reader.sources(path, task, Data(), options):
            has_examples = False
            for record in source_records:
                if isinstance(record, BadInput):
                    raise record
                has_examples = True
                yield UnlabelledExample(_id(record), task.example(record, options))
            if not has_examples:
                raise BadInput(f"{where}: holds no examples")


def texts(
    objective: str, inputs: Sequence[str], *, pair: str | None = None, context: str = "", options: Sequence[str] = ()
) -> list[UnlabelledExample]:
    """Return an example for each text: a sentence for tagging, a question for span and choice.

    Args:
        pair: the second text, for classification.
        context: the text that contains the answer (span), or that the question is about (choice).
        options: the possible answers, for choice.
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

    return [UnlabelledExample(None, example(text, f"text {number}")) for number, text in enumerate(inputs, 1)]


def _task(objective: str, line: Lines, labels: Collection[str]) -> Task:
    race, conll = (
        functools.partial(dataset_formats.race, answered=False),
        functools.partial(dataset_formats.conll, min_columns=1),
    )
    texts = functools.partial(_lines, line=line, labels=labels)
    sentences = functools.partial(_lines, line="text", labels=())
    tasks = {
        "classification": Task(
            {".tsv": records.tsv, ".csv": records.comma_separated, ".txt": texts, **ANY}, _text, ("tsv", "csv", "jsonl")
        ),
        "tagging": Task({".conll": conll, ".annotated": conll, ".txt": sentences, **ANY}, _tagged, ("conll", "jsonl")),
        "span": Task({".json": dataset_formats.squad_questions, **ANY}, _question, ("squad", "jsonl")),
        "choice": Task({".json": race, ".txt": race, **ANY}, _choice, ("race", "jsonl")),
    }
    return tasks[objective]


def _lines(file: Path, options: Columns, *, line: Lines, labels: Collection[str]) -> Iterator[Record]:
    """Read the nonblank lines of a text file, without the labels at their beginning where `line` is "labelled"."""
    nonblank = ((number, text.strip()) for number, text in lines(file, options.encoding, TO_UTF8) if text.strip())
    if line == "auto":
        head = list(itertools.islice(nonblank, FIRST))
        if len(head) > 1 and all(_begins(text, labels) for _, text in head):
            raise BadInput(
                f"{file}: each of its first {len(head)} lines begins with a label of the model; choose --line labelled to "
                "remove the labels, or --line text if they are part of the texts"
            )
        nonblank = itertools.chain(head, nonblank)
    for number, text in nonblank:
        text = text.partition(" ")[2] if line == "labelled" else text
        yield Record(f"{file}:{number}", {options.text or "text": text})


def _begins(text: str, labels: Collection[str]) -> bool:
    """Return whether the first word of a text is a label, or a label followed by a colon and a finer label."""
    word = text.partition(" ")[0]
    return word in labels or word.partition(":")[0] in labels


def _id(record: Record) -> str | int | None:
    value = None if record.numbered else record.values.get("id")
    return value if isinstance(value, str | int) else None


def _text(record: Record, options: LabelledTexts) -> Text:
    where = record.where
    text = check_string(column_value(record, options.text, "text", 0, "text"), f"{where}: the text")
    pair = check_string(column_value(record, options.pair, "", 0, "pair"), f"{where}: the second text") if options.pair else None
    return Text(origin=where, text=text, pair=pair, label=UNKNOWN)


def _tagged(record: Record, options: Columns) -> Tagged:
    where = record.where
    usual = "text" if "text" in record.values and "tokens" not in record.values else "tokens"
    words = column_value(record, options.text, usual, 0, "text")
    words = words.split() if isinstance(words, str) else words
    if not isinstance(words, list):
        raise BadInput(f"{where}: the column of words holds {json_type(words)}, not a list; choose another with --labelled.text")
    return _sentence([check_string(word, f"{where}: the column of words") for word in words], where)


def _sentence(words: Sequence[str], where: str) -> Tagged:
    """Return a sentence with the numbers of its words in place of tags."""
    if not words:
        raise BadInput(f"{where}: no words; write some, or remove the sentence")
    return Tagged(origin=where, words=tuple(words), tags=tuple(map(str, range(len(words)))))


def _question(record: Record, options: ExampleFileOptions) -> Question:
    del options
    where, values = record.where, record.values
    question, context = (check_string(get_field(values, key, str, where), f"{where}: {key}") for key in ("question", "context"))
    return Question(origin=where, id=str(values.get("id") or where), question=question, context=context, answers=())


def _choice(record: Record, options: ExampleFileOptions) -> Choice:
    del options
    where, values = record.where, record.values
    article, question = (check_string(get_field(values, key, str, where), f"{where}: {key}") for key in ("article", "question"))
    choices: list[Any] = get_field(values, "options", list, where)
    if len(choices) < 2:
        raise BadInput(f"{where}: {len(choices)} options; write 2 or more for each question")
    named = tuple(check_string(choice, f"{where}: an option") for choice in choices)
    return Choice(origin=where, article=article, question=question, options=named, answer=0)
