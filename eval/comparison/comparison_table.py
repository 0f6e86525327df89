"""`zoo compare RUN...`: finished runs side by side, with runs that differ only in their seed as one row.

The model that a run starts from is identified without its seed, so that fine-tunings of several seeds of one pretraining are one
row too. A row of several seeds shows the mean and its 95% confidence interval. If another row has the same seeds as the first
one, the two are also compared seed by seed: effects of the seed, above all of the order of the samples, then cancel. Facts that
all rows share are printed once, above the table.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from eval.comparison.estimates import CONFIDENCE, Estimate, RowDifference
from eval.comparison.run_results import format_scientific, unlike_text
from eval.comparison.seed_statistics import Comparison, ComparisonRow, compare_runs
from eval.comparison.task_scores import find_task_metric
from eval.pages.terminal_tables import Column, plain_console, terminal_table
from train.run import metric_definitions
from train.run.costs import NAMES
from train.run.progress_display import short_number
from zoo.errors import printable
from zoo.json_text import print_json

FACTS: dict[str, Callable[[ComparisonRow], str]] = {
    "recipe": lambda row: row.first.run.recipe,
    "parameters": lambda row: f"{row.first.parameters:,}",
    "tokens seen": lambda row: "-" if row.tokens is None else short_number(row.tokens),
    "tokens/s": lambda row: _rates(row),
    "FLOPs": lambda row: "-" if row.flops is None else format_scientific(row.flops),
    "majority class": lambda row: f"{row.first.scores['majority_share']:.4f}" if "majority_share" in row.first.scores else "-",
    "n": lambda row: str(row.independent),
    "seeds": lambda row: ", ".join(map(str, row.seeds)),
}
"""Title of a fact about a row -> its text; "-" if the run has not recorded it."""


class TableLayout(NamedTuple):
    """A layout of a table, for some width of the terminal."""

    stacked: bool
    """True if the words of a title, and a number and its interval, are one above the other."""
    gap: int
    """Number of spaces between columns."""


LAYOUTS = (TableLayout(False, 2), TableLayout(True, 2), TableLayout(True, 1))
"""Layouts in order of preference: the first that fits is used. On a narrower terminal the last one wraps; no number is cut."""

ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}


def run_compare(paths: Sequence[str], *, unequal: bool, as_json: bool, metric: Sequence[str] = ()) -> int:
    """Compare finished runs and print the result.

    Args:
        paths: folders of runs.
        unequal: also compare runs of unequal budgets, or scored on unequal counts, with a warning.
        as_json: print JSON instead of tables.
        metric: metrics to compare; empty: all that the runs share.

    Raises:
        BadInput: see `seed_statistics.compare_runs`.
    """
    comparison = compare_runs(paths, unequal=unequal, metric=metric)
    for line in () if as_json else (*comparison.unequal, *comparison_notices(comparison.rows)):
        print(f"! {printable(line)}", file=sys.stderr, flush=True)
    if as_json:
        print_json(comparison_record(comparison))
    else:
        print(render_comparison(comparison), end="", flush=True)
    return 0


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON: rows with the value of every run, the means, and half the width of each interval.

    Costs are means over the runs of a row; those in `total_costs` include the ancestors of each run.
    """
    rows = []
    for number, row in enumerate(comparison.rows):
        scores = {
            name: {**dataclasses.asdict(estimate), "values": [run.value(name) for run in row.runs]}
            for name, estimate in row.scores.items()
        } | {name: None for name in comparison.withheld if name not in row.scores}
        difference = row.difference and {name: dataclasses.asdict(estimate) for name, estimate in row.difference.items()}
        rows.append(
            {
                "runs": [str(run.path) for run in row.runs],
                "seeds": row.seeds,
                "n": row.independent,
                "recipe": row.first.run.recipe,
                "parameters": row.first.parameters,
                "tokens_seen": row.mean_cost("tokens", own=True),
                "flops": row.mean_cost("flops", own=True),
                "costs": {name: row.mean_cost(name, own=True) for name in NAMES},
                "provenance": [run.provenance for run in row.runs],
                "total_costs": {name: row.mean_cost(name) for name in NAMES},
                "scores": scores,
                "difference_to_first": difference,
                "differing": {key: values[number] for key, values in comparison.differing.items()},
            }
        )
    return {
        "metrics": comparison.metrics,
        "confidence": CONFIDENCE,
        "unequal": comparison.unequal,
        "notices": comparison_notices(comparison.rows),
        "withheld": comparison.withheld,
        "rows": rows,
    }


