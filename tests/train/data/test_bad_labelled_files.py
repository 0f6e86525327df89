"""What is wrong with a labelled file is said in one line that names it and how to mend it."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.labelled_files import ARTICLE, CONTEXT, QUIZ, ROWS, Content, flat_questions, halves, put, read, squad
from zoo.errors import BadInput

WRONG: dict[str, tuple[str, str, Content, dict[str, Any], str]] = {
    "nothing": ("classification", "a.tsv", b"", {}, "a.tsv: holds no examples"),
    "a header alone": ("classification", "a.csv", "text,label\n", {}, "a.csv: holds no examples"),
    "no rows": ("tagging", "a.conll", "\n-DOCSTART- O\n\n", {}, "a.conll: holds no examples"),
    "no questions": ("span", "a.json", '{"data": []}', {}, "a.json: holds no examples"),
    "another kind": ("tagging", "a.tsv", "a\tb", {}, "a.tsv: only .conll, .jsonl, these also as .gz"),
    "no column": (
        *("classification", "a.tsv", "said\tlabel\na\tb\n", {}),
        'a.tsv:2: no column "text"; it has "said", "label": choose with --labelled.text',
    ),
    "no second column": (
        *("classification", "a.jsonl", ROWS, {"pair": "other"}),
        'a.jsonl:1: no column "other"; it has "text", "label": choose with --labelled.pair',
    ),
    "no label": ("classification", "a.jsonl", [{"text": "a"}], {}, 'a.jsonl:1: no column "label"; it has "text": choose with'),
    "no such number": (
        *("classification", "a.tsv", "a\tb\n", {"header": False, "label": "3"}),
        'a.tsv:1: no column "3"; it has "1", "2": choose with --labelled.label',
    ),
    "two names": ("classification", "a.tsv", "a\ta\n", {}, 'a.tsv:1: two columns of one name ("a", "a"); without names, say'),
    "a ragged table": (
        *("classification", "a.tsv", "text\tlabel\na\tb\na\tb\tc\n", {}),
        "a.tsv:3: 3 columns, but the first line of a.tsv has 2; mend the line",
    ),
    "an open quotation": (
        "classification",
        "a.csv",
        'text,label\na,b\n"a,b\n',
        {},
        "a.csv:3: no row of a .csv (unexpected end of data)",
    ),
    "latin-1": (
        "classification",
        "a.tsv",
        b"text\tlabel\n\xfc\ta\n",
        {},
        "a.tsv:2: not UTF-8 (byte 11); convert the file to UTF-8, or",
    ),
    "binary": ("classification", "a.tsv", b"text\tlabel\na\0\ta\n", {}, "a.tsv:2: binary content (a NUL at byte 12)"),
    "no JSON": ("classification", "a.jsonl", '{"text": "a"\n', {}, "a.jsonl:1: invalid JSON at column 13"),
    "no object": ("classification", "a.jsonl", "[1]\n", {}, "a.jsonl:1: an array, not an object; write lines like"),
    "a text that is none": (
        "classification",
        "a.jsonl",
        [{"text": None, "label": 1}],
        {},
        "a.jsonl:1: the text holds null, not a string",
    ),
    "an empty label": (
        "classification",
        "a.tsv",
        "text\tlabel\na\t\n",
        {},
        "a.tsv:2: the label is an empty string; write a name",
    ),
    "a broken number": (
        *("classification", "a.jsonl", [{"text": "a", "label": 0.5}], {}),
        "a.jsonl:1: the label is a number; write a name or a whole number (other numbers: --labelled.regression)",
    ),
    "null": ("classification", "a.jsonl", [{"text": "a", "label": None}], {}, "a.jsonl:1: the label is null; write"),
    "no coarse label": (
        *("classification", "a.tsv", "text\tlabel\na\tLOC\n", {"coarse": True}),
        'a.tsv:2: label "LOC" has no colon; leave out --labelled.coarse',
    ),
    "a lone surrogate": (
        "classification",
        "a.jsonl",
        '{"text": "a\\udc00", "label": 1}',
        {},
        "a.jsonl:1: the text has a lone surrogate",
    ),
    "a word": ("classification", "a.txt", "LOC\n", {}, "a.txt:1: a single word; write the label, a space and the text"),
    **{
        f"no number: {label!r}": (
            *("classification", "a.jsonl", [{"text": "a", "label": label}], {"regression": True}),
            f"a.jsonl:1: the label {json.dumps(label)} is no finite number; mend it, or leave out --labelled.regression",
        )
        for label in ("good", float("nan"), "nan", "1e999", None, True, [1], 10**400)
    },
    "fewer columns": (
        "tagging",
        "a.conll",
        "a\tO\n\nb\tO\nc\n",
        {},
        "a.conll:4: 1 columns, not 2; write a word, a tab and its tag",
    ),
    "one column": ("tagging", "a.conll", "a\n", {}, "a.conll:1: 1 columns, not 2 or more; write a word"),
    "an empty tag": ("tagging", "a.conll", "a\tO\nb\t\n", {}, "a.conll:2: 1 columns, not 2"),
    "tags for texts": (
        *("tagging", "a.jsonl", [{"tokens": "a b", "tags": ["O", "O"]}], {}),
        "a.jsonl:1: the column of words holds a string, not a list; choose another, or write .conll",
    ),
    "too few tags": (
        *("tagging", "a.jsonl", [{"tokens": ["a", "b"], "tags": ["O"]}], {}),
        "a.jsonl:1: 2 words and 1 tags; every word has one, and a sentence has words",
    ),
    "no words": ("tagging", "a.jsonl", [{"tokens": [], "tags": []}], {}, "a.jsonl:1: 0 words and 0 tags"),
    "no data": ("span", "a.json", "{}", {}, 'a.json: no "data"; it has nothing'),
    "cut": ("span", "a.json", json.dumps(squad())[:-9], {}, "a.json: invalid JSON at column"),
    "empty JSON": ("span", "a.json", "", {}, "a.json: invalid JSON at column 1"),
    "an answer elsewhere": (
        *("span", "a.json", json.dumps(squad([("q1", "Who?", [("whale", 5)])])), {}),
        'a.json: question q1: the answer "whale" is not at character 5 of the context of 45; mend',
    ),
    "an answer beyond the text": (
        *("span", "a.json", json.dumps(squad([("q1", "Who?", [("ship is not. Not", 34)])])), {}),
        "a.json: question q1: the answer",
    ),
    "an answer before the text": (
        *("span", "a.jsonl", [flat_questions()[0] | {"answers": {"text": [CONTEXT[-6:-3]], "answer_start": [-6]}}], {}),
        'a.jsonl:1: the answer "s n" is not at character -6',
    ),
    "a blank answer": (
        "span",
        "a.json",
        json.dumps(squad([("q", "Who?", [(" ", 3)])])),
        {},
        "a.json: question q: an answer without",
    ),
    "an answer without a place": (
        *("span", "a.jsonl", [flat_questions()[0] | {"answers": {"text": ["The"], "answer_start": []}}], {}),
        "a.jsonl:1: 1 answers with 0 beginnings; each has one",
    ),
    "a list of answers": (
        *("span", "a.jsonl", [flat_questions()[0] | {"answers": [{"text": "The", "answer_start": 0}]}], {}),
        'a.jsonl:1: "answers" holds an array, not an object',
    ),
    "a list for a title": (
        "span",
        "a.jsonl",
        [flat_questions()[0] | {"title": ["a"]}],
        {},
        "a.jsonl:1: the title holds an array, not a",
    ),
    "impossible": (
        *("span", "a.json", json.dumps(squad()).replace('"is_impossible": false', '"is_impossible": true'), {}),
        'a.json: question q1 is impossible, and has answers; mend "is_impossible" or "answers"',
    ),
    "possible": (
        *("span", "a.json", json.dumps(squad()).replace('"is_impossible": true', '"is_impossible": false'), {}),
        "a.json: question q2 is not impossible, but has no answer",
    ),
    "a number for a question": (
        *("span", "a.json", json.dumps(squad()).replace('"Who is white?"', "3"), {}),
        'a.json: question q1: "question" holds a number, not a string',
    ),
    "more answers than questions": (
        *("choice", "a.json", json.dumps(ARTICLE | {"answers": ["A"]}), {}),
        "a.json: 2 questions, 2 options, 1 answers; a question has one list of options and one answer",
    ),
    "an answer of none": (
        *("choice", "a.json", json.dumps(ARTICLE | {"answers": ["A", "C"]}), {}),
        'a.json: question 2: the answer "C" to 2 options; the first of 2 or more options is A',
    ),
    "one option": ("choice", "a.jsonl", [QUIZ[0] | {"options": ["a"]}], {}, 'a.jsonl:1: the answer "A" to 1 options'),
    "no answer": ("choice", "a.jsonl", [QUIZ[0] | {"answer": ""}], {}, 'a.jsonl:1: the answer "" to 2 options'),
    "a damaged archive": ("classification", "a.tsv.gz", gzip.compress(b"text\tlabel\na\tb\n")[:-9], {}, "a.tsv.gz: ends before"),
    "a damaged table": ("classification", "a.parquet", b"PAR1", {}, "a.parquet: cannot be read ("),
}


@pytest.mark.parametrize(("objective", "name", "content", "options", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_one_line(
    objective: str, name: str, content: Content, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    # `put` packs what is not yet.
    file.write_bytes(content) if isinstance(content, bytes) else put(file, content)
    with pytest.raises(BadInput) as refused:
        read(objective, file, **options)
    line = str(refused.value).replace(f"{tmp_path}/", "")
    assert line.startswith(said) and "\n" not in line


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.tsv: no such file"):
        read("classification", tmp_path / "gone.tsv")
    with pytest.raises(BadInput, match=r"no files in it; put some there: \.tsv, \.csv, \.txt, \.jsonl, these also as \.gz"):
        read("classification", tmp_path)
    put(tmp_path / "a.tsv", "text\tlabel\na\tb")
    put(tmp_path / "notes.md", "?")
    with pytest.raises(BadInput, match=r"notes\.md: of no kind that can be read; move it out of the folder"):
        read("classification", tmp_path)
    with pytest.raises(BadInput, match=r"--data\.paths: there is no embedded data for span; name files: \.json, \.jsonl"):
        halves("span")
