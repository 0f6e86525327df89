"""The command `zoo bench`."""

import dataclasses
import importlib
from typing import Annotated

from zoo import configs
from zoo.cli import early_checks
from zoo.cli.option_parser import parse
from zoo.errors import BadInput

BENCHMARKS = {
    "attention": ("AttentionOptions", "benchmarks.attention.sweep"),
    "step": ("StepOptions", "benchmarks.step.bench_step"),
    "growth": ("GrowthOptions", "benchmarks.growth.bench_growth"),
    "feedback": ("FeedbackOptions", "benchmarks.feedback.bench_feedback"),
    "embed": ("EmbedOptions", "benchmarks.embed.bench_embed"),
}
"""Benchmark -> the class of its options in `benchmarks.core.options`, and the module of its `main`."""


def bench(args: list[str]) -> int:
    """Run `zoo bench attention|step|growth|feedback|embed [options]` or `zoo bench compare A B [options]`."""
    from benchmarks.core import options

    names = [*BENCHMARKS, "compare"]
    if args[:1] in (["-h"], ["--help"]):
        descriptions = {name: getattr(options, kind).__doc__ for name, (kind, _) in BENCHMARKS.items()}
        for name, description in {**descriptions, "compare": compare.__doc__}.items():
            print(f"zoo bench {name:<10} {(description or '').strip().splitlines()[0]}")
        return 0
    if not args or args[0] not in names:
        raise BadInput(f"{' '.join(['bench', *args[:1]])}: choose one of {', '.join(names)}, as in `zoo bench attention`")
    if args[0] == "compare":
        return compare(args[1:])
    kind, command = BENCHMARKS[args[0]]
    request = parse(getattr(options, kind), args=args[1:], prog=f"zoo bench {args[0]}")
    if model := getattr(request, "model", ""):
        configs.find_size(model)  # refuses an unknown name before JAX is imported
    if getattr(request, "tune", False):
        command = "benchmarks.tiles.tune_tiles"
    return importlib.import_module(command).main(request, ("bench", *args))


def compare(args: list[str]) -> int:
    """Compare two results of one benchmark. The exit code is 1 if a cell became slower or wrong."""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Compare:
        """Compare two results of one benchmark, B against A.

        For results of one machine, each cell's ratio to the unit in the same rounds is compared; results of two machines are only
        shown side by side. The exit code is 1 if a cell is slower by more than its spread and the threshold, became wrong, or
        failed.
        """

        a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
        """Folder or cells.jsonl of `zoo bench`, the earlier result."""
        b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
        """Folder or cells.jsonl of the later result."""
        threshold: float = 0.05
        """Relative change below which a difference counts as neither regression nor improvement."""
        json: bool = False
        """Print JSON."""

    options = parse(Compare, args=args, prog="zoo bench compare")
    for name in (options.a, options.b):
        early_checks.check_data(name)
    from benchmarks.core import compare_results

    return compare_results.run_compare_results(options.a, options.b, threshold=options.threshold, as_json=options.json)
