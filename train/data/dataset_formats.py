"""Formats of one task each, as the records they hold: TREC's questions, CoNLL's columns, RACE's articles, SQuAD's paragraphs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.config.objective_options import Labelled
from train.data.records import TO_UTF8, Record, numbered
from train.data.text_files import kind_of, lines, parsed, whole
from zoo.errors import BadInput

DOCUMENT = "-DOCSTART-"


def trec(file: Path, options: Labelled) -> Iterator[Record | BadInput]:
    """`LABEL text` a line (Li and Roth 2002): what comes before the first space or tab is the label."""
    for line, text in lines(file, options.encoding, TO_UTF8):
        if not text.strip():
            continue
        label, *question = re.split(r"[ \t]", text.strip(), maxsplit=1)
        if question:
            yield Record(f"{file}:{line}", {"label": label, "text": question[0]})
        else:
            yield BadInput(f"{file}:{line}: a single word; write the label, a space and the text")


def conll(file: Path, options: Labelled, *, least: int = 2) -> Iterator[Record | BadInput]:
    """Columns of a sentence, each a list with an entry for a word: a word a line, an empty line after a sentence.

    Between the columns stand tabs, or spaces in a line that has no tab. A line that begins with -DOCSTART- holds no word, as in
    CoNLL 2003 (Tjong Kim Sang and De Meulder 2003). A sentence with a malformed line is malformed.
    `least` is the smallest number of columns: 1 where the tags are left out.
    """
    rows: list[list[str]] = []
    first, columns, malformed = 0, 0, False
    for line, text in lines(file, options.encoding, TO_UTF8):
        text = text.rstrip("\r\n")
        cells = text.split("\t") if "\t" in text else [cell for cell in text.split(" ") if cell]
        if not text.strip() or cells[0] == DOCUMENT:
            if rows:
                yield numbered(f"{file}:{first}", map(list, zip(*rows, strict=True)))
            rows, malformed = [], False
            continue
        if malformed:
            continue
        if len(cells) < least or len(cells) != (columns or len(cells)) or not all(cells):
            full, expected = sum(map(bool, cells)), columns or max(len(cells), least)
            fix = "write a word, a tab and its tag, as in the other lines"
            yield BadInput(f"{file}:{line}: {full} columns, not {expected}{'' if columns else ' or more'}; {fix}")
            rows, malformed = [], True
            continue
        columns = len(cells)
        first = first if rows else line
        rows.append(cells)
    if rows:
        yield numbered(f"{file}:{first}", map(list, zip(*rows, strict=True)))


def race(file: Path, options: Labelled, *, answered: bool = True) -> Iterator[Record]:
    """The questions of an article (Lai et al. 2017): a file of one object with "article", "questions", "options", "answers".

    The answers are neither needed nor read unless they are `answered`.
    """
    content = parsed(whole(file, options.encoding, TO_UTF8), str(file), "write one object")
    names = ("questions", "options", "answers") if answered else ("questions", "options")
    found = {name: get(content, name, list, str(file)) for name in names}
    counts = {name: len(values) for name, values in found.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise BadInput(f"{file}: {said}; a question has one list of options and one answer")
    article = get(content, "article", str, str(file))
    for number, values in enumerate(zip(*found.values(), strict=True), 1):
        columns = dict(zip(("question", "options", "answer"), values, strict=False))
        yield Record(f"{file}: question {number}", {"article": article, **columns})


def squad(file: Path, options: Labelled) -> Iterator[Record]:
    """The questions of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018): articles of paragraphs of questions."""
    return (_answered(record, question) for record, question in _squad(file, options))


def squad_questions(file: Path, options: Labelled) -> Iterator[Record]:
    """The same without the answers, which are neither needed nor read."""
    return (record for record, _ in _squad(file, options))


def _squad(file: Path, options: Labelled) -> Iterator[tuple[Record, dict[str, Any]]]:
    """(id, question, title and context, the object of the question)."""
    content = parsed(whole(file, options.encoding, TO_UTF8), str(file), "copy it again")
    for nth, article in enumerate(get(content, "data", list, str(file))):
        there = f"{file}: data[{nth}]"
        # What has no title is one document all the same.
        title = get(article, "title", str, there) if isinstance(article, dict) and "title" in article else there
        for number, paragraph in enumerate(get(article, "paragraphs", list, there)):
            where = f"{there}.paragraphs[{number}]"
            context = get(paragraph, "context", str, where)
            for place, question in enumerate(get(paragraph, "qas", list, where)):
                name = get(question, "id", str, f"{where}.qas[{place}]")
                asked = get(question, "question", str, f"{file}: question {name}")
                values = {"id": name, "question": asked, "title": title, "context": context}
                yield Record(f"{file}: question {name}", values), question


def _answered(record: Record, question: dict[str, Any]) -> Record:
    where, none = record.where, question.get("is_impossible")
    answers = get(question, "answers", list, where) if none is None or "answers" in question else []
    if none is not None and bool(none) == bool(answers):
        said = "is impossible, and has answers" if answers else "is not impossible, but has no answer"
        raise BadInput(f'{where} {said}; mend "is_impossible" or "answers"')
    texts = [get(answer, "text", str, where) for answer in answers]
    starts = [get(answer, "answer_start", int, where) for answer in answers]
    return Record(where, {**record.values, "answers": {"text": texts, "answer_start": starts}})


def get(value: Any, name: str, kind: type, where: str) -> Any:
    """What an object holds under a name.

    Raises:
        BadInput: it is no object, has nothing of that name, or something of another kind.
    """
    if not isinstance(value, dict):
        raise BadInput(f"{where}: {kind_of(value)}, not an object with {json.dumps(name)}")
    if name not in value:
        raise BadInput(f"{where}: no {json.dumps(name)}; it has {', '.join(map(json.dumps, value)) or 'nothing'}")
    if not isinstance(value[name], kind) or isinstance(value[name], bool):
        words = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}[kind]
        raise BadInput(f"{where}: {json.dumps(name)} holds {kind_of(value[name])}, not {words}")
    return value[name]
