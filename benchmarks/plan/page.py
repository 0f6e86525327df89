"""A plan as an HTML page: its memory as a stacked bar, its step under the roofline of its device, and its collectives."""

import html
import math

from benchmarks.plan import text_view
from benchmarks.plan.plan_record import Plan
from benchmarks.plan.targets import parse
from eval.report.html_page import page as html_page
from eval.report.html_page import section, table, text

COLOURS = {"parameters": "var(--one)", "optimizer": "var(--two)", "cache": "var(--two)", "temporaries": "var(--three)"}
"""Colours of parts that may be large; the others are grey and share one key."""
_WORTH = (
    "At the published rates, no program is faster than compute and links allow. "
    "The time for memory is an estimate: a program that finds arrays in a cache takes less."
)
WIDE, NARROW = 1040.0, 360.0
"""Width in pixels of the roofline on a page and on a phone, so that its text has the same size on both."""


def page(plan: Plan) -> str:
    """Return a self-contained HTML file."""
    title, sentence = (
        text_view.headline(plan),
        f"{text_view.binary(plan.total)} on a device, {text_view.verdict(plan)}. {text_view.bound_sentence(plan)}",
    )
    warnings = text_view.warnings(plan)
    parts = [
        f"<header><h1>{text(title)}</h1><p class=lead>{text(sentence)}</p></header>",
        section("What is planned", table(("", ""), text_view.inputs(plan).items(), words=2)),
        section("Memory of a device", _memory(plan)),
        section("A step", _times(plan) + _roofline(plan)) if plan.products is not None else "",
        section("Sent in a step", _sent(plan)) if plan.collectives else "",
        section("Warnings", "".join(f"<p>{text(line)}</p>" for line in warnings)) if warnings else "",
        f"<footer>{text(text_view.provenance(plan))}. {_WORTH}</footer>",
    ]
    return html_page(title, sentence, parts)


def _memory(plan: Plan) -> str:
    """Return the stacked bar over a device's memory, and the same in numbers."""
    parts = text_view.memory_parts(plan)
    limit = max(plan.device_memory or 0, plan.total)
    segments, at = [], 0.0
    for name, size in parts.items():
        wide, colour = 1000 * size / limit, COLOURS.get(name, "var(--muted)")
        tooltip = html.escape(f"{name}: {text_view.binary(size)}")
        segments.append(
            f'<rect x="{at:.2f}" y="0" width="{max(wide, 0):.2f}" height="44" fill="{colour}"><title>{tooltip}</title></rect>'
        )
        at += wide
    if plan.device_memory is not None:
        end = 1000 * plan.device_memory / limit
        segments.append(f'<rect x="0" y="0" width="{end:.2f}" height="44" fill="none" stroke="var(--ink)" stroke-width="1.5"/>')
    label = html.escape("; ".join(f"{name} {text_view.binary(size)}" for name, size in parts.items()))
    bar = (
        f'<svg viewBox="-1 -1 1002 46" preserveAspectRatio="none" style="height:46px" role="img" aria-label="{label}">'
        f"<title>{label}</title>{''.join(segments)}</svg>"
    )
    keys = "".join(
        f'<span class=key style="color:{COLOURS[name]}"><span>{text(name)}</span></span>' for name in parts if name in COLOURS
    )
    if rest := ", ".join(name for name in parts if name not in COLOURS):
        keys += f'<span class="key muted"><span>{text(rest)}</span></span>'
    limit_told = "" if plan.device_memory is None else f"; the frame is {text_view.binary(plan.device_memory)}"
    figure = f"<figure><figcaption><b>{text_view.binary(plan.total)}{limit_told}</b>{keys}</figcaption>{bar}</figure>"
    rows = [(name, text_view.binary(size)) for name, size in {**parts, "total": plan.total}.items()]
    return figure + table(("", "bytes"), rows)


def _times(plan: Plan) -> str:
    rows = [(name, amount, seconds) for name, amount, seconds in text_view.rates(plan)]
    return table(("", "a device does", "takes"), rows, words=2)