def render_comparison(comparison: Comparison, width: int | None = None) -> str:
    """Return a comparison as text, styled if stdout is a terminal.

    Args:
        width: columns; None = the terminal's.
    """
    console = plain_console(width)
    names, shared = _names(comparison.rows), _shared(comparison.rows)
    tables: dict[str, Table] = {}
    for layout in LAYOUTS:
        tables = _tables(comparison, names, shared, layout)
        if _width(console, tables) <= console.width:
            break
    console.width = max(console.width, _width(console, tables, least=True))
    with console.capture() as text:
        if shared:
            console.print(f"{'all: ' if len(comparison.rows) > 1 else ''}{', '.join(shared.values())}", style="dim")
        for title, table in tables.items():
            console.print(f"\n{title}" if title else "", style="bold")
            console.print(table)
        if notes := _notes(comparison):
            console.print(f"\n{notes}", style="dim")
    # Cells are padded to the width of their column; remove the spaces at the end of lines.
    return "".join(f"{line.rstrip()}\n" for line in text.get().splitlines())


def comparison_notices(rows: Sequence[ComparisonRow]) -> list[str]:
    """Return reasons to doubt the comparison.

    They are runs that learned nothing, missing parents, unequal text, rows of a single seed, and seeds that are all equal.
    """
    runs = [run for row in rows for run in row.runs]
    names = _names(rows)
    single = [name for name, row in zip(names, rows, strict=True) if row.independent == 1] if len(rows) > 1 else []
    seeds = [f"a single seed, so it is not known how much another would change: {', '.join(single)}; add runs of other --seed"]
    learned = [f"{run.path}: {line}" for run in runs for line in metric_definitions.score_notices(run.scores)]
    equal = [
        f"{name}: no interval and no test of {metric}, because all seeds have the same values; check that they differ"
        for name, row in zip(names, rows, strict=True)
        for metric, difference in (row.difference or {}).items()
        if difference.half is None and min(rows[0].independent, row.independent) > 1
    ]
    return [*learned, *(line for run in runs for line in run.notices()), *unlike_text(runs), *(seeds if single else []), *equal]


def _rates(row: ComparisonRow) -> str:
    """Return the tokens per second of the wall clock, and per second of the steps."""
    tokens, *seconds = (row.mean_cost(name, own=True) for name in ("tokens", "wall_seconds", "step_seconds"))
    rates = [short_number(tokens / spent) for spent in seconds if tokens is not None and spent]
    return " / ".join(rates) if len(rates) == 2 else "-"


def _width(console: Console, tables: Mapping[str, Table], *, least: bool = False) -> int:
    """Return the columns that the tables of scores need; with `least`, when their names are folded."""
    boundless, widths = console.options.update(max_width=10_000), []
    for table in (table for table in tables.values() if table.show_header):
        gaps = (len(table.columns) - 1) * table.padding[1]
        least_width = sum(column.min_width or 0 for column in table.columns) + gaps
        widths.append(least_width if least else Measurement.get(console, boundless, table).maximum)
    return max(widths)


def _shared(rows: Sequence[ComparisonRow]) -> dict[str, str]:
    """Return the facts that are the same in all rows, as text; they get no column."""
    words = {
        "recipe": "{}",
        "majority class": "majority class {}",
        "n": "n = {}",
        "seeds": "seeds {}" if max(len(row.seeds) for row in rows) > 1 else "seed {}",
    }
    values_of = {name: {fact(row) for row in rows} for name, fact in FACTS.items()}
    return {
        name: printable(words.get(name, f"{{}} {name}").format(*values))
        for name, values in values_of.items()
        if len(values) == 1 and values != {"-"}
    }


def _names(rows: Sequence[ComparisonRow]) -> list[str]:
    """Return the name of each row: its first run, and how many more there are."""
    names = [printable(row.first.path.resolve().name) for row in rows]
    if len(set(names)) < len(names):
        names = [printable(str(row.first.path)) for row in rows]
    return [name if len(row.runs) == 1 else f"{name} +{len(row.runs) - 1}" for name, row in zip(names, rows, strict=True)]


def _tables(comparison: Comparison, names: Sequence[str], shared: Mapping[str, str], layout: TableLayout) -> dict[str, Table]:
    """Return the tables by title."""
    facts = {title: [printable(fact(row)) for row in comparison.rows] for title, fact in FACTS.items() if title not in shared}
    columns = [
        Column(_title(title, layout), cells, "left" if title in ("recipe", "seeds") else "right")
        for title, cells in facts.items()
        if set(cells) != {"-"}
    ]
    columns += [_estimates(metric, [row.scores.get(metric) for row in comparison.rows], layout) for metric in comparison.metrics]
    tables = {"": _table(range(len(names)), names, columns, layout)}
    if others := {number: row.difference for number, row in enumerate(comparison.rows) if row.difference is not None}:
        columns = [
            _estimates(name, [difference.get(name) for difference in others.values()], layout, sign="+")
            for name in comparison.metrics
            if any(name in difference for difference in others.values())
        ]
        tests = [_test_text(comparison.rows[0], comparison.rows[number]) for number in others]
        same = len(set(tests)) == 1
        columns += [] if same else [Column("by", tests, "left")]
        tables[f"difference from {names[0]}{f', {tests[0]}' if same else ''}"] = _table(others, names, columns, layout)
    if comparison.differing:
        tables["what differs"] = _differing(comparison)
    return tables


