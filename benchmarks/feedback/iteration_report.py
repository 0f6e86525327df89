"""The report of `zoo bench feedback`: the parts of an iteration of each program as a bar, and a table of every number."""

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
from benchmarks.feedback.iteration import ITERATION, PARTS
from benchmarks.step.programs import OURS
from eval.pages.charts import FIVE, FOUR, ONE, THREE, TWO, Figure
from eval.pages.html_page import Block, Table

HEAD = ("part", "program", "time", "20-80 %", "share", "tokens/s", "over jax-zoo", "rate", "memory")
NAMES = {
    "rollout": "responses",
    "policy": "scores of the policy",
    "reference": "scores of the reference",
    "step": "training step",
    "rest": "the rest",
    ITERATION: "iteration",
}
"""Part -> its name in tables."""
LEGEND = {
    "responses": "sampling them, with the copy of the weights that is sampled with",
    "scores": "log-probabilities of the responses",
    "the rest": "rewards, advantages, rows and transfers",
    "share": "of the iteration",
    "tokens/s": "tokens of responses; for scores and the step, tokens of prompts and responses",
    "over jax-zoo": "time over that of the same part of jax-zoo in the same rounds, median",
    "rate": "share of the matrix rate measured in the same rounds (of the published peak where there is one), by the part's "
    "FLOPs; only tokens of responses are predicted, and jax-zoo's scores of the policy are not needed",
    "memory": "of the responses the weights and the cache, of the step what XLA planned, of an iteration the peak of its process",
}
LOOKS = {
    "rollout": (ONE, "one block"),
    "policy": (FOUR, "four block"),
    "reference": (FIVE, "five block"),
    "step": (TWO, "two block"),
    "rest": (THREE, "three block"),
}
"""Part -> its colour, and classes of the style sheet."""


def iteration_report(results: Results, form: Form) -> Report:
    """Return the report, which is the same in every form."""
    # By part, and within a part ours first.
    order = {part: place for place, part in enumerate((*PARTS, ITERATION))}
    cells = sorted(merge_processes(results.cells), key=lambda cell: (order[cell["key"]["part"]], cell["key"]["program"] != OURS))
    timed, title = timed_cells(cells), _title(cells[0]["key"]) if cells else "An iteration"
    ratios = {cell["key"]["program"]: cell["ratio"] for cell in timed if cell["key"]["part"] == ITERATION and cell["ratio"]}
    compared = [
        f"An iteration of {name} takes {ratio:.2f} times as long as one of {OURS}."
        for name, ratio in ratios.items()
        if name != OURS
    ]
    iterations = [cell for cell in results.cells if cell["key"]["part"] == ITERATION]
    sections = {
        title: [
            _bars(timed),
            Table(HEAD, list(map(_row, cells)), words=2),
            result_tables.missing_cell_reasons(iterations, lambda key: key["program"]),
        ],
        "What the numbers are": [LEGEND],
    }
    return Report(" ".join([timed_sentence(results, "parts"), *compared]), sections, _tiles(timed))


def iteration_cells_text(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the iterations of all programs in one line, for the progress display."""
    return "; ".join(" ".join(_row(cell)[1:3]) for cell in cells if cell["key"]["part"] == ITERATION)


def _title(key: Mapping[str, Any]) -> str:
    """Return a shape: "gpt2, 2 prompts x 4 responses, 32 + 32 tokens, float32"."""
    sizes = f"{key['prompts']} prompts x {key['group']} responses, {key['prompt_length']} + {key['tokens']} tokens"
    return f"{key['model']}, {sizes}, {key['precision']}"


def _row(cell: Mapping[str, Any]) -> list[str]:
    """Return a row of the table: see `HEAD`."""
    names = [NAMES[cell["key"]["part"]], cell["key"]["program"]]
    if cell["state"] != "timed":
        return [*names, "-" if cell["state"] == "skipped" else cell["state"].upper(), *[""] * (len(HEAD) - 3)]
    tokens = "" if cell["key"]["part"] == "rest" else f"{cell['tokens_per_s']:,.0f}"
    numbers = [format_number(cell["share"], ".0%"), tokens, format_number(cell["ratio"], ".2f")]
    rate = format_number(cell.get("mfu") or cell.get("of_matrix_rate") or None, ".1%")
    return [*names, seconds_text(cell["seconds"]), percentiles_text(cell), *numbers, rate, format_bytes(cell.get("memory"))]


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
