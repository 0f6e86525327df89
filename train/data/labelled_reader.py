"""Labelled examples of a run: from its files and data sets, through the task's formats, to the two halves."""

import bisect
import dataclasses
import itertools
import json
import math
import string as characters
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from train.config.objective_options import Labelled
from train.config.run_config import Data
from train.data import dataset_formats, records
from train.data.dataset_formats import get
from train.data.example_types import Answer, Choice, Example, Pair, Question, Tagged, Text
from train.data.records import Record, column
from train.data.sources import check_file, data_set, inside, kind
from train.data.text_files import kind_of, string
from zoo.errors import BadInput, require

Reader = Callable[[Path, Labelled], Iterator[Record | BadInput]]

ANY: dict[str, Reader] = {".jsonl": records.json_lines, ".parquet": records.parquet}


@dataclasses.dataclass(frozen=True)
class Task:
    """How an objective's examples are written."""

    files: dict[str, Reader]
    """By how a file's name ends; text also with .gz, .xz or .bz2 behind."""
    example: Callable[[Record, Labelled], Example]
    formats: tuple[str, ...]
    """Values of --labelled.format that say how such files are written, whatever their names are."""


def split(
    objective: str, data: Data, options: Labelled, left_out: list[str] | None = None
) -> tuple[list[Example], list[Example]]:
    """(training, held-out) examples. Every file is read and checked here. `left_out` is as in `read`.

    Held out are the examples of `valid_paths`, else about the last `valid_fraction` of those of `paths`; examples of one document
    (the questions about an article) stay together.

    Raises:
        BadInput: no paths, a file that cannot be read or is in both halves, a bad line or row (with its number), or too few
            examples to have two halves.
    """
    if not data.paths:
        raise BadInput(f"--data.paths: there is no embedded data for {objective}; name files: {kinds(objective)}")
    found, keys = read(objective, data.paths, data, options, left_out)
    if not data.valid_paths:
        return halves(found, data.valid_fraction)
    valid, others = read(objective, data.valid_paths, data, options, left_out)
    if both := keys & others:
        raise BadInput(f"--data.valid-paths {min(both)}: it is also in --data.paths; hold out data that is not trained on")
    return found, valid


def read(
    objective: str, paths: tuple[str, ...], data: Data, options: Labelled, left_out: list[str] | None = None
) -> tuple[list[Example], set[str]]:
    """The examples that some paths name, in order, and what tells the files and data sets apart that they are read from.

    Args:
        left_out: takes what is wrong with each example that `options.skip_bad` leaves out.

    Raises:
        BadInput: as `split`, of a file; or a format that the objective does not read.
    """
    task = TASKS[objective]
    fix = f"{objective} does not read it; choose {', '.join(task.formats)}"
    require(options.format in ("auto", *task.formats), "labelled.format", options.format, fix)
    examples, keys, errors = [], set(), [] if left_out is None else left_out
    for path in paths:
        for key, where, found in sources(path, task, data, options):
            before, bad = len(examples), len(errors)
            for record in found:
                try:
                    if isinstance(record, BadInput):
                        raise record
                    examples.append(task.example(record, options))
                except BadInput as error:
                    if not options.skip_bad:
                        raise
                    errors.append(str(error))
            if len(examples) == before:
                malformed = errors[bad:]
                why = (
                    f"no example that can be used; the first of {len(malformed)}: {malformed[0]}" if malformed else "no examples"
                )
                raise BadInput(f"{where}: holds {why}")
            keys.add(key)
    return examples, keys


def kinds(objective: str) -> str:
    """What can be read, in words."""
    return _kinds(TASKS[objective])


def _kinds(task: Task) -> str:
    ends = ", ".join(end for end in task.files if end != ".parquet")
    return f"{ends}, these also as .gz, .xz or .bz2, .parquet, and what `datasets` has written"


def sources(path: str, task: Task, data: Data, options: Labelled) -> Iterator[tuple[str, str, Iterator[Record | BadInput]]]:
    """Yield (key, name, records) of everything that a path names; records are read as they are taken.

    Raises:
        BadInput: as `split`, of a file.
    """

    def reader(file: Path) -> Reader | None:
        return task.files.get(kind(file) if options.format == "auto" else ENDINGS[options.format])

    if found := data_set(path, data):
        fix = f"{found.where} is a data set, and read as such; leave it out"
        require(options.format == "auto", "labelled.format", options.format, fix)
        yield found.key, found.where, records.data_set(found)
        return
    words = _kinds(task)
    fix = f"; rename it, or choose --labelled.format {', '.join(task.formats[:-1])} or {task.formats[-1]}"
    for file in inside(Path(path), reader, words) if Path(path).is_dir() else [Path(path)]:
        yield str(file.resolve()), str(file), check_file(file, reader, words, fix)(file, options)


def halves(examples: list[Any], fraction: float) -> tuple[list[Any], list[Any]]:
    """Examples to train on and to hold out.

    They are cut before the document, by first appearance, that begins nearest to where the held-out examples should.
    """
    documents: dict[Any, list[int]] = {}
    for number, example in enumerate(examples):
        documents.setdefault(example.document or number, []).append(number)
    ends = list(itertools.accumulate(map(len, documents.values())))
    if len(ends) < 2:
        raise BadInput(f"--data.paths: all {len(examples)} examples are of one document; name others in --data.valid-paths")
    wanted = (1 - fraction) * len(examples)
    after = bisect.bisect_left(ends, wanted)
    cut = min((max(after - 1, 0), min(after, len(ends) - 2)), key=lambda number: abs(ends[number] - wanted)) + 1
    groups = list(documents.values())
    return tuple([examples[n] for group in half for n in group] for half in (groups[:cut], groups[cut:]))  # pyright: ignore


# --- Records to examples ---


