"""Curves of a run as SVG that takes its colours and its font from the page around it."""

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Colours that matplotlib is given, and what they become: so one drawing serves light and dark pages.
INK, MUTED, GRID, ONE, TWO, THREE = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", ONE: "--one", TWO: "--two", THREE: "--three"}

WIDE, NARROW = (10.6, 3.4), (5.0, 2.9)
"""Inches of the drawing across the page and of one in a column: the text of both comes out equally large."""

FAINT = 0.35
"""Opacity of single values behind their average; the page's legend has the same."""

BUCKETS = 400
"""A longer curve is drawn by the least and greatest value of so many stretches: no spike is lost, and the file stays small."""


def curves(train: Sequence[Any], valid: Sequence[Any], resumed: Sequence[int]) -> str:
    """Figures of loss with validation, bits per byte, throughput, learning rate and gradient norm; dashed where it resumed."""
    figures = [_loss(train, valid, resumed)]
    if valid:
        figures.append(_bits(valid, resumed))
    if train:
        figures += [_throughput(train, resumed), _simple(train, "lr", "Learning rate", resumed)]
        figures.append(_simple(train, "grad_norm", "Gradient norm, before clipping", resumed))
    return f"<div class=plots>{''.join(figures)}</div>"


def _loss(train: Sequence[Any], valid: Sequence[Any], resumed: Sequence[int]) -> str:
    steps, loss = _column(train, "loss")
    valid_steps, valid_loss = _column(valid, "loss")
    bottom, top, outside = _limits(np.concatenate([loss, valid_loss]))
    smooth = _smooth(loss, top)

    def draw(axes: Any) -> None:
        _noisy(axes, steps, loss, smooth)
        _dotted(axes, valid_steps, valid_loss)
        lost = steps[~np.isfinite(loss)][:: 1 + len(steps) // BUCKETS]
        axes.plot(lost, np.full(len(lost), 0.03), "x", color=THREE, markersize=5, transform=axes.get_xaxis_transform())
        axes.set_ylim(bottom, top)

    keys = [_key("one", "training, smoothed"), _key("one faint", "each row")] if len(smooth) else [_key("one", "training")]
    keys += [_key("two dots", "validation")] if len(valid_steps) else []
    keys += [_key("three cross", "not finite")] if not np.isfinite(loss).all() else []
    told = [_told("Training loss", steps, smooth if len(smooth) else loss), _told("validation loss", valid_steps, valid_loss)]
    return _figure("Loss, nats a token", "; ".join(filter(None, told)), draw, resumed, keys=keys, outside=outside, lead=True)


def _bits(valid: Sequence[Any], resumed: Sequence[int]) -> str:
    steps, bits = _column(valid, "bits_per_byte")
    bottom, top, outside = _limits(bits)

    def draw(axes: Any) -> None:
        _dotted(axes, steps, bits)
        axes.set_ylim(bottom, top)

    return _figure("Bits per byte, validation", _told("Bits per byte", steps, bits), draw, resumed, outside=outside)


def _throughput(train: Sequence[Any], resumed: Sequence[int]) -> str:
    steps = np.array([row["step"] for row in train])
    rate = np.array([row["time"]["tokens_per_s"] for row in train], float)
    share = np.array([np.nan if row["time"]["mfu"] is None else row["time"]["mfu"] for row in train])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = share / rate
    # One scale serves both only while a token costs the same share of the machine: not after resuming on another one.
    one_scale = np.isfinite(ratio).all() and np.ptp(ratio) <= 0.01 * ratio.max() and ratio.min() > 0
    _, top, outside = _limits(rate)

    def draw(axes: Any) -> None:
        _noisy(axes, steps, rate, _smooth(rate, top))
        axes.set_ylim(0, top)
        axes.yaxis.set_major_formatter(_thousands)
        if one_scale:
            percent = 100 * float(np.median(ratio))
            right = axes.secondary_yaxis("right", functions=(lambda y: y * percent, lambda y: y / percent))
            right.yaxis.set_major_formatter(lambda value, _: f"{value:g}%" if value else "")
            right.spines["right"].set_visible(False)
            right.tick_params(length=0)
            right.yaxis.set_major_locator(_ticks(4))

    title = "Tokens a second" + ("; right: MFU" if one_scale else "")
    return _figure(title, _told("Tokens a second", steps, rate), draw, resumed, outside=outside)


def _simple(train: Sequence[Any], name: str, title: str, resumed: Sequence[int]) -> str:
    steps, values = _column(train, name)
    _, top, outside = _limits(values)

    def draw(axes: Any) -> None:
        # A schedule has no noise to average away.
        _noisy(axes, steps, values, values[:0] if name == "lr" else _smooth(values, top))
        axes.set_ylim(0, top)

    return _figure(title, _told(title, steps, values), draw, resumed, outside=outside)


def _figure(
    title: str,
    told: str,
    draw: Callable[[Any], None],
    resumed: Sequence[int],
    *,
    keys: Sequence[str] = (),
    outside: int = 0,
    lead: bool = False,
) -> str:
    label = html.escape(f"{title}. {told}")
    drawings = _svg(draw, resumed, NARROW, label, "narrow" if lead else "")
    drawings += _svg(draw, resumed, WIDE, label, "wide") if lead else ""
    keys = [*keys, *([_key("dashed", "resumed")] if resumed and lead else [])]
    note = f"<p class=remark>Values above the frame: {outside:,}</p>" if outside else ""
    kind = " class=lead-plot" if lead else ""
    return f"<figure{kind}><figcaption><b>{html.escape(title)}</b>{''.join(keys)}</figcaption>{drawings}{note}</figure>"


def _svg(draw: Callable[[Any], None], resumed: Sequence[int], size: tuple[float, float], label: str, kind: str) -> str:
    # Imported here: this takes more than a second, which no other command should pay.
    import matplotlib
    from matplotlib.figure import Figure

    # Names of clip paths and markers are digests of the salt and of what they draw. Were two drawings to share one, the one that
    # the page hides could take it from the one that it shows.
    with matplotlib.rc_context(_SETTINGS | {"svg.hashsalt": f"{label} {kind}"}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(_ticks(8 if size == WIDE else 5, integer=True))
        axes.yaxis.set_major_locator(_ticks(6))
        axes.xaxis.set_major_formatter(_thousands)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(length=0)
        axes.grid(axis="y")
        for step in resumed:
            axes.axvline(step, color=MUTED, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
        draw(axes)
        axes.set_xlabel("step")
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawing = written.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    for colour, variable in VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    view = re.search(r'viewBox="[^"]*"', drawing)
    assert view
    # No other id is referred to.
    content = re.sub(r' id="(?:figure|axes|matplotlib|patch|line2d|xtick|ytick|text|LineCollection)[^"]*"', "", drawing)
    content = content[content.index(">") + 1 :].replace("xlink:href", "href")
    name = f' class="{kind}"' if kind else ""
    return f'<svg{name} {view[0]} role="img" aria-label="{label}"><title>{label}</title>{content}'


_SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.linewidth": 1,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.4,
    "lines.solid_joinstyle": "round",
    "path.simplify": False,
}


def _ticks(count: int, integer: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, integer=integer, steps=[1, 2, 2.5, 5, 10])


def _thousands(value: float, _: object) -> str:
    scale, unit = next((each for each in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if abs(value) >= each[0]), (1, ""))
    return f"{value / scale:g}{unit}"


def _column(rows: Sequence[Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row["step"] for row in rows], int), np.array([row[name] for row in rows], float)


def _curve(axes: Any, steps: np.ndarray, values: np.ndarray, colour: str, **style: Any) -> None:
    """A line; a dot where there is only one value."""
    keep = _thin(values)
    axes.plot(steps[keep], values[keep], color=colour, **{"marker": "o" if len(values) == 1 else ""} | style)


def _noisy(axes: Any, steps: np.ndarray, values: np.ndarray, smooth: np.ndarray) -> None:
    """The values, faint behind their average where there is one."""
    if not len(smooth):
        _curve(axes, steps, values, ONE)
        return
    _curve(axes, steps, values, ONE, alpha=FAINT)
    _curve(axes, steps, smooth, ONE, linewidth=1.8)


def _dotted(axes: Any, steps: np.ndarray, values: np.ndarray) -> None:
    """A line with its values as dots, as long as these can be told apart."""
    _curve(axes, steps, values, TWO, **({"marker": "o", "markersize": 4} if len(values) <= 60 else {}))


def _thin(values: np.ndarray) -> np.ndarray:
    """Positions of the values to draw: all of a short curve, else the least and the greatest of each stretch."""
    if len(values) <= 2 * BUCKETS:
        return np.arange(len(values))
    finite = np.flatnonzero(np.isfinite(values))
    keep = [part[[np.argmin(values[part]), np.argmax(values[part])]] for part in np.array_split(finite, BUCKETS) if len(part)]
    return np.unique(np.concatenate([*keep, [0]]))


def _smooth(values: np.ndarray, top: float) -> np.ndarray:
    """Average of the values up to `top` within a fortieth of the curve to either side, less near its ends so that they do not
    bend; nothing for a curve too short to need it."""
    count = len(values)
    if count < 40:
        return np.zeros(0)
    used, at = values <= top, np.arange(count)
    reach = np.minimum(count // 40, np.minimum(at, count - 1 - at))
    before, after = np.maximum(reach, np.minimum(count // 400, at)), np.maximum(reach, np.minimum(count // 400, count - 1 - at))
    sums = np.concatenate([[0], np.cumsum(np.where(used, values, 0))])
    counts = np.concatenate([[0], np.cumsum(used)])
    with np.errstate(invalid="ignore"):
        return (sums[at + after + 1] - sums[at - before]) / (counts[at + after + 1] - counts[at - before])


def _limits(values: np.ndarray) -> tuple[float, float, int]:
    """Bottom and top of a frame around the finite values, and how many lie above: a lone huge spike does not flatten the rest."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0, 0
    bottom, usual, top = float(finite.min()), float(np.quantile(finite, 0.98, method="lower")), float(finite.max())
    usual = max(usual, float(finite[0]))
    if top - bottom > 4 * (usual - bottom) > 0:
        top = usual
    room = 0.06 * (top - bottom) or 0.1 * abs(top) or 1.0
    return bottom - room, top + room, int((finite > top).sum())


def _told(name: str, steps: np.ndarray, values: np.ndarray) -> str:
    """The curve in words, for those who cannot see it."""
    seen = np.flatnonzero(np.isfinite(values))
    if not len(seen):
        return ""
    first, last = seen[0], seen[-1]
    return f"{name} from {values[first]:.4g} at step {steps[first]:,} to {values[last]:.4g} at step {steps[last]:,}"


def _key(kind: str, text: str) -> str:
    return f'<span class="key {kind}"><span>{text}</span></span>'
