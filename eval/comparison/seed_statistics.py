"""Statistics of finished runs: means over seeds with their intervals, differences seed by seed, and differing options."""

import dataclasses
import functools
import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.comparison import run_results
from eval.comparison.estimates import Estimate, RowDifference, correct_for_rows, paired_row_difference, welch_row_difference
from eval.comparison.run_results import FinishedRun
from eval.comparison.task_scores import check_comparable, is_task_metric
from train.config.data_options import Data, EncoderData, TextData
from train.rows.encoder_rows import PAIRED
from train.run import metric_definitions
from train.run.run_identity import flat_options
from train.weights.lineage import row_options
from zoo.errors import BadInput


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """Runs that differ only in their seed and in the seeds of the runs that they start from."""

    runs: list[FinishedRun]
    """Runs in the order of their seeds."""
    scores: dict[str, Estimate]
    """Metric -> its mean; without the metrics that are not comparable with the first row's."""
    difference: dict[str, RowDifference] | None
    """Difference to the first row, seed by seed, or by Welch's t from a row with other seeds; None for the first row."""

    @property
    def first(self) -> FinishedRun:
        """First run, used for the facts that all share."""
        return self.runs[0]

    @property
    def seeds(self) -> list[int | str]:
        return [run.seed for run in self.runs]

    @property
    def independent(self) -> int:
        """Number of values over which the intervals are: the runs, or if there are several parents, the parents."""
        return len(_independent_values(self.runs, [0.0] * len(self.runs)))

    @property
    def tokens(self) -> float | None:
        """Tokens seen in training, with those of the ancestors; see `mean_cost`."""
        return self.mean_cost("tokens")

    @property
    def flops(self) -> float | None:
        """Training FLOPs, with those of the ancestors; see `mean_cost`."""
        return self.mean_cost("flops")

    def mean_cost(self, name: str, *, own: bool = False) -> float | None:
        """Return the mean of a cost over the runs, which differ with early stopping; None if one of them has not recorded it.

        Args:
            own: without the costs of the ancestors.
        """
        values = [(run.costs if own else run.total_costs)[name] for run in self.runs]
        recorded = [value for value in values if value is not None]
        return statistics.fmean(recorded) if len(recorded) == len(self.runs) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of `zoo compare`."""

    rows: list[ComparisonRow]
    metrics: list[str]
    """Metrics that are compared, by their names in `train.run.metric_definitions`, or by TASK/METRIC."""
    differing: dict[str, list[Any]]
    """Configuration key -> its value in each row, if it is not the same in all; None for a row without the key."""
    unequal: list[str]
    """Lines about metrics that should be equal and are not."""
    withheld: list[str]
    """Metrics that rows with another tokenizer than the first row's have no scores of, because they are means over its tokens."""


def compare_runs(paths: Sequence[str], *, unequal: bool = False, metric: Sequence[str] = ()) -> Comparison:
    """Read, check and summarize runs; rows are in the order in which their first runs are named.

    Raises:
        BadInput: no run, a run named twice or copied, one that is not finished, runs whose scores cannot be compared or
            have nothing in common, budgets that are not equal (unless `unequal`), or an unknown metric.
    """
    if not paths:
        raise BadInput("name the folders of the runs to compare: zoo compare RUN RUN")
    _refuse_twice(paths)
    runs = [run_results.read_run(path) for path in paths]
    held_out = not metric or not all(map(is_task_metric, metric))
    if held_out:
        run_results.refuse_incomparable(runs)
    metrics = _metrics(runs, metric)
    unequal_lines = run_results.unequal_run_budgets(runs, held_out=held_out)
    if unequal_lines and not unequal:
        raise BadInput(f"{'; '.join(unequal_lines)}; make them equal, or add --unequal to compare them as they are")
    groups = _groups(runs)
    # Only the bits per byte of a text compare models with other tokens.
    by_token = [name for name in metrics if name != run_results.BY_TEXT and not is_task_metric(name)]
    is_other = [held_out and group[0].held_out != groups[0][0].held_out for group in groups]
    rows = []
    for group, other in zip(groups, is_other, strict=True):
        comparable = [name for name in metrics if not (other and name in by_token)]
        scores = {name: _estimate(group, [run.value(name) for run in group]) for name in comparable}
        difference = None if group is groups[0] else {name: _difference(groups[0], group, name) for name in comparable}
        rows.append(ComparisonRow(runs=group, scores=scores, difference=difference))
    return Comparison(
        rows=_corrected(rows, metrics),
        metrics=metrics,
        differing=_differing(rows),
        unequal=unequal_lines,
        withheld=by_token if any(is_other) else [],
    )


def _corrected(rows: Sequence[ComparisonRow], metrics: Sequence[str]) -> list[ComparisonRow]:
    """Return the rows with p values that are corrected for their number, in each metric."""
    differences = [dict(row.difference or {}) for row in rows]
    for name in metrics:
        having = [of_row for of_row in differences if name in of_row]
        for of_row, corrected in zip(having, correct_for_rows([of_row[name] for of_row in having]), strict=True):
            of_row[name] = corrected
    return [
        dataclasses.replace(row, difference=None if row.difference is None else of_row)
        for row, of_row in zip(rows, differences, strict=True)
    ]


