"""Step times of all optimizers beside AdamW: `python -m benchmarks.micro.optimizer_steps`.

The steps of a recipe with each optimizer are timed in the same rounds, and the FLOPs of matrix products are read from the
compiled programs. Factorizations, which SOAP has in some steps, are not products. Prints Markdown.
"""

import dataclasses
import sys
from typing import Any, get_args

import numpy as np

from benchmarks.core import timing
from benchmarks.flops import flops_and_bytes
from benchmarks.hlo import hlo_parser
from benchmarks.micro import recipe_step, script_setup
from train import recipes
from train.config.optim_options import Optim, Optimizer
from train.config.run_config import Run

BASE = "adamw"
"""Optimizer that the others are compared with."""


def print_step_times() -> int:
    """Time the step of each optimizer, print a table, and return the exit code."""
    options = script_setup.start_measurement("optimizer_steps", __doc__, recipe="gpt-nano", rounds=15)
    run = dataclasses.replace(recipes.find_recipe(options.recipe)(), precision="float32")
    (batch,) = recipe_step.first_batches(run, 1)
    steps = {name: recipe_step.compile_step(with_optimizer(run, name), batch) for name in get_args(Optimizer)}
    flops = {name: product_flops(step) for name, (step, _, _) in steps.items()}
    programs = {name: recipe_step.repeated_step(*step) for name, step in steps.items()}
    seconds = timing.time_interleaved(programs, options.rounds)
    print(f"Steps of {options.recipe} with {run.data.batch} rows of {run.data.length} tokens.\n")
    print("| optimizer | step, median | beside adamw, median of the rounds | quartiles | products, FLOPs | beside adamw |")
    print("|---|---|---|---|---|---|")
    for name, values in seconds.items():
        low, middle, high = np.quantile(values / seconds[BASE], (0.25, 0.5, 0.75))
        columns = f"{1e3 * np.median(values):.1f} ms | {middle:.3f} | {low:.3f} to {high:.3f}"
        print(f"| {name} | {columns} | {flops[name]:.4g} | {flops[name] / flops[BASE]:.3f} |", flush=True)
    return 0


def with_optimizer(run: Run, name: Any) -> Run:
    """Return a run with another optimizer at its default numbers, and a constant rate."""
    return dataclasses.replace(run, optim=Optim(name=name, schedule="constant", warmup=0))


def product_flops(step: Any) -> float:
    """Return the FLOPs of the matrix products of a compiled step on one device."""
    module = hlo_parser.parse_program(step.as_text() or "")
    return flops_and_bytes.device_work(module, (), 1).products


if __name__ == "__main__":
    sys.exit(script_setup.run_measurement(print_step_times))
