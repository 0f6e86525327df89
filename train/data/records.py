"""Records of labelled data, one for each example: what stands in which column, from tables, lines of JSON and data sets.

A reader yields a `BadInput` in the place of an example that is malformed, and goes on; it raises where the file as such cannot be
read. `train.data.labelled_reader.read` refuses the former, or leaves them out.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from train.config.objective_options import Labelled
from train.data.arrow import table
from train.data.sources import Split
from train.data.text_files import kind_of, lines, listed, parsed
from zoo.errors import BadInput

TO_UTF8 = "convert the file to UTF-8, or choose --labelled.encoding latin-1"


class Record(NamedTuple):
    """An example as it stands in a file."""

    where: str
    """file:line, or what stands for a line there."""
    values: dict[str, Any]
    """By column."""
    numbered: bool = False
    """Whether the columns have numbers for names: "1", "2", ..."""
    headed: bool = False
    """Whether the columns have the names that stand in the first line of a table."""


def column(record: Record, asked: str, named: str, number: int, key: str) -> Any:
    """The value in the column `asked` for; if none is: in the one usually `named` so, or in the one of that `number` (-1: last).

    Raises:
        BadInput: there is no such column; it names the option `key`.
    """
    name = asked or (list(record.values)[number] if record.numbered else named)
    if name not in record.values:
        names = list(record.values)
        missing = f"{record.where}: no column {json.dumps(name)}"
        if record.headed and _is_example(names):
            line = f"the first line of the file, {listed([name[:40] for name in names])}, looks like an example"
            raise BadInput(f"{missing}; {line} and not like names of columns: add --labelled.no-header")
        other = ", or add --labelled.no-header if its first line is an example" if record.headed else ""
        raise BadInput(f"{missing}; it has {listed(names)}: choose with --labelled.{key}{other}")
    return record.values[name]


def _is_example(names: list[str]) -> bool:
    """Whether the cells of a first line are hardly names of columns: one is empty, a number, or longer than three words."""
    return any(
        not name.strip() or name.strip().lstrip("+-").replace(".", "", 1).isdigit() or len(name.split()) > 3 for name in names
    )


def numbered(where: str, cells: Iterable[Any]) -> Record:
    """A record of columns without names."""
    return Record(where, {str(number): cell for number, cell in enumerate(cells, 1)}, True)


def tsv(file: Path, options: Labelled) -> Iterator[Record | BadInput]:
    """Lines of cells between tabs. A quotation mark is a character like any other; a cell holds neither tab nor line end."""
    texts = ((line, text.rstrip("\r\n")) for line, text in lines(file, options.encoding, TO_UTF8))
    yield from _table(file, ((f"{file}:{line}", text.split("\t")) for line, text in texts if text), options)


def comma_separated(file: Path, options: Labelled) -> Iterator[Record | BadInput]:
    """Rows of a .csv (RFC 4180): a cell between quotation marks may hold commas and line ends."""

    def rows() -> Iterator[tuple[str, list[str]]]:
        reader = csv.reader((text for _, text in lines(file, options.encoding, TO_UTF8)), strict=True)
        line = 1
        try:
            for cells in reader:
                if cells:
                    yield f"{file}:{line}", cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise BadInput(f"{file}:{line}: no row of a .csv ({error}); mend its quotation marks, or write .jsonl") from None

    yield from _table(file, rows(), options)


def json_lines(file: Path, options: Labelled) -> Iterator[Record | BadInput]:
    """An object a line; blank lines are none."""
    for line, text in lines(file, options.encoding, TO_UTF8):
        if not text.strip():
            continue
        where = f"{file}:{line}"
        try:
            value = parsed(text, where, "write one whole object a line")
        except BadInput as error:
            yield error
            continue
        if isinstance(value, dict):
            yield Record(where, value)
        else:
            yield BadInput(f'{where}: {kind_of(value)}, not an object; write lines like {{"text": ..., "label": ...}}')


def parquet(file: Path, options: Labelled) -> Iterator[Record]:
    """The rows of a .parquet."""
    del options
    yield from (Record(f"{file}: row {number}", values) for number, values in enumerate(table(file), 1))


def data_set(split: Split) -> Iterator[Record]:
    """The rows of a data set of the library `datasets`; where it has names for whole numbers, these."""
    names = {name: found for name, feature in split.rows.features.items() if (found := _class_names(feature))}
    for number, row in enumerate(split.rows, 1):
        where = f"{split.where}: row {number}"
        named = {name: _named(row[name], known, f"{where}: column {json.dumps(name)}") for name, known in names.items()}
        yield Record(where, {**row, **named})


def _table(file: Path, rows: Iterator[tuple[str, list[str]]], options: Labelled) -> Iterator[Record | BadInput]:
    """Rows of cells, all as many as the first one has."""
    names: list[str] = []
    for where, cells in rows:
        if not names:
            names = cells if options.header else [str(number) for number in range(1, len(cells) + 1)]
            if len(set(names)) < len(names):
                raise BadInput(f"{where}: two columns of one name ({listed(names)}); without names, say --labelled.no-header")
            if options.header:
                continue
        if len(cells) != len(names):
            yield BadInput(f"{where}: {len(cells)} columns, but the first line of {file.name} has {len(names)}; fix the line")
            continue
        yield Record(where, dict(zip(names, cells, strict=True)), not options.header, options.header)


def _class_names(feature: Any) -> list[str] | None:
    """Names of the classes of a column of classes, or of a column of lists of them."""
    return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)


def _named(value: Any, names: list[str], where: str) -> Any:
    if isinstance(value, list):
        return [_named(each, names, where) for each in value]
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise BadInput(f"{where} holds {value}, which is none of its {len(names)} classes; leave out what has no label")
    return names[value]
