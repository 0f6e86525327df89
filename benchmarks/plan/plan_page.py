"""A plan on a terminal and as an HTML page, which also has its memory as a bar and its step under the roofline of its device."""

import itertools
import math
from typing import Any

from benchmarks.core import result_tables
from benchmarks.core.result_page import Form, Report, text_blocks
from benchmarks.core.result_tables import Heading
from benchmarks.plan import plan_text
from benchmarks.plan.plan_record import Plan
from benchmarks.plan.target_devices import parse_target
from eval.pages.charts import INK, MUTED, ONE, THREE, TWO, Figure
from eval.pages.html_page import Block, render_page

LOOKS = {"parameters": (ONE, "one"), "optimizer": (TWO, "two"), "cache": (TWO, "two"), "temporaries": (THREE, "three")}
"""Colour and class of the style sheet of parts that may be large; the others are grey and share one key."""
WORTH = (
    "At the published rates, no program is faster than compute and links allow. "
    "The time for memory is an estimate: a program that finds arrays in a cache takes less."
)


def plan_report(plan: Plan, form: Form) -> Report:
    """Return a plan in sections; on a terminal, bars of text show its memory."""
    fit = f"{plan_text.format_bytes(plan.total)} on a device, {plan_text.plan_verdict(plan)}.{plan_text.excess_sentence(plan)}"
    lead = f"{fit} {plan_text.bound_sentence(plan)}"
    sections: dict[str, list[Block]] = {
        "What is planned": [plan_text.plan_inputs(plan)],
        "Memory of a device": [
            _memory(plan),
            plan_text.memory_table(plan, bars=form == "terminal"),
            *([sentence] if (sentence := plan_text.host_sentence(plan)) else []),
        ],
        "Memory of a device in a rollout": [plan_text.rollout_table(plan), plan_text.ROLLOUT_NOTE] if plan.rollout else [],
        "The largest temporaries": [plan_text.large_table(plan)] if plan.large else [],
        "What to try": [plan.advice],
        "A step at the published rates": [plan_text.times_table(plan), *_roofline(plan)] if plan.products is not None else [],
        "Sent in a step": [plan_text.collectives_table(plan)] if plan.collectives else [],
        "Warnings": [plan_text.plan_warnings(plan)],
    }
    return Report(lead, sections)


def plan_blocks(plan: Plan) -> list[result_tables.Block]:
    """Return a plan as the blocks of a terminal."""
    described = plan_report(plan, "terminal")
    return [Heading(plan_text.plan_headline(plan)), described.lead, *text_blocks(described), plan_text.plan_provenance(plan)]


def render_plan(plan: Plan) -> str:
    """Return a plan as a self-contained HTML file."""
    described = plan_report(plan, "page")
    footer = f"{plan_text.plan_provenance(plan)}. {WORTH}"
    return render_page(plan_text.plan_headline(plan), described.lead, described.sections, footer=footer)


def _memory(plan: Plan) -> Figure:
    """Return the stacked bar over a device's memory."""
    parts = plan_text.memory_parts(plan)
    total, *frame = [plan_text.format_bytes(size) for size in (plan.total, plan.device_memory) if size is not None]

    def draw(axes: Any) -> None:
        for (name, size), left in zip(parts.items(), itertools.accumulate(parts.values(), initial=0), strict=False):
            axes.barh(0, size, left=left, height=1, color=LOOKS.get(name, (MUTED,))[0])
        if plan.device_memory is not None:
            axes.barh(0, plan.device_memory, height=1, fill=False, edgecolor=INK, linewidth=1.5)
        axes.set_axis_off()

    keys = {name: LOOKS[name][1] for name in parts if name in LOOKS}
    if rest := ", ".join(name for name in parts if name not in LOOKS):
        keys[rest] = "muted"
    label = "; ".join(f"{name} {plan_text.format_bytes(size)}" for name, size in parts.items())
    title = f"{total}; the frame is {frame[0]}" if frame else total
    return Figure(title, draw, label, keys, across=True, height=0.6)


def _roofline(plan: Plan) -> list[Figure]:
    """Return FLOP/s over FLOPs a byte, both logarithmic: the roofs of memory, links and compute, and this step."""
    device = parse_target(plan.target).published
    peak = None if device is None else device.peak.get(plan.precision)
    if device is None or device.bandwidth is None or peak is None or not plan.products or not plan.bytes:
        return []
    flops, top, slope = plan.products + (plan.kernels or 0), peak * 1e12, device.bandwidth * 1e9
    seconds = {name: getattr(plan.times, name) or 0.0 for name in ("interconnect", "between_slices", "host")}
    link = max(seconds, key=lambda name: seconds[name])
    link_bound = flops / seconds[link] if seconds[link] else None
    at, ridge = flops / plan.bytes, top / slope
    reached = min(top, slope * at, link_bound or top)
    low, high = math.floor(math.log10(min(at, ridge)) - 0.5), math.ceil(math.log10(max(at, ridge)) + 0.5)
    floor, ceiling = math.floor(math.log10(min(slope * 10.0**low, reached))), math.ceil(math.log10(top) + 0.15)

    def draw(axes: Any) -> None:
        axes.plot([10.0**low, ridge, 10.0**high], [slope * 10.0**low, top, top], color=ONE, linewidth=2)
        if link_bound:
            axes.axhline(link_bound, color=TWO, linewidth=2, linestyle=(0, (4, 2)))
        axes.plot([at], [reached], "o", color=THREE, markersize=9)
        axes.set(xscale="log", yscale="log", xlim=(10.0**low, 10.0**high), ylim=(10.0**floor, 10.0**ceiling))
        axes.set_xlabel("FLOPs a byte of memory")
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.yaxis.set_major_formatter(lambda value, _: plan_text.format_decimal(value).strip())

    keys = (
        {"memory and compute": "one"}
        | ({plan_text.TIMES[link]: "two dashed"} if link_bound else {})
        | {"this step": "three dots"}
    )
    label = f"this step: {at:.3g} FLOPs a byte, {plan_text.format_decimal(reached)}FLOP/s"
    return [Figure("FLOP/s of a device", draw, label, keys, across=True)]
