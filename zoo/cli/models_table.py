"""Output of `zoo models [NAME]`: every size with its exact parameter count, and the source of each of its numbers."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from zoo import configs, plugins
from zoo.cli import parameter_counts
from zoo.configs import Size
from zoo.errors import printable

NARROWEST = 80
"""Columns that the listing needs. A narrower terminal wraps lines, but no number is ever cut."""

FOOTER = (
    "* not published: chosen by this project. assumed: number of such fields of a size, including those not shown. "
    "`zoo models NAME` gives the reasons and the source."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeRow:
    """A size with its name, family and parameter count."""

    name: str
    family: str
    size: Size
    parameters: int
    """Exact count, without the padding rows of the vocabulary."""


def render_models(name: str = "", *, as_json: bool = False) -> str:
    """Return the text of `zoo models` (all sizes), `zoo models FAMILY` or `zoo models NAME` (one size in full).

    It is styled if stdout is a terminal.

    Raises:
        BadInput: an unpublished or unknown name.
    """
    listed = [row for row in size_rows() if name in ("", row.family)]
    if as_json:
        described = [describe_size(row) for row in listed] or describe_size(row_of(name))
        return json.dumps(described, indent=2) + "\n"
    return printed_text(lambda console: _listing(console, listed) if listed else _page(console, row_of(name)))


def printed_text(show: Callable[[Console], None]) -> str:
    """Return the text that a function prints on a console at least `NARROWEST` columns wide, styled if stdout is a terminal."""
    console = Console(highlight=False)
    console.width = max(console.width, NARROWEST)
    with console.capture() as text:
        show(console)
    # Cells are padded to the width of their column; remove the blanks at the end of each line.
    return "".join(f"{line.rstrip()}\n" for line in text.get().splitlines())


def size_rows() -> Iterator[SizeRow]:
    """Yield every size of every family, in the order of its file."""
    for family in configs.families():
        for name in configs.family(family).SIZES:
            yield row_of(name)


def row_of(name: str) -> SizeRow:
    """Return the row of a published name.

    Raises:
        BadInput: an unpublished or unknown name.
    """
    family, size = configs.find_size(name)
    return SizeRow(name=name, family=family, size=size, parameters=parameter_counts.parameter_count(name, size))


def describe_size(row: SizeRow) -> dict[str, Any]:
    """Return a row as JSON values; `fields` has each number of the architecture with its status."""
    return {
        "name": row.name,
        "family": row.family,
        "objective": row.size.objective,
        "parameters": row.parameters,
        "active_parameters": configs.active_parameters(row.size.config, row.parameters),
        "published_parameters": row.size.published_count,
        "source": row.size.source,
        "note": row.size.note,
        "fields": {
            field: {"value": value, "status": "assumed", "why": row.size.assumed[field]}
            if field in row.size.assumed
            else {"value": value, "status": "published"}
            for field, value in _numbers(row.size)
        },
    }


def _listing(console: Console, chosen: list[SizeRow]) -> None:
    for (family, objective), group in itertools.groupby(chosen, key=lambda row: (row.family, row.size.objective)):
        console.print(f"{family}, {_kind(objective)}", style="bold")
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("size", vertical="bottom", no_wrap=True)
        for heading in ("parameters", "layers\nx width", "heads\nx size", "context", "vocab", "assumed"):
            table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
        for row in group:
            assumed = len(row.size.assumed)
            table.add_row(
                row.name,
                f"{row.parameters:,}",
                _cell(row.size, "layers", "width"),
                _cell(row.size, "heads", "head"),
                _cell(row.size, "context"),
                _cell(row.size, "vocab"),
                "none" if assumed == 0 else "all" if assumed == len(_numbers(row.size)) else str(assumed),
            )
        console.print(table)
    if names := plugins.described_plugins("zoo.models"):
        line = f"families of plug-ins: {', '.join(names)}; `zoo models FAMILY-SIZE` shows a size"
        console.print(printable(line), soft_wrap=True, markup=False)
    console.print(f"\n{FOOTER}", style="dim")


def _page(console: Console, row: SizeRow) -> None:
    size = row.size
    facts = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column()
    facts.add_row("family", f"{row.family}, {_kind(size.objective)}")
    facts.add_row("parameters", f"{row.parameters:,}")
    if (active := configs.active_parameters(size.config, row.parameters)) is not None:
        facts.add_row("active", f"{active:,} of them are used for a token, with the output table and without the input table")
    facts.add_row("published", "no exact count" if size.published_count is None else f"{size.published_count:,}")
    facts.add_row("source", size.source)
    if size.note:
        facts.add_row("note", size.note)
    fields = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    fields.add_column(no_wrap=True)
    fields.add_column(justify="right", no_wrap=True)
    fields.add_column()
    previous = None
    for field, value in _numbers(size):
        why = size.assumed.get(field)
        status = "published" if why is None else "assumed: as above" if why == previous else f"assumed: {why}"
        fields.add_row(field, " ".join(value) if isinstance(value, tuple) else f"{value}", status)
        previous = why
    console.print(row.name, style="bold")
    console.print(facts)
    console.print()
    console.print(fields)


def _numbers(size: Size) -> list[tuple[str, Any]]:
    """Return (name, value) of the fields of the architecture, without those of `compute` and `exported`."""
    return [(field, getattr(size.config, field)) for field in Size.numbers_of(size.config)]


def _cell(size: Size, *fields: str) -> str:
    """Return the values joined by "x", each marked by * if it is assumed; "-" for a field that this family lacks."""
    marked = (f"{getattr(size.config, field, '-')}{'*' if field in size.assumed else ''}" for field in fields)
    return "x".join(marked)


def _kind(objective: str) -> str:
    """Return the kind of model in words, from its training objective."""
    return {"denoising": "denoising encoder-decoder", "text_to_text": "encoder-decoder"}.get(
        objective, f"{objective} language model"
    )
