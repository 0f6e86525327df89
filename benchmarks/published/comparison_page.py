"""Published steps beside their plans: verdicts, tables and a drawing, on a terminal, as Markdown and as a page."""

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.core import result_tables
from benchmarks.core.result_page import Report, text_blocks, text_sections
from benchmarks.core.result_tables import Heading
from benchmarks.plan.plan_text import format_bytes
from benchmarks.published.compare_rows import RULES, RULES_DIGEST, ComparedRow, Comparison, Summary, summarize_rows
from eval.pages.charts import FOUR, MUTED, ONE, THREE, TWO, Figure
from eval.pages.html_page import Block, Table, render_page
from eval.pages.markdown_page import render_markdown

TITLE = "Published training steps beside their plans"
RATIO = (1.0, 1.6)
"""Range of the predicted median of measured time over estimate."""
CORRELATION = 0.8
MEMORY = 0.1
LOOKS = {"compute": (ONE, "one"), "memory": (TWO, "two"), "interconnect": (THREE, "three")}
"""Colour and class of the style sheet of rows, by what bounds them."""
NAMES = {"improve": "to improve the planner", "judge": "to judge it"}


def comparison_report(comparison: Comparison) -> Report:
    """Return the comparison in sections."""
    rows = comparison.rows
    left = len([name for names in comparison.reasons.values() for name in names])
    lead = f"{len(rows)} rows are planned, and {left} are not, each for a reason."
    if comparison.waiting:
        lead += f" {comparison.waiting} more can be planned: the time was over, and the same command goes on (--minutes)."
    sections: dict[str, list[Block]] = {}
    for half, title in NAMES.items():
        if part := [row for row in rows if row.half == half]:
            sections[f"Rows {title}"] = [_verdicts(part), _summaries(part), *_drawing(part, title), _table(part)]
    sections["What differs from the published runs"] = [_remarks(rows)]
    sections["Not planned"] = [_reasons(comparison)]
    sections["Rules"] = [f"`{RULES}`, written before a row was planned, has the SHA-256 digest `{RULES_DIGEST}`."]
    return Report(lead, sections)


def comparison_blocks(comparison: Comparison) -> list[result_tables.Block]:
    """Return the comparison as the blocks of a terminal."""
    report = comparison_report(comparison)
    return [Heading(TITLE), report.lead, *text_blocks(report)]


def render_comparison(comparison: Comparison, *, markdown: bool) -> str:
    """Return the comparison as Markdown or as a self-contained HTML file."""
    report = comparison_report(comparison)
    if markdown:
        return render_markdown(TITLE, [report.lead], text_sections(report))
    footer = "Times and memory were measured and published by others; the plans were compiled for devices that were not there."
    return render_page(TITLE, report.lead, report.sections, footer=footer)


def _verdicts(rows: Sequence[ComparedRow]) -> list[str]:
    """Return a sentence for each prediction of the rules."""
    every = summarize_rows(rows)
    below = "holds" if not every.above else f"does not hold for {', '.join(every.above)}"
    lines = [f"The bound is below the measured time: {below} ({every.rows - len(every.above)} of {every.rows} rows)."]
    if every.correlation is not None:
        holds = "holds" if every.correlation >= CORRELATION else "does not hold"
        lines.append(f"Rank correlation at least {CORRELATION}: {holds} ({every.correlation:.3f}).")
    ratios = {chip: one.ratio for chip, one in _by_chip(rows).items() if one.ratio is not None}
    outside = [f"{chip} ({ratio:.2f})" for chip, ratio in ratios.items() if not RATIO[0] <= ratio <= RATIO[1]]
    inside = len(ratios) - len(outside)
    held = "holds" if not outside else f"does not hold for {', '.join(outside)}"
    devices = f"{inside} of {len(ratios)} devices"
    lines.append(f"Median of measured over estimate between {RATIO[0]} and {RATIO[1]}: {held} ({devices}).")
    off = [ratio for ratio in every.memory if abs(ratio - 1) > MEMORY]
    within = f"{len(every.memory) - len(off)} of {len(every.memory)} rows" if every.memory else "no row has comparable memory"
    lines.append(f"Memory within {MEMORY:.0%}: {within}.")
    large = [row.name for row in rows if not row.fits]
    names = f" ({', '.join(large)})" if large else ""
    lines.append(f"The published run fitted and the plan does not fit: {len(large)} of {len(rows)} rows{names}.")
    return lines


