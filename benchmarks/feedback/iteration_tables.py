"""The results of `zoo bench feedback` as text: a table of the parts of an iteration, of each program."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.core.result_files import Results
from benchmarks.core.result_tables import (
    Block,
    Heading,
    Table,
    format_number,
    gigabytes,
    machine_line,
    merge_processes,
    percentiles_text,
    seconds_text,
    timed_cells,
)
from benchmarks.core.result_tables import notes as notes_of
from benchmarks.feedback.iteration import ITERATION, PARTS
from benchmarks.step.step_variants import OURS

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


def title_of(key: Mapping[str, Any]) -> str:
    """Return a shape: "gpt2, 2 prompts x 4 responses, 32 + 32 tokens, float32"."""
    sizes = f"{key['prompts']} prompts x {key['group']} responses, {key['prompt_length']} + {key['tokens']} tokens"
    return f"{key['model']}, {sizes}, {key['precision']}"


def ordered(results: Results) -> list[dict[str, Any]]:
    """Return the cells by part, and within a part ours first."""
    parts = [*PARTS, ITERATION]
    return sorted(
        merge_processes(results.cells), key=lambda cell: (parts.index(cell["key"]["part"]), cell["key"]["program"] != OURS)
    )


def line(cell: Mapping[str, Any]) -> list[str]:
    """Return a row of the table: see `HEAD`."""
    names = [NAMES[cell["key"]["part"]], cell["key"]["program"]]
    if cell["state"] != "timed":
        return [*names, "-" if cell["state"] == "skipped" else cell["state"].upper(), *[""] * (len(HEAD) - 3)]
    numbers = [format_number(cell["share"], ".0%"), f"{cell['tokens_per_s']:,.0f}", format_number(cell["ratio"], ".2f")]
    if cell["key"]["part"] == "rest":
        numbers[1] = ""
    rate = format_number(cell.get("mfu") or cell.get("of_matrix_rate") or None, ".1%")
    return [*names, seconds_text(cell["seconds"]), percentiles_text(cell), *numbers, rate, gigabytes(cell.get("memory"))]


def one_line(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the iterations of all programs in one line, for the progress display."""
    iterations = [cell for cell in cells if cell["key"]["part"] == ITERATION]
    return "; ".join(" ".join(line(cell)[1:3]) for cell in iterations)


def notes(results: Results) -> list[str]:
    """Return the reasons of iterations without a time."""
    iterations = [cell for cell in results.cells if cell["key"]["part"] == ITERATION]
    return notes_of(iterations, lambda key: key["program"])


def summary(results: Results) -> str:
    """Return how the iteration of each peer compares with ours; "" if none was timed."""
    compared = [
        cell for cell in timed_cells(merge_processes(results.cells)) if cell["key"]["part"] == ITERATION and cell["ratio"]
    ]
    ratios = {cell["key"]["program"]: cell["ratio"] for cell in compared if cell["key"]["program"] != OURS}
    return " ".join(f"An iteration of {name} takes {ratio:.2f} times as long as one of {OURS}." for name, ratio in ratios.items())


def blocks(results: Results, *, terminal: bool) -> list[Block]:
    """Return the report; it is the same on a terminal."""
    del terminal
    legend = "; ".join(f"{name}: {meaning}" for name, meaning in LEGEND.items())
    cells = ordered(results)
    title: list[Block] = [Heading(title_of(cells[0]["key"]))] if cells else []
    return [
        machine_line(results),
        *title,
        Table(HEAD, list(map(line, cells)), words=2),
        notes(results),
        f"{legend[:1].upper()}{legend[1:]}.",
    ]
