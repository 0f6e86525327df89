"""Gain from packing rows, in useful tokens a second: `python -m benchmarks.micro.packing_gain`.

A recipe's own training step on its own text, once with one sequence per row and once with sequences packed into rows of the same
length, timed in the same rounds with the same shapes. Useful tokens are those that are not padding; if both steps were equally
fast, the gain would be the ratio of the shares of the rows that are filled. Prints Markdown.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.core import timing
from benchmarks.micro import recipe_step, script_setup
from train import recipes
from train.config import find_objective, run_config

CASES = (
    ("bert-nano", "sentence_pairs"),
    ("bert-nano", "segment_pairs"),
    ("roberta-nano", "sentence_pairs"),
    ("roberta-nano", "doc_sentences"),
    ("distilbert-nano", "doc_sentences"),
)
"""A recipe, and the kind of its rows. DistilBERT is trained on masked words alone, so that its teacher's time does not count."""


def print_packing_gains() -> int:
    """Time the steps of `CASES` with and without packing, print a table, and return the exit code."""
    options = script_setup.start_measurement("packing_gain", __doc__, rounds=15)
    print("| recipe | rows | fill, unpacked and packed | ratio | step, packed over unpacked | useful tokens/s, ratio | off by |")
    print("|---|---|---|---|---|---|---|")
    for recipe, rows in CASES:
        fills, programs = zip(*(_program(_run(recipe, rows, pack=pack)) for pack in (False, True)), strict=True)
        seconds = timing.time_interleaved(dict(zip(("unpacked", "packed"), programs, strict=True)), options.rounds)
        slower = float(np.median(seconds["packed"]) / np.median(seconds["unpacked"]))
        fuller = fills[1] / fills[0]
        columns = f"{fills[0]:.3f} {fills[1]:.3f} | {fuller:.3f} | {slower:.3f} | {fuller / slower:.3f} | {1 / slower - 1:+.1%}"
        print(f"| {recipe} | {rows} | {columns} |", flush=True)
    return 0


def _run(recipe: str, rows: Any, *, pack: bool) -> run_config.Run:
    run = find_objective.with_objective(recipes.find_recipe(recipe)(), "masked")
    return dataclasses.replace(run, data=dataclasses.replace(run.data, rows=rows, pack=pack), precision="float32")


def _program(run: run_config.Run) -> tuple[float, Callable[[], object]]:
    """Return the share of the tokens of the run's rows that is not padding, and its step on one batch of them."""
    batches = recipe_step.first_batches(run)
    fill = float(np.mean([(batch.segments > 0).mean() for batch in batches if batch.segments is not None]))
    return fill, recipe_step.recipe_step_program(run, batches[0])


if __name__ == "__main__":
    sys.exit(script_setup.run_measurement(print_packing_gains))
