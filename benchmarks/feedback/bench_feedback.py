"""`zoo bench feedback`: measure the iteration of a model, ours and that of peers, and show its parts."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from benchmarks.core import bench_command
from benchmarks.core.guarded_trials import Group
from benchmarks.core.options import FeedbackOptions, fill_options
from benchmarks.feedback import iteration_report, measure_iteration
from benchmarks.feedback.iteration import SIZES, Shape
from benchmarks.step.cases import make_case
from benchmarks.step.programs import OURS
from zoo import models
from zoo.errors import BadInput, require

DEFAULTS = {
    "full": FeedbackOptions(model="gpt2", prompts=2, group=4, prompt_length=32, tokens=32, budget=20.0),
    "quick": FeedbackOptions(model="gpt-nano", prompts=4, group=4, prompt_length=16, tokens=16, budget=5.0),
}


def resolve_feedback_options(options: FeedbackOptions, backend: str) -> FeedbackOptions:
    """Return the options with all omitted fields filled in for a machine.

    Raises:
        BadInput: a number that is too small, or options that exclude each other; see `feedback_shape`.
    """
    bench_command.check_numbers(options, "prompts", "prompt_length", "tokens", "rounds", "budget", "repeats")
    require(options.group is None or options.group >= 2, "group", options.group, "responses are compared; choose 2 or more")
    default = DEFAULTS["quick" if options.quick else "full"]
    filled = fill_options(options, default, ("model", "budget", *SIZES))
    if options.rounds:
        filled["budget"] = None
    precision = options.precision or ("float32" if backend == "cpu" else "bfloat16")
    complete = dataclasses.replace(options, **filled, precision=precision)
    feedback_shape(complete)
    return complete


def feedback_shape(options: FeedbackOptions) -> Shape:
    """Return the shape of resolved options.

    Raises:
        BadInput: an unknown model, one that is not trained by policy gradients or does not continue a prompt, or too many tokens.
    """
    sizes = {name: getattr(options, name) for name in SIZES}
    base = make_case(options.model, "train")
    model = models.model(base.config)
    if "policy_gradient" not in model.definition.objectives or model.is_encoder_decoder:
        raise BadInput(f"{base.size} is not a decoder that learns from rewards of its texts; choose a GPT, such as gpt2")
    length, context = sizes["prompt_length"] + sizes["tokens"], base.config.context
    fix = f"a prompt of {sizes['prompt_length']} and this response do not fit in the {context:,} positions of {base.size}"
    require(length <= context, "tokens", sizes["tokens"], f"{fix}; choose at most {context - sizes['prompt_length']:,}")
    return Shape(size=base.size, config=base.config, precision=options.precision or "float32", **sizes)


def _groups(options: FeedbackOptions, environment: Mapping[str, Any]) -> list[Group]:
    shape = feedback_shape(options)
    programs = [OURS, *(measure_iteration.PEERS if options.peers else ())]
    measure = functools.partial(measure_iteration.measure_iteration, shape, options, environment)
    return [Group(f"an iteration of {shape.size}", measure_iteration.iteration_keys(shape, programs), measure)]


BENCHMARK = bench_command.Benchmark(
    "feedback",
    "Learning by sampling",
    resolve_feedback_options,
    _groups,
    iteration_report.iteration_report,
    iteration_report.iteration_cells_text,
    unit=lambda options: {"program": OURS},
    dtypes=lambda options: (options.precision,),
)
main = BENCHMARK.main
