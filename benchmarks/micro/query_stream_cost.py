"""Cost of XLNet's second stream: `python -m benchmarks.micro.query_stream_cost`.

The same training step twice, on the same rows with the same targets and head: once the query stream predicts the targets, once
the content stream does, with mask tokens in their places. Timed in the same rounds. Prints Markdown.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.core import timing
from benchmarks.micro import recipe_step, script_setup
from train import recipes
from train.config import run_config
from train.config.run_config import Tokenizer

CASES = (("xlnet-nano", 16, 128), ("xlnet", 2, 512))
"""A recipe, its rows, and tokens a row."""


def print_stream_costs() -> int:
    """Time the steps of `CASES` with two streams and with one, print a table, and return the exit code."""
    options = script_setup.start_measurement("query_stream_cost", __doc__, rounds=9, attention="auto")
    print("| recipe | B x T, memory | targets a row | attention | step of two streams over one |")
    print("|---|---|---|---|---|")
    for recipe, rows, length in CASES:
        run = _run(recipe, rows, length, options.attention)
        both = {kind: _program(run, kind) for kind in ("permutation", "denoising")}
        seconds = timing.time_interleaved(both, options.rounds)
        ratios = seconds["permutation"] / seconds["denoising"]
        low, middle, high = np.quantile(ratios, [0.2, 0.5, 0.8])
        targets = run.options.permutation.predictions or length // 6
        shape = f"{rows} x {length}, {run.model.memory}"
        print(f"| {recipe} | {shape} | {targets} | {options.attention} | {middle:.2f} ({low:.2f} to {high:.2f}) |", flush=True)
    return 0


def _run(recipe: str, rows: int, length: int, attention: Any) -> run_config.Run:
    run = recipes.find_recipe(recipe)()
    model = dataclasses.replace(run.model, compute=dataclasses.replace(run.model.compute, attention=attention))
    data = dataclasses.replace(run.data, batch=rows, ramp=(), length=length)
    tokenizer = Tokenizer(kind="xlnet", vocab=min(model.vocab, 4096))
    return dataclasses.replace(run, model=model, data=data, tokenizer=tokenizer, precision="float32")


def _program(run: run_config.Run, kind: Any) -> Callable[[], object]:
    """Return the run's step on its first batch."""
    permutation = dataclasses.replace(run.options.permutation, kind=kind)
    run = dataclasses.replace(run, options=dataclasses.replace(run.options, permutation=permutation))
    return recipe_step.recipe_step_program(run, *recipe_step.first_batches(run, 1))


if __name__ == "__main__":
    sys.exit(script_setup.run_measurement(print_stream_costs))
