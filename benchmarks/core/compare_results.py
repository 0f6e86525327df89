"""`zoo bench compare A B`: what became slower, faster, wrong or missing between two results of one benchmark.

On one machine the ratio of each cell to the unit in the same rounds is compared, never its seconds: those depend on what else the
machine was doing. The spread of a ratio is measured over fresh processes. Let r be the logarithms of a cell's median ratios in n
processes, and s their standard deviation: then the mean of n more processes lies within t s sqrt(2 / n) of the first mean with
95 % probability, where t is Student's t for n - 1 degrees of freedom. When three processes agree by chance, this is too small; so
the spread is at least half of the distance between the 20th and the 80th percentile of the rounds of one process. A cell has
changed if its means differ by more than the larger of the two spreads and by more than the threshold.
"""

import collections
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy import stats

from benchmarks.core.result_files import MACHINE, Results, changed, identity, read
from benchmarks.core.tables import SEVERITY
from zoo.errors import BadInput, require

FEWEST = 3
"""Minimum number of fresh processes for a spread."""
CONFIDENCE = 0.95
BAD = ("wrong", "failed")

Cells = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Spread:
    """A cell's ratio over its processes: the mean of its logarithm, and how far the mean of as many others may differ."""

    mean: float
    half: float
    processes: int

    @classmethod
    def of(cls, cells: Cells) -> "Spread | None":
        """Return the spread of a cell; None if fewer than three processes have a ratio."""
        timed = [cell for cell in cells if cell["state"] == "timed" and cell.get("ratio")]
        if len(timed) < FEWEST:
            return None
        middle = [math.log(cell["ratio"]) for cell in timed]
        n = len(middle)
        between = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(middle) * math.sqrt(2 / n)
        within = statistics.median(math.log(cell["ratio_p80"] / cell["ratio_p20"]) / 2 for cell in timed)
        return cls(statistics.fmean(middle), max(between, within), n)


@dataclass(frozen=True)
class Change:
    """The comparison of one cell. `kind` is one of `KINDS`."""

    key: dict[str, Any]
    kind: str
    detail: str
    ratio: float | None = None
    """Ratio after over ratio before: 1.2 is a fifth slower."""
    spread: float | None = None
    """Relative spread, the larger of the two."""


KINDS = ("regression", "improvement", "missing", "new", "unknown", "same")
"""`unknown`: one side has no spread. Cells that became wrong or failed are regressions."""


def main(a: str, b: str, *, threshold: float, as_json: bool) -> int:
    """Run the command; return 1 if there is a regression.

    Raises:
        BadInput: no results, results of two benchmarks, no common cell, or too few processes for a spread.
    """
    require(threshold >= 0, "threshold", threshold, "must not be negative; choose a share, such as 0.05 for 5 %")
    before, after = read(a), read(b)
    if before.what != after.what:
        raise BadInput(f"{a} is a result of zoo bench {before.what}, {b} of {after.what}: compare two results of one benchmark")
    common = _by_key(before).keys() & _by_key(after).keys()
    if not common:
        raise BadInput(f"{a} and {b} have no cell in common: nothing to compare")
    if not before.same_machine(after) or not before.unit:
        _side_by_side(before, after, as_json)
        return 0
    if all(before.unit.items() <= json.loads(key).items() for key in common):
        raise BadInput(f"{a} and {b} have no cell in common but {_unit_text(before.unit)}, the unit: nothing to compare")
    if before.unit != after.unit:
        raise BadInput(
            f"{a} has ratios over {_unit_text(before.unit)}, {b} over {_unit_text(after.unit)}: they cannot be compared"
        )
    for results in (before, after):
        if (count := len({cell["process"] for cell in results.cells})) < FEWEST:
            raise BadInput(
                f"{results.path} has {count} {'process' if count == 1 else 'processes'}, and a spread needs {FEWEST}: "
                f"measure with --repeats {FEWEST}"
            )
    changed_cells = changes(before, after, threshold)
    _show(changed_cells, before, after, threshold, as_json)
    return int(any(change.kind == "regression" for change in changed_cells))


