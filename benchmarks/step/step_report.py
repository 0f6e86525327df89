"""The report of `zoo bench step`: times relative to the first row's, the parts of a step that take its time, and all numbers."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.core import result_tables
from benchmarks.core.result_files import Results
from benchmarks.core.result_page import Form, Report, timed_sentence
from benchmarks.core.result_tables import (
    format_bytes,
    format_number,
    merge_processes,
    percentiles_text,
    seconds_text,
    timed_cells,
)
from benchmarks.step import time_breakdown
from benchmarks.step.programs import OURS, WAYS
from eval.pages.charts import INK, MUTED, ONE, THREE, TWO, Figure, format_thousands, tick_locator
from eval.pages.html_page import Block, Table

USUAL = {"remat": "none", "precision": "float32", "attention": "auto", "mesh": "data=1"}
"""Values that are not mentioned."""
PRODUCTS, READING = ("rate",), ("reads", "GB/s", "of copies")
"""Columns for the bound of a step: matrix products, or memory reads when decoding."""
DASH = "\N{EN DASH}"
"""Stands for what a cell does not have."""
COLOURS = {"forward": ONE, "backward": TWO, "update": THREE}
KEYS = {"forward": "one block", "backward": "two block", "update": "three block"}
FORMULAS = {
    "time": "wall seconds of a step, to its end; programs of a model take turns, one step each a round; median of the rounds",
    "over unit": "the median of the ratios of each round: a step's time over that of the first row; below 1 is faster",
    "rate": "matrix-product FLOPs of the model (attention counted in full, the backward pass twice the forward one) a second, "
    "over the best rate of matrix products that took turns with the steps; of a card with a published peak, over that",
    "reads": "bytes that a step must read once, in the dtype of its arithmetic: all slots of the cache and the parameters that "
    "it uses, and of a lookup table only the rows that are looked up; the same number for a peer",
    "GB/s": "reads over time",
    "of copies": "share of the rate measured here at which memory is copied, bytes read and bytes written",
    "tokens/s": "tokens read a second, those of a source included; decoding: tokens written",
    "memory": "arguments + outputs + temporaries - reused bytes, as XLA planned it; for a peer, the peak of its process. In "
    "table.csv, of an accelerator, also allocator_peak: the most that its allocator has given out up to then",
    "compile": "seconds, without a cache",
    "first step": "seconds to the end of the first step: lowering, compilation without a cache, and the step; of a peer from "
    "loading its weights on",
    "agreement": "the loss of the first step, and that after its update, are those of the unit within the bounds of "
    "`benchmarks.step.measure_model.TOLERANCES`; what disagrees is not timed",
    "profile": "each instant of a step is shared evenly by the threads that are busy then, each with its innermost instruction; "
    "a fusion of several operations counts for the part of its last one",
}
LEGEND_OF_PARTS = (
    "threads: how many worked on a part at a time, on average. matrix products: those of the layers' projections; attention and "
    "the loss head have their own. data movement: copies, transposes, slices of stacked layers, filling with zeros. idle: "
    "nothing was worked on."
)
PROFILE_HEAD = ("part", *(f"{direction}, ms" for direction in time_breakdown.DIRECTIONS), "all, ms", "share", "threads")
INSTRUCTION_HEAD = ("Does", "Part", "", "Comes from", "Shape", "ms", "runs", "threads")


def step_report(results: Results, form: Form) -> Report:
    """Return the report; on a terminal with a narrower table, and as text without single instructions."""
    models, sections = cells_by_model(results.cells), dict[str, Sequence[Block]]()
    for title, cells in models.items():
        titles = list(column_titles(cells[0]["key"]["mode"]))
        if form == "terminal":
            titles[3] = "spread"
        rows = [step_table_row(cell, narrow=form == "terminal") for cell in cells]
        sections[title] = [
            _ratios(title, cells),
            Table(titles, rows, words=2),
            result_tables.missing_cell_reasons(cells, name_of),
        ]
        for cell in cells:
            if "profile" in cell:
                name = f"{title}, {name_of(cell['key'])}"
                sections[f"Where a step goes: {name}"] = _profile(name, cell["profile"], form)
    decodes = any(cell["key"]["mode"] == "decode" for cell in results.cells)
    sections["What the numbers are"] = [{name: text for name, text in FORMULAS.items() if decodes or name not in READING}]
    return Report(timed_sentence(results, "programs"), sections, _tiles(models))


def step_cells_text(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the cells of a model in one line, for the progress display."""
    measured = [cell for cell in cells if cell["state"] != "skipped"]
    texts = []
    for cell in measured:
        ratio = f" ({cell['ratio']:.2f})" if cell.get("ratio") else ""
        texts.append(f"{name_of(cell['key'])} {step_table_row(cell)[2]}{ratio}")
    return "; ".join(texts) or "nothing runs here"


