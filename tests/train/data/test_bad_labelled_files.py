"""A fault in a labelled file is reported in one line that names the file, the line or question, and how to fix it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.labelled_files import ARTICLE, CONTEXT, QUIZ, Content, flat_questions, put, read, squad
from zoo.errors import BadInput

QUESTION = flat_questions()[0]
SQUAD = json.dumps(squad())
BEFORE = {"text": [CONTEXT[-6:-3]], "answer_start": [-6]}
TABLE = "text\tlabel\n"
COLA = "gj04\t1\t\tThe men saw the ship before the whale did.\ngj04\t0\t*\tThe men saw.\n"
MIXED, SEVERAL = [{"text": "a", "label": "b"}, {"text": "a", "labels": ["b"]}], {"multi_label": True}
WRONG: list[tuple[str, str, Content, dict[str, Any], str]] = [
    # Objective, file, content, options, what the message says after the file's name.
    ("classification", "a.csv", "text,label\n", {}, ": holds no examples"),
    ("tagging", "a.tsv", "a\tb", {}, ": only .conll, .annotated, .*; rename it, or .*--labelled.format conll or jsonl$"),
    ("classification", "a.all", "1 b", {}, ": only .tsv.*; rename it, or .*--labelled.format tsv, csv, jsonl or label_first$"),
    # CoLA's first line, which is an example: source, label, star, sentence.
    ("classification", "a.tsv", COLA, {}, ':2: no column "text"; the first line of the file, .*example.*--labelled.no-header$'),
    ("classification", "a.csv", "id,so\n1,no\n", {}, ':2: no column "text"; it has .*or add --labelled.no-header if'),
    ("classification", "a.tsv", f"{TABLE}a\tx\n \ty\n", {}, ":3: the text is empty; .*--labelled.skip-bad$"),
    ("classification", "a.tsv", f"{TABLE}\ty\n", {"skip_bad": True}, ": holds no example.*; the first of 1: .*:2: the text is"),
    ("classification", "a.tsv", "said\tlabel\na\tb\n", {}, ':2: no column "text"; it has "said", "label".*--labelled.text'),
    ("classification", "a.tsv", "a\ta\n", {}, ':1: two columns have the same name \\("a", "a"\\).*--labelled.no-header'),
    ("classification", "a.tsv", f"{TABLE}a\tb\na\tb\tc\n", {}, ":3: 3 columns, but the first line of a.tsv has 2; "),
    ("classification", "a.csv", 'text,label\na,b\n"a,b\n', {}, ":3: invalid .csv row .*; "),
    ("classification", "a.tsv", b"text\tlabel\n\xfc\ta\n", {}, ":2: not UTF-8 \\(byte 11\\); .*--labelled.encoding latin-1"),
    ("classification", "a.jsonl", "[1]\n", {}, ":1: an array, not an object; write lines like"),
    ("classification", "a.jsonl", [{"text": None, "label": 1}], {}, ":1: the text holds null, not a string"),
    ("classification", "a.tsv", f"{TABLE}a\t\n", {}, ":2: the label is an empty string; write a name"),
    ("classification", "a.jsonl", [{"text": "a", "label": 0.5}], {}, ":1: the label is a number; .*--labelled.regression"),
    ("classification", "a.tsv", f"{TABLE}a\tLOC\n", {"coarse": True}, ':2: label "LOC" has no colon; .*--labelled.coarse'),
    ("classification", "a.txt", "LOC\n", {}, ":1: a single word; write the label, a space and the text"),
    ("classification", "a.jsonl", [{"text": "a", "label": ["b"]}], {}, ":1: the label is an array; .*for lists --labelled.multi"),
    ("classification", "a.jsonl", MIXED, {}, ':2: it has "labels", not "label"; '),
    ("classification", "a.jsonl", [{"text": "a", "labels": "b"}], SEVERAL, ":1: the labels are a string, not a list; "),
    ("classification", "a.jsonl", [{"text": "a", "labels": ["b", "b"]}], SEVERAL, ":1: labels .* contain a name twice; "),
    ("classification", "a.tsv", f"{TABLE}a\tb\n", SEVERAL, ':2: it has "label", not "labels"; .*in .jsonl or .parquet'),
    ("tagging", "a.conll", "a\tO\n\nb\tO\nc\n", {}, ":4: 1 columns, not 2; write a word, a tab and its tag"),
    ("tagging", "a.conll", "a\n", {}, ":1: 1 columns, not 2 or more; write a word"),
    ("tagging", "a.jsonl", [{"tokens": "a b", "tags": ["O", "O"]}], {}, ":1: the column of words holds a string, not a list"),
    ("tagging", "a.jsonl", [{"tokens": ["a", "b"], "tags": ["O"]}], {}, ":1: 2 words and 1 tags; every word needs one tag"),
    ("tagging", "a.jsonl", [{"tokens": [], "tags": []}], {}, ":1: 0 words and 0 tags"),
    ("span", "a.json", "{}", {}, ': no "data"; it has nothing'),
    ("span", "a.json", SQUAD.replace('_start": 4', '_start": 5'), {}, ": question q1: the answer"),
    ("span", "a.json", json.dumps(squad([("q", "Who?", [(" ", 3)])])), {}, ": question q: an answer without"),
    ("span", "a.json", SQUAD.replace('le": false', 'le": true'), {}, ": question q1 is impossible, and has answers; "),
    ("span", "a.json", SQUAD.replace('le": true', 'le": false'), {}, ": question q2 is not impossible, but has no answer; "),
    ("span", "a.json", SQUAD.replace('"Who is white?"', "3"), {}, ': question q1: "question" holds a number, not a string'),
    ("span", "a.jsonl", [QUESTION | {"answers": {"text": ["The"], "answer_start": []}}], {}, ":1: 1 answers with 0 starts"),
    ("span", "a.jsonl", [QUESTION | {"answers": BEFORE}], {}, ":1: the answer .* at character -6 "),
    ("choice", "a.json", json.dumps(ARTICLE | {"answers": ["A"]}), {}, ": 2 questions, 2 options, 1 answers; "),
    ("choice", "a.json", json.dumps(ARTICLE | {"answers": ["A", "C"]}), {}, ': question 2: the answer "C" to 2 options; '),
    ("choice", "a.jsonl", [QUIZ[0] | {"options": ["a"]}], {}, ':1: the answer "A" to 1 options'),
    ("choice", "a.jsonl", [QUIZ[0] | {"answer": ""}], {}, ':1: the answer "" to 2 options'),
    ("classification", "a.parquet", b"PAR1", {}, ": cannot be read \\("),
]
RANKED, PAIR = {"query": "a", "positive": "b"}, {"sentence1": "a", "sentence2": "b", "score": 1}
WRONG += [
    ("contrastive", "a.jsonl", [RANKED, RANKED | {"query": " "}], {}, ":2: the query is empty; .*--labelled.skip-bad$"),
    ("contrastive", "a.jsonl", [RANKED | {"positive": ""}], {}, ":1: the positive is empty; "),
    ("contrastive", "a.jsonl", [RANKED | {"negatives": ["c", ""]}], {}, ":1: the negative is empty; "),
    ("contrastive", "a.jsonl", [RANKED | {"negatives": [3]}], {}, ":1: the negative holds a number, not a string"),
    ("contrastive", "a.jsonl", [{"anchor": "a", "positive": "b"}], {}, ':1: no column "query"; .*with --labelled.query$'),
    ("contrastive", "a.csv", "query,positive\na,b\n", {"negatives": "bad"}, ':2: no column "bad"; .*--labelled.negatives'),
    ("similarity", "a.tsv", "sentence1\tsentence2\tscore\na\t\t1\n", {}, ":2: the second text is empty; "),
    ("similarity", "a.tsv", "sentence1\tsentence2\ta\nb\tc\t1\n", {}, ':2: no column "score"; .*--labelled.score'),
    *(
        ("similarity", "a.jsonl", [PAIR | {"score": n}], {}, ":1: the score .* is not a finite number; ")
        for n in (None, "x", 1e300)
    ),
]
NO_NUMBERS = ("good", float("nan"), "nan", "1e999", None, True, [1], 10**400)
FINITE = ":1: the label .* is not a finite number; "
WRONG += [("classification", "a.jsonl", [{"text": "a", "label": n}], {"regression": True}, FINITE) for n in NO_NUMBERS]


@pytest.mark.parametrize(("objective", "name", "content", "options", "message"), WRONG, ids=[case[-1] for case in WRONG])
def test_a_fault_is_reported_in_one_line(
    objective: str, name: str, content: Content, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = put(tmp_path / name, content)
    with pytest.raises(BadInput) as refusal:
        read(objective, file, **options)
    assert re.match(re.escape(str(file)) + message, str(refusal.value)), refusal.value
    assert "\n" not in str(refusal.value)
