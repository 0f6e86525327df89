"""Readers of labelled data from tables, JSON lines and data sets: a record per example, with the values of the columns.

A reader yields a `BadInput` in place of a malformed example and continues; it raises one if the file itself cannot be read.
`train.data.labelled_reader.read_labelled_examples` raises the yielded ones, or leaves those examples out.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from train.config.option_groups import ExampleFileOptions, Tables
from train.data.arrow import read_parquet_rows
from train.data.sources import Split
from train.data.text_files import decoded_lines, json_type, lines_or_errors, list_names, parse_json_line, parse_object, read_whole
from zoo.errors import BadInput

TO_UTF8 = "convert the file to UTF-8, or choose --labelled.encoding latin-1"


class Record(NamedTuple):
    """The values of one example as its file has them."""

    where: str
    """Position for error messages: file:line, or another position within the file."""
    values: dict[str, Any]
    """Values by the name of their column."""
    numbered: bool = False
    """True if the names of the columns are their numbers: "1", "2", ..."""
    headed: bool = False
    """True if the names of the columns are from the first line of a table."""
    line: int | None = None
    """Number of its line, the first of several, or of its row in a .parquet file or data set; None where there are none."""


class BadRecord(BadInput):
    """A malformed example, in place of its record."""

    def __init__(self, message: str, line: int) -> None:
        """Make the error of the example at a line, see `Record.line`."""
        super().__init__(message)
        self.line = line


def no_action() -> None:
    """Do nothing."""


def column_value(record: Record, chosen: str, default: str, number: int, key: str) -> Any:
    """Return the value in the column `chosen`, or in a default one where that is "".

    The default is the column called `default`, or number `number` (-1: the last) where the columns have no names.

    Raises:
        BadInput: there is no such column; the message names the option --labelled.`key`.
    """
    columns = list(record.values)
    if not chosen and record.numbered and number >= len(columns):
        raise BadInput(f"{record.where}: {len(columns)} columns, and column {number + 1} is the {default}; add it to the file")
    name = chosen or (columns[number] if record.numbered else default)
    if name not in record.values:
        names = list(record.values)
        missing = f"{record.where}: no column {json.dumps(name)}"
        if record.headed and _is_example(names):
            line = f"the first line of the file, {list_names([name[:40] for name in names])}, looks like an example"
            raise BadInput(f"{missing}; {line} and not like names of columns: add --labelled.no-header")
        other = ", or add --labelled.no-header if its first line is an example" if record.headed else ""
        if record.numbered and all(isinstance(value, str) for value in record.values.values()):
            other = ", or add --labelled.header if the first line of the file has the names of the columns"
        raise BadInput(f"{missing}; it has {list_names(names)}: choose one with --labelled.{key}{other}")
    return record.values[name]


def _is_example(names: list[str]) -> bool:
    """Return whether a first line is unlikely to be column names: a cell is empty, a number, or longer than three words."""
    return any(
        not name.strip() or name.strip().lstrip("+-").replace(".", "", 1).isdigit() or len(name.split()) > 3 for name in names
    )


def numbered_record(where: str, cells: Iterable[Any], line: int) -> Record:
    """Return a record of columns without names; they are numbered from 1."""
    return Record(where, {str(number): cell for number, cell in enumerate(cells, 1)}, True, line=line)


def read_tsv(file: Path, options: Tables, on_blank: Callable[[], None] = no_action) -> Iterator[Record | BadInput]:
    """Read lines of cells separated by tabs. Quotation marks are ordinary characters; a cell has neither tabs nor line ends.

    Args:
        on_blank: called for each blank line, here and in the functions below.
    """

    def rows() -> Iterator[tuple[int, list[str] | BadInput]]:
        for line, text in lines_or_errors(file, options.encoding, TO_UTF8):
            if isinstance(text, BadInput):
                yield line, text
            elif text := text.rstrip("\r\n"):
                yield line, text.split("\t")
            else:
                on_blank()

    yield from _table(file, rows(), options)


def comma_separated(file: Path, options: Tables, on_blank: Callable[[], None] = no_action) -> Iterator[Record | BadInput]:
    """Read the rows of a .csv (RFC 4180): a cell in quotation marks may contain commas and line ends."""

    def rows() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader((text for _, text in decoded_lines(file, options.encoding, TO_UTF8)), strict=True)
        line = 1
        try:
            for cells in reader:
                if cells:
                    yield line, cells
                else:
                    on_blank()
                line = reader.line_num + 1
        except csv.Error as error:
            raise BadInput(f"{file}:{line}: invalid .csv row ({error}); fix its quotation marks, or write .jsonl") from None

    yield from _table(file, rows(), options)


def read_json_records(
    file: Path, options: ExampleFileOptions, on_blank: Callable[[], None] = no_action
) -> Iterator[Record | BadInput]:
    """Read one JSON object per line; blank lines are skipped."""
    for line, text in lines_or_errors(file, options.encoding, TO_UTF8):
        where = f"{file}:{line}"
        try:
            if isinstance(text, BadInput):
                raise text
            if text.strip():
                yield Record(where, parse_object(text, where, '{"text": ..., "label": ...}'), line=line)
            else:
                on_blank()
        except BadInput as error:
            yield BadRecord(str(error), line)


def json_array(file: Path, options: ExampleFileOptions) -> Iterator[Record | BadInput]:
    """Read a file with one JSON array of objects."""
    text = read_whole(file, options.encoding, TO_UTF8)
    content = parse_json_line(text, str(file), "write one array of objects, or name a file with an object per line .jsonl")
    if not isinstance(content, list):
        raise BadInput(f"{file}: {json_type(content)}; write one array of objects")
    for number, values in enumerate(content, 1):
        where = f"{file}: record {number}"
        yield Record(where, values) if isinstance(values, dict) else BadInput(f"{where}: {json_type(values)}; write an object")


def read_parquet_records(file: Path, options: ExampleFileOptions) -> Iterator[Record]:
    """Read the rows of a .parquet file."""
    del options
    yield from (Record(f"{file}: row {number}", values, line=number) for number, values in enumerate(read_parquet_rows(file), 1))


def read_data_set(split: Split) -> Iterator[Record]:
    """Read the rows of a data set of the library `datasets`, with the names of classes in place of their numbers."""
    names = {name: classes for name, feature in split.rows.features.items() if (classes := _class_names(feature))}
    for number, row in enumerate(split.rows, 1):
        where = f"{split.where}: row {number}"
        class_values = {name: _named(row[name], labels, f"{where}: column {json.dumps(name)}") for name, labels in names.items()}
        yield Record(where, {**row, **class_values}, line=number)


def _table(
    file: Path, rows: Iterator[tuple[int, list[str]]] | Iterator[tuple[int, list[str] | BadInput]], options: Tables
) -> Iterator[Record | BadInput]:
    """Yield records of rows of cells, (line, cells or error); every row must have as many cells as the first one."""
    names: list[str] = []
    empty = True
    for line, cells in rows:
        where = f"{file}:{line}"
        if isinstance(cells, BadInput):
            if not names:
                raise cells
            yield BadRecord(str(cells), line)
            continue
        if not names:
            names = cells if options.header else [str(number) for number in range(1, len(cells) + 1)]
            if len(set(names)) < len(names):
                fix = "rename one, or add --labelled.no-header if the file has no header"
                raise BadInput(f"{where}: two columns have the same name ({list_names(names)}); {fix}")
            if options.header:
                continue
        empty = False
        if len(cells) != len(names):
            message = f"{where}: {len(cells)} columns, but the first line of {file.name} has {len(names)}; fix the line"
            yield BadRecord(message, line)
            continue
        yield Record(where, dict(zip(names, cells, strict=True)), not options.header, options.header, line)
    if names and empty:
        fix = "write some, or add --labelled.no-header if that line is one"
        raise BadInput(f"{file}: holds no examples after its first line, which has the names of the columns; {fix}")


def _class_names(feature: Any) -> list[str] | None:
    """Return the class names of a column of classes or of lists of classes, else None."""
    return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)


def _named(value: Any, names: list[str], where: str) -> Any:
    if isinstance(value, list):
        return [_named(item, names, where) for item in value]
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise BadInput(f"{where} holds {value}, which is not one of its {len(names)} classes; remove the rows without a label")
    return names[value]
