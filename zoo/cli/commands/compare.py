"""The command `zoo compare`."""

import dataclasses
from typing import Annotated

from zoo.cli.option_parser import parse


def compare(args: list[str]) -> int:
    """Run `zoo compare RUN... [options]`."""
    import tyro

    from train.run.run_dir import read_config
    from train.store import run_fetch

    @dataclasses.dataclass(frozen=True)
    class Compare:
        """Compare finished runs. Runs that differ only in their seed form one row, with the mean and its 95% interval.

        Other rows are compared with the first one: seed by seed, or by Welch's t if they have other seeds. Models with different
        tokenizers are compared in bits per byte alone.
        """

        runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
        """Folders of runs."""
        metric: tuple[str, ...] = ()
        """Metrics to compare, of the held-out score or, as TASK/METRIC, of a task (blimp/accuracy); none = all held-out ones that
        the runs share."""
        unequal: bool = False
        """Compare even runs with different training budgets or numbers of scored items, and point out the differences."""
        json: bool = False
        """Print JSON."""

    options = parse(Compare, args=args, prog="zoo compare")
    runs = tuple(map(run_fetch.local_name, options.runs))
    for run in runs:
        read_config(run)  # refuses a folder that is not a run before JAX is imported
    from eval.comparison import comparison_table

    return comparison_table.run_compare(runs, unequal=options.unequal, as_json=options.json, metric=options.metric)
