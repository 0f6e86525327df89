"""`zoo compare`."""

import dataclasses
from typing import Annotated

from zoo.cli.options import parse


def compare(args: list[str]) -> int:
    """`zoo compare RUN... [options]`."""
    import tyro

    from train.run.run_dir import read_config

    @dataclasses.dataclass(frozen=True)
    class Compare:
        """Finished runs side by side. Those that differ in their seed alone are one row: the mean and its 95% interval."""

        runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
        """Folders of runs."""
        metric: tuple[str, ...] = ()
        """Quantities to compare; none: all that the runs share."""
        unequal: bool = False
        """Compare runs of unequal budgets, or scored on unequal counts, all the same, and say so."""
        json: bool = False
        """Print JSON."""

    asked = parse(Compare, args=args, prog="zoo compare")
    for run in asked.runs:
        read_config(run)  # refuses what is no run before JAX is imported
    from eval.comparison import comparison_table

    return comparison_table.main(asked.runs, unequal=asked.unequal, as_json=asked.json, metric=asked.metric)
