"""`zoo bench compare A B`: what became slower, faster, wrong or missing between two results of one benchmark.

On one machine the ratio of each cell to the unit in the same rounds is compared, never its seconds: those depend on what else the
machine was doing. The spread of a ratio is measured over fresh processes. Let r be the logarithms of a cell's median ratios in n
processes, and s their standard deviation: then the mean of n more processes lies within t s sqrt(2 / n) of the first mean with
95 % probability, where t is Student's t for n - 1 degrees of freedom. When three processes agree by chance, this is too small; so
the spread is at least half of the distance between the 20th and the 80th percentile of the rounds of one process. A cell has
changed if its means differ by more than the larger of the two spreads and by more than the threshold.
"""

import collections
import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from benchmarks.core.result_files import MACHINE, Results, changed_settings, read_results
from benchmarks.core.result_tables import (
    Block,
    Cells,
    Heading,
    Table,
    by_key,
    format_number,
    print_blocks,
    timed_cells,
    worst_state,
)
from zoo.errors import BadInput, require

FEWEST = 3
"""Minimum number of fresh processes for a spread."""
CONFIDENCE = 0.95
BAD = ("wrong", "failed")


@dataclass(frozen=True)
class Spread:
    """A cell's ratio over its processes: the mean of its logarithm, and how far the mean of other processes may differ."""

    mean: float
    half: float
    processes: int

    @classmethod
    def of(cls, cells: Cells) -> "Spread | None":
        """Return the spread of a cell; None if fewer than three processes have a ratio."""
        compared = [cell for cell in timed_cells(cells) if cell.get("ratio")]
        if len(compared) < FEWEST:
            return None
        middle = [math.log(cell["ratio"]) for cell in compared]
        n = len(middle)
        between = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(middle) * math.sqrt(2 / n)
        within = statistics.median(math.log(cell["ratio_p80"] / cell["ratio_p20"]) / 2 for cell in compared)
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
    within_spread: bool | None = None
    """True if the mean after lies within the spread before; None unless both have a spread."""


KINDS = ("regression", "improvement", "missing", "new", "unknown", "same")
"""`unknown`: one side has no spread. Cells that became wrong or failed are regressions."""


def run_compare_results(a: str, b: str, *, threshold: float, as_json: bool) -> int:
    """Run the command; return 1 if there is a regression.

    Raises:
        BadInput: no results, results of two benchmarks, no common cell, or too few processes for a spread.
    """
    require(threshold >= 0, "threshold", threshold, "must not be negative; choose a share, such as 0.05 for 5 %")
    before, after = read_results(a), read_results(b)
    if before.what != after.what:
        raise BadInput(f"{a} is a result of zoo bench {before.what}, {b} of {after.what}: compare two results of one benchmark")
    common = by_key(before.cells).keys() & by_key(after.cells).keys()
    if not common:
        raise BadInput(f"{a} and {b} have no cell in common; compare results of the same cases")
    if not before.same_machine(after) or not before.unit:
        _side_by_side(before, after, as_json)
        return 0
    if all(before.unit.items() <= json.loads(key).items() for key in common):
        unit = _unit_text(before.unit)
        raise BadInput(f"{a} and {b} have no cell in common but {unit}, their unit; compare results of the same cases")
    if before.unit != after.unit:
        raise BadInput(
            f"{a} has ratios over {_unit_text(before.unit)}, {b} over {_unit_text(after.unit)}; compare results with one unit"
        )
    for results in (before, after):
        if (count := len({cell["process"] for cell in results.cells})) < FEWEST:
            raise BadInput(
                f"{results.path} has {count} {'process' if count == 1 else 'processes'}, and a spread needs {FEWEST}: "
                f"measure with --repeats {FEWEST}"
            )
    changed_cells = cell_changes(before, after, threshold)
    _show(changed_cells, before, after, threshold, as_json)
    return int(any(change.kind == "regression" for change in changed_cells))


def cell_changes(before: Results, after: Results, threshold: float) -> list[Change]:
    """Compare two results cell by cell; return a change for every cell of either, by `KINDS` and then the largest first.

    The unit itself has the ratio 1 and is compared by its state alone.
    """
    old, new = by_key(before.cells), by_key(after.cells)
    unsorted = [_change(old.get(key), new.get(key), threshold, before.unit) for key in dict.fromkeys([*old, *new])]
    return sorted(unsorted, key=lambda change: (KINDS.index(change.kind), -abs(math.log(change.ratio or 1))))


