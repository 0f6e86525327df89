"""The page of every benchmark: its result in a sentence, its own sections, and the environment that it was measured in."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.core.html_page import Block, Cards, render
from benchmarks.core.result_files import Results
from benchmarks.core.result_tables import merge_processes, timed_cells


def render_results(
    results: Results, title: str, lead: str, sections: Mapping[str, Sequence[Block]], tiles: Sequence[tuple[str, str]] = ()
) -> str:
    """Return the page; see `benchmarks.core.html_page.render`."""
    footer = f"Made by zoo bench {results.what} from its own cells.jsonl alone."
    return render(title, lead, {**sections, "Environment": [_environment(results)]}, tiles=tiles, footer=footer)


def timed_sentence(results: Results, noun: str) -> str:
    """Return how many cells were timed and how many are wrong."""
    cells = merge_processes(results.cells)
    bad = sum(cell["state"] in ("wrong", "failed") for cell in cells)
    outcome = f"{bad} wrong or failed" if bad else "none is wrong"
    return f"{len(timed_cells(cells))} of {len(cells)} {noun} timed on {device(results)}; {outcome}."


def device(results: Results) -> str:
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

    def titled(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name.replace("_", " "): value for name, value in values.items()}

    cards = {"machine": titled(machine), "asked": titled(options), "versions": {**versions, **peers}, "settings": settings}
    return Cards(cards)