def changes(before: Results, after: Results, threshold: float) -> list[Change]:
    """Return the change of every cell of either result, in the order of `KINDS`.

    The unit itself has the ratio 1 and is compared by its state alone.
    """
    old, new = _by_key(before), _by_key(after)
    unsorted = [_change(old.get(key), new.get(key), threshold, before.unit) for key in dict.fromkeys([*old, *new])]
    return sorted(unsorted, key=lambda change: (KINDS.index(change.kind), -abs(math.log(change.ratio or 1))))


def agreement(before: Results, after: Results) -> tuple[int, int]:
    """Return the repeatability: (cells whose mean ratio after lies within the spread in `before`, cells that both have)."""
    old, new = _by_key(before), _by_key(after)
    pairs = [(Spread.of(old[key]), Spread.of(new[key])) for key in old.keys() & new.keys() if not _is_unit(old[key], before.unit)]
    spreads = [(one, other) for one, other in pairs if one and other]
    return sum(abs(other.mean - one.mean) <= one.half for one, other in spreads), len(spreads)


def _change(old: Cells | None, new: Cells | None, threshold: float, unit: Mapping[str, Any]) -> Change:
    key = dict((old or new or [{}])[0]["key"])
    if new is None:
        return Change(key, "missing", "not measured after")
    if old is None:
        return Change(key, "new", "not measured before")
    was, is_now = (_state(cells) for cells in (old, new))
    if is_now in BAD and was not in BAD:
        reason = next(cell["reason"] for cell in new if cell["state"] == is_now)
        return Change(key, "regression", f"{was} before, {is_now} now: {reason}")
    if was == "timed" and is_now == "skipped":
        reason = next(cell["reason"] for cell in new if cell["state"] == is_now)
        return Change(key, "missing", f"timed before, skipped now: {reason}")
    if was in BAD and is_now == "timed":
        return Change(key, "improvement", f"{was} before, timed now")
    if was != "timed" or is_now != "timed":
        return Change(key, "same", f"{was} before, {is_now} now")
    if _is_unit(old, unit):
        return Change(key, "same", "the unit")
    one, other = Spread.of(old), Spread.of(new)
    if one is not None and not any(cell.get("ratio") for cell in new):
        return Change(key, "regression", f"had a ratio before, and none now: {new[0]['reason'] or 'it was timed alone'}")
    if one is None or other is None:
        return Change(key, "unknown", f"its spread is unknown: fewer than {FEWEST} processes have a ratio of it")
    moved, spread = other.mean - one.mean, max(one.half, other.half)
    ratio, relative = math.exp(moved), math.expm1(spread)
    detail = f"{math.exp(one.mean):.3f} before, {math.exp(other.mean):.3f} now, spread {relative:.1%}"
    beyond = abs(moved) > spread and abs(moved) > math.log1p(threshold)
    kind = ("regression" if moved > 0 else "improvement") if beyond else "same"
    return Change(key, kind, detail, ratio, relative)


def _by_key(results: Results) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for cell in results.cells:
        groups[identity(cell["key"])].append(cell)
    return groups


def _state(cells: Cells) -> str:
    """Return the worst state of any process."""
    return min((cell["state"] for cell in cells), key=SEVERITY.index)


def _is_unit(cells: Cells, unit: Mapping[str, Any]) -> bool:
    return unit.items() <= cells[0]["key"].items()


# --- output ---------------------------------------------------------------------------------------------------------------------


