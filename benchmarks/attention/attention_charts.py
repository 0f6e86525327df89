"""Charts of `zoo bench attention`: throughput against length, the roofline, and the support matrix as a heat map."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.attention.cost_model import problem_shape_text
from benchmarks.core.result_tables import timed_cells, worst_state
from eval.pages.charts import FIVE, FOUR, INK, MUTED, ONE, SIX, THREE, TWO, Figure
from eval.pages.html_page import Cell, HeatMap, Plots

LOOKS = {
    "one": (ONE, "o"),
    "two": (TWO, "s"),
    "four": (FOUR, "^"),
    "five": (FIVE, "D"),
    "three": (THREE, "v"),
    "six": (SIX, "P"),
    "ink": (INK, "X"),
    "muted": (MUTED, "*"),
}
"""Class of the page's style sheet -> colour and marker; an implementation has the same in every chart."""

Cells = Sequence[Mapping[str, Any]]


def series_classes(cells: Cells) -> dict[str, str]:
    """Return implementation -> its class in `LOOKS`, for those that were timed."""
    names = dict.fromkeys(cell["key"]["implementation"] for cell in timed_cells(cells))
    kinds = list(LOOKS)
    return {name: kinds[place % len(kinds)] for place, name in enumerate(names)}


def throughput_charts(cells: Cells, kinds: Mapping[str, str]) -> Plots:
    """Return a figure for each feature and kind of heads: FLOP/s of the allowed pairs against the queries of an example."""
    groups: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    several = len({_heads(cell) for cell in cells if cell["key"]["feature"] != "grouped"}) > 1
    for cell in timed_cells(cells):
        groups[f"{cell['key']['feature']}, {_heads(cell)}" if several else cell["key"]["feature"]].append(cell)
    return Plots([_against_length(title, group, kinds) for title, group in groups.items()])


def _against_length(title: str, cells: Cells, kinds: Mapping[str, str]) -> Figure:
    lines: dict[str, list[tuple[int, float]]] = collections.defaultdict(list)
    for cell in cells:
        lines[cell["key"]["implementation"]].append((cell["key"]["queries"], cell["flops_per_s"]))
    scale, named = rate_unit(max(rate for line in lines.values() for _, rate in line))
    lengths = sorted({length for line in lines.values() for length, _ in line})

    def draw(axes: Any) -> None:
        for name, line in lines.items():
            colour, mark = LOOKS[kinds[name]]
            x, y = zip(*sorted(line), strict=True)
            axes.plot(x, np.asarray(y) / scale, color=colour, marker=mark, markersize=5)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths], minor=False)
        axes.minorticks_off()
        axes.margins(x=0.04)
        axes.set_ylim(0)
        axes.set_xlabel("tokens of an example")

    ranges = [f"{name} {min(line)[1] / scale:.3g} to {max(line)[1] / scale:.3g}" for name, line in lines.items()]
    direction, dtype = cells[0]["key"]["direction"], cells[0]["key"]["dtype"]
    label = f"{title}, {direction}, {dtype}: {named} from {lengths[0]} to {lengths[-1]} tokens. {'; '.join(ranges)}"
    return Figure(f"{title}, {named}", draw, label, {name: kinds[name] for name in lines})


def roofline_charts(cells: Cells, kinds: Mapping[str, str], matrix: float, copy: float) -> Figure:
    """Return FLOP/s against FLOPs a byte of the minimal traffic, under the machine's limits (Williams et al. 2009).

    Args:
        matrix: FLOP/s of matrix products.
        copy: bytes/s of memory.
    """
    points = timed_cells(cells)
    scale, named = rate_unit(matrix)
    ridge = matrix / copy
    lower = min([ridge, *(cell["intensity"] for cell in points)]) / 2
    upper = max([ridge, *(cell["intensity"] for cell in points)]) * 2

    def draw(axes: Any) -> None:
        from matplotlib.ticker import LogLocator

        axes.plot([lower, ridge, upper], np.asarray([lower * copy, matrix, matrix]) / scale, color=MUTED, linestyle=(0, (6, 3)))
        for name, kind in kinds.items():
            colour, mark = LOOKS[kind]
            own = [cell for cell in points if cell["key"]["implementation"] == name]
            x, y = [cell["intensity"] for cell in own], [cell["flops_per_s"] / scale for cell in own]
            axes.plot(x, y, color=colour, marker=mark, markersize=5, linestyle="", alpha=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.minorticks_off()
        axes.grid(axis="x")
        axes.set_xlabel("FLOPs a byte")

    label = f"Roofline: {matrix / scale:.3g} {named} from {ridge:.3g} FLOPs a byte on, {copy / 1e9:.3g} GB/s below"
    keys = {name: f"{kind} dots" for name, kind in kinds.items()}
    keys[f"attainable: {matrix / scale:,.0f} {named}, {copy / 1e9:,.1f} GB/s"] = "muted dashed"
    return Figure(named, draw, label, keys, across=True)


def support_heat_map(cells: Cells) -> HeatMap:
    """Return a table, features x implementations: the geometric mean of time over xla's, or the state; details on hovering."""
    names = list(dict.fromkeys(cell["key"]["implementation"] for cell in cells))
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for cell in cells:
        groups[cell["key"]["feature"]][cell["key"]["implementation"]].append(cell)
    return HeatMap(names, [(feature, [_support_cell(by_name[name]) for name in names]) for feature, by_name in groups.items()])


def _support_cell(cells: Cells) -> Cell:
    if not cells:
        return Cell("", "not requested")
    state = worst_state(cells)
    details = "\n".join(f"{problem_shape_text(cell['key'])}: {_hover_text(cell)}" for cell in cells)
    if state != "timed":
        reasons = {cell["reason"] for cell in cells}
        hover = f"{state}: {reasons.pop()}" if len(reasons) == 1 else details
        bad = "background:color-mix(in srgb,var(--three) 50%,var(--card))"
        return Cell("-", hover) if state == "skipped" else Cell(state, hover, style=bad)
    ratios = [cell["ratio"] for cell in timed_cells(cells) if cell["ratio"]]
    if not ratios:
        return Cell("timed", details)
    mean = float(stats.gmean(ratios))
    # The colour is full at a quarter of the time, or four times it.
    share = min(1.0, abs(math.log(mean)) / math.log(4))
    return Cell(f"{mean:.2f}", details, "right" if mean < 1 else "wrong", f"--share:{share:.0%}")


def _hover_text(cell: Mapping[str, Any]) -> str:
    if cell["state"] != "timed":
        return f"{cell['state']}, {cell['reason']}"
    return "timed, without a ratio" if cell["ratio"] is None else f"{cell['ratio']:.2f} of xla's time"


def _heads(cell: Mapping[str, Any]) -> str:
    return f"{cell['key']['heads']} heads of {cell['key']['head']}"


def rate_unit(largest: float) -> tuple[float, str]:
    """Return (scale, name) of the unit for rates up to this one."""
    return (1e12, "TFLOP/s") if largest >= 2e12 else (1e9, "GFLOP/s")
