"""Readers of the documents in a text column of .parquet files and Arrow streams, a few rows at a time."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from train.data.text_files import LONGEST_LINE, Document, document_chunks, json_type, list_names, unpacked_limit, unpacks_to_more
from zoo.errors import BadInput, import_optional
from zoo.file_access import open_regular

ROWS = 64
"""Number of rows of a .parquet file that are decoded at a time."""


def read_parquet_column(file: Path, name: str, field: str) -> Iterator[Document]:
    """Yield the text in one column of each row as a document. Rows with an empty text are skipped."""
    pq = import_data_library("pyarrow.parquet")
    with _errors(file), open_regular(file):
        check_column(pq.read_schema(file), field, str(file))
        # Dictionary encoding keeps a text that occurs often in memory once.
        with pq.ParquetFile(file, read_dictionary=[field], buffer_size=1 << 20, pre_buffer=False) as table:
            batches = table.iter_batches(ROWS, columns=[field], use_threads=False)
            yield from _bounded(_rows(batches, name, field, str(file)), [file], str(file))


def read_parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield each row of a .parquet file with all of its columns, as Python values."""
    pq = import_data_library("pyarrow.parquet")
    with _errors(file), open_regular(file), pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as rows:
        remaining = unpacked_limit(file.stat().st_size)
        for batch in rows.iter_batches(ROWS, use_threads=False):
            remaining -= batch.nbytes + sum(map(_referenced_bytes, batch.columns))
            if remaining < 0:
                raise unpacks_to_more(file)
            yield from batch.to_pylist()


def arrow_streams(files: Iterable[Path], name: str, field: str) -> Iterator[Document]:
    """Yield the text of each row of several files as one data set called `name`: row numbers continue from file to file."""
    files = list(files)

    def batches() -> Iterator[Any]:
        for file in files:
            # Not memory-mapped: the pages of a mapped file count as memory of the process.
            with (
                _errors(file),
                open_regular(file),
                import_data_library("pyarrow").OSFile(str(file)) as raw,
                import_data_library("pyarrow.ipc").open_stream(raw) as stream,
            ):
                check_column(stream.schema, field, name)
                yield from (batch.select([field]) for batch in stream)

    return _bounded(_rows(batches(), name, field, name), files, name)


def _bounded(documents: Iterator[Document], files: Iterable[Path], where: str) -> Iterator[Document]:
    """Yield documents, up to the text that their files may have: a table has a text once, and any number of references to it."""
    remaining = unpacked_limit(sum(file.stat().st_size for file in files))
    for part in documents:
        remaining -= len(part.text)
        if remaining < 0:
            raise unpacks_to_more(where)
        yield part


def _referenced_bytes(column: Any) -> int:
    """Return the bytes of the texts that a column refers to, each counted as often as it occurs; 0 for another column."""
    types, compute = import_data_library("pyarrow").types, import_data_library("pyarrow.compute")
    if not types.is_dictionary(column.type) or not (
        types.is_string(column.type.value_type) or types.is_large_string(column.type.value_type)
    ):
        return 0
    return compute.sum(compute.binary_length(column.dictionary).take(column.indices)).as_py() or 0


def check_column(schema: Any, field: str, where: str) -> None:
    """Check that an Arrow schema has a column of strings called `field`.

    Raises:
        BadInput: the schema has no such column; the message lists the columns.
    """
    if field not in schema.names:
        raise BadInput(f"{where}: no column {json.dumps(field)}; it has {list_names(schema.names)}: choose one with --data.field")
    types, kind = import_data_library("pyarrow").types, schema.field(field).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise BadInput(
            f"{where}: column {json.dumps(field)} holds {kind}, not strings; it has {list_names(schema.names)}: choose "
            "another with --data.field"
        )


def import_data_library(module: str) -> Any:
    """Import a module of the optional dependency group `data`.

    Raises:
        BadInput: the module is not installed.
    """
    return import_optional(module, "data", "to read this data")


def _rows(batches: Iterable[Any], name: str, field: str, where: str) -> Iterator[Document]:
    number, has_text = 0, False
    for batch in batches:
        for value in batch.column(0):
            number += 1
            text = _string(value, f"{where}: row {number}", field)
            if text:
                has_text = True
                yield from document_chunks(f"{name}:{number}", [text], f"{where}: row {number}")
    if not has_text:
        raise BadInput(f"{where}: holds no text in column {json.dumps(field)}")


def _string(value: Any, where: str, field: str) -> str:
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        raise BadInput(f"{where}: column {json.dumps(field)} is not UTF-8 (byte {error.start}); fix it") from None
    if not isinstance(text, str):
        raise BadInput(f"{where}: column {json.dumps(field)} holds {json_type(text)}, not a string; fix or remove the row")
    if len(text) > LONGEST_LINE:
        raise BadInput(f"{where}: longer than {LONGEST_LINE >> 20} Mi characters; split it into several documents")
    return text


@contextlib.contextmanager
def _errors(file: Path) -> Iterator[None]:
    """Raise `BadInput` for the errors that pyarrow raises on a file that is damaged or of another format."""
    try:
        yield
    except (import_data_library("pyarrow").ArrowException, OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise BadInput(f"{file}: cannot be read ({why}); write or copy it again") from None
