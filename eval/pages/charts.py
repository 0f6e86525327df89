"""Charts of pages: drawings of matplotlib as SVG with the colours and the font of the page around them."""

import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from eval.pages.value_text import escape_text

# Colours for matplotlib, and the CSS variables that replace them, so that one drawing serves light and dark pages.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
ONE, TWO, THREE, FOUR, FIVE, SIX = "#040404", "#050505", "#060606", "#070707", "#080808", "#090909"
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", ONE: "--one", TWO: "--two", THREE: "--three"}
VARIABLES |= {FOUR: "--four", FIVE: "--five", SIX: "--six"}

LIGHT = {INK: "#1b1f24", MUTED: "#59616b", GRID: "#e2e4e8", ONE: "#1a5fb4", TWO: "#b3450b", THREE: "#b3261e"}
LIGHT |= {FOUR: "#1b7f5c", FIVE: "#7a3fb0", SIX: "#8a6d00"}
"""Colours of the style sheet's light page."""

WIDE, NARROW = (10.6, 3.4), (5.0, 2.9)
"""Inches of the drawing across the page and of one in a column: the text of both comes out equally large."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing with a title and a legend."""

    title: str
    draw: Callable[[Any], None]
    """Draws on matplotlib axes, in the colours of this module."""
    label: str
    """Description for screen readers. No two figures of a page share it."""
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Legend: name -> classes of the style sheet, for example "one dots"."""
    across: bool = False
    """True if it is as wide as the page; narrow screens show a second drawing."""
    height: float | None = None
    """Inches; None is the usual height."""
    remark: str = ""
    """Line below the drawing, or below that of narrow screens if it is drawn by another function."""
    draw_narrow: Callable[[Any], None] | None = None
    """Draws for narrow screens; None is `draw`."""

    @property
    def drawings(self) -> list[Markup]:
        """Return the SVG drawings; the style sheet shows the one that fits."""
        narrow = self.draw_narrow or self.draw
        kinds = (("wide", self.draw, WIDE), ("narrow", narrow, NARROW)) if self.across else (("", self.draw, NARROW),)
        return [draw_svg(draw, (width, self.height or height), self.label, kind) for kind, draw, (width, height) in kinds]


def draw_svg(draw: Callable[[Any], None], size: tuple[float, float], label: str, kind: str = "") -> Markup:
    """Return the drawing of `draw` on matplotlib axes, as an <svg>.

    Args:
        size: inches, `WIDE` or `NARROW`.
        label: description for screen readers. No two drawings of a page share both label and kind.
        kind: its class, "wide" or "narrow" where a page has both and shows one.
    """
    label = escape_text(label)
    # Imported here, because it takes more than a second, which other commands should not spend.
    import matplotlib
    from matplotlib.figure import Figure

    # Names of clip paths and markers are digests of the salt and of what they draw. If a hidden and a visible drawing shared a
    # name, the visible one could lose its definition.
    with matplotlib.rc_context(_SETTINGS | {"svg.hashsalt": f"{label} {kind}"}):
        figure = Figure(figsize=size, layout="constrained")
        draw(_axes(figure, size))
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawing = written.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    for colour, variable in VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    view = re.search(r'viewBox="[^"]*"', drawing)
    assert view
    # Nothing in the drawing refers to the ids that are removed here.
    content = re.sub(r' id="(?:figure|axes|matplotlib|patch|line2d|xtick|ytick|text|LineCollection)[^"]*"', "", drawing)
    content = content[content.index(">") + 1 :].replace("xlink:href", "href")
    name = f' class="{kind}"' if kind else ""
    return Markup(f'<svg{name} {view[0]} role="img" aria-label="{label}"><title>{label}</title>{content}')


def draw_png(figure: Figure) -> bytes:
    """Return a figure as PNG in the colours of a light page, on white, with its title and legend: a picture on its own."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

    with matplotlib.rc_context(_SETTINGS | {name: LIGHT.get(value, value) for name, value in _SETTINGS.items()}):
        canvas = Canvas(figsize=WIDE, layout="constrained")
        axes = _axes(canvas, WIDE)
        figure.draw(axes)
        for line in axes.lines:
            line.set_color(LIGHT.get(str(line.get_color()), str(line.get_color())))
        axes.set_title(figure.title, loc="left")
        handles = [Line2D([], [], label=name, **_key_style(classes.split())) for name, classes in figure.keys.items()]
        if handles:
            # Above the axes, where no curve is.
            axes.legend(handles=handles, frameon=False, ncols=len(handles), loc="lower right", bbox_to_anchor=(1, 1))
        written = io.BytesIO()
        # The version of matplotlib would change the file.
        canvas.savefig(written, format="png", dpi=144, metadata={"Software": None})
    return written.getvalue()


def _key_style(classes: Sequence[str]) -> dict[str, Any]:
    """Return the style of a line that classes of the style sheet describe."""
    colours = {"ink": INK, "one": ONE, "two": TWO, "three": THREE}
    styles = {"dashed": (0, (4, 4)), "dotted": (0, (1, 1.5))}
    marker = "o" if "dots" in classes else "x" if "cross" in classes else ""
    return {
        "color": LIGHT[next((colour for name, colour in colours.items() if name in classes), MUTED)],
        "linestyle": next((style for name, style in styles.items() if name in classes), "" if marker == "x" else "-"),
        "marker": marker,
        "alpha": 0.35 if "faint" in classes else 1,
    }


def _axes(figure: Any, size: tuple[float, float]) -> Any:
    """Return the axes of a drawing, with round ticks and horizontal lines."""
    axes = figure.add_subplot()
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(tick_locator(8 if size == WIDE else 5, integer=True))
    axes.yaxis.set_major_locator(tick_locator(6))
    axes.xaxis.set_major_formatter(format_thousands)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(length=0)
    axes.grid(axis="y")
    return axes


def tick_locator(count: int, integer: bool = False) -> Any:
    """Return a locator of at most about `count` round values."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, integer=integer, steps=[1, 2, 2.5, 5, 10])


def format_thousands(value: float, _: object = None) -> str:
    """Return a number as a label of an axis: 2.5k, 3M."""
    scale, unit = next((pair for pair in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if abs(value) >= pair[0]), (1, ""))
    return f"{value / scale:g}{unit}"


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
