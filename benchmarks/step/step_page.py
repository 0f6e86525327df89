"""The page of `zoo bench step`: times relative to the first row's, the parts of a step that take its time, and all numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.core.html_page import Block, Figure, Table
from benchmarks.core.result_files import Results
from benchmarks.core.result_page import render_results, timed_sentence
from benchmarks.core.result_tables import format_number, seconds_text, timed_cells
from benchmarks.step import step_tables, time_breakdown
from benchmarks.step.step_tables import LEGEND, PROFILE_HEAD, READING, column_titles, name_of
from benchmarks.step.step_variants import OURS
from eval.report.svg import INK, MUTED, ONE, THREE, TWO, format_thousands, ticks

COLOURS = {"forward": ONE, "backward": TWO, "update": THREE}
KEYS = {"forward": "one block", "backward": "two block", "update": "three block"}
FORMULAS = {
    "time": "wall seconds of a step, to its end; programs of a model take turns, one step each a round; median of the rounds",
    "over unit": "the median of the ratios of each round: a step's time over that of the first row; below 1 is faster",
    "rate": "matrix-product FLOPs of the model (attention counted in full, the backward pass twice the forward one) a second, "
    "over the best rate of matrix products that took turns with the steps; of a card with a published peak, over that",
    **{title: LEGEND[title] for title in READING},
    "tokens/s": "tokens read a second, those of a source included; decoding: tokens written",
    "memory": "arguments + outputs + temporaries - reused bytes, as XLA planned it; for a peer, the peak of its process. In "
    "table.csv, of an accelerator, also allocator_peak: the most that its allocator has given out up to then",
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
INSTRUCTION_HEAD = ("Does", "Part", "", "Comes from", "Shape", "ms", "runs", "threads")


def render(results: Results) -> str:
    """Return the page."""
    models, sections = step_tables.cells_by_model(results.cells), {}
    for title, cells in models.items():
        titles = ("program", "way", *column_titles(cells[0]["key"]["mode"])[1:])
        sections[title] = [_ratios(title, cells), Table(titles, map(_line, cells), words=2), step_tables.notes(cells)]
        for name, profile in step_tables.profiles(cells):
            sections[f"Where a step goes: {title}, {name}"] = _profile(f"{title}, {name}", profile)
    sections["What the numbers are"] = [FORMULAS]
    return render_results(results, "Steps", timed_sentence(results, "programs"), sections, _tiles(models))


def _tiles(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """Return, for each model, our fastest program in the precision of its first row, and the times of its peers over it."""
    tiles = []
    for cells in models.values():
        if (best := step_tables.fastest_cell(cells, cells[0]["key"]["precision"])) is None:
            continue
        tiles.append((seconds_text(best["seconds"]), f"{best['key']['model']} {best['key']['mode']}{_share(best)}"))
        for cell in timed_cells(cells):
            same = cell["key"]["precision"] == best["key"]["precision"]
            if cell["key"]["program"] != OURS and same and cell["ratio"] and best["ratio"]:
                tiles.append((f"{cell['ratio'] / best['ratio']:.2f} x", f"of our time takes {name_of(cell['key'])}"))
    return tiles


def _share(cell: Mapping[str, Any]) -> str:
    """Return the share of the rate that bounds a step, in words."""
    shares = {"matrix": cell.get("mfu") or cell.get("of_matrix_rate"), "copy": cell.get("of_copy_rate")}
    return "".join(f", {share:.0%} of the {name} rate" for name, share in shares.items() if share)


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


def _profile(title: str, profile: Mapping[str, Any]) -> list[Block]:
    """Return a bar for each part, divided by direction, and tables of the parts and the longest instructions."""
    by_time = sorted(profile["parts"].items(), key=lambda item: -sum(item[1].values()))

    def draw(axes: Any) -> None:
        for place, (_, by) in enumerate(by_time):
            left = 0.0
            for way in time_breakdown.DIRECTIONS:
                axes.barh(place, 1e3 * by.get(way, 0.0), left=left, color=COLOURS[way], height=0.62)
                left += 1e3 * by.get(way, 0.0)
            _beside(axes, left, place, f"{left / profile['seconds'] / 1e3:.1%}")
        _categories(axes, [part for part, _ in by_time])
        axes.set_xlim(0, 1.14 * max(1e3 * sum(by.values()) for _, by in by_time))
        axes.set_xlabel("milliseconds of a step")

    values = [f"{part} {1e3 * sum(by.values()):.1f} ms" for part, by in by_time]
    content: list[Block] = [
        _bars(f"Parts of a step: {title}", values, KEYS, draw),
        f"{step_tables.profile_summary(profile)}. {LEGEND_OF_PARTS}",
        Table(PROFILE_HEAD, map(_filled, step_tables.profile_lines(profile))),
    ]
    for rows, summary in (
        (profile["top"], f"the {len(profile['top'])} longest instructions"),
        (profile["other"], "operations counted as other"),
    ):
        content += [Table(INSTRUCTION_HEAD, map(_instruction, rows), words=5, summary=summary)] if rows else []
    return content


def _line(cell: Mapping[str, Any]) -> list[str]:
    """Return a row of the table; the program and its variant are two columns."""
    name, *numbers = step_tables.table_row(cell)
    program, _, way = name.partition(", ")
    return _filled([program, way, *numbers])


def _filled(row: Sequence[str]) -> list[str]:
    return [value or "\N{EN DASH}" for value in row]


def _instruction(row: Mapping[str, Any]) -> list[str]:
    busy = format_number(row["busy"] / row["seconds"] if row["seconds"] else None, ".2f")
    shape = row["shape"] if len(row["shape"]) <= 40 else row["shape"][:39] + "\N{HORIZONTAL ELLIPSIS}"
    words = [row["opcode"], row["part"], row["direction"], row["where"], shape]
    return [*words, f"{1e3 * row['seconds']:.1f}", f"{row['times']:g}", busy]


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
    axes.xaxis.set_major_locator(ticks(6))
    axes.xaxis.set_major_formatter(format_thousands)
