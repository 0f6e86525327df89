"""Tables of figures that others have published."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import BadInput
from zoo.file_access import read_regular_text


def read_published_rows(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file by column.

    Raises:
        BadInput: the file is missing, or has no rows or not the columns `needed`.
    """
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file; give the path of the published table")
    rows = list(csv.DictReader(io.StringIO(read_regular_text(path))))
    if missing := [name for name in needed if not rows or name not in rows[0]]:
        raise BadInput(f"{path}: it has no column {', '.join(missing)}; give the path of the published table")
    return rows
