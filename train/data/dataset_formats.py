"""Readers of formats that belong to one task: TREC's questions, CoNLL's columns, RACE's articles, SQuAD's paragraphs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.config.option_groups import ExampleFileOptions
from train.data.records import TO_UTF8, BadRecord, Record, numbered_record
from train.data.text_files import decoded_lines, json_type, parse_json_line, read_whole
from zoo.errors import BadInput

DOCUMENT = "-DOCSTART-"


def read_trec(file: Path, options: ExampleFileOptions) -> Iterator[Record | BadInput]:
    """Read lines of the form `LABEL text` (Li and Roth 2002); the label ends at the first space or tab."""
    for line, text in decoded_lines(file, options.encoding, TO_UTF8):
        if not text.strip():
            continue
        label, *question = re.split(r"[ \t]", text.strip(), maxsplit=1)
        if question:
            yield Record(f"{file}:{line}", {"label": label, "text": question[0]})
        else:
            yield BadInput(f"{file}:{line}: a single word; write the label, a space and the text")


def read_conll(file: Path, options: ExampleFileOptions, *, min_columns: int = 2) -> Iterator[Record | BadInput]:
    """Read sentences with one word per line and an empty line between them; a record is a sentence, a column a list of strings.

    Columns are separated by tabs, or by spaces in a line without a tab. A line that begins with -DOCSTART- is not a word, as in
    CoNLL 2003 (Tjong Kim Sang and De Meulder 2003). A sentence with a malformed line is malformed.
    `min_columns` is 1 where tags are not needed.
    """
    rows: list[list[str]] = []
    first, columns, malformed = 0, 0, False
    for line, text in decoded_lines(file, options.encoding, TO_UTF8):
        text = text.rstrip("\r\n")
        cells = text.split("\t") if "\t" in text else [cell for cell in text.split(" ") if cell]
        if not text.strip() or cells[0] == DOCUMENT:
            if rows:
                yield numbered_record(f"{file}:{first}", map(list, zip(*rows, strict=True)), first)
            rows, malformed = [], False
            continue
        if malformed:
            continue
        if len(cells) < min_columns or len(cells) != (columns or len(cells)) or not all(cells):
            filled, expected = sum(map(bool, cells)), columns or max(len(cells), min_columns)
            fix = "write a word, a tab and its tag, as in the other lines"
            message = f"{file}:{line}: {filled} columns, not {expected}{'' if columns else ' or more'}; {fix}"
            yield BadRecord(message, first if rows else line)
            rows, malformed = [], True
            continue
        columns = len(cells)
        first = first if rows else line
        rows.append(cells)
    if rows:
        yield numbered_record(f"{file}:{first}", map(list, zip(*rows, strict=True)), first)


def read_race(file: Path, options: ExampleFileOptions, *, answered: bool = True) -> Iterator[Record]:
    """Read the questions of an article (Lai et al. 2017): one object with "article", "questions", "options" and "answers".

    Unless `answered`, the answers are neither required nor read.
    """
    content = parse_json_line(read_whole(file, options.encoding, TO_UTF8), str(file), "write one object")
    names = ("questions", "options", "answers") if answered else ("questions", "options")
    columns = {name: get_field(content, name, list, str(file)) for name in names}
    counts = {name: len(values) for name, values in columns.items()}
    if len(set(counts.values())) > 1:
        sizes = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise BadInput(f"{file}: {sizes}; write one list of options and one answer for each question")
    article = get_field(content, "article", str, str(file))
    for number, values in enumerate(zip(*columns.values(), strict=True), 1):
        record_values = dict(zip(("question", "options", "answer"), values, strict=False))
        yield Record(f"{file}: question {number}", {"article": article, **record_values})


def read_squad(file: Path, options: ExampleFileOptions) -> Iterator[Record]:
    """Read the questions of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018): articles of paragraphs of questions."""
    return (_answered(record, question) for record, question in _squad(file, options))


def squad_without_answers(file: Path, options: ExampleFileOptions) -> Iterator[Record]:
    """Read the questions of SQuAD without their answers, which need not be in the file."""
    return (record for record, _ in _squad(file, options))


def _squad(file: Path, options: ExampleFileOptions) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Yield (record with id, question, title and context; the JSON object of the question)."""
    content = parse_json_line(read_whole(file, options.encoding, TO_UTF8), str(file), "copy it again")
    for article_index, article in enumerate(get_field(content, "data", list, str(file))):
        article_where = f"{file}: data[{article_index}]"
        # An article without a title is also a document.
        title = (
            get_field(article, "title", str, article_where) if isinstance(article, dict) and "title" in article else article_where
        )
        for paragraph_index, paragraph in enumerate(get_field(article, "paragraphs", list, article_where)):
            where = f"{article_where}.paragraphs[{paragraph_index}]"
            context = get_field(paragraph, "context", str, where)
            for index, question in enumerate(get_field(paragraph, "qas", list, where)):
                name = get_field(question, "id", str, f"{where}.qas[{index}]")
                text = get_field(question, "question", str, f"{file}: question {name}")
                values = {"id": name, "question": text, "title": title, "context": context}
                yield Record(f"{file}: question {name}", values), question


def _answered(record: Record, question: dict[str, Any]) -> Record:
    """Return a record with the answers of its question: {"text": [...], "answer_start": [...]}, two lists of one length.

    Both are empty for an impossible question of SQuAD 2.0.

    Raises:
        BadInput: "is_impossible" (SQuAD 2.0) says the opposite of "answers".
    """
    where, impossible = record.where, question.get("is_impossible")
    answers = get_field(question, "answers", list, where) if impossible is None or "answers" in question else []
    if impossible is not None and bool(impossible) == bool(answers):
        contradiction = "is impossible, and has answers" if answers else "is not impossible, but has no answer"
        raise BadInput(f'{where} {contradiction}; fix "is_impossible" or "answers"')
    texts = [get_field(answer, "text", str, where) for answer in answers]
    starts = [get_field(answer, "answer_start", int, where) for answer in answers]
    return Record(where, {**record.values, "answers": {"text": texts, "answer_start": starts}})


def get_field(value: Any, name: str, kind: type, where: str) -> Any:
    """Return the field `name` of a JSON object, checked to be of a type.

    Args:
        value: the object, as `json.loads` returns it; anything else is refused.
        kind: dict, list, str or int; a boolean does not count as an int.
        where: position of the object, with which error messages begin.

    Raises:
        BadInput: `value` is not an object, or has no such field, or the field is not of type `kind`.
    """
    if not isinstance(value, dict):
        raise BadInput(f"{where}: {json_type(value)}; write an object with {json.dumps(name)}")
    if name not in value:
        raise BadInput(f"{where}: no {json.dumps(name)}; it has {', '.join(map(json.dumps, value)) or 'nothing'}")
    if not isinstance(value[name], kind) or isinstance(value[name], bool):
        words = {dict: "an object", list: "a list", str: "a string", int: "an integer"}[kind]
        raise BadInput(f"{where}: {json.dumps(name)} holds {json_type(value[name])}, not {words}; fix it")
    return value[name]
