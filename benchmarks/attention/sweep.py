"""`zoo bench attention`: sweep, write each cell as soon as it is measured, then show all of them."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.attention import attention_report, compiled_kernels, measure_row, torch_attention
from benchmarks.attention.sweep_rows import UNIT, SweepRow, resolve_sweep_options, sweep_rows
from benchmarks.core import bench_command
from benchmarks.core.guarded_trials import Group, Watch
from benchmarks.core.options import AttentionOptions


def main(requested: AttentionOptions, argv: Sequence[str]) -> int:
    """Run the command: see `bench_command.Benchmark.main` and `compiled_kernels.report_compilation`."""
    return compiled_kernels.report_compilation(requested) if requested.compiled else BENCHMARK.main(requested, argv)


def _groups(options: AttentionOptions, environment: Mapping[str, Any]) -> list[Group]:
    names = (*options.impl, *(torch_attention.NAMES if options.peers else ()))

    def measure(row: SweepRow, keys: Sequence[dict[str, Any]], watch: Watch) -> Iterator[dict[str, Any]]:
        machine = {"matrix_rate": environment["matrix_rate"][row.dtype], "copy_rate": environment["copy_rate"]}
        for cell in measure_row.measure_row(row, [key["implementation"] for key in keys], options, environment, watch):
            yield {**cell, **machine}

    todo = sweep_rows(options) if options.seconds is None else sorted(sweep_rows(options), key=_each_feature_first)
    return [Group(str(row), [row.key(name) for name in names], functools.partial(measure, row), _weight(row)) for row in todo]


def _each_feature_first(row: SweepRow) -> tuple[Any, ...]:
    """Return the sort key of rows if the last may be left out: short rows of all features and directions come first."""
    return row.dtype, row.shape.queries, row.direction != "forward"


def _weight(row: SweepRow) -> float:
    """Return about how long a cell takes, in arbitrary units: compiling, checking and several rounds, longer for more pairs."""
    shape = row.shape
    pairs = shape.batch * shape.heads * shape.head * shape.queries * shape.keys
    return 1.0 + pairs * (1 + 2.5 * (row.direction == "both")) / 1e10


BENCHMARK = bench_command.Benchmark(
    "attention",
    "Attention",
    resolve_sweep_options,
    _groups,
    attention_report.attention_report,
    attention_report.attention_cells_text,
    unit=lambda options: {"implementation": UNIT},
    dtypes=lambda options: options.dtype,
)