def _change(old: Cells | None, new: Cells | None, threshold: float, unit: Mapping[str, Any]) -> Change:
    key = dict((old or new or [{}])[0]["key"])
    if new is None:
        return Change(key, "missing", "not measured after")
    if old is None:
        return Change(key, "new", "not measured before")
    was, is_now = (worst_state(cells) for cells in (old, new))
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
    return Change(key, kind, detail, ratio, relative, abs(moved) <= one.half)


def _is_unit(cells: Cells, unit: Mapping[str, Any]) -> bool:
    return unit.items() <= cells[0]["key"].items()


# --- output ---------------------------------------------------------------------------------------------------------------------


def _show(changed_cells: Sequence[Change], before: Results, after: Results, threshold: float, as_json: bool) -> None:
    counts = collections.Counter(change.kind for change in changed_cells)
    judged = [change.within_spread for change in changed_cells if change.within_spread is not None]
    agree = sum(judged)
    if as_json:
        rows = [dataclasses.asdict(change) for change in changed_cells]
        print(
            json.dumps({"threshold": threshold, "counts": counts, "within_spread": agree, "judged": len(judged), "cells": rows})
        )
        return
    constant = _constant([change.key for change in changed_cells])
    content: list[Block] = [
        f"{after.path.parent} against {before.path.parent}: ratios to {_unit_text(before.unit)} in the same rounds; "
        f"a cell has changed if it moved by more than its spread and {threshold:.0%}"
    ]
    for name, (one, other) in changed_settings(before.environment, after.environment).items():
        content.append(f"{name}: {one or 'none'} before, {other or 'none'} now")
    for kind in KINDS[:-1]:
        selected = [change for change in changed_cells if change.kind == kind]
        moved = [format_number(change.ratio and change.ratio - 1, "+.1%") for change in selected]
        rows = [(_label(change.key, constant), text, change.detail) for text, change in zip(moved, selected, strict=True)]
        content += [Heading(f"{kind} ({len(rows)})"), Table(("", "", ""), rows, words=3)] if rows else []
    shared = f"; all are {', '.join(f'{name} {value}' for name, value in constant.items())}" if constant else ""
    content.append(f"{counts['same']} unchanged of {len(changed_cells)} cells{shared}")
    if judged:
        content.append(f"{agree} of {len(judged)} ({agree / len(judged):.0%}) lie within the spread that the first reports")
    print_blocks(content)


def _side_by_side(before: Results, after: Results, as_json: bool) -> None:
    """Print the median seconds over the processes, for cells that have them."""
    old, new = by_key(before.cells), by_key(after.cells)
    rows = [(dict(old[key][0]["key"]), _seconds(old[key]), _seconds(new[key])) for key in old if key in new]
    if as_json:
        print(json.dumps({"same_machine": before.same_machine(after), "cells": rows}))
        return
    pairs = ((before.environment.get(key), after.environment.get(key)) for key in MACHINE)
    machines = ", ".join(f"{one} and {other}" for one, other in pairs if one != other)
    reason = f"two machines ({machines})" if machines else "these results have no unit"
    head = ("", *(results.path.parent.name or str(results.path) for results in (before, after)))
    constant = _constant([key for key, _, _ in rows])
    texts = [
        (_label(key, constant), *("-" if value is None else f"{value * 1e3:,.2f} ms" for value in seconds))
        for key, *seconds in rows
    ]
    print_blocks([f"{reason}: times are shown side by side, and not compared", Table(head, texts)])


def _seconds(cells: Cells) -> float | None:
    seconds = [cell["seconds"] for cell in timed_cells(cells)]
    return statistics.median(seconds) if seconds else None


def _constant(keys: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the axes on which all cells have the same value: they are printed once."""
    first = keys[0] if len(keys) > 1 else {}
    return {name: value for name, value in first.items() if all(name in key and str(key[name]) == str(value) for key in keys)}


def _label(key: Mapping[str, Any], constant: Mapping[str, Any]) -> str:
    """Return the axes of a cell that other cells do not share; words without their names, numbers with them."""
    names = [name for name in key if name not in constant]
    return ", ".join(str(key[name]) if isinstance(key[name], str) else f"{name} {key[name]}" for name in names)


def _unit_text(unit: Mapping[str, Any]) -> str:
    return " ".join(str(value) for value in unit.values()) or "nothing"
