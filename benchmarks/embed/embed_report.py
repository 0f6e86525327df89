"""The report of `zoo bench embed`: a table of the programs."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.core import result_tables
from benchmarks.core.result_files import Results
from benchmarks.core.result_page import Form, Report, timed_sentence
from benchmarks.core.result_tables import format_bytes, format_number, merge_processes, percentiles_text, seconds_text
from benchmarks.step.programs import OURS
from eval.pages.html_page import Table

HEAD = ("program", "time", "20-80 %", "tokens/s", "texts/s", "over jax-zoo", "20-80 %", "difference", "memory")
LEGEND = {
    "time": "from texts to vectors in numpy, of all texts",
    "tokens/s": "tokens of the texts with special tokens, without padding",
    "over jax-zoo": "time over that of jax-zoo in the same rounds, median, and the 20th and 80th percentile over rounds",
    "difference": "largest difference of a number in the vectors from that of jax-zoo",
    "memory": "peak of its process",
}


def embed_report(results: Results, form: Form) -> Report:
    """Return the report, which is the same in every form."""
    cells = sorted(merge_processes(results.cells), key=lambda cell: cell["key"]["program"] != OURS)
    compared = [
        f"{cell['key']['program']} takes {cell['ratio']:.2f} times as long as {OURS}."
        for cell in result_tables.timed_cells(cells)
        if cell["ratio"] and cell["key"]["program"] != OURS
    ]
    title = f"Vectors of {cells[0]['key']['model']}" if cells else "Vectors"
    reasons = result_tables.missing_cell_reasons(results.cells, lambda key: key["program"])
    sections = {title: [Table(HEAD, list(map(_row, cells))), reasons], "What the numbers are": [LEGEND]}
    return Report(" ".join([timed_sentence(results, "programs"), *compared]), sections)


def embed_cells_text(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return all programs in one line, for the progress display."""
    return "; ".join(" ".join(_row(cell)[:2]) for cell in cells)


def _row(cell: Mapping[str, Any]) -> list[str]:
    """Return a row of the table: see `HEAD`."""
    name = cell["key"]["program"]
    if cell["state"] != "timed":
        return [name, cell["state"], *[""] * (len(HEAD) - 2)]
    ratios = ["", ""]
    if cell["ratio"]:
        ratios = [f"{cell['ratio']:.2f}", f"{cell['ratio_p20']:.2f} .. {cell['ratio_p80']:.2f}"]
    return [
        name,
        seconds_text(cell["seconds"]),
        percentiles_text(cell),
        f"{cell['tokens_per_s']:,.0f}",
        f"{cell['texts_per_s']:,.1f}",
        *ratios,
        format_number(cell.get("difference"), ".1e"),
        format_bytes(cell["memory"]),
    ]
