"""Rows of a file of published training steps, and their division into a half to improve the planner on and a half to judge it."""

import csv
import dataclasses
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from zoo.errors import BadInput
from zoo.file_access import read_regular_text

Half = Literal["improve", "judge"]


class NotPlanned(Exception):
    """A row that is not planned; the message is the reason, which rows share."""


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """A published training step: the fields of the file as text, "" where nothing was published."""

    fields: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.fields["row_id"]

    @property
    def digest(self) -> str:
        """The hash of the name, which orders and divides the rows."""
        return hashlib.sha256(self.name.encode()).hexdigest()

    @property
    def half(self) -> Half:
        return "judge" if int(self.digest[:8], 16) % 2 else "improve"

    def optional(self, field: str) -> str:
        """Return a field; "" if it is not published."""
        return self.fields.get(field) or ""

    def text(self, field: str) -> str:
        """Return a field.

        Raises:
            NotPlanned: it is not published.
        """
        if not (value := self.optional(field)):
            raise NotPlanned(f"no {field}")
        return value

    def number(self, field: str) -> float:
        """Return a field as a number.

        Raises:
            NotPlanned: it is not published, or not a finite number above 0.
        """
        text = self.text(field)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise NotPlanned(f"{field} is no number above 0")
        return value

    def count(self, field: str, default: int | None = None) -> int:
        """Return a field as an integer; `default` if it is not published.

        Raises:
            NotPlanned: it is not published and there is no default, or it is not an integer above 0.
        """
        if default is not None and not self.optional(field):
            return default
        value = self.number(field)
        if value != int(value):
            raise NotPlanned(f"{field} is no integer")
        return int(value)


def read_published(file: Path) -> list[PublishedRow]:
    """Return the rows of a CSV file of published training steps.

    Raises:
        BadInput: the file cannot be read, is no table with the columns `row_id` and `step_time_s`, or names a row twice.
    """
    try:
        lines = list(csv.DictReader(read_regular_text(file).splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"--published {file}: cannot be read ({reason}); name a CSV file of training steps") from None
    missing = [column for column in ("row_id", "step_time_s") if not lines or column not in lines[0]]
    if missing:
        raise BadInput(f"--published {file}: has no column {missing[0]}; name a file with the columns in docs/plan-checks.md")
    rows = [PublishedRow({key: value or "" for key, value in line.items() if key}) for line in lines]
    names = [row.name for row in rows]
    if twice := next((name for name in names if not name or names.count(name) > 1), None):
        raise BadInput(f"--published {file}: row_id {twice or '(empty)'} is not the name of one row; give each row its own")
    return rows