# --- tables ---------------------------------------------------------------------------------------------------------------------


def cells_by_model(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return title -> the cells of a model, one for each program: ours first, beginning with the unit."""
    groups: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for cell in sorted(merge_processes(cells), key=lambda cell: (cell["key"]["program"] != OURS, cell["state"] != "timed")):
        groups[title_of(cell["key"])].append(cell)
    return groups


def title_of(key: Mapping[str, Any]) -> str:
    """Return a model with its shape: "gpt2, train, 2 x 512"."""
    source = f" from {key['source']}" if key["source"] else ""
    dropout = ", dropout on" if key["dropout"] else ""
    return f"{key['model']}, {key['mode']}, {key['batch']} x {key['length']}{source}{dropout}"


def name_of(key: Mapping[str, Any]) -> str:
    """Return a program's name: "jax-zoo, scan", "transformers, bfloat16"."""
    return ", ".join([key["program"], *(key[way] for way in WAYS if key[way] and key[way] != USUAL.get(way))])


def column_titles(mode: str) -> tuple[str, ...]:
    """Return the titles of the columns of `step_table_row`."""
    bounds = READING if mode == "decode" else PRODUCTS
    return ("program", "way", "time", "20-80 %", "over unit", "tokens/s", *bounds, "memory", "compile", "first step")


def step_table_row(cell: Mapping[str, Any], *, narrow: bool = False) -> list[str]:
    """Return a row of a table: see `column_titles`.

    Args:
        narrow: whether half of the distance between the percentiles, relative to the median, takes their place.
    """
    program, _, way = name_of(cell["key"]).partition(", ")
    seconds = (format_number(cell.get(column), ".1f") for column in ("compile_seconds", "first_step_seconds"))
    tail = [format_bytes(cell.get("memory", cell.get("resident"))), *seconds]
    if cell["state"] != "timed":
        row = [program, way, "-" if cell["state"] == "skipped" else cell["state"].upper()]
        row += [""] * (len(column_titles(cell["key"]["mode"])) - len(row) - len(tail))
    else:
        spread = (cell["seconds_p80"] - cell["seconds_p20"]) / 2 / cell["seconds"]
        row = [program, way, seconds_text(cell["seconds"]), f"{spread:.1%}" if narrow else percentiles_text(cell)]
        row += [format_number(cell["ratio"], ".2f"), f"{cell['tokens_per_s']:,.0f}"]
        if cell["key"]["mode"] == "decode":
            speed, share = format_number(cell.get("bytes_per_s"), ".1f", 1e9), format_number(cell.get("of_copy_rate"), ".0%")
            row += [format_bytes(cell.get("bytes")), speed, share]
        else:
            row += [format_number(cell.get("mfu") or cell.get("of_matrix_rate"), ".0%")]
    return [value or DASH for value in (*row, *tail)]


def _tiles(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """Return, for each model, our fastest program in the precision of its first row, and the times of its peers over it."""
    tiles = []
    for cells in models.values():
        same = [cell for cell in timed_cells(cells) if cell["key"]["precision"] == cells[0]["key"]["precision"]]
        own = [cell for cell in same if cell["key"]["program"] == OURS]
        if not own:
            continue
        best = min(own, key=lambda cell: cell["seconds"])
        shares = {"matrix": best.get("mfu") or best.get("of_matrix_rate"), "copy": best.get("of_copy_rate")}
        bound = "".join(f", {share:.0%} of the {name} rate" for name, share in shares.items() if share)
        tiles.append((seconds_text(best["seconds"]), f"{best['key']['model']} {best['key']['mode']}{bound}"))
        for cell in same:
            if cell["key"]["program"] != OURS and cell["ratio"] and best["ratio"]:
                tiles.append((f"{cell['ratio'] / best['ratio']:.2f} x", f"of our time takes {name_of(cell['key'])}"))
    return tiles


def _profile(title: str, profile: Mapping[str, Any], form: Form) -> list[Block]:
    """Return a bar for each part, divided by direction, and tables of the parts and the longest instructions."""
    seconds, plain = 1e3 * profile["seconds"], 1e3 * profile["plain"]
    summary = f"{seconds:.0f} ms a step under the profiler, {plain:.0f} ms without, by the clocks of {profile['clock']}"
    by_time = sorted(profile["parts"].items(), key=lambda item: -sum(item[1].values()))
    content: list[Block] = [
        _parts(title, by_time, profile["seconds"]),
        f"{summary}. {LEGEND_OF_PARTS}" if form == "page" else f"{summary}.",
        Table(PROFILE_HEAD, _profile_rows(by_time, profile)),
    ]
    instructions = {
        f"the {len(profile['top'])} longest instructions": profile["top"],
        "operations counted as other": profile["other"],
    }
    for summary, rows in instructions.items():
        if rows and form == "page":
            content.append(Table(INSTRUCTION_HEAD, list(map(_instruction, rows)), words=5, summary=summary))
    return content


def _profile_rows(by_time: Sequence[tuple[str, Mapping[str, float]]], profile: Mapping[str, Any]) -> list[list[str]]:
    """Return the time of a step by parts, and the sum."""
    rows, total = [], 0.0
    for part, by in by_time:
        seconds = sum(by.values())
        total += seconds
        milliseconds = [f"{1e3 * by[way]:.1f}" if by.get(way) else DASH for way in time_breakdown.DIRECTIONS]
        busy = f"{profile['busy'][part]:.2f}" if part != time_breakdown.IDLE else DASH
        rows.append([part, *milliseconds, f"{1e3 * seconds:.1f}", f"{seconds / profile['seconds']:.1%}", busy])
    return [*rows, ["sum", *[DASH] * 3, f"{1e3 * total:.1f}", f"{total / profile['seconds']:.1%}", DASH]]


def _instruction(row: Mapping[str, Any]) -> list[str]:
    busy = format_number(row["busy"] / row["seconds"] if row["seconds"] else None, ".2f")
    shape = row["shape"] if len(row["shape"]) <= 40 else row["shape"][:39] + "\N{HORIZONTAL ELLIPSIS}"
    words = [row["opcode"], row["part"], row["direction"], row["where"], shape]
    return [*words, f"{1e3 * row['seconds']:.1f}", f"{row['times']:g}", busy]


# --- figures --------------------------------------------------------------------------------------------------------------------


def _ratios(title: str, cells: Sequence[Mapping[str, Any]]) -> Block:
    """Return the figure of times over the unit's, a bar for each program with its 20th and 80th percentile."""
    compared = [cell for cell in timed_cells(cells) if cell["ratio"]]
    if len(compared) < 2:
        return ""

    def draw(axes: Any) -> None:
        for place, cell in enumerate(compared):
            colour = ONE if cell["key"]["program"] == OURS else TWO
            axes.barh(place, cell["ratio"], color=colour, height=0.62)
            axes.plot([cell["ratio_p20"], cell["ratio_p80"]], [place, place], color=INK, linewidth=1.6)
            _beside(axes, max(cell["ratio"], cell["ratio_p80"]), place, f"{cell['ratio']:.2f}")
        axes.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 4)), zorder=0)
        _categories(axes, [name_of(cell["key"]) for cell in compared])
        axes.set_xlim(0, 1.12 * max(cell["ratio_p80"] for cell in compared))

    values = [f"{name_of(cell['key'])} {cell['ratio']:.2f}" for cell in compared]
    return _bars(f"Time over the first row's: {title}", values, {"ours": "one block", "peers": "two block"}, draw)