def _text(record: Record, options: Labelled) -> Text:
    where = record.where
    text = string(column(record, options.text, "text", 0, "text"), f"{where}: the text")
    pair = string(column(record, options.pair, "", 0, "pair"), f"{where}: the second text") if options.pair else None
    if not text.strip() and not (pair or "").strip():
        raise BadInput(f"{where}: the text is empty; write one, remove the example, or leave such out with --labelled.skip-bad")
    value = column(record, options.label, "label", -1, "label")
    label = _number(value, where) if options.regression else _class(value, where)
    if options.coarse:
        label, colon, _ = str(label).partition(":")
        if not colon or not label:
            raise BadInput(f"{where}: label {json.dumps(value)} has no colon; leave out --labelled.coarse")
    return Text(origin=where, text=text, pair=pair, label=label)


def _pair(record: Record, options: Labelled) -> Pair:
    where = record.where
    source = string(column(record, options.text, "source", 0, "text"), f"{where}: the source")
    target = string(column(record, options.label, "target", -1, "label"), f"{where}: the target")
    return pair(where, source, target)


def pair(where: str, source: str, target: str) -> Pair:
    """A pair of texts.

    Raises:
        BadInput: one of them is empty.
    """
    for name, text in (("source", source), ("target", target)):
        if not text.strip():
            raise BadInput(f"{where}: the {name} is empty; write one, or leave the pair out")
    return Pair(origin=where, source=source, target=target)


def _tagged(record: Record, options: Labelled) -> Tagged:
    where = record.where
    found = {
        "words": column(record, options.text, "tokens", 0, "text"),
        "tags": column(record, options.label, "tags", -1, "label"),
    }
    for name, value in found.items():
        if not isinstance(value, list):
            raise BadInput(f"{where}: the column of {name} holds {kind_of(value)}, not a list; choose another, or write .conll")
    words = tuple(string(word, f"{where}: the column of words") for word in found["words"])
    tags = tuple(_class(tag, where) for tag in found["tags"])
    if len(words) != len(tags) or not words:
        raise BadInput(f"{where}: {len(words)} words and {len(tags)} tags; every word has one, and a sentence has words")
    return Tagged(origin=where, words=words, tags=tags)


def _question(record: Record, options: Labelled) -> Question:
    del options
    where, values = record.where, record.values
    answers = get(values, "answers", dict, where)
    texts, starts = get(answers, "text", list, where), get(answers, "answer_start", list, where)
    if len(texts) != len(starts):
        raise BadInput(f"{where}: {len(texts)} answers with {len(starts)} beginnings; each has one")
    context = string(get(values, "context", str, where), f"{where}: the context")
    for text, start in zip(texts, starts, strict=True):
        if not string(text, f"{where}: an answer").strip():
            raise BadInput(f"{where}: an answer without characters; a question without an answer has an empty list of them")
        if not isinstance(start, int) or start < 0 or context[start : start + len(text)] != text:
            raise BadInput(
                f"{where}: the answer {json.dumps(text[:80])} is not at character {start} of the context of {len(context)}; "
                "mend the answer or its beginning"
            )
    return Question(
        origin=where,
        document=string(values.get("title") or context, f"{where}: the title"),
        id=str(values.get("id") or where),
        question=string(get(values, "question", str, where), f"{where}: the question"),
        context=context,
        answers=tuple(map(Answer, texts, starts)),
    )


def _choice(record: Record, options: Labelled) -> Choice:
    del options
    where, values = record.where, record.values
    article, question, letter = (
        string(get(values, key, str, where), f"{where}: {key}") for key in ("article", "question", "answer")
    )
    choices = tuple(string(choice, f"{where}: an option") for choice in get(values, "options", list, where))
    letters = characters.ascii_uppercase[: len(choices)]
    if len(choices) < 2 or len(letter) != 1 or letter not in letters:
        raise BadInput(f"{where}: the answer {json.dumps(letter)} to {len(choices)} options; the first of 2 or more options is A")
    return Choice(
        origin=where, document=article, article=article, question=question, options=choices, answer=letters.index(letter)
    )


def _class(value: Any, where: str) -> str:
    """A label as its name: a string, a whole number or a truth value."""
    name = json.dumps(value) if isinstance(value, int) else value
    if not isinstance(name, str) or not name.strip():
        said = "an empty string" if isinstance(name, str) else kind_of(value)
        raise BadInput(f"{where}: the label is {said}; write a name or a whole number (other numbers: --labelled.regression)")
    return string(name, f"{where}: the label")


def _number(value: Any, where: str) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"{where}: the label {json.dumps(value)} is no finite number; mend it, or leave out --labelled.regression")
    return number


TASKS = {
    "classification": Task(
        {".tsv": records.tsv, ".csv": records.comma_separated, ".txt": dataset_formats.trec, **ANY},
        _text,
        ("tsv", "csv", "jsonl", "label_first"),
    ),
    "tagging": Task({".conll": dataset_formats.conll, ".annotated": dataset_formats.conll, **ANY}, _tagged, ("conll", "jsonl")),
    "span": Task({".json": dataset_formats.squad, **ANY}, _question, ("squad", "jsonl")),
    "text_to_text": Task({".tsv": records.tsv, ".csv": records.comma_separated, **ANY}, _pair, ("tsv", "csv", "jsonl")),
    "choice": Task({".json": dataset_formats.race, ".txt": dataset_formats.race, **ANY}, _choice, ("race", "jsonl")),
}
"""By objective."""

ENDINGS = {
    "tsv": ".tsv",
    "csv": ".csv",
    "jsonl": ".jsonl",
    "conll": ".conll",
    "label_first": ".txt",
    "squad": ".json",
    "race": ".json",
}
"""Value of --labelled.format -> how the name of such a file ends."""