def _table(numbers: Iterable[int], names: Sequence[str], columns: Sequence[Column], layout: TableLayout) -> Table:
    """Return a table of some rows, which begin with their number and name."""
    rows = list(numbers)
    first = Column("", [str(number + 1) for number in rows], "left", least=len(str(len(names))), style="dim")
    run = Column("run", [names[number] for number in rows], "left", fold=True, least=8)
    return terminal_table([first, run, *columns], gap=layout.gap)


def _test_text(first: ComparisonRow, row: ComparisonRow) -> str:
    assert row.difference is not None
    is_paired = next(iter(row.difference.values())).test == "paired"
    if min(first.independent, row.independent) == 1:
        return "of the same seed" if is_paired else "of other seeds"
    return "seed by seed" if is_paired else "Welch's t"


def _title(text: str, layout: TableLayout) -> str:
    return text.replace(" ", "\n").replace("-", "-\n") if layout.stacked else text


def _estimates(metric: str, estimates: Sequence[Estimate | None], layout: TableLayout, sign: Literal["", "+"] = "") -> Column:
    """Return a column of estimates, aligned at their decimal points; "-" for None.

    Differences have a `sign`, and if they are significant, a star and a colour: green is better.
    """
    definition = find_task_metric(metric)
    starred = [isinstance(estimate, RowDifference) and estimate.clear for estimate in estimates]
    means = _aligned(["-" if estimate is None else definition.show(estimate.mean, sign) for estimate in estimates])
    halves = _aligned(
        ["" if estimate is None or estimate.half is None else definition.show(estimate.half) for estimate in estimates]
    )
    texts, styles = [], []
    for estimate, mean, half, star in zip(estimates, means, halves, starred, strict=True):
        mark = " *" if star else "  " if any(starred) else ""
        tail = f"{' ' if estimate is None or estimate.half is None else '±'} {half}{mark}" if half else ""
        texts.append(f"{mean}{mark and '  '}\n{tail}" if half and layout.stacked else f"{mean} {tail}" if half else mean)
        is_better = estimate is not None and (estimate.mean > 0) == (definition.better == "higher")
        styles.append(("green" if is_better else "red") if star and definition.better is not None else "")
    title = _title(printable(definition.label) + ARROWS[definition.better], layout)
    # Right-justified with spaces here: rich strips spaces at the end of lines that it justifies itself.
    width = max(len(line) for text in (title, *texts) for line in text.splitlines())
    cells = ["\n".join(line.rjust(width) for line in text.splitlines()) for text in texts]
    return Column(title, [Text(cell, style, justify="left") for cell, style in zip(cells, styles, strict=True)], "right")


def _aligned(texts: Sequence[str]) -> list[str]:
    return [text.rjust(max(map(len, texts))) for text in texts]


def _differing(comparison: Comparison) -> Table:
    """Return a table of configuration keys with their values, each with the numbers of its rows."""
    cells = []
    for values in comparison.differing.values():
        rows: dict[str, list[str]] = {}
        for number, value in enumerate(values, 1):
            rows.setdefault(printable(_value_text(value)), []).append(str(number))
        texts = (Text.assemble(value, (f" ({', '.join(rows_of)})", "dim")) for value, rows_of in rows.items())
        cells.append(Text("   ").join(texts))
    keys = [printable(key) for key in comparison.differing]
    return terminal_table([Column("", keys, "left"), Column("", cells, "left", fold=True)], head=False)


def _value_text(value: Any) -> str:
    return "-" if value in (None, "", ()) else " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _notes(comparison: Comparison) -> str:
    """Return an explanation of the signs in the tables."""
    others = comparison.rows[1:]
    notes = []
    if any(_rates(row) != "-" for row in comparison.rows):
        notes.append("tokens/s: per second of the wall clock / of the steps that counted")
    if any(run.parents for row in comparison.rows for run in row.runs):
        notes.append("tokens seen and FLOPs include those of the runs that a run starts from")
    if any(len(row.runs) > 1 for row in comparison.rows):
        notes.append("+N: with N more runs, which differ only in their seed")
        notes.append(f"±: {CONFIDENCE:.0%} confidence interval of the mean over seeds, by Student's t")
    differences = [difference for row in others for difference in (row.difference or {}).values()]
    if any(difference.clear for difference in differences):
        count = sum(any(difference.p is not None for difference in (row.difference or {}).values()) for row in others)
        rows = ", after Holm's correction for the number of rows" if count > 1 else ""
        notes.append(f"*: p is at most {1 - CONFIDENCE:.2g}{rows}, in each metric alone")
    if any(difference.test == "welch" for difference in differences):
        notes.append("a row with other seeds than the first row is not paired with it, not even by the seeds that both have")
    if comparison.withheld:
        names = ", ".join(find_task_metric(name).label for name in comparison.withheld)
        notes.append(f"-: {names}: means over the tokens of another tokenizer, which do not compare; bits per byte do")
    return "; ".join(notes)
