"""The table of a suite: a row for each task, and the mean that the suite's authors define."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eval.suites.suite_table import LocalPart

ABSENT = "-"


class SuiteRow(NamedTuple):
    """A row of the table."""

    name: str
    task: str
    metric: str
    value: float | None
    """In percent; None = its files are absent, or some of them."""
    partial: float | None = None
    """The value over the files that are there, if some are absent."""
    error: float | None = None
    """Standard error, in percent."""
    examples: int = 0
    note: str = ""
    groups: dict[str, float] | None = None
    """Value of each group of its items, in percent: of BLiMP's phenomena, and of the groups of `choices`."""
    step: int | None = None
    """Step of the checkpoint that was scored; None for published weights."""
    likelihood: str = ""
    """Method by which the likelihoods of texts were computed; "" for a task that needs none."""


def suite_row(local: LocalPart, entry: Mapping[str, Any] | None) -> SuiteRow:
    """Return the row of a task, from its entry as in evaluations.json."""
    part = local.part
    if entry is None:
        return SuiteRow(part.name, part.task, part.metric, None, note=f"absent; from {part.source}")
    value = part.percent * entry["metrics"][part.metric]
    error = entry["metrics"].get(f"{part.metric}_stderr")
    error = None if error is None else part.percent * error
    table = entry["details"].get("phenomena") or entry["details"].get("groups") or {}
    groups = {name: part.percent * row["accuracy"] for name, row in table.items()}
    method = entry["details"].get("likelihood", "")
    row = SuiteRow(part.name, part.task, part.metric, value, None, error, entry["examples"], "", groups, entry["step"], method)
    if not local.absent:
        return row
    note = f"{len(local.absent)} of {len(part.files)} files absent: {', '.join(local.absent[:3])}"
    note += ", ..." if len(local.absent) > 3 else ""
    return row._replace(value=None, partial=value, note=note)


def suite_mean(rows: Sequence[SuiteRow]) -> float | None:
    """Return the mean of all rows with equal weights; None where one is absent or incomplete."""
    values = [row.value for row in rows]
    return None if None in values else math.fsum(value for value in values if value is not None) / len(values)


def suite_text(suite: str, model: str, rows: Sequence[SuiteRow], mean: float | None, limit: int = 0) -> str:
    """Return the table as plain text.

    Args:
        mean: of all rows; None where one is absent or incomplete, or if there is a limit.
        limit: the largest number of examples of each group that were scored; 0 = all.
    """
    names = [suite, "mean", *(row.name for row in rows), *(f"  {group}" for row in rows for group in row.groups or ())]
    wide = max(map(len, names))
    metrics = max(6, *(len(row.metric) for row in rows))
    lines = [f"{model}", f"{suite:{wide}}  {'metric':{metrics}} {'percent':>8} {'error':>6} {'examples':>9}"]
    for row in rows:
        value = row.partial if row.value is None else row.value
        numbers = f"{_percent(value):>8} {_percent(row.error):>6} {row.examples:>9,}"
        lines.append(f"{row.name:{wide}}  {row.metric:{metrics}} {numbers}{'  ' + row.note if row.note else ''}".rstrip())
        lines += [f"{'  ' + group:{wide}}  {'':{metrics}} {_percent(share):>8}" for group, share in (row.groups or {}).items()]
    lines.append(f"{'mean':{wide}}  {'':{metrics}} {_percent(mean):>8}")
    if suite_mean(rows) is None:
        lines.append("! no mean: a task of the suite is absent or incomplete")
    if limit:
        lines.append(f"! no mean: at most the first {limit:,} examples of each group, not comparable with a score of all")
    return "\n".join(lines)


def suite_record(suite: str, model: str, rows: Sequence[SuiteRow], mean: float | None, limit: int = 0) -> dict[str, Any]:
    """Return the table as JSON; the arguments are those of `suite_text`."""
    return {"suite": suite, "model": model, "limit": limit, "mean": mean, "rows": [row._asdict() for row in rows]}


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"
