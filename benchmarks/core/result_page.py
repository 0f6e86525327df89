"""The report of a benchmark in three forms, an HTML page, Markdown and text for a terminal, from the same sections."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from benchmarks.core import result_tables
from benchmarks.core.result_files import Results
from benchmarks.core.result_tables import Heading, merge_processes, timed_cells
from eval.pages.charts import Figure
from eval.pages.html_page import Cards, HeatMap, Plots, Sections, render_page

Form = Literal["page", "markdown", "terminal"]


class Report(NamedTuple):
    """The results of a benchmark, described; all blocks but drawings have a textual form."""

    lead: str
    """The result in a sentence, for the page."""
    sections: Sections
    tiles: Sequence[tuple[str, str]] = ()
    """(value, label) of the numbers at the top of the page."""


def result_page(results: Results, title: str, report: Report) -> str:
    """Return the report as a page, with the environment that it was measured in."""
    footer = f"Made by zoo bench {results.what} from its own cells.jsonl alone."
    sections = {**report.sections, "Environment": [_environment(results)]}
    return render_page(title, report.lead, sections, tiles=report.tiles, footer=footer)


def text_sections(report: Report) -> dict[str, list[Any]]:
    """Return the sections of a report as text: without drawings, and with names and their explanations as notes."""
    return {
        heading: [
            [f"{name}: {value}." for name, value in block.items()] if isinstance(block, Mapping) else block
            for block in blocks
            if block and not isinstance(block, Figure | Plots | HeatMap | Cards)
        ]
        for heading, blocks in report.sections.items()
    }


def text_blocks(report: Report) -> list[result_tables.Block]:
    """Return the blocks of a report for a terminal."""
    content: list[Any] = []
    for heading, blocks in text_sections(report).items():
        content += [Heading(heading), *blocks] if blocks else []
    return content


def timed_sentence(results: Results, noun: str) -> str:
    """Return how many cells were timed and how many are wrong."""
    cells = merge_processes(results.cells)
    bad = sum(cell["state"] in ("wrong", "failed") for cell in cells)
    outcome = f"{bad} wrong or failed" if bad else "none is wrong"
    return f"{len(timed_cells(cells))} of {len(cells)} {noun} timed on {device_name(results)}; {outcome}."


def device_name(results: Results) -> str:
    """Return the name of the processor or accelerator."""
    return results.environment["cpu" if results.environment["backend"] == "cpu" else "device"]


def _environment(results: Results) -> Cards:
    """Return cards of the machine, the requested options and the versions, including those of peers."""
    machine = dict(results.environment)
    versions, settings = machine.pop("versions"), machine.pop("settings", {})
    machine["matrix_rate"] = ", ".join(f"{dtype} {rate / 1e9:,.1f} GFLOP/s" for dtype, rate in machine["matrix_rate"].items())
    machine["copy_rate"] = f"{machine['copy_rate'] / 1e9:,.1f} GB/s"
    options = {name: value for name, value in results.options.items() if value not in (None, [], "")}
    peers = {name: version for cell in results.cells for name, version in cell.get("versions", {}).items()}
    machine, options = ({name.replace("_", " "): value for name, value in values.items()} for values in (machine, options))
    return Cards({"machine": machine, "asked": options, "versions": {**versions, **peers}, "settings": settings})