def _parts(title: str, by_time: Sequence[tuple[str, Mapping[str, float]]], step_seconds: float) -> Figure:
    """Return the figure of the parts of a step, a bar for each, divided by direction."""

    def draw(axes: Any) -> None:
        for place, (_, by) in enumerate(by_time):
            left = 0.0
            for way in time_breakdown.DIRECTIONS:
                axes.barh(place, 1e3 * by.get(way, 0.0), left=left, color=COLOURS[way], height=0.62)
                left += 1e3 * by.get(way, 0.0)
            _beside(axes, left, place, f"{left / step_seconds / 1e3:.1%}")
        _categories(axes, [part for part, _ in by_time])
        axes.set_xlim(0, 1.14 * max(1e3 * sum(by.values()) for _, by in by_time))
        axes.set_xlabel("milliseconds of a step")

    values = [f"{part} {1e3 * sum(by.values()):.1f} ms" for part, by in by_time]
    return _bars(f"Parts of a step: {title}", values, KEYS, draw)


def _bars(title: str, values: Sequence[str], keys: Mapping[str, str], draw: Any) -> Figure:
    """Return a figure of horizontal bars, one for each of the values in words."""
    return Figure(title, draw, f"{title}. {'; '.join(values)}", keys, across=True, height=0.75 + 0.34 * len(values))


def _beside(axes: Any, at: float, place: int, label: str) -> None:
    axes.annotate(label, (at, place), xytext=(6, 0), textcoords="offset points", va="center", color=INK)


def _categories(axes: Any, names: Sequence[str]) -> None:
    """Write names along the side, the first one on top."""
    from matplotlib.ticker import FixedLocator

    axes.yaxis.set_major_locator(FixedLocator(range(len(names))))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.xaxis.set_major_locator(tick_locator(6))
    axes.xaxis.set_major_formatter(format_thousands)
