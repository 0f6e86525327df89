"""Unlabelled examples for prediction, from files in the formats of `train.data.labelled_reader` or from texts.

Labels in a file are ignored, so that a labelled file gives the same examples as one without labels. Records are read lazily;
only a .json is read into memory as a whole.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from train.config.data_options import Data
from train.config.option_groups import Columns, ExampleFileOptions, LabelledTexts
from train.data import dataset_formats, labelled_reader, records
from train.data.dataset_formats import get_field
from train.data.example_types import Choice, Example, Question, Tagged, Text
from train.data.labelled_reader import ANY, Task
from train.data.records import TO_UTF8, BadRecord, Record, column_value
from train.data.sources import file_kind
from train.data.text_files import STDIN, check_string, json_type, lines_or_errors
from zoo.errors import BadInput, require

Lines = Literal["auto", "text", "labelled"]
"""Content of a line of a .txt (classification): "text", or "labelled": a label, a space and a text."""
UNKNOWN = "0"
"""Placeholder for the label of a text, which is to be predicted; valid as a class name and as a number."""
FIRST = 10
"""Number of lines of a .txt that are inspected to detect labels at the beginning of lines, or JSON."""
OF_STREAMS = {"classification": ".txt", "tagging": ".txt", "span": ".jsonl", "choice": ".jsonl"}
"""Suffix of the format of standard input, and of a pipe whose name has no suffix, unless --labelled.format names one."""


class UnlabelledExample(NamedTuple):
    """An example, its id and its place."""

    id: str | int | None
    """The value of the field "id" in its file, else None."""
    example: Example | BadInput
    """The error of an example that is malformed, if these are not raised."""
    line: int | None = None
    """See `train.data.records.Record.line`."""
    file: str | None = None
    """The file, if several are read."""


@dataclasses.dataclass
class ReadCounts:
    """Counts of what `read_unlabelled_examples` has read so far."""

    blank: int = 0
    """Blank lines, which are no examples. Those between the sentences of a .conll are not counted."""


def read_unlabelled_examples(
    objective: str,
    paths: Sequence[str],
    options: ExampleFileOptions,
    *,
    line: Lines = "auto",
    labels: Collection[str] = (),
    skip_bad: bool = False,
    counts: ReadCounts | None = None,
) -> Iterator[UnlabelledExample]:
    """Yield the examples that some paths name, in order; "-" is standard input, which like a pipe is read once, as it comes.

    Each line of a .txt is one example: a text for classification, and for tagging a sentence whose words are separated by spaces.

    Args:
        line: content of a line of a .txt; "auto" means "text", but raises an error if the lines begin with `labels`, or are JSON.
        labels: the class names of the model.
        skip_bad: yield the error of a malformed example in its place; otherwise it is raised.
        counts: is updated while examples are read.

    Raises:
        BadInput: a file that cannot be read or holds no examples, a bad line or row (with its number), or lines that appear
            to begin with labels or to be JSON.
    """
    task = _task(objective, line, labels, ReadCounts() if counts is None else counts)
    fix = f"not a format of data without labels; choose {', '.join(task.formats)}"
    require(options.format in ("auto", *task.formats), "labelled.format", options.format, fix)
    several = are_several(paths)
    for path in paths:
        for where, source_records in _sources(objective, path, task, options):
            has_examples, file = False, where if several else None
            for record in source_records:
                has_examples = True
                try:
                    if isinstance(record, BadInput):
                        raise record
                    yield UnlabelledExample(_id(record), task.example(record, options), record.line, file)
                except BadInput as error:
                    if not skip_bad:
                        raise
                    item_id = None if isinstance(record, BadInput) else _id(record)
                    place = record.line if isinstance(record, Record | BadRecord) else None
                    yield UnlabelledExample(item_id, error, place, file)
            if not has_examples:
                raise BadInput(f"{where}: holds no examples")


def are_several(paths: Sequence[str]) -> bool:
    """Return whether paths may name more than one file."""
    return len(paths) > 1 or any(Path(path).is_dir() for path in paths)


def is_stream(path: str) -> bool:
    """Return whether a path is standard input or a pipe, which can be read once only."""
    return path == "-" or Path(path).is_fifo() or Path(path).is_char_device()


def _sources(
    objective: str, path: str, task: Task, options: ExampleFileOptions
) -> Iterator[tuple[str, Iterator[Record | BadInput]]]:
    """Yield (name, records) of every file or data set that a path names."""
    if not is_stream(path):
        yield from ((where, records) for _, where, records in labelled_reader.sources(path, task, Data(), options))
        return
    file = STDIN if path == "-" else Path(path)
    by_name = file_kind(file) if file_kind(file) in task.files else OF_STREAMS[objective]
    ending = by_name if options.format == "auto" else labelled_reader.ENDINGS[options.format]
    yield str(file), task.files[ending](file, options)


def examples_of_texts(
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


def _task(objective: str, line: Lines, labels: Collection[str], counts: ReadCounts) -> Task:
    def on_blank() -> None:
        counts.blank += 1

    race, conll = (
        functools.partial(dataset_formats.read_race, answered=False),
        functools.partial(dataset_formats.read_conll, min_columns=1),
    )
    texts = functools.partial(_lines, line=line, labels=labels, on_blank=on_blank)
    sentences = functools.partial(_lines, line="text" if line == "labelled" else line, labels=(), on_blank=on_blank)
    tsv, comma_separated, json_lines = (
        functools.partial(read, on_blank=on_blank)
        for read in (records.read_tsv, records.comma_separated, records.read_json_records)
    )
    either = {**ANY, ".jsonl": json_lines}
    tasks = {
        "classification": Task({".tsv": tsv, ".csv": comma_separated, ".txt": texts, **either}, _text, ("tsv", "csv", "jsonl")),
        "tagging": Task({".conll": conll, ".annotated": conll, ".txt": sentences, **either}, _tagged, ("conll", "jsonl")),
        "span": Task({".json": dataset_formats.squad_without_answers, **either}, _question, ("squad", "jsonl")),
        "choice": Task({".json": race, ".txt": race, **either}, _choice, ("race", "jsonl")),
    }
    return tasks[objective]


def _lines(
    file: Path, options: Columns, *, line: Lines, labels: Collection[str], on_blank: Callable[[], None]
) -> Iterator[Record | BadRecord]:
    """Read the nonblank lines of a text file, without the labels at their beginning where `line` is "labelled"."""

    def read_nonblank() -> Iterator[tuple[int, str | BadInput]]:
        for number, text in lines_or_errors(file, options.encoding, TO_UTF8):
            text = text if isinstance(text, BadInput) else text.strip()
            if text:
                yield number, text
            else:
                on_blank()

    nonblank = read_nonblank()
    if line == "auto":
        head = list(itertools.islice(nonblank, FIRST))
        _check_texts(file, [text for _, text in head if isinstance(text, str)], labels)
        nonblank = itertools.chain(head, nonblank)
    for number, text in nonblank:
        if isinstance(text, BadInput):
            yield BadRecord(str(text), number)
            continue
        text = text.partition(" ")[2] if line == "labelled" else text
        yield Record(f"{file}:{number}", {options.text or "text": text}, line=number)


def _check_texts(file: Path, head: Sequence[str], labels: Collection[str]) -> None:
    """Refuse a text file whose first lines are probably labels and texts, or objects of JSON."""
    if len(head) > 1 and all(_begins(text, labels) for text in head):
        raise BadInput(
            f"{file}: each of its first {len(head)} lines begins with a label of the model; choose --line labelled to "
            "remove the labels, or --line text if they are part of the texts"
        )
    if head and all(map(_is_object, head)):
        raise BadInput(
            f"{file}: its first line is a JSON object; choose --labelled.format jsonl to read its fields, or --line text to read "
            "it as a text"
        )


def _is_object(text: str) -> bool:
    try:
        return text.startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


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
