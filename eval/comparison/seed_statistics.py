"""Finished runs side by side: means over seeds with their intervals, differences seed by seed, and what else differs."""

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
from eval.files import mean_and_error
from train.rows.encoder_rows import PAIRED
from train.run import metric_names
from train.run.run_dir import flat, may_change
from zoo.errors import BadInput

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    half: float | None
    """Half the width of its 95% interval; a single value has none."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Mean of independent values and t(0.975, n - 1) of its standard errors (Student 1908)."""
        mean, error = mean_and_error(values)
        return cls(mean, None if error is None else float(scipy.special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * error)

    @property
    def clear(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.half is not None and abs(self.mean) > self.half


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Runs that differ in nothing but their seed."""

    runs: list[Finished]
    """By seed."""
    scores: dict[str, Estimate]
    difference: dict[str, Estimate] | None
    """Less the first row, seed by seed; None for the first row, and where the seeds are not the same."""

    @property
    def first(self) -> Finished:
        """The run that stands for all in what they share."""
        return self.runs[0]

    @property
    def seeds(self) -> list[int]:
        return [each.run.seed for each in self.runs]

    @property
    def tokens(self) -> float:
        """Seen in training, the mean over the runs: those that stop when they get no better differ."""
        return statistics.fmean(each.tokens for each in self.runs)

    @property
    def flops(self) -> float | None:
        """As `tokens`; None where a run has not recorded what a step costs."""
        known = [each.flops for each in self.runs if each.flops is not None]
        return statistics.fmean(known) if len(known) == len(self.runs) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `zoo compare` found."""

    rows: list[Row]
    metrics: list[str]
    """Quantities compared, of `train.run.metric_names`."""
    differing: dict[str, list[Any]]
    """Configuration key -> its value in each row, of those that are not the same in all; None where a row has no such key."""
    unequal: list[str]
    """What should be equal and is not."""


def compare(paths: Sequence[str], *, unequal: bool = False, metric: Sequence[str] = ()) -> Comparison:
    """Read, check and summarize runs; rows are in the order in which their first runs are named.

    Raises:
        BadInput: no run, a run named twice or copied, one that is not finished, runs whose scores are not of the same thing or
            have nothing in common, budgets that are not equal (unless `unequal`), or an unknown metric.
    """
    if not paths:
        raise BadInput("name the folders of the runs to compare: zoo compare RUN RUN")
    _refuse_twice(paths)
    runs = [run_results.read(path) for path in paths]
    run_results.refuse_incomparable(runs)
    metrics = _metrics(runs, metric)
    told = run_results.unequal(runs)
    if told and not unequal:
        raise BadInput(f"{'; '.join(told)}; make them equal, or add --unequal to compare them as they are")
    groups = _groups(runs)
    rows = []
    for group in groups:
        scores = {name: Estimate.of([run.scores[name] for run in group]) for name in metrics}
        difference = None if group is groups[0] else _difference(groups[0], group, metrics)
        rows.append(Row(runs=group, scores=scores, difference=difference))
    return Comparison(rows=rows, metrics=metrics, differing=_differing(rows), unequal=told)


def _refuse_twice(paths: Sequence[str]) -> None:
    seen: dict[Path, str] = {}
    for path in paths:
        if (before := seen.get(Path(path).resolve())) is not None:
            raise BadInput(f"{path}: named twice{'' if before == path else f', first as {before}'}; name it once")
        seen[Path(path).resolve()] = path


def _metrics(runs: Sequence[Finished], asked: Sequence[str]) -> list[str]:
    shared = functools.reduce(set.intersection, (set(run.scores) for run in runs))
    if len({frozenset(name for name in run.scores if name.endswith("_loss")) for run in runs}) > 1:
        # The sum of what each run minimizes: with next sentences it is not what it is without.
        shared.discard("loss")
    if asked:
        for name in asked:
            metric_names.find(name, shared)
        return list(dict.fromkeys(asked))
    names = [name for name, each in metric_names.QUANTITIES.items() if name in shared and each.better]
    if not names:
        has = "; ".join(f"{run.path} has {', '.join(run.scores) or 'none'}" for run in runs[:2])
        raise BadInput(f"the scores of these runs have no quantity in common ({has}); compare runs of one kind")
    return names


def _groups(runs: Sequence[Finished]) -> list[list[Finished]]:
    """Runs that differ in nothing but their seed, each group by seed."""
    groups: dict[str, list[Finished]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_numbers(run), sort_keys=True), []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: run.run.seed)
        for one, two in itertools.pairwise(group):
            # Which second texts are random ones, the seed decides.
            drawn = one.run.data.rows in PAIRED and one.run.seed != two.run.seed
            if one.data != two.data and not drawn:
                raise BadInput(f"{one.path} and {two.path} are configured alike and were trained on other text; train one anew")
            if one.run.seed == two.run.seed:
                raise BadInput(f"{one.path} and {two.path} are one run: the seed is the same, and all that matters; name one")
    return list(groups.values())


def _numbers(run: Finished) -> dict[str, Any]:
    """What makes a run this one, less its seed."""
    return {key: value for key, value in flat(run.run).items() if key != "seed" and not may_change(key)}


def _difference(first: list[Finished], group: list[Finished], metrics: Sequence[str]) -> dict[str, Estimate] | None:
    if [run.run.seed for run in first] != [run.run.seed for run in group]:
        return None
    pairs = list(zip(first, group, strict=True))
    return {name: Estimate.of([ours.scores[name] - theirs.scores[name] for theirs, ours in pairs]) for name in metrics}


def _differing(rows: Sequence[Row]) -> dict[str, list[Any]]:
    numbers = [_numbers(row.runs[0]) for row in rows]
    keys = dict.fromkeys(key for each in numbers for key in each)
    values = {key: [each.get(key) for each in numbers] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}