def _refuse_twice(paths: Sequence[str]) -> None:
    seen: dict[Path, str] = {}
    for path in paths:
        if (earlier := seen.get(Path(path).resolve())) is not None:
            raise BadInput(f"{path}: named twice{'' if earlier == path else f', first as {earlier}'}; name it once")
        seen[Path(path).resolve()] = path


def _metrics(runs: Sequence[FinishedRun], requested: Sequence[str]) -> list[str]:
    shared = functools.reduce(set.intersection, (set(run.scores) for run in runs))
    if len({frozenset(name for name in run.scores if name.endswith("_loss")) for run in runs}) > 1:
        # `loss` is a sum of terms, and differs between runs with and without next-sentence prediction.
        shared.discard("loss")
    if requested:
        for name in requested:
            if is_task_metric(name):
                check_comparable(name, runs)
                continue
            metric_definitions.find_metric(name, shared)
            other = next((run for run in runs if run.held_out != runs[0].held_out), None)
            if other is not None and name != run_results.BY_TEXT:
                fix = f"choose {run_results.BY_TEXT}, which compares them"
                raise BadInput(f"--metric {name}: {other.path} has another tokenizer than {runs[0].path}; {fix}")
        return list(dict.fromkeys(requested))
    selected = [run.run.selection.metric for run in runs]
    names = [name for name, metric in metric_definitions.METRICS.items() if name in shared and metric.better]
    names.sort(key=lambda name: name not in selected)
    if not names:
        has = "; ".join(f"{run.path} has {', '.join(run.scores) or 'none'}" for run in runs[:2])
        raise BadInput(f"the scores of these runs have no metric in common ({has}); compare runs of one kind")
    return names


def _groups(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Return groups of runs that differ only in their seed, each in the order of seeds."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_row_options(run), sort_keys=True), []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: run.seeds)
        for first, second in itertools.pairwise(group):
            depends_on_seed = _text_depends_on_seed(first.run.data) and first.run.seed != second.run.seed
            if first.data != second.data and not depends_on_seed:
                cause = "have the same configuration and were trained on different text; train one again"
                raise BadInput(f"{first.path} and {second.path} {cause}")
            if first.seeds == second.seeds:
                raise BadInput(
                    f"{first.path} and {second.path} are the same run: seed and configuration are equal; name one of them"
                )
    return list(groups.values())


def _text_depends_on_seed(data: Data) -> bool:
    """Return whether the seed chooses training text: the sample of --data.take, or the random second texts of pairs."""
    sampled = isinstance(data, TextData) and data.take < 1
    return sampled or (isinstance(data, EncoderData) and data.rows in PAIRED)


def _row_options(run: FinishedRun) -> dict[str, Any]:
    """Return the options that determine a run's row; see `train.weights.lineage`."""
    return row_options(run.run, run.parents, run.tokenizer)


def _estimate(group: Sequence[FinishedRun], values: Sequence[float]) -> Estimate:
    """Return the mean of a value of each run of a row."""
    return Estimate.of(_independent_values(group, values))


def _independent_values(group: Sequence[FinishedRun], values: Sequence[float]) -> list[float]:
    """Return the independent values of a row, from a value of each of its runs.

    Runs with the same parents are not independent of each other. If there are several parents, the runs of each are averaged
    first, and the interval is over the parents.
    """
    by_parents: dict[tuple[int, ...], list[float]] = {}
    for run, value in zip(group, values, strict=True):
        by_parents.setdefault(run.seeds[:-1], []).append(value)
    return list(map(statistics.fmean, by_parents.values())) if len(by_parents) > 1 else list(values)


def _difference(first: list[FinishedRun], group: list[FinishedRun], metric: str) -> RowDifference:
    """Return the difference of a row to the first one: seed by seed if both have the same seeds, else by Welch's t."""
    values, references = ([run.value(metric) for run in runs] for runs in (group, first))
    if [run.seed for run in first] != [run.seed for run in group]:
        return welch_row_difference(_independent_values(group, values), _independent_values(first, references))
    deeper = max(first, group, key=lambda runs: len(runs[0].seeds))
    differences = [value - reference for value, reference in zip(values, references, strict=True)]
    return paired_row_difference(_independent_values(deeper, differences))


def _differing(rows: Sequence[ComparisonRow]) -> dict[str, list[Any]]:
    deciding = [_row_options(row.first) for row in rows]
    # A parent and a tokenizer are displayed by their paths.
    displayed = [flat_options(row.first.run) for row in rows]
    keys = dict.fromkeys(key for options in deciding for key in options)
    differing = [key for key in keys if any(options.get(key) != deciding[0].get(key) for options in deciding)]
    return {key: [options.get(key) for options in displayed] for key in differing}
