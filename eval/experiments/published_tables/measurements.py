"""Values of rows and seeds from published tables: CSV, TSV and JSON lines, in long form or with a column for each metric.

A long table has the columns row, seed, metric and value. A table without the column metric has a column for each metric.
Optional are item (one value for each test item), budget and vocabulary.
"""

import csv
import dataclasses
import difflib
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import BadInput, no_such_file
from zoo.file_access import read_regular

COLUMNS = {
    "row": ("row", "model", "method"),
    "seed": ("seed", "run"),
    "metric": ("metric",),
    "value": ("value", "score"),
    "item": ("item",),
    "budget": ("budget",),
    "vocabulary": ("vocabulary", "vocab", "tokenizer"),
}
"""Meaning of a column -> its names unless `--columns` gives another one, in small or capital letters."""
TRAITS = ("budget", "vocabulary")
"""Columns whose values must be the same in all rows of a claim."""
SUFFIXES = (".csv", ".tsv", ".jsonl")
LARGEST_FILE = 1 << 28
MOST_NAMES = 12
"""Names that a message lists."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """A value of one metric in one row, with one seed, on one item or all of them."""

    where: str
    """file:line."""
    row: str
    seed: str
    metric: str
    value: float
    """Not finite if the run diverged."""
    item: str = ""
    """Name of the test item; "" for a value over all items."""
    traits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Budget and vocabulary, if the table has them."""


def read_table(
    file: Path, metrics: Collection[str], columns: Mapping[str, str], where: Mapping[str, str]
) -> tuple[list[Measurement], list[str]]:
    """Return the values in a table, and the names of its metrics.

    Args:
        metrics: those that are judged and what they are compared with. Of a table with a column for each metric, no other columns
            are read.
        columns: what a column means -> its name, for names other than those of `COLUMNS`.
        where: column -> the value that a line must have in it; other lines are left out.

    Raises:
        BadInput: the file cannot be read, lacks a column, or has a value that is no number; names the line.
    """
    lines = list(_read_lines(file))
    if not lines:
        raise BadInput(f"{file}: has no lines; name a table with a header and values")
    header = list(dict.fromkeys(name for _, line in lines for name in line))
    names = _find_columns(file, header, columns)
    for column in where:
        require_name(column, header, f"{file}: --where {column}", "column")
    lines = [(at, line) for at, line in lines if all(_text(line.get(key)) == value for key, value in where.items())]
    if not lines:
        raise BadInput(f"{file}: no line has {' and '.join(f'{key}={value}' for key, value in where.items())}; change --where")
    if "metric" in names:
        measured = [_measurement(at, line, names, _cell(at, line, names["metric"]), names["value"]) for at, line in lines]
        return measured, list(dict.fromkeys(item.metric for item in measured))
    others = [name for name in header if name not in names.values()]
    used = [metric for metric in others if metric in metrics]
    return [_measurement(at, line, names, metric, metric) for at, line in lines for metric in used], others


def require_name(name: str, names: Sequence[str], start: str, kind: str) -> None:
    """Refuse a name that is not one of `names`; the message begins with `start`.

    Raises:
        BadInput: the nearest name is named.
    """
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    listed = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
    fix = f"the nearest is {near[0]} (all: {listed})" if near else "there is none"
    raise BadInput(f"{start}: there is no such {kind}; {fix}")


