"""Lines of the keys in a TOML, YAML or JSON file, for messages about their values."""

import re
from collections.abc import Iterator
from typing import Any

KEY = r"""[\w-]+|"[^"]*"|'[^']*'"""
"""A part of a key of TOML."""


def key_lines(text: str, suffix: str) -> dict[str, int]:
    """Return the line of each key, from 1 on, by its dotted name with underscores, of a file that is valid.

    A key within an inline table of TOML is absent.
    """
    pairs = {".toml": _toml_keys, ".json": _json_keys}.get(suffix, _yaml_keys)(text)
    lines: dict[str, int] = {}
    for key, line in pairs:
        lines.setdefault(key.replace("-", "_"), line)
    return lines


def _toml_keys(text: str) -> Iterator[tuple[str, int]]:
    dotted = rf"((?:{KEY})(?:\s*\.\s*(?:{KEY}))*)"
    prefix = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(rf"\s*\[\s*{dotted}\s*\]", line):
            prefix = f"{_plain(header[1])}."
            yield prefix[:-1], number
        elif entry := re.match(rf"\s*{dotted}\s*=", line):
            yield f"{prefix}{_plain(entry[1])}", number


def _plain(dotted: str) -> str:
    """Return a dotted key of TOML without quotes and spaces."""
    return ".".join(part.strip("\"'") for part in re.findall(KEY, dotted))


def _json_keys(text: str) -> Iterator[tuple[str, int]]:
    path: list[str] = []
    last = ""
    for token in re.finditer(r'"((?:\\.|[^"\\])*)"|[{}:]', text):
        if token[0] == "{":
            path.append("")
        elif token[0] == "}":
            path.pop()
        elif token[0] == ":":
            path[-1] = last
            yield ".".join(path), text.count("\n", 0, token.start()) + 1
        else:
            last = token[1]


def _yaml_keys(text: str) -> Iterator[tuple[str, int]]:
    import yaml

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, int]]:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            yield from walk(value, f"{name}.")

    yield from walk(yaml.compose(text), "")