def _roofline(plan: Plan) -> str:
    """Return FLOP/s over FLOPs a byte, both logarithmic: the roofs of memory, interconnect and compute, and this step."""
    device = parse(plan.target).published
    peak = None if device is None else device.peak.get(plan.precision)
    if device is None or device.bandwidth is None or peak is None or not plan.products or not plan.bytes:
        return ""
    flops, top, slope = plan.products + (plan.kernels or 0), peak * 1e12, device.bandwidth * 1e9
    link_bound = flops / plan.times.interconnect if plan.times.interconnect else None
    at = flops / plan.bytes
    reached = min(top, slope * at, link_bound or top)
    keys = '<span class="key one"><span>memory and compute</span></span>'
    keys += '<span class="key two dashed"><span>interconnect</span></span>' if link_bound else ""
    keys += '<span class="key three dots"><span>this step</span></span>'
    drawings = "".join(_roofs(wide, top, slope, link_bound, at, reached) for wide in (WIDE, NARROW))
    return f"<figure><figcaption><b>FLOP/s of a device</b>{keys}</figcaption>{drawings}</figure>"


def _roofs(wide: float, top: float, slope: float, link_bound: float | None, at: float, reached: float) -> str:
    """Return the drawing of the roofline.

    Args:
        wide: width in pixels.
        top: FLOP/s of compute.
        slope: bytes/s of memory.
        link_bound: FLOP/s that the interconnect allows; None without one.
        at: FLOPs a byte of the step.
        reached: FLOP/s of the step.
    """
    ridge = top / slope
    low, high = math.floor(math.log10(min(at, ridge)) - 0.5), math.ceil(math.log10(max(at, ridge)) + 0.5)
    floor, ceiling = math.floor(math.log10(min(slope * 10.0**low, reached))), math.ceil(math.log10(top) + 0.15)
    left, right, bottom, upper = 60.0, wide - 24, 300.0, 16.0

    def x(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * (right - left)

    def y(value: float) -> float:
        return bottom - (math.log10(value) - floor) / (ceiling - floor) * (bottom - upper)

    rows, columns = ([10.0**exponent for exponent in range(first, last + 1)] for first, last in ((floor, ceiling), (low, high)))
    shapes = [_line(left, y(value), right, y(value), "var(--grid)", 1) for value in rows]
    shapes += [_word(left - 8, y(value) + 4, text_view.decimal(value), "end") for value in rows]
    shapes += [_word(x(value), bottom + 18, f"{value:,g}", "middle") for value in columns]
    corners = ((10.0**low, slope * 10.0**low), (ridge, top), (10.0**high, top))
    points = " ".join(f"{x(first):.1f},{y(second):.1f}" for first, second in corners)
    shapes.append(f'<polyline points="{points}" fill="none" stroke="var(--one)" stroke-width="2"/>')
    if link_bound and 10.0**floor < link_bound < 10.0**ceiling:
        shapes.append(_line(left, y(link_bound), right, y(link_bound), "var(--two)", 2, dashed=True))
    description = html.escape(f"this step: {at:.3g} FLOPs a byte, {text_view.decimal(reached)}FLOP/s")
    shapes.append(
        f'<circle cx="{x(at):.1f}" cy="{y(reached):.1f}" r="6" fill="var(--three)"><title>{description}</title></circle>'
    )
    shapes.append(_word((left + right) / 2, bottom + 38, "FLOPs a byte of memory", "middle"))
    kind = "wide" if wide == WIDE else "narrow"
    frame = f'class="{kind}" viewBox="0 0 {wide:.0f} 346" font-size="13" fill="var(--muted)" role="img"'
    return f'<svg {frame} aria-label="{description}"><title>{description}</title>{"".join(shapes)}</svg>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, wide: int, *, dashed: bool = False) -> str:
    style = ' stroke-dasharray="6 4"' if dashed else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{wide}"{style}/>'


def _word(x: float, y: float, word: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(word.strip())}</text>'


def _sent(plan: Plan) -> str:
    rows = [
        (
            row.kind,
            row.axes,
            row.members,
            round(row.count),
            f"{text_view.decimal(row.bytes)}B",
            f"{text_view.decimal(row.bytes_sent)}B",
        )
        for row in plan.collectives
    ]
    return table(("", "axes", "devices", "count", "arrays", "a device sends"), rows, words=2)
