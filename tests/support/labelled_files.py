"""Labelled files, small enough to read, in the formats that fine-tuning reads."""

import gzip
import json
from pathlib import Path
from typing import Any

from train.config.data_options import LabelledData
from train.config.find_objective import find_options
from train.config.option_groups import Labelled
from train.data import labelled_reader
from train.data.example_types import Example

RATED = [("it is good", "yes"), ('so "so" 4', "perhaps"), ("\u00fcble Sache", "no")]
ROWS = [{"text": text, "label": label} for text, label in RATED]
SENTENCES = [(("Anna", "sees", "Rome"), ("B-PER", "O", "B-LOC")), (("4", "#", "\u00e9"), ("O", "O", "I-X"))]
TAGGED = [{"tokens": words, "tags": tags} for words, tags in SENTENCES]
CONTEXT = "The whale, \u00fcber all, is white. A ship is not."
ASKED = [
    ("q1", "Who is white?", [("The whale", 0), ("whale", 4)]),
    ("q2", "What is red?", []),
    ("q3", "What is not?", [("A ship", 31)]),
]


def squad(questions: Any = ASKED, *, version: int = 2, context: str = CONTEXT, title: str | None = "Whales") -> dict[str, Any]:
    """Return the content of a SQuAD file with one article."""
    qas = []
    for name, question, answers in questions:
        given = [{"text": text, "answer_start": start} for text, start in answers]
        none = {"is_impossible": not given, "plausible_answers": [{"text": "all", "answer_start": 16}]} if version == 2 else {}
        qas.append({"id": name, "question": question, "answers": given, **none})
    article = {"paragraphs": [{"context": context, "qas": qas}]}
    return {"version": "v2.0", "data": [article if title is None else {"title": title, **article}]}


def flat_questions() -> list[dict[str, Any]]:
    """Return the same as rows, as `datasets` has them."""
    return [
        {
            **{"id": name, "title": "Whales", "context": CONTEXT, "question": question},
            "answers": {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]},
        }
        for name, question, answers in ASKED
    ]


ARTICLE = {
    "article": "Anna sails.",
    "questions": ["Who?", "What?"],
    "options": [["Ann", "Bo"], ["a", "b"]],
    "answers": ["A", "B"],
}
CHOSEN = [("Who?", ("Ann", "Bo"), 0), ("What?", ("a", "b"), 1)]
QUIZ = [
    {"article": "Anna sails.", "question": question, "options": options, "answer": "AB"[answer]}
    for question, options, answer in CHOSEN
]

Content = str | bytes | list[dict[str, Any]]


def put(file: Path, content: Content) -> Path:
    """Write a file of text, in UTF-8, of bytes, or of rows: .jsonl, .parquet, or without an ending a folder of `datasets`."""
    if isinstance(content, list):
        if file.suffix == ".parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), file)
            return file
        if not file.suffix:
            import datasets

            datasets.disable_progress_bars()
            datasets.Dataset.from_list(content).save_to_disk(file)
            return file
        content = "".join(json.dumps(row) + "\n" for row in content)
    raw = content.encode() if isinstance(content, str) else content
    file.write_bytes(gzip.compress(raw) if file.suffix == ".gz" else raw)
    return file


def read(objective: str, *files: Path, **options: Any) -> list[Example]:
    own = type(find_options(objective)().labelled)
    kind = Labelled if issubclass(Labelled, own) else own
    return labelled_reader.read_labelled_examples(objective, tuple(map(str, files)), LabelledData(), kind(**options))[0]


def halves(objective: str, *files: Path, valid: tuple[Path, ...] = (), fraction: float = 0.1, **options: Any) -> tuple[Any, Any]:
    data = LabelledData(paths=tuple(map(str, files)), valid_paths=tuple(map(str, valid)), valid_fraction=fraction)
    return labelled_reader.split_examples(objective, data, Labelled(**options))