def _show(changed_cells: Sequence[Change], before: Results, after: Results, threshold: float, as_json: bool) -> None:
    counts = collections.Counter(change.kind for change in changed_cells)
    agree, judged = agreement(before, after)
    if as_json:
        rows = [{**vars(change)} for change in changed_cells]
        print(json.dumps({"threshold": threshold, "counts": counts, "within_spread": agree, "judged": judged, "cells": rows}))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(
        f"{after.path.parent} against {before.path.parent}: ratios to {_unit_text(before.unit)} in the same rounds; "
        f"a cell has changed if it moved by more than its spread and {threshold:.0%}",
        soft_wrap=True,
    )
    for name, (one, other) in changed(before.environment, after.environment).items():
        console.print(Text(f"{name}: {one or 'none'} before, {other or 'none'} now", "dim"), soft_wrap=True)
    constant = _constant(changed_cells)
    for kind in KINDS[:-1]:
        rows = [change for change in changed_cells if change.kind == kind]
        if not rows:
            continue
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
        style = {"regression": "red", "improvement": "green"}.get(kind, "")
        for change in rows:
            moved = "" if change.ratio is None else f"{change.ratio - 1:+.1%}"
            table.add_row(Text(moved, style), _label(change.key, constant), Text(change.detail))
        console.print(Text(f"\n{kind} ({len(rows)})", f"bold {style}".strip()))
        console.print(table)
    shared = f"; all are {', '.join(f'{name} {value}' for name, value in constant.items())}" if constant else ""
    console.print(Text(f"\n{counts['same']} unchanged of {len(changed_cells)} cells{shared}", "dim"), soft_wrap=True)
    if judged:
        repeatability = f"{agree} of {judged} ({agree / judged:.0%}) lie within the spread that the first reports"
        console.print(Text(repeatability, "dim"), soft_wrap=True)


def _side_by_side(before: Results, after: Results, as_json: bool) -> None:
    """Print the median seconds over the processes, for cells that have them."""
    old, new = _by_key(before), _by_key(after)
    rows = [(dict(old[key][0]["key"]), _seconds(old.get(key)), _seconds(new.get(key))) for key in old if key in new]
    if as_json:
        print(json.dumps({"same_machine": before.same_machine(after), "cells": [[key, one, two] for key, one, two in rows]}))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    reason = "these results have no unit" if before.same_machine(after) else f"two machines ({_machines(before, after)})"
    console.print(f"{reason}: times are shown side by side, and not compared", soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("")
    for results in (before, after):
        table.add_column(Text(str(results.path.parent.name or results.path)), justify="right")
    constant = _constant([Change(key, "same", "") for key, _, _ in rows])
    for key, one, two in rows:
        table.add_row(_label(key, constant), *("-" if value is None else f"{value * 1e3:,.2f} ms" for value in (one, two)))
    console.print(table)


def _seconds(cells: Cells | None) -> float | None:
    seconds = [cell["seconds"] for cell in cells or () if cell["state"] == "timed"]
    return statistics.median(seconds) if seconds else None


def _machines(before: Results, after: Results) -> str:
    """Return the properties in which the two machines differ."""
    pairs = ((before.environment.get(key), after.environment.get(key)) for key in MACHINE)
    return ", ".join(f"{one} and {other}" for one, other in pairs if one != other)


def _constant(changed_cells: Sequence[Change]) -> dict[str, Any]:
    """Return the axes on which all cells have the same value: they are printed once."""
    values: dict[str, list[Any]] = collections.defaultdict(list)
    for change in changed_cells:
        for name, value in change.key.items():
            values[name].append(value)
    return {
        name: column[0]
        for name, column in values.items()
        if len(column) == len(changed_cells) > 1 and len(set(map(str, column))) == 1
    }


def _label(key: Mapping[str, Any], constant: Mapping[str, Any]) -> Text:
    """Return the axes of a cell that other cells do not share; words without their names, numbers with them."""
    labels = [str(value) if isinstance(value, str) else f"{name} {value}" for name, value in key.items() if name not in constant]
    return Text(", ".join(labels))


def _unit_text(unit: Mapping[str, Any]) -> str:
    return " ".join(str(value) for value in unit.values()) or "nothing"
