"""The results of `zoo bench step` as text: tables by model for the terminal and in Markdown, and every number as CSV."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.attention import tables
from benchmarks.core.result_files import Results
from benchmarks.core.tables import SEVERITY, machine_line, merged, seconds_text
from benchmarks.step import time_breakdown
from benchmarks.step.settings import OURS

WAYS = ("layers", "remat", "precision", "attention", "mesh")
USUAL = {"remat": "none", "attention": "auto", "mesh": "data=1"}
"""Values that are not mentioned."""
PRODUCTS, READING = ("rate",), ("reads", "GB/s", "of copies")
"""Columns for the bound of a step: matrix products, or memory reads when decoding."""
LEGEND = {
    "time": "median of a step",
    "over unit": "its time over that of the first row in the same rounds, median",
    "rate": "share of the matrix rate measured here (of the published peak where there is one)",
    "reads": "what a step must read once: the parameters that it uses, but of a table that is only looked up the rows looked up, "
    "and all slots of the cache, in the dtype of its arithmetic; of a peer as much",
    "GB/s": "that over the time",
    "of copies": "share of the rate measured here at which memory is copied, bytes read and bytes written",
    "memory": "what XLA planned, of a peer the whole process at its peak",
    "compile": "seconds, without a cache",
    "first step": "seconds to its end, lowering and compilation included",
}


def head(mode: str) -> tuple[str, ...]:
    """Return the titles of the columns of `line`."""
    bounds = READING if mode == "decode" else PRODUCTS
    return ("", "time", "20-80 %", "over unit", "tokens/s", *bounds, "memory", "compile", "first step")


def legend(results: Results) -> str:
    """Return explanations of the columns in the results' tables."""
    titles = {title for cell in results.cells for title in head(cell["key"]["mode"])}
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


def models(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return title -> the cells of a model, one for each program: ours first, beginning with the unit."""
    groups: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for cell in sorted(merged(cells), key=lambda cell: (cell["key"]["program"] != OURS, cell["state"] != "timed")):
        groups[title_of(cell["key"])].append(cell)
    return groups


def line(cell: Mapping[str, Any]) -> list[str]:
    """Return a row of a table: see `head`."""
    name = name_of(cell["key"])
    memory = cell.get("memory", cell.get("resident"))
    tail = [gigabytes(memory), _told(cell.get("compile_seconds"), "{:.1f}"), _told(cell.get("first_step_seconds"), "{:.1f}")]
    if cell["state"] != "timed":
        between = [""] * (len(head(cell["key"]["mode"])) - 2 - len(tail))
        return [name, "-" if cell["state"] == "skipped" else cell["state"].upper(), *between, *tail]
    low, high = (seconds_text(cell[f"seconds_{which}"]) for which in ("p20", "p80"))
    row = [name, seconds_text(cell["seconds"]), f"{low} .. {high}", _told(cell["ratio"], "{:.2f}")]
    return [*row, f"{cell['tokens_per_s']:,.0f}", *_bounds(cell), *tail]


def _bounds(cell: Mapping[str, Any]) -> list[str]:
    """Return the cells of the columns for the bound of a step."""
    if cell["key"]["mode"] != "decode":
        return [_told(cell.get("mfu") or cell.get("of_matrix_rate"), "{:.0%}")]
    speed = cell.get("bytes_per_s")
    return [gigabytes(cell.get("bytes")), _told(speed and speed / 1e9, "{:.1f}"), _told(cell.get("of_copy_rate"), "{:.0%}")]


def gigabytes(size: float | int | None) -> str:
    """Return a number of bytes in GB or MB."""
    if size is None:
        return ""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _narrow(cell: Mapping[str, Any]) -> list[str]:
    """Return a row for the terminal, with half of the distance between the percentiles, relative to the median, as its spread."""
    row = line(cell)
    spread = (cell["seconds_p80"] - cell["seconds_p20"]) / 2 / cell["seconds"] if row[2] else 0.0
    return [*row[:2], f"{spread:.1%}" if row[2] else "", *row[3:]]


def _told(value: float | None, how: str) -> str:
    return "" if value is None else how.format(value)


def one_line(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the cells of a model in one line, for the progress display."""
    texts = [f"{row[0]} {row[1]}{f' ({row[3]})' if row[3] else ''}" for row in map(line, cells) if row[1] != "-"]
    return "; ".join(texts) or "nothing runs here"


def notes(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the reasons of cells that have no time, or lack a part of their columns."""
    explained = [cell for cell in sorted(cells, key=lambda cell: SEVERITY.index(cell["state"])) if cell["reason"]]
    return [f"{name_of(cell['key'])}, {cell['state']}: {cell['reason']}" for cell in explained]


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


def show(results: Results) -> None:
    """Print the tables."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 120
    for title, cells in models(results.cells).items():
        console.print(Text(f"\n{title}", "bold"))
        titles = head(cells[0]["key"]["mode"])
        console.print(_table((*titles[:2], "spread", *titles[3:]), map(_narrow, cells)))
        for note in notes(cells):
            console.print(Text(note, "dim" if ", skipped:" in note else ""), soft_wrap=True)
        for name, profile in profiles(cells):
            console.print(Text(f"\nwhere a step of {name} goes", "bold"), Text(f"  {profile_summary(profile)}", "dim"), sep="")
            console.print(_table(PROFILE_HEAD, profile_lines(profile)))
    console.print(Text(f"\n{legend(results)}\n{machine_line(results)}", "dim"), soft_wrap=True)


def profile_summary(profile: Mapping[str, Any]) -> str:
    """Return the times and clocks of a profile in words."""
    seconds, plain = 1e3 * profile["seconds"], 1e3 * profile["plain"]
    return f"{seconds:.0f} ms a step under the profiler, {plain:.0f} ms without, by the clocks of {profile['clock']}"


def _table(head: Sequence[str], rows: Any) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for place, title in enumerate(head):
        table.add_column(title, justify="right" if place else "left", no_wrap=place > 0)
    for row in rows:
        table.add_row(*(Text(text, "bold red" if text in ("WRONG", "FAILED") else "") for text in row))
    return table


def markdown(results: Results) -> str:
    """Return table.md."""
    blocks = ["# Steps", "Made by `zoo bench step`.", machine_line(results)]
    if explanation := legend(results):
        blocks.append(f"{explanation[0].upper()}{explanation[1:]}.")
    for title, cells in models(results.cells).items():
        blocks += [f"## {title}", _markdown(head(cells[0]["key"]["mode"]), list(map(line, cells)))]
        if reasons := notes(cells):
            blocks.append("\n".join(f"- {note}" for note in reasons))
        for name, profile in profiles(cells):
            blocks.append(f"Where a step of {name} goes: {profile_summary(profile)}.")
            blocks.append(_markdown(PROFILE_HEAD, profile_lines(profile)))
    return "\n\n".join(blocks) + "\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def csv(results: Results) -> str:
    """Return table.csv: a line for each cell of each process, with every column that has a single value."""
    plain = [
        {name: value for name, value in cell.items() if name == "key" or not isinstance(value, dict)} for cell in results.cells
    ]
    return tables.csv(dataclasses.replace(results, cells=plain))


def fastest(cells: Sequence[Mapping[str, Any]], precision: str) -> Mapping[str, Any] | None:
    """Return our fastest cell of a model in a precision."""
    timed = [cell for cell in cells if cell["state"] == "timed" and cell["key"]["program"] == OURS]
    timed = [cell for cell in timed if cell["key"]["precision"] == precision]
    return min(timed, key=lambda cell: cell["seconds"], default=None)
