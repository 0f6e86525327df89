"""A page as self-contained HTML, from one template and one style sheet: a header, and sections of blocks.

In a section a string is a paragraph, a list of strings is a list of notes, a mapping is a table of names and values, and the
classes below and `Figure` are the other blocks. All text is escaped.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from eval.pages.charts import Figure
from eval.pages.value_text import cell_text, escape_text, fold_text, format_number


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with `words` columns of words, then right-aligned numbers; one that is too wide scrolls."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    words: int = 1
    summary: str = ""
    """Line that unfolds the table; with "" the table is always visible."""
    notes: int = 0
    """Trailing columns that explain the others."""

    def __bool__(self) -> bool:
        return bool(self.rows)


@dataclasses.dataclass(frozen=True)
class LinedTable(Table):
    """A table whose cells have lines: first a value, then its explanations. A line of type `Value` is another value.

    On a screen on which the page does not have its full width, each row is a block with the titles of its columns.
    """

    groups: Sequence[tuple[str, int]] = ()
    """Titles above the head, with the number of columns of each."""
    names: Sequence[str] = ()
    """Titles of the columns in such blocks, which have no groups; none = the head."""


class Value(str):
    """A line of a cell that is a separate value, not an explanation of the line above."""


@dataclasses.dataclass(frozen=True)
class Plots:
    """Figures side by side."""

    figures: Sequence[Figure]
    note: str = ""
    """Paragraph above them."""

    def __bool__(self) -> bool:
        return bool(self.figures)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a heat map."""

    text: str
    hover: str = ""
    look: str = "none"
    """Class of the style sheet: none, right, wrong or share."""
    style: str = ""
    """CSS of this cell, for example "--share:40%" for its depth of colour."""


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """A table of coloured cells."""

    head: Sequence[str]
    rows: Iterable[tuple[str, Sequence[Cell]]]
    """(name, cells) of each row."""
    corner: str = ""
    """Title of the column of names."""
    dense: bool = False
    """True for small squares without text, to show many."""


@dataclasses.dataclass(frozen=True)
class Cards:
    """Names and values in frames: title of a card -> its values."""

    values: Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A text, with other texts side by side below it; "" is replaced by a note."""

    prompt: str
    texts: Sequence[tuple[str, str]]
    """(title, text) of each."""
    folded: bool = False
    """True if the ends of long texts are folded."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """A table of examples with long texts, whose ends are folded."""

    head: Sequence[str]
    rows: Iterable[tuple[Sequence[str], Sequence[str]]]
    """(texts, cells) of each example; the last cell is a number."""


@dataclasses.dataclass(frozen=True)
class Prose:
    """A text of paragraphs with blank lines between them; one whose lines all begin with "- " is a list."""

    text: str

    def __bool__(self) -> bool:
        return bool(self.text.strip())

    @property
    def paragraphs(self) -> list[str | list[str]]:
        """Return the paragraphs, a list as its items."""
        blocks = [block.strip().splitlines() for block in re.split(r"\n\s*\n", self.text.strip())]
        return [
            [line.strip()[2:] for line in lines] if all(line.strip().startswith("- ") for line in lines) else " ".join(lines)
            for lines in blocks
        ]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A statement with its verdict."""

    verdict: str
    look: str
    """Class of the style sheet: good, part, bad, open, mixed or none."""
    remark: str
    """Words after the verdict."""
    text: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """A list of statements with their verdicts."""

    items: Sequence[Verdict]


Block = str | Sequence[str] | Mapping[str, Any] | Table | Figure | Plots | HeatMap | Cards | Sample | Examples | Prose | Verdicts
Sections = Mapping[str, Sequence[Block]]
"""Heading -> blocks; empty blocks, such as tables without rows, and empty sections are left out."""


def render_page(
    title: str,
    lead: str,
    sections: Sections,
    *,
    header: Sequence[Block] = (),
    tiles: Sequence[tuple[str, str]] = (),
    footer: str = "",
) -> str:
    """Return a complete page, without network access and scripts.

    Args:
        lead: the result in a sentence.
        header: blocks between the lead and the tiles.
        tiles: (value, label) of the numbers at the top.
        footer: how the page was made.
    """
    filled = {heading: present for heading, blocks in sections.items() if (present := [block for block in blocks if block])}
    return _template().render(title=title, lead=lead, header=header, sections=filled, tiles=tiles, footer=footer)


@functools.cache
def _template() -> jinja2.Template:
    """Return the template, which escapes every value that is not `Markup`, and in which no name may be undefined."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(escape_text(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({"number": format_number, "cell": cell_text, "fold": fold_text})
    environment.tests["value"] = lambda line: isinstance(line, Value)
    return environment.get_template("page.html.j2")
