"""Output of `zoo recipes [NAME]`: the published recipes, and the source of each of their numbers."""

import collections
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from train import recipes
from train.config.provenance import PROVENANCE, recipe_numbers
from zoo.cli.models_table import printed_text
from zoo.errors import BadInput


def render_recipes(name: str = "", *, as_json: bool = False) -> str:
    """Return the text of `zoo recipes` (all with sources) or of `zoo recipes NAME` (one in full).

    It is styled if stdout is a terminal.

    Raises:
        BadInput: there is no such recipe, or it has no source.
    """
    own = recipes.recipes()
    if name:
        recipes.find_recipe(name)
        if name not in PROVENANCE:
            listed = ", ".join(sorted(PROVENANCE))
            raise BadInput(f"{name}: its numbers are this project's, so they have no source; these have one: {listed}")
    if as_json:
        described: Any = describe_recipe(name) if name else [describe_recipe(other) for other in own if other in PROVENANCE]
        return json.dumps(described, indent=2) + "\n"
    return printed_text(lambda console: _page(console, name) if name else _listing(console, sorted(PROVENANCE)))


def describe_recipe(name: str) -> dict[str, Any]:
    """Return a recipe as JSON values; `numbers` has the value, the status and the source of each option."""
    sources, run = PROVENANCE[name], recipes.find_recipe(name)()
    numbers = {}
    for option, value in recipe_numbers(run, sources).items():
        status, text = sources.status_of(option)
        numbers[option] = {"value": value, "status": status, "place" if status == "published" else "why": text}
    return {"name": name, "about": _about(name), "size": sources.size, "source": sources.source, "numbers": numbers}


def _about(name: str) -> str:
    return (recipes.find_recipe(name).__doc__ or "").strip().splitlines()[0]


def _listing(console: Console, names: list[str]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("recipe", no_wrap=True)
    table.add_column("size", no_wrap=True)
    for heading in ("published", "assumed", "unknown"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in names:
        counts = collections.Counter(number["status"] for number in describe_recipe(name)["numbers"].values())
        table.add_row(name, PROVENANCE[name].size, *(str(counts[status]) for status in ("published", "assumed", "unknown")))
    console.print(table)
    console.print(
        "\n`zoo recipes NAME` gives the source of each number. All other recipes have numbers of this project.", style="dim"
    )


def _page(console: Console, name: str) -> None:
    described = describe_recipe(name)
    facts = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column()
    facts.add_row("model", f"{described['size']}; `zoo models {described['size']}` has the sources of its numbers")
    facts.add_row("source", described["source"])
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    previous = ""
    for option, number in described["numbers"].items():
        text = number.get("place") or number["why"]
        table.add_row(option.replace("_", "-"), _cell(number["value"]), number["status"], "" if text == previous else text)
        previous = text
    console.print(name, style="bold")
    console.print(described["about"])
    console.print(facts)
    console.print()
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(value) or "-"
    return f"{value:,}" if type(value) is int else f"{value}"
