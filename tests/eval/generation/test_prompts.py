"""Prompts from files and templates, and every way in which they can be wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.generation.prompts import few_shot, parse_query, read_prompts, read_template_fields
from train.data.text_files import LONGEST_LINE
from zoo.errors import BadInput

TEMPLATE = "Q: {question}\nA: {answer}\n\n"


def refusal(function: Any, *arguments: Any) -> str:
    with pytest.raises(BadInput) as refused:
        function(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_values_are_filled_in_as_they_are_and_the_answer_is_the_first_field_left_open() -> None:
    for template, query, text, stop in (
        ("{q}{a}", "x", "{a}%d}12x", ""),
        ("{a} <- {q}", "x", "%d} <- {a}2 <- 1", " <- "),
        ("{q}: {a} ({q})\n", "x", "{a}: %d} ({a})\n1: 2 (1)\nx: ", " ("),
        ("{{{q}}}={a};", "x", "{{a}}=%d};{1}=2;{x}=", ";"),
        ("{q}{q}{a}", "{a}", "{a}{a}%d}112{a}{a}", ""),
    ):
        shot = few_shot([{"q": "{a}", "a": "%d}"}, {"q": "1", "a": "2"}], template, {"q": query})
        assert (shot.text, shot.stop) == (text, stop)


def test_a_template_or_query_that_does_not_fit_is_refused() -> None:
    for template, query, says in (
        ("no field", {"q": "x"}, "--template 'no field': it has no field"),
        ("{q} {", {"q": "x"}, "--template '{q} {': "),
        ("{q.__class__}{a}", {"q": "x"}, "--template '{q.__class__}{a}': write fields"),
        ("{q!r}{a}", {"q": "x"}, "--template '{q!r}{a}': write fields"),
        ("{q:>9}{a}", {"q": "x"}, "--template '{q:>9}{a}': write fields"),
        ("{q}{a}", {"quest": "x"}, "--query quest=...: the template has no such field; it has q, a"),
        ("{q}{a}", {"q": "x", "a": "y"}, "--query names every field of the template (q, a); remove the one"),
        ("{q}{other}{a}", {"q": "x"}, "example 1 has no field 'other'"),
    ):
        assert refusal(few_shot, [{"q": "1", "a": "2"}], template, query).startswith(says)


def test_a_query_is_names_and_values() -> None:
    assert parse_query(["q=a=b", "other="]) == {"q": "a=b", "other": ""}
    for query, message in ((["q"], "--query q: write"), (["=x"], "--query =x: write"), (["q=1", "q=2"], "--query q=2: ")):
        assert refusal(parse_query, query).startswith(message)


def test_examples_from_a_file(tmp_path: Path) -> None:
    """Blank lines and a byte order mark are nothing; numbers are text; other fields are left out."""
    file = tmp_path / "examples.jsonl"
    lines = [json.dumps({"answer": 4, "question": "2 + 2?", "source": None}), "", json.dumps({"question": "½?", "answer": 0.5})]
    file.write_text("\ufeff" + "\r\n".join(lines), newline="")
    assert read_template_fields(file, TEMPLATE) == [{"question": "2 + 2?", "answer": "4"}, {"question": "½?", "answer": "0.5"}]


LINES = {
    '{"question": "a"': "invalid JSON at column 17 (",
    "[1]": 'an array, not an object; write lines like {"question": ',
    "[" * 100_000: "unreadable JSON (",
    '{"question": "a"}': 'no field "answer"; it has "question"',
    '{"question": "a", "answer": null}': 'field "answer" is neither text nor a number',
    '{"question": "a", "answer": true}': 'field "answer" is neither text nor a number',
    '{"question": "\\ud800", "answer": "b"}': 'field "question" has an unpaired surrogate, half of a character, at character 0',
    "\udcff": "not UTF-8 (byte 34); convert the file",
    "9" * (LONGEST_LINE + 1): "longer than 64 MiB; write shorter lines",
}


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    for line, message in LINES.items():
        file.write_bytes(b'{"question": "a", "answer": "b"}\n\n' + line.encode(errors="surrogateescape") + b"\n")
        assert refusal(read_template_fields, file, TEMPLATE).startswith(f"{file}:3: {message}")


def test_prompts_from_files(tmp_path: Path) -> None:
    plain, lines = tmp_path / "prompts.txt", tmp_path / "prompts.JSONL"
    plain.write_text(" Call me\n\nSome years \r\n", newline="")
    assert read_prompts(plain) == [" Call me", "Some years "]
    lines.write_text('{"prompt": "two\\nlines"}\n{"prompt": "x", "id": 1}\n')
    assert read_prompts(lines) == ["two\nlines", "x"]
    lines.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    assert refusal(read_prompts, lines) == f'{lines}:2: no field "prompt"; it has "text"'


def test_a_file_with_nothing_to_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n \n")
    assert "holds no text" in refusal(read_template_fields, tmp_path / "empty.jsonl", TEMPLATE)
    assert "cannot be read (No such file or directory)" in refusal(read_template_fields, tmp_path / "missing.jsonl", TEMPLATE)
