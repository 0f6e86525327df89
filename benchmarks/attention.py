"""`zoo bench attention`: sweep, write each cell as soon as it is measured, then show all of it.

A sweep of several repeats is done by fresh processes, one after the other, each of which measures every cell once more.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import attention_page, attention_row, attention_tables, peers_attention, records
from benchmarks.attention_settings import UNIT, Row, Settings, resolved, rows
from benchmarks.progress import Progress
from benchmarks.records import Writer
from zoo import launch, runtime
from zoo.errors import BadInput

PROCESS = "ZOO_BENCH_PROCESS"
"""Environment variable that holds the number of a fresh process."""


def main(asked: Settings, argv: Sequence[str], *, quick: bool, out: str, resume: bool, as_json: bool) -> int:
    """The command.

    Args:
        argv: the command's arguments after `zoo`: what fresh processes are started with.

    Returns:
        0; 1 if something is wrong or failed; whatever a fresh process that died returned.

    Raises:
        BadInput: see `attention_settings.resolved` and `records.Writer`.
    """
    told = os.environ.pop(PROCESS, None)
    process = None if told is None else int(told)
    alone = process is not None or asked.repeats == 1
    machine = _here() if alone else elsewhere()
    settings = resolved(asked, machine["backend"], quick=quick)
    todo = rows(settings)
    folder = Path(out) if out else records.default_folder("attention", machine)
    if process is None and not resume and (folder / records.CELLS).exists():
        raise BadInput(f"{folder} has results already; --resume completes them, --out chooses another folder")
    if process is not None:
        _sweep(todo, settings, folder, process)
        return 0
    code = 0
    try:
        if alone:
            _sweep(todo, settings, folder, 0, resume=resume)
        else:
            code = repeat(settings.repeats, folder, argv)
    except KeyboardInterrupt:
        if (folder / records.CELLS).exists():
            _show(folder, as_json)
            print("stopped; --resume completes it", file=sys.stderr)
        raise
    if code and not (folder / records.CELLS).exists():
        # No process came to write anything; each has said why.
        return code
    _show(folder, as_json)
    return code or int(any(cell["state"] in ("wrong", "failed") for cell in records.read(folder).cells))


def _here() -> dict[str, Any]:
    runtime.prepare()
    runtime.canary()
    return records.machine()


def elsewhere() -> dict[str, Any]:
    """The machine, asked of another process: one that only starts others must not hold its accelerator."""
    program = "from zoo import runtime; runtime.prepare(); from benchmarks import records; import json"
    command = [sys.executable, "-P", "-c", f"{program}; print(json.dumps(records.machine()))"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def repeat(repeats: int, folder: Path, argv: Sequence[str]) -> int:
    """Start the fresh processes. One that dies does not stop the others; returns the first code that is not 0."""
    code = 0
    for number in range(repeats):
        print(f"process {number + 1} of {repeats}", file=sys.stderr, flush=True)
        command = [*launch.PROGRAM, *argv, "--out", str(folder), "--resume"]
        ended = subprocess.run(command, env=os.environ | {PROCESS: str(number)}).returncode
        if ended:
            print(f"process {number + 1} ended with {ended}; --resume completes it", file=sys.stderr, flush=True)
            code = code or (ended if ended > 0 else 128 - ended)
    return code


def _sweep(todo: Sequence[Row], settings: Settings, folder: Path, process: int, *, resume: bool = True) -> None:
    environment = records.environment(settings.dtype)
    asked = dataclasses.asdict(settings)
    writer = Writer(folder / records.CELLS, "attention", environment, asked, resume, {"implementation": UNIT})
    names = (*settings.impl, *(peers_attention.NAMES if settings.peers else ()))
    missing = {row: [name for name in names if not writer.has(row.key(name), process)] for row in todo}
    weights = {row: _weight(row) * len(lacking) for row, lacking in missing.items() if lacking}
    progress = Progress(sum(weights.values(), 0.0))
    try:
        for row, weight in weights.items():
            progress.begin(str(row))
            cells = attention_row.measure(row, missing[row], settings, environment, progress.doing)
            for cell in cells:
                writer.write({"process": process, **cell, **_machine_columns(environment, row)})
            progress.done(weight, attention_tables.in_a_line(cells))
    finally:
        progress.close()
        writer.close()


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
    }


def _show(folder: Path, as_json: bool) -> None:
    results = records.read(folder)
    written = {"table.md": attention_tables.markdown(results), "table.csv": attention_tables.csv(results)}
    records.write_texts(folder, {**written, "report.html": attention_page.render(results)})
    if as_json:
        for cell in results.cells:
            print(json.dumps(cell))
    else:
        attention_tables.show(results)
        print(f"\n{folder}: cells.jsonl, table.md, table.csv, report.html")
