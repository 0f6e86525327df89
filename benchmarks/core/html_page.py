"""The pages of benchmarks and plans: self-contained HTML from one template, `page.html.j2`, with the style sheet of reports.

A section is a list of blocks. A string is a paragraph, a list of strings is a list of notes, a mapping explains names, and the
classes below are the other blocks. All text is escaped.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from eval.report import html_elements
from eval.report.svg import NARROW, WIDE, svg
from eval.report.templates import page_template


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with `words` columns of words, then right-aligned numbers; one that is too wide scrolls."""

    head: Sequence[str]
    rows: Iterable[Sequence[Any]]
    words: int = 1
    summary: str = ""
    """Line that unfolds the table; with "" the table is always visible."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing with a title and a legend."""

    title: str
    draw: Callable[[Any], None]
    """Draws on matplotlib axes, in the colours of `eval.report.svg`."""
    label: str
    """Description for screen readers. No two figures of a page share it."""
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Legend: name -> classes of the style sheet, for example "one dots"."""
    across: bool = False
    """True if it is as wide as the page; narrow screens show a second drawing."""
    height: float | None = None
    """Inches; None is the usual height."""

    @property
    def drawings(self) -> list[Markup]:
        """Return the SVG drawings; the style sheet shows the one that fits."""
        sizes = {"wide": WIDE, "narrow": NARROW} if self.across else {"": NARROW}
        label = html_elements.escape_text(self.label)
        return [Markup(svg(self.draw, (width, self.height or height), label, kind)) for kind, (width, height) in sizes.items()]


@dataclasses.dataclass(frozen=True)
class Plots:
    """Figures side by side."""

    figures: Iterable[Figure]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a heat map."""

    text: str
    hover: str
    look: str = "none"
    """Class of the style sheet: none, right or wrong."""
    style: str = ""
    """CSS of this cell, for example "--share:40%" for its depth of colour."""


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """A table of coloured cells."""

    head: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]


@dataclasses.dataclass(frozen=True)
class Cards:
    """Names and values in frames: title of a card -> its values."""

    values: Mapping[str, Mapping[str, Any]]


Block = str | Sequence[str] | Mapping[str, Any] | Table | Figure | Plots | HeatMap | Cards


def render(
    title: str,
    lead: str,
    sections: Mapping[str, Sequence[Block]],
    *,
    tiles: Sequence[tuple[str, str]] = (),
    footer: str = "",
) -> str:
    """Return a complete page, without network access and scripts; empty blocks and sections are left out.

    Args:
        lead: the result in a sentence.
        sections: heading -> blocks.
        tiles: (value, label) of the numbers at the top.
        footer: how the page was made.
    """
    filled = {heading: present for heading, blocks in sections.items() if (present := [block for block in blocks if block])}
    body = _template().render(title=title, lead=lead, sections=filled, tiles=tiles, footer=footer)
    return html_elements.page(title, lead, [body])


@functools.cache
def _template() -> jinja2.Template:
    return page_template(Path(__file__).parent)