def _by_chip(rows: Sequence[ComparedRow]) -> dict[str, Summary]:
    return {chip: summarize_rows([row for row in rows if row.chip == chip]) for chip in sorted({row.chip for row in rows})}


def _summaries(rows: Sequence[ComparedRow]) -> Table:
    """Return the statistics by kind of device."""
    head = ("device", "rows", "bound above measured", "median measured / estimate", "measured / bound", "rank correlation")
    lines = []
    for chip, one in (_by_chip(rows) | {"all": summarize_rows(rows)}).items():
        part = [row.measured / row.bound for row in rows if chip in (row.chip, "all")]
        numbers = [f"{value:.2f}" if value is not None else "" for value in (one.ratio, statistics.median(part), one.correlation)]
        lines.append((chip, str(one.rows), str(len(one.above)), *numbers))
    return Table(head, lines)


def _table(rows: Sequence[ComparedRow]) -> Table:
    head = ("row", "model", "target", "bound by", "measured, s", "bound, s", "estimate, s", "ratio", "planned", "measured")
    lines = []
    for row in rows:
        estimate, ratio = (f"{value:.3g}" if value else "" for value in (row.estimate, row.ratio))
        memory = f"{format_bytes(row.planned_bytes)}{'' if row.fits else ' (too much)'}"
        measured = format_bytes(row.measured_bytes) if row.measured_bytes else ""
        times = (f"{row.measured:.3g}", f"{row.bound:.3g}", estimate, ratio)
        lines.append((row.name, row.model, row.target, row.bound_by, *times, memory, measured))
    return Table(head, lines, words=4)


def _drawing(rows: Sequence[ComparedRow], title: str) -> list[Figure]:
    """Return measured time over estimate, a point for each row, both logarithmic, with the line of equality."""
    points = [(row.estimate, row.measured, row.bound_by) for row in rows if row.estimate]
    if not points:
        return []
    low, high = min(min(point[:2]) for point in points) / 1.5, max(max(point[:2]) for point in points) * 1.5

    def draw(axes: Any) -> None:
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1)
        axes.plot([low, high], [RATIO[1] * low, RATIO[1] * high], color=FOUR, linewidth=1, linestyle=(0, (4, 2)))
        for estimate, measured, bound_by in points:
            axes.plot([estimate], [measured], "o", color=LOOKS[bound_by][0], markersize=5)
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="estimate, s", ylabel="measured, s")
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")

    keys = {f"bound by {name}": f"{look} dots" for name, (_, look) in LOOKS.items()}
    keys |= {"equal": "muted", f"{RATIO[1]} times the estimate": "four dashed"}
    label = f"Measured time of {len(points)} rows {title} over the estimate"
    return [Figure("Measured time over estimate", draw, label, keys, across=True, height=5.0)]


def _remarks(rows: Sequence[ComparedRow]) -> Table:
    names: dict[str, list[str]] = {}
    for row in rows:
        for remark in row.remarks:
            names.setdefault(remark, []).append(row.name)
    return _counted("difference", names)


def _reasons(comparison: Comparison) -> Table:
    return _counted("reason", comparison.reasons)


def _counted(head: str, names: dict[str, list[str]]) -> Table:
    """Return texts with the number of rows that have them, and the first of these, the most frequent first."""
    lines = [(text, members[0], str(len(members))) for text, members in sorted(names.items(), key=lambda pair: -len(pair[1]))]
    return Table((head, "first row", "rows"), lines, words=2)
