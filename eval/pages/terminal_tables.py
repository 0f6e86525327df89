"""Tables in a terminal, as all commands that compare or measure print them: without lines, and no number is ever cut."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Column(NamedTuple):
    """A column of a table; the text of a cell with several lines contains newlines."""

    title: str
    cells: Sequence[str | Text]
    justify: Literal["left", "right"] = "right"
    fold: bool = False
    """True if long texts continue on further lines where the terminal is narrow."""
    least: int = 0
    """Smallest width."""
    style: str = ""


def plain_console(width: int | None = None) -> Console:
    """Return a console for stdout that shows texts as they are; `width` is in columns, None = the terminal's."""
    return Console(highlight=False, markup=False, emoji=False, width=width)


def terminal_table(columns: Sequence[Column], *, gap: int = 2, head: bool = True) -> Table:
    """Return a table whose columns are `gap` spaces apart, with or without their titles."""
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="dim", show_header=head)
    for column in columns:
        # rich would cut text that it may not wrap, unless `min_width` is large enough.
        lines = [] if column.fold else [line for cell in (column.title, *column.cells) for line in str(cell).splitlines()]
        table.add_column(
            Text(column.title, justify=column.justify),
            justify=column.justify,
            style=column.style,
            no_wrap=not column.fold,
            overflow="fold",
            min_width=max(column.least, *map(len, lines), 0) or None,
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table
