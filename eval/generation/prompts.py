"""Prompts from text: lines of a file, or a few examples followed by a question, all written after one template."""

import dataclasses
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.data.text_files import check_string, list_names, nonblank_lines, parse_object
from zoo.errors import BadInput, require


@dataclasses.dataclass(frozen=True)
class FewShot:
    """A prompt whose continuation is the answer to its last question."""

    text: str
    """The prompt, which ends where the answer begins, white space in front of it included."""
    stop: str
    """Text after an answer in the template, up to the next field; "" if there is none."""


def few_shot(examples: Sequence[Mapping[str, str]], template: str, query: Mapping[str, str]) -> FewShot:
    """Return the template filled with every example, then with the query, up to its first missing field, the answer.

    The template has named fields in braces, as in "Q: {question}\\nA: {answer}\\n\\n"; {{ and }} are braces.

    Raises:
        BadInput: a template without fields, a query that names others or leaves none open, or an example without one of them.
    """
    parts = _parse(template)
    names = [name for _, name in parts if name is not None]
    if unknown := [name for name in query if name not in names]:
        raise BadInput(f"--query {unknown[0]}=...: the template has no such field; it has {', '.join(names)}")
    open_at = next((at for at, (_, name) in enumerate(parts) if name is not None and name not in query), None)
    if open_at is None:
        raise BadInput(f"--query names every field of the template ({', '.join(names)}); remove the one to be answered")
    for number, example in enumerate(examples, 1):
        if missing := [name for name in names if name not in example]:
            raise BadInput(f"example {number} has no field {missing[0]!r}, which the template names")
    question = _fill(parts[:open_at], query) + parts[open_at][0]
    after = parts[open_at + 1][0] if open_at + 1 < len(parts) else ""
    return FewShot(text="".join(_fill(parts, example) for example in examples) + question, stop=after)


def read_template_fields(path: str | Path, template: str) -> list[dict[str, str]]:
    """Read the template's fields from each line of a .jsonl file; blank lines are skipped, numbers become text.

    Raises:
        BadInput: a file that cannot be read or holds no text, or a line (named) that is not an object with these fields.
    """
    names = [name for _, name in _parse(template) if name is not None]
    return [{name: _text(value, name, where) for name in names} for where, value in _objects(Path(path), names)]


def read_prompts(path: str | Path) -> list[str]:
    """Read the lines of a text file, or the field "prompt" of the lines of a .jsonl file, without blank lines.

    Raises:
        BadInput: the file cannot be read or has no text; or a line is not UTF-8 or has no prompt (the message gives its number).
    """
    file = Path(path)
    if file.suffix.lower() == ".jsonl":
        return [_text(value, "prompt", where) for where, value in _objects(file, ("prompt",))]
    return [line for _, line in nonblank_lines(file)]


def parse_query(items: Sequence[str]) -> dict[str, str]:
    """Return `name=value` texts as a mapping.

    Raises:
        BadInput: an item without "=" or without a name, or two with one name.
    """
    query: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        require(bool(name and equals), "query", item, "write name=value")
        require(name not in query, "query", item, f"{name} is given twice")
        query[name] = value
    return query


def _parse(template: str) -> list[tuple[str, str | None]]:
    """Return (literal text, name of the field after it) pairs, the last without a field."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise BadInput(f"--template {template!r}: {error}; write fields as {{name}}, braces as {{{{ and }}}}") from None
    names = [name for _, name, _, _ in parts if name is not None]
    plain = all(name is None or (name.isidentifier() and not spec and not how) for _, name, spec, how in parts)
    require(plain, "template", repr(template), "write fields as {name}, nothing else in the braces")
    require(bool(names), "template", repr(template), "it has no field; write some as {name}")
    return [(literal, name) for literal, name, _, _ in parts]


def _fill(parts: Sequence[tuple[str, str | None]], values: Mapping[str, str]) -> str:
    return "".join(literal + (values[name] if name is not None else "") for literal, name in parts)


def _objects(file: Path, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file:line, object) of each line; `fields` are named in the error message about a line that is not an object."""
    example = json.dumps(dict.fromkeys(fields, "..."))
    return ((where, parse_object(line, where, example)) for where, line in nonblank_lines(file))


def _text(value: Mapping[str, Any], name: str, where: str) -> str:
    if name not in value:
        raise BadInput(f"{where}: no field {json.dumps(name)}; it has {list_names(list(value))}")
    text = value[name]
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise BadInput(f"{where}: field {json.dumps(name)} is neither text nor a number")
    return check_string(str(text), f"{where}: field {json.dumps(name)}")
