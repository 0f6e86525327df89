"""Statistics of finished runs: means over seeds with their intervals, differences seed by seed, and differing options."""

import dataclasses
import functools
import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import scipy.special

from eval.comparison import run_results
from eval.comparison.run_results import Finished
from eval.scoring.standard_error import mean_and_error
from train.config.data_options import EncoderData
from train.rows.encoder_rows import PAIRED
from train.run import metric_definitions
from train.run.run_dir import flat, may_change
from zoo.errors import BadInput

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    half: float | None
    """Half the width of the mean's 95% interval; None for a single value."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Return the mean of independent values, with t(0.975, n - 1) times its standard error (Student 1908)."""
        mean, error = mean_and_error(values)
        return cls(mean, None if error is None else float(scipy.special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * error)

    @property
    def clear(self) -> bool:
        """True if 0 is outside the interval."""
        return self.half is not None and abs(self.mean) > self.half


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """Runs that differ only in their seed."""

    runs: list[Finished]
    """Runs in the order of their seeds."""
    scores: dict[str, Estimate]
    difference: dict[str, Estimate] | None
    """Difference to the first row, seed by seed; None for the first row, and for a row with other seeds."""

    @property
    def first(self) -> Finished:
        """First run, used for the facts that all share."""
        return self.runs[0]

    @property
    def seeds(self) -> list[int]:
        return [run.run.seed for run in self.runs]

    @property
    def tokens(self) -> float:
        """Tokens seen in training, the mean over the runs, which differ with early stopping."""
        return statistics.fmean(run.tokens for run in self.runs)

    @property
    def flops(self) -> float | None:
        """Mean training FLOPs of the runs; None if a run has not recorded those of a step."""
        recorded = [run.flops for run in self.runs if run.flops is not None]
        return statistics.fmean(recorded) if len(recorded) == len(self.runs) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of `zoo compare`."""

    rows: list[ComparisonRow]
    metrics: list[str]
    """Metrics that are compared, by their names in `train.run.metric_definitions`."""
    differing: dict[str, list[Any]]
    """Configuration key -> its value in each row, if it is not the same in all; None for a row without the key."""
    unequal: list[str]
    """Lines about metrics that should be equal and are not."""


def compare(paths: Sequence[str], *, unequal: bool = False, metric: Sequence[str] = ()) -> Comparison:
    """Read, check and summarize runs; rows are in the order in which their first runs are named.

    Raises:
        BadInput: no run, a run named twice or copied, one that is not finished, runs whose scores cannot be compared or
            have nothing in common, budgets that are not equal (unless `unequal`), or an unknown metric.
    """
    if not paths:
        raise BadInput("name the folders of the runs to compare: zoo compare RUN RUN")
    _refuse_twice(paths)
    runs = [run_results.read_run(path) for path in paths]
    run_results.refuse_incomparable(runs)
    metrics = _metrics(runs, metric)
    unequal_lines = run_results.unequal(runs)
    if unequal_lines and not unequal:
        raise BadInput(f"{'; '.join(unequal_lines)}; make them equal, or add --unequal to compare them as they are")
    groups = _groups(runs)
    rows = []
    for group in groups:
        scores = {name: Estimate.of([run.scores[name] for run in group]) for name in metrics}
        difference = None if group is groups[0] else _difference(groups[0], group, metrics)
        rows.append(ComparisonRow(runs=group, scores=scores, difference=difference))
    return Comparison(rows=rows, metrics=metrics, differing=_differing(rows), unequal=unequal_lines)


def _refuse_twice(paths: Sequence[str]) -> None:
    seen: dict[Path, str] = {}
    for path in paths:
        if (earlier := seen.get(Path(path).resolve())) is not None:
            raise BadInput(f"{path}: named twice{'' if earlier == path else f', first as {earlier}'}; name it once")
        seen[Path(path).resolve()] = path


def _metrics(runs: Sequence[Finished], requested: Sequence[str]) -> list[str]:
    shared = functools.reduce(set.intersection, (set(run.scores) for run in runs))
    if len({frozenset(name for name in run.scores if name.endswith("_loss")) for run in runs}) > 1:
        # `loss` is a sum of terms, and differs between runs with and without next-sentence prediction.
        shared.discard("loss")
    if requested:
        for name in requested:
            metric_definitions.find(name, shared)
        return list(dict.fromkeys(requested))
    names = [name for name, metric in metric_definitions.METRICS.items() if name in shared and metric.better]
    if not names:
        has = "; ".join(f"{run.path} has {', '.join(run.scores) or 'none'}" for run in runs[:2])
        raise BadInput(f"the scores of these runs have no metric in common ({has}); compare runs of one kind")
    return names


def _groups(runs: Sequence[Finished]) -> list[list[Finished]]:
    """Return groups of runs that differ only in their seed, each in the order of seeds."""
    groups: dict[str, list[Finished]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_options(run), sort_keys=True), []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: run.run.seed)
        for first, second in itertools.pairwise(group):
            # The seed decides which second texts are random ones.
            paired = isinstance(first.run.data, EncoderData) and first.run.data.rows in PAIRED
            pairs_differ = paired and first.run.seed != second.run.seed
            if first.data != second.data and not pairs_differ:
                cause = "have the same configuration and were trained on different text; train one again"
                raise BadInput(f"{first.path} and {second.path} {cause}")
            if first.run.seed == second.run.seed:
                raise BadInput(
                    f"{first.path} and {second.path} are the same run: seed and configuration are equal; name one of them"
                )
    return list(groups.values())


def _options(run: Finished) -> dict[str, Any]:
    """Return the options that identify a run, without its seed."""
    return {key: value for key, value in flat(run.run).items() if key != "seed" and not may_change(key)}


def _difference(first: list[Finished], group: list[Finished], metrics: Sequence[str]) -> dict[str, Estimate] | None:
    if [run.run.seed for run in first] != [run.run.seed for run in group]:
        return None
    pairs = list(zip(first, group, strict=True))
    return {name: Estimate.of([other.scores[name] - reference.scores[name] for reference, other in pairs]) for name in metrics}


def _differing(rows: Sequence[ComparisonRow]) -> dict[str, list[Any]]:
    options = [_options(row.runs[0]) for row in rows]
    keys = dict.fromkeys(key for row_options in options for key in row_options)
    values = {key: [row_options.get(key) for row_options in options] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}
