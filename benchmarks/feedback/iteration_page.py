"""The page of `zoo bench feedback`: the parts of an iteration of each program as a bar, and every number."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.core.html_page import Block, Figure, Table
from benchmarks.core.result_files import Results
from benchmarks.core.result_page import render_results, timed_sentence
from benchmarks.core.result_tables import seconds_text, timed_cells
from benchmarks.feedback import iteration_tables
from benchmarks.feedback.iteration import ITERATION, PARTS
from benchmarks.feedback.iteration_tables import HEAD, LEGEND, NAMES
from benchmarks.step.step_variants import OURS
from eval.report.svg import FIVE, FOUR, ONE, THREE, TWO

LOOKS = {
    "rollout": (ONE, "one block"),
    "policy": (FOUR, "four block"),
    "reference": (FIVE, "five block"),
    "step": (TWO, "two block"),
    "rest": (THREE, "three block"),
}
"""Part -> its colour, and classes of the style sheet."""


def render(results: Results) -> str:
    """Return the page."""
    cells = iteration_tables.ordered(results)
    title = iteration_tables.title_of(cells[0]["key"]) if cells else ""
    lead = f"{title}. {timed_sentence(results, 'parts')} {iteration_tables.summary(results)}".strip()
    sections: dict[str, Sequence[Block]] = {
        "An iteration": [
            _bars(timed_cells(cells)),
            Table(HEAD, list(map(iteration_tables.line, cells)), words=2),
            iteration_tables.notes(results),
        ],
        "What the numbers are": [LEGEND],
    }
    return render_results(results, "Learning by sampling", lead, sections, _tiles(timed_cells(cells)))


def _tiles(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the time of each program's iteration, and the share of its responses."""
    tiles = []
    for cell in cells:
        if cell["key"]["part"] == ITERATION:
            tiles.append((seconds_text(cell["seconds"]), f"an iteration of {cell['key']['program']}"))
        elif cell["key"]["part"] == "rollout" and cell["key"]["program"] == OURS:
            tiles.append((f"{cell['share']:.0%}", "of it to sample the responses"))
    return tiles


def _bars(cells: Sequence[Mapping[str, Any]]) -> Block:
    """Return the figure of the seconds of all parts, a bar for each program."""
    programs = list(dict.fromkeys(cell["key"]["program"] for cell in cells))
    seconds = {(cell["key"]["program"], cell["key"]["part"]): cell["seconds"] for cell in cells}
    if not programs:
        return ""

    def draw(axes: Any) -> None:
        for place, program in enumerate(programs):
            left = 0.0
            for part in PARTS:
                width = seconds.get((program, part), 0.0)
                axes.barh(place, width, left=left, color=LOOKS[part][0], height=0.62)
                left += width
        axes.set_yticks(range(len(programs)), programs)
        axes.invert_yaxis()
        axes.set_xlabel("seconds")

    keys = {NAMES[part]: LOOKS[part][1] for part in PARTS}
    label = "; ".join(f"{program} {NAMES[part]} {seconds_text(value)}" for (program, part), value in seconds.items())
    return Figure("Parts of an iteration", draw, label, keys, across=True, height=0.6 + 0.5 * len(programs))
