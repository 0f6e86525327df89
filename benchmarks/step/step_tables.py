"""The results of `zoo bench step` as text: a table for each model, and for each profile."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.core.result_files import Results
from benchmarks.core.result_tables import (
    Block,
    Heading,
    Table,
    format_number,
    gigabytes,
    machine_line,
    merge_processes,
    percentiles_text,
    seconds_text,
    timed_cells,
)
from benchmarks.core.result_tables import notes as notes_of
from benchmarks.step import time_breakdown
from benchmarks.step.step_variants import OURS

WAYS = ("layers", "remat", "precision", "attention", "mesh")
USUAL = {"remat": "none", "attention": "auto", "mesh": "data=1"}
"""Values that are not mentioned."""
PRODUCTS, READING = ("rate",), ("reads", "GB/s", "of copies")
"""Columns for the bound of a step: matrix products, or memory reads when decoding."""
LEGEND = {
    "time": "median of a step",
    "over unit": "its time over that of the first row in the same rounds, median",
    "rate": "share of the matrix rate measured here (of the published peak where there is one)",
    "reads": "bytes that a step must read once, in the dtype of its arithmetic: all slots of the cache and the parameters that "
    "it uses, and of a lookup table only the rows that are looked up; the same number for a peer",
    "GB/s": "reads over time",
    "of copies": "share of the rate measured here at which memory is copied, bytes read and bytes written",
    "memory": "what XLA planned; of a peer, the peak of its process",
    "compile": "seconds, without a cache",
    "first step": "seconds to its end, lowering and compilation included",
}


def column_titles(mode: str) -> tuple[str, ...]:
    """Return the titles of the columns of `table_row`."""
    bounds = READING if mode == "decode" else PRODUCTS
    return ("", "time", "20-80 %", "over unit", "tokens/s", *bounds, "memory", "compile", "first step")


def legend(results: Results) -> str:
    """Return explanations of the columns in the results' tables."""
    titles = {title for cell in results.cells for title in column_titles(cell["key"]["mode"])}
    return "; ".join(f"{title}: {meaning}" for title, meaning in LEGEND.items() if title in titles)


def title_of(key: Mapping[str, Any]) -> str:
    """Return a model with its shape: "gpt2, train, 2 x 512"."""
    source = f" from {key['source']}" if key["source"] else ""
    dropout = ", dropout on" if key["dropout"] else ""
    return f"{key['model']}, {key['mode']}, {key['batch']} x {key['length']}{source}{dropout}"


def name_of(key: Mapping[str, Any]) -> str:
    """Return a program's name: "jax-zoo, scan", "transformers, bfloat16"."""
    ways = [key[way] for way in WAYS if key[way] and key[way] != USUAL.get(way) and key[way] != "float32"]
    return ", ".join([key["program"], *ways])


def cells_by_model(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return title -> the cells of a model, one for each program: ours first, beginning with the unit."""
    groups: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for cell in sorted(merge_processes(cells), key=lambda cell: (cell["key"]["program"] != OURS, cell["state"] != "timed")):
        groups[title_of(cell["key"])].append(cell)
    return groups


def table_row(cell: Mapping[str, Any], *, narrow: bool = False) -> list[str]:
    """Return a row of a table: see `column_titles`.

    Args:
        narrow: whether half of the distance between the percentiles, relative to the median, takes their place.
    """
    name = name_of(cell["key"])
    seconds = (format_number(cell.get(column), ".1f") for column in ("compile_seconds", "first_step_seconds"))
    tail = [gigabytes(cell.get("memory", cell.get("resident"))), *seconds]
    if cell["state"] != "timed":
        between = [""] * (len(column_titles(cell["key"]["mode"])) - 2 - len(tail))
        return [name, "-" if cell["state"] == "skipped" else cell["state"].upper(), *between, *tail]
    spread = (cell["seconds_p80"] - cell["seconds_p20"]) / 2 / cell["seconds"]
    row = [name, seconds_text(cell["seconds"]), f"{spread:.1%}" if narrow else percentiles_text(cell)]
    return [*row, format_number(cell["ratio"], ".2f"), f"{cell['tokens_per_s']:,.0f}", *_bounds(cell), *tail]


def _bounds(cell: Mapping[str, Any]) -> list[str]:
    """Return the cells of the columns for the bound of a step."""
    if cell["key"]["mode"] != "decode":
        return [format_number(cell.get("mfu") or cell.get("of_matrix_rate"), ".0%")]
    speed, share = format_number(cell.get("bytes_per_s"), ".1f", 1e9), format_number(cell.get("of_copy_rate"), ".0%")
    return [gigabytes(cell.get("bytes")), speed, share]


def one_line(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the cells of a model in one line, for the progress display."""
    texts = [f"{row[0]} {row[1]}{f' ({row[3]})' if row[3] else ''}" for row in map(table_row, cells) if row[1] != "-"]
    return "; ".join(texts) or "nothing runs here"


def notes(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the reasons why cells have no time, or lack some of their columns."""
    return notes_of(cells, name_of)


def profiles(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (program, its profile) for cells that have a profile."""
    return [(name_of(cell["key"]), cell["profile"]) for cell in cells if "profile" in cell]


PROFILE_HEAD = ("part", *(f"{direction}, ms" for direction in time_breakdown.DIRECTIONS), "all, ms", "share", "threads")


def profile_lines(profile: Mapping[str, Any]) -> list[list[str]]:
    """Return the time of a step by parts, the longest first, and the sum."""
    rows, total = [], 0.0
    for part, by in sorted(profile["parts"].items(), key=lambda item: -sum(item[1].values())):
        seconds = sum(by.values())
        total += seconds
        milliseconds = [f"{1e3 * by[way]:.1f}" if by.get(way) else "" for way in time_breakdown.DIRECTIONS]
        busy = f"{profile['busy'][part]:.2f}" if part != time_breakdown.IDLE else ""
        rows.append([part, *milliseconds, f"{1e3 * seconds:.1f}", f"{seconds / profile['seconds']:.1%}", busy])
    return [*rows, ["sum", "", "", "", f"{1e3 * total:.1f}", f"{total / profile['seconds']:.1%}", ""]]


def profile_summary(profile: Mapping[str, Any]) -> str:
    """Return the times and clocks of a profile in words."""
    seconds, plain = 1e3 * profile["seconds"], 1e3 * profile["plain"]
    return f"{seconds:.0f} ms a step under the profiler, {plain:.0f} ms without, by the clocks of {profile['clock']}"


def report_blocks(results: Results, *, terminal: bool) -> list[Block]:
    """Return the report; on a terminal with narrower tables."""
    explanation = legend(results)
    content: list[Block] = [machine_line(results), f"{explanation[:1].upper()}{explanation[1:]}." if explanation else ""]
    for title, cells in cells_by_model(results.cells).items():
        titles = list(column_titles(cells[0]["key"]["mode"]))
        if terminal:
            titles[2] = "spread"
        content += [Heading(title), Table(titles, [table_row(cell, narrow=terminal) for cell in cells]), notes(cells)]
        for name, profile in profiles(cells):
            content.append(f"Where a step of {name} goes: {profile_summary(profile)}.")
            content.append(Table(PROFILE_HEAD, profile_lines(profile)))
    return content


def fastest_cell(cells: Sequence[Mapping[str, Any]], precision: str) -> Mapping[str, Any] | None:
    """Return the cell of the zoo's fastest program for a model in a precision."""
    candidates = [cell for cell in timed_cells(cells) if cell["key"]["program"] == OURS and cell["key"]["precision"] == precision]
    return min(candidates, key=lambda cell: cell["seconds"], default=None)