def _read_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file:line, column -> cell) for each line with values."""
    if file.suffix.lower() not in SUFFIXES:
        raise BadInput(f"{file}: only {', '.join(SUFFIXES)} tables and folders of results are read")
    try:
        text = read_regular(file, LARGEST_FILE).decode("utf-8-sig")
    except FileNotFoundError:
        raise no_such_file(str(file)) from None
    except UnicodeDecodeError:
        raise BadInput(f"{file}: is not UTF-8; convert it") from None
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); name another file") from None
    if file.suffix.lower() == ".jsonl":
        yield from _json_lines(file, text)
        return
    reader = csv.reader(io.StringIO(text), delimiter="\t" if file.suffix.lower() == ".tsv" else ",", strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if twice := [name for place, name in enumerate(header) if name in header[:place]]:
            raise BadInput(f"{file}: two columns are called {twice[0]!r}; rename one")
        for cells in reader:
            at = f"{file}:{reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise BadInput(f"{at}: has {len(cells)} cells, and the header has {len(header)}; correct the line")
            yield at, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise BadInput(f"{file}:{reader.line_num}: cannot be parsed ({error}); correct the line") from None


def _json_lines(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise BadInput(f"{file}:{number}: is not a JSON object; write one in each line")
        yield f"{file}:{number}", content


def _find_columns(file: Path, header: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return what a column means -> its name in the file, for the columns that there are."""
    for meaning, name in columns.items():
        require_name(meaning, [*COLUMNS], f"--columns {meaning}={name}", "meaning of a column")
        require_name(name, header, f"{file}: --columns {meaning}={name}", "column")
    names = {
        meaning: columns.get(meaning) or next((name for other in usual for name in header if name.lower() == other), "")
        for meaning, usual in COLUMNS.items()
    }
    names = {meaning: name for meaning, name in names.items() if name}
    has = f"its header has {', '.join(header[:MOST_NAMES])}"
    for meaning in ("row", "seed", *(["value"] if "metric" in names else [])):
        if meaning not in names:
            usual = " or ".join(COLUMNS[meaning])
            why = "; a single value of a row cannot be judged, since a verdict needs the values of five seeds"
            fix = f"name it by --columns {meaning}=NAME; {has}"
            raise BadInput(f"{file}: there is no column {usual}{why if meaning == 'seed' else ''}; {fix}")
    if "metric" not in names and "value" not in columns:
        names.pop("value", None)  # then it is the name of a metric
    return names


def _measurement(at: str, line: Mapping[str, Any], names: Mapping[str, str], metric: str, column: str) -> Measurement:
    cells = {meaning: _cell(at, line, names[meaning]) for meaning in ("row", "seed", "item", *TRAITS) if meaning in names}
    traits = {meaning: cells.pop(meaning) for meaning in TRAITS if meaning in cells}
    return Measurement(**cells, where=at, metric=metric, value=_number(at, line.get(column), column), traits=traits)


def _cell(at: str, line: Mapping[str, Any], column: str) -> str:
    text = _text(line.get(column))
    if not text:
        raise BadInput(f"{at}: column {column} is empty; write its value")
    return text


def _text(value: Any) -> str:
    return "" if value is None else value.strip() if isinstance(value, str) else json.dumps(value)


def _number(at: str, value: Any, column: str) -> float:
    """Return a value as a number: true is 1, and nan and inf stand for a run that diverged."""
    try:
        if isinstance(value, str) and "_" in value:
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        text = json.dumps(value)[:60] if value is not None else "nothing"
        raise BadInput(
            f"{at}: column {column} has {text}, which is no number; correct it, or write nan for a divergence"
        ) from None


def require_single_values(measured: Sequence[Measurement]) -> None:
    """Refuse two values of one row, seed, metric and item.

    Raises:
        BadInput: names both lines.
    """
    lines: dict[tuple[str, str, str, str], str] = {}
    has_item: dict[tuple[str, str, str], bool] = {}
    for item in measured:
        key = item.row, item.seed, item.metric, item.item
        name = f"row {item.row}, seed {item.seed}, {item.metric}{f', item {item.item}' if item.item else ''}"
        if key in lines or has_item.setdefault(key[:3], bool(item.item)) != bool(item.item):
            before = lines.get(key, "values for items and one without")
            fix = "leave one, choose lines by --where COLUMN=VALUE, or name the items' column by --columns item=NAME"
            raise BadInput(f"{name}: two values, {before} and {item.where}; {fix}")
        lines[key] = item.where
