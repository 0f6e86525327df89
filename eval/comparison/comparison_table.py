"""`zoo compare RUN...`: finished runs side by side, those that differ in nothing but their seed as one row.

A row of several seeds shows the mean and its 95% confidence interval. Another row with the same seeds is also compared with the
first one seed by seed: what the seed decides, the order of the samples foremost, then cancels. What all rows share is said once,
above them.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from eval.comparison.run_results import scientific
from eval.comparison.seed_statistics import CONFIDENCE, Comparison, Estimate, Row, compare
from train.run import metric_names
from train.run.console import short
from train.run.metric_names import QUANTITIES

FACTS: dict[str, Callable[[Row], str]] = {
    "recipe": lambda row: row.first.run.recipe,
    "parameters": lambda row: f"{row.first.parameters:,}",
    "tokens seen": lambda row: short(row.tokens),
    "FLOPs": lambda row: "-" if row.flops is None else scientific(row.flops),
    "majority class": lambda row: f"{row.first.scores['majority_share']:.4f}" if "majority_share" in row.first.scores else "-",
    "seeds": lambda row: ", ".join(map(str, row.seeds)),
}
"""What a row is, beside its configuration; "-" where the run has not recorded it."""


class Layout(NamedTuple):
    """How a table is made to fit."""

    stacked: bool
    """Whether words and numbers that belong together are one above the other."""
    gap: int
    """Blanks between columns."""


LAYOUTS = (Layout(False, 2), Layout(True, 2), Layout(True, 1))
"""The first one that fits is taken. A terminal that is too narrow for the last one wraps lines: no number is cut."""

ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}


def main(paths: Sequence[str], *, unequal: bool, as_json: bool, metric: Sequence[str] = ()) -> int:
    """Compare finished runs and print the result.

    Args:
        paths: folders of runs.
        unequal: compare runs of unequal budgets all the same, or runs scored on unequal counts, and say so.
        as_json: print JSON instead of tables.
        metric: quantities to compare; none: all that the runs share.

    Raises:
        BadInput: see `comparison.compare`.
    """
    found = compare(paths, unequal=unequal, metric=metric)
    print(json.dumps(record(found), indent=2) + "\n" if as_json else render(found), end="", flush=True)
    return 0


def record(found: Comparison) -> dict[str, Any]:
    """A comparison as JSON: rows with the value of every run, means, and half the width of each interval; tokens and FLOPs are
    means over the runs of a row."""
    rows = []
    for number, row in enumerate(found.rows):
        scores = {
            name: {**dataclasses.asdict(estimate), "values": [run.scores[name] for run in row.runs]}
            for name, estimate in row.scores.items()
        }
        difference = row.difference and {name: dataclasses.asdict(estimate) for name, estimate in row.difference.items()}
        rows.append(
            {
                "runs": [str(run.path) for run in row.runs],
                "seeds": row.seeds,
                "recipe": row.first.run.recipe,
                "parameters": row.first.parameters,
                "tokens_seen": row.tokens,
                "flops": row.flops,
                "scores": scores,
                "difference_to_first": difference,
                "differing": {key: values[number] for key, values in found.differing.items()},
            }
        )
    return {
        "metrics": found.metrics,
        "confidence": CONFIDENCE,
        "unequal": found.unequal,
        "notices": _doubts(found.rows),
        "rows": rows,
    }


def render(found: Comparison, width: int | None = None) -> str:
    """A comparison as text, styled if stdout is a terminal.

    Args:
        width: columns; None = the terminal's.
    """
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    names, shared = _names(found.rows), _shared(found.rows)
    tables: dict[str, Table] = {}
    for layout in LAYOUTS:
        tables = _tables(found, names, shared, layout)
        if _width(console, tables) <= console.width:
            break
    console.width = max(console.width, _width(console, tables, least=True))
    with console.capture() as text:
        for line in found.unequal:
            console.print(Text(f"! {line}", style="bold yellow"))
        for line in _doubts(found.rows):
            console.print(Text(f"! {line}", style="bold yellow"))
        if shared:
            console.print(f"{'all: ' if len(found.rows) > 1 else ''}{', '.join(shared.values())}", style="dim")
        for title, table in tables.items():
            console.print(f"\n{title}" if title else "", style="bold")
            console.print(table)
        if notes := _notes(found):
            console.print(f"\n{notes}", style="dim")
    # Cells are padded to the width of their column; nobody who pipes wants the blanks at the end of the line.
    return "".join(f"{line.rstrip()}\n" for line in text.get().splitlines())


def _doubts(rows: Sequence[Row]) -> list[str]:
    """Return the reasons to think that a run has learned nothing."""
    return [f"{run.path}: {line}" for row in rows for run in row.runs for line in metric_names.notices(run.scores)]


def _width(console: Console, tables: Mapping[str, Table], *, least: bool = False) -> int:
    """Columns that the tables of scores need: at `least` with their names folded."""
    boundless, widths = console.options.update(max_width=10_000), []
    for table in (table for table in tables.values() if table.show_header):
        gaps = (len(table.columns) - 1) * table.padding[1]
        least_width = sum(column.min_width or 0 for column in table.columns) + gaps
        widths.append(least_width if least else Measurement.get(console, boundless, table).maximum)
    return max(widths)


def _shared(rows: Sequence[Row]) -> dict[str, str]:
    """Facts that are the same in all rows, in words: no column is spent on them."""
    words = {
        "recipe": "{}",
        "majority class": "majority class {}",
        "seeds": "seeds {}" if max(len(row.seeds) for row in rows) > 1 else "seed {}",
    }
    told = {name: {fact(row) for row in rows} for name, fact in FACTS.items()}
    return {
        name: words.get(name, f"{{}} {name}").format(*values)
        for name, values in told.items()
        if len(values) == 1 and values != {"-"}
    }


def _names(rows: Sequence[Row]) -> list[str]:
    """What each row is called: its first run, and how many more there are."""
    names = [row.first.path.resolve().name for row in rows]
    if len(set(names)) < len(names):
        names = [str(row.first.path) for row in rows]
    return [name if len(row.runs) == 1 else f"{name} +{len(row.runs) - 1}" for name, row in zip(names, rows, strict=True)]


def _tables(found: Comparison, names: Sequence[str], shared: Mapping[str, str], layout: Layout) -> dict[str, Table]:
    """Title -> table."""
    facts = {title: [fact(row) for row in found.rows] for title, fact in FACTS.items() if title not in shared}
    columns = [
        Column(_title(title, layout), cells, "left" if title in ("recipe", "seeds") else "right")
        for title, cells in facts.items()
        if set(cells) != {"-"}
    ]
    columns += [_estimates(metric, [row.scores[metric] for row in found.rows], layout) for metric in found.metrics]
    tables = {"": _table(range(len(names)), names, columns, layout)}
    if others := {number: row.difference for number, row in enumerate(found.rows) if row.difference is not None}:
        columns = [_estimates(name, [each[name] for each in others.values()], layout, sign="+") for name in found.metrics]
        paired = "seed by seed" if len(found.rows[0].runs) > 1 else "of the same seed"
        tables[f"less {names[0]}, {paired}"] = _table(others, names, columns, layout)
    if found.differing:
        tables["what differs"] = _differing(found)
    return tables


class Column(NamedTuple):
    """A column of a table; what takes several lines has line ends."""

    title: str
    cells: Sequence[str | Text]
    justify: Literal["left", "right"]


def _table(numbers: Iterable[int], names: Sequence[str], columns: Sequence[Column], layout: Layout) -> Table:
    """A table of some rows, after their numbers and names."""
    table = Table(box=None, padding=(0, layout.gap, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("", style="dim", no_wrap=True, min_width=len(str(len(names))))
    table.add_column("run", overflow="fold", min_width=8)
    for title, cells, justify in columns:
        # rich would cut what it may not wrap, unless it is told how much room that needs.
        room = max(len(line) for cell in (title, *cells) for line in str(cell).splitlines())
        table.add_column(Text(title, justify=justify), justify=justify, no_wrap=True, min_width=room)
    for place, number in enumerate(numbers):
        table.add_row(str(number + 1), names[number], *(column.cells[place] for column in columns))
    return table


def _title(text: str, layout: Layout) -> str:
    return text.replace(" ", "\n").replace("-", "-\n") if layout.stacked else text


def _estimates(metric: str, estimates: Sequence[Estimate], layout: Layout, sign: Literal["", "+"] = "") -> Column:
    """A column of estimates, their points one below the other.

    Differences have a `sign`; where 0 lies outside the interval, also a star, and a colour: green is better.
    """
    quantity = QUANTITIES[metric]
    starred = [bool(sign) and each.clear for each in estimates]
    means = _aligned([quantity.show(each.mean, sign) for each in estimates])
    halves = _aligned(["" if each.half is None else quantity.show(each.half) for each in estimates])
    texts = []
    for estimate, mean, half, star in zip(estimates, means, halves, starred, strict=True):
        mark = " *" if star else "  " if any(starred) else ""
        tail = f"{' ' if estimate.half is None else '±'} {half}{mark}" if half else ""
        texts.append(f"{mean}{mark and '  '}\n{tail}" if half and layout.stacked else f"{mean} {tail}" if half else mean)
    good = [(each.mean > 0) == (quantity.better == "higher") for each in estimates]
    styles = ["green" if star and better else "red" if star else "" for star, better in zip(starred, good, strict=True)]
    title = _title(quantity.label + ARROWS[quantity.better], layout)
    # To the right by blanks: rich strips those at the end of a line that it moves there itself.
    room = max(len(line) for text in (title, *texts) for line in text.splitlines())
    cells = ["\n".join(line.rjust(room) for line in text.splitlines()) for text in texts]
    return Column(title, [Text(cell, style, justify="left") for cell, style in zip(cells, styles, strict=True)], "right")


def _aligned(texts: Sequence[str]) -> list[str]:
    return [text.rjust(max(map(len, texts))) for text in texts]


def _differing(found: Comparison) -> Table:
    """Configuration keys with the values they have, each with the numbers of its rows."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, values in found.differing.items():
        rows: dict[str, list[str]] = {}
        for number, value in enumerate(values, 1):
            rows.setdefault(_told(value), []).append(str(number))
        table.add_row(
            key, Text("   ").join(Text.assemble(value, (f" ({', '.join(each)})", "dim")) for value, each in rows.items())
        )
    return table


def _told(value: Any) -> str:
    return "-" if value in (None, "", ()) else " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _notes(found: Comparison) -> str:
    """What the signs mean that are there to be seen."""
    others = found.rows[1:]
    notes = []
    if any(len(row.runs) > 1 for row in found.rows):
        notes.append(f"±: {CONFIDENCE:.0%} confidence interval of the mean over seeds, by Student's t")
    if any(each.clear for row in others for each in (row.difference or {}).values()):
        notes.append("*: 0 lies outside the interval")
    if any(row.difference is None for row in others):
        notes.append("rows with other seeds than the first row have no difference to it")
    return "; ".join(notes)
