"""`zoo compare RUN...`: finished runs side by side, with runs that differ only in their seed as one row.

The model that a run starts from is identified without its seed, so that fine-tunings of several seeds of one pretraining are one
row too. A row of several seeds shows the mean and its 95% confidence interval. If another row has the same seeds as the first
one, the two are also compared seed by seed: effects of the seed, above all of the order of the samples, then cancel. Facts that
all rows share are printed once, above the table.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from eval.comparison.run_results import format_scientific, unlike_text
from eval.comparison.seed_statistics import CONFIDENCE, Comparison, ComparisonRow, Estimate, compare_runs
from eval.comparison.task_scores import find_task_metric
from eval.pages.terminal_tables import Column, plain_console, terminal_table
from train.run import metric_definitions
from train.run.costs import NAMES
from train.run.progress_display import short_number
from zoo.errors import printable

FACTS: dict[str, Callable[[ComparisonRow], str]] = {
    "recipe": lambda row: row.first.run.recipe,
    "parameters": lambda row: f"{row.first.parameters:,}",
    "tokens seen": lambda row: "-" if row.tokens is None else short_number(row.tokens),
    "tokens/s": lambda row: _rates(row),
    "FLOPs": lambda row: "-" if row.flops is None else format_scientific(row.flops),
    "majority class": lambda row: f"{row.first.scores['majority_share']:.4f}" if "majority_share" in row.first.scores else "-",
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
    print(
        json.dumps(comparison_record(comparison), indent=2) + "\n" if as_json else render_comparison(comparison),
        end="",
        flush=True,
    )
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
        }
        difference = row.difference and {name: dataclasses.asdict(estimate) for name, estimate in row.difference.items()}
        rows.append(
            {
                "runs": [str(run.path) for run in row.runs],
                "seeds": row.seeds,
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
    """Return reasons to doubt the comparison: runs that learned nothing, missing parents, unequal text in equal budgets."""
    runs = [run for row in rows for run in row.runs]
    learned = [f"{run.path}: {line}" for run in runs for line in metric_definitions.score_notices(run.scores)]
    return [*learned, *(line for run in runs for line in run.notices()), *unlike_text(runs)]


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
    columns += [_estimates(metric, [row.scores[metric] for row in comparison.rows], layout) for metric in comparison.metrics]
    tables = {"": _table(range(len(names)), names, columns, layout)}
    if others := {number: row.difference for number, row in enumerate(comparison.rows) if row.difference is not None}:
        columns = [
            _estimates(name, [difference[name] for difference in others.values()], layout, sign="+")
            for name in comparison.metrics
        ]
        paired = "seed by seed" if len(comparison.rows[0].runs) > 1 else "of the same seed"
        tables[f"difference from {names[0]}, {paired}"] = _table(others, names, columns, layout)
    if comparison.differing:
        tables["what differs"] = _differing(comparison)
    return tables


def _table(numbers: Iterable[int], names: Sequence[str], columns: Sequence[Column], layout: TableLayout) -> Table:
    """Return a table of some rows, which begin with their number and name."""
    rows = list(numbers)
    first = Column("", [str(number + 1) for number in rows], "left", least=len(str(len(names))), style="dim")
    run = Column("run", [names[number] for number in rows], "left", fold=True, least=8)
    return terminal_table([first, run, *columns], gap=layout.gap)


def _title(text: str, layout: TableLayout) -> str:
    return text.replace(" ", "\n").replace("-", "-\n") if layout.stacked else text


def _estimates(metric: str, estimates: Sequence[Estimate], layout: TableLayout, sign: Literal["", "+"] = "") -> Column:
    """Return a column of estimates, aligned at their decimal points.

    Differences have a `sign`, and if 0 is outside the interval, a star and a colour: green is better.
    """
    definition = find_task_metric(metric)
    starred = [bool(sign) and estimate.clear for estimate in estimates]
    means = _aligned([definition.show(estimate.mean, sign) for estimate in estimates])
    halves = _aligned(["" if estimate.half is None else definition.show(estimate.half) for estimate in estimates])
    texts = []
    for estimate, mean, half, star in zip(estimates, means, halves, starred, strict=True):
        mark = " *" if star else "  " if any(starred) else ""
        tail = f"{' ' if estimate.half is None else '±'} {half}{mark}" if half else ""
        texts.append(f"{mean}{mark and '  '}\n{tail}" if half and layout.stacked else f"{mean} {tail}" if half else mean)
    good = [(estimate.mean > 0) == (definition.better == "higher") for estimate in estimates]
    coloured = [star and definition.better is not None for star in starred]
    styles = ["green" if star and better else "red" if star else "" for star, better in zip(coloured, good, strict=True)]
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
    if any(estimate.clear for row in others for estimate in (row.difference or {}).values()):
        notes.append("*: 0 is outside the interval")
    if any(row.difference is None for row in others):
        notes.append("rows with other seeds than the first row have no difference to it")
    return "; ".join(notes)
