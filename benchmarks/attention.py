"""`zoo bench attention`: sweep, write each cell as soon as it is measured, then show all of it.

A sweep of several repeats is done by fresh processes, one after the other, each of which measures every cell once more.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import attention_page, attention_row, attention_tables, command, peers_attention, records
from benchmarks.attention_settings import UNIT, Row, Settings, resolved, rows
from benchmarks.progress import Progress
from benchmarks.records import Writer
from benchmarks.trials import Watch

VIEWS = command.Views(
    markdown=attention_tables.markdown, csv=attention_tables.csv, page=attention_page.render, terminal=attention_tables.show
)


def main(asked: Settings, request: command.Request, *, quick: bool) -> int:
    """The command: see `command.perform`.

    Raises:
        BadInput: see `attention_settings.resolved` and `command.perform`.
    """
    begun = command.start(asked.repeats, peers=asked.peers)
    settings = resolved(asked, begun.machine["backend"], quick=quick)
    todo = rows(settings)
    measure = functools.partial(_sweep, todo, settings)
    return command.perform(begun, "attention", measure, VIEWS, request, repeats=settings.repeats)


def _sweep(todo: Sequence[Row], settings: Settings, folder: Path, process: int, resume: bool) -> None:
    environment = records.environment(settings.dtype)
    asked = dataclasses.asdict(settings)
    writer = Writer(folder / records.CELLS, "attention", environment, asked, resume, {"implementation": UNIT})
    names = (*settings.impl, *(peers_attention.NAMES if settings.peers else ()))
    missing = {row: [name for name in names if not writer.has(row.key(name), process)] for row in todo}
    weights = {row: _weight(row) * len(lacking) for row, lacking in missing.items() if lacking}
    progress = Progress(sum(weights.values(), 0.0))
    watch = Watch(progress.doing, writer, process)
    try:
        for row, weight in weights.items():
            progress.begin(str(row))
            cells = attention_row.measure(row, missing[row], settings, environment, watch)
            for cell in cells:
                writer.write({"process": process, **cell, **_machine_columns(environment, row)})
            progress.done(weight, attention_tables.in_a_line(cells))
    finally:
        writer.close()
        progress.close()


def _weight(row: Row) -> float:
    """About how long a cell takes, in some unit: compiling and checking, and several rounds, longer ones for more pairs."""
    shape = row.shape
    return (
        1.0 + shape.batch * shape.heads * shape.head * shape.queries * shape.keys * (1 + 2.5 * (row.direction == "both")) / 1e10
    )


def _machine_columns(environment: dict[str, Any], row: Row) -> dict[str, Any]:
    """What the process that measured a cell found the machine able to do."""
    return {
        "matrix_rate": environment["matrix_rate"][row.dtype],
        "copy_rate": environment["copy_rate"],
        "load": environment["load"],
        "clock_mhz": environment["clock_mhz"],
    }
