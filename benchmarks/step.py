"""`zoo bench step`: measure models one after the other, write their cells as soon as they are known, then show all of them.

Several repeats are done by fresh processes, one after the other, each of which measures everything once more.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import peers, records, step_group, step_page, step_tables
from benchmarks.attention import PROCESS, elsewhere, repeat
from benchmarks.cases import Case
from benchmarks.programs import Step
from benchmarks.progress import Progress
from benchmarks.records import Writer
from benchmarks.step_settings import Settings, cases, key, peer_key, resolved, unit, variants
from zoo import runtime
from zoo.errors import BadInput


def main(asked: Settings, argv: Sequence[str], *, out: str, resume: bool, as_json: bool, devices: int = 0) -> int:
    """The command.

    Args:
        argv: the command's arguments after `zoo`: what fresh processes are started with.
        devices: CPU devices to simulate; 0 = the real ones.

    Returns:
        0; 1 if something is wrong or failed; whatever a fresh process that died returned.

    Raises:
        BadInput: see `step_settings` and `records.Writer`; a mesh or a batch that does not fit the devices.
    """
    told = os.environ.pop(PROCESS, None)
    process = None if told is None else int(told)
    alone = process is not None or asked.repeats == 1
    machine = _here(devices) if alone else elsewhere()
    settings = resolved(asked, machine["backend"])
    todo = cases(settings)
    if alone:
        _check(todo, settings)
    folder = Path(out) if out else records.default_folder("step", machine)
    if process is None and not resume and (folder / records.CELLS).exists():
        raise BadInput(f"{folder} has results already; --resume completes them, --out chooses another folder")
    if process is not None:
        _measure(todo, settings, folder, process)
        return 0
    code = 0
    try:
        if settings.repeats == 1:
            _measure(todo, settings, folder, 0, resume=resume)
        else:
            code = repeat(settings.repeats, folder, argv)
    finally:
        # Also of a run that was stopped.
        if (folder / records.CELLS).exists():
            show(folder, as_json)
    if not (folder / records.CELLS).exists():
        # No process came to write anything; each has said why.
        return code
    return code or int(any(cell["state"] in ("wrong", "failed") for cell in records.read(folder).cells))


def _here(devices: int) -> dict[str, Any]:
    runtime.prepare(devices)
    runtime.canary()
    return records.machine()


def show(folder: Path, as_json: bool) -> None:
    """Write what a folder's results look like, and print them."""
    results = records.read(folder)
    written = {"table.md": step_tables.markdown(results), "table.csv": step_tables.csv(results)}
    records.write_texts(folder, {**written, "report.html": step_page.render(results)})
    if as_json:
        for cell in results.cells:
            print(json.dumps(cell))
        return
    step_tables.show(results)
    print(f"\n{folder}: cells.jsonl, table.md, table.csv, report.html")


def _check(todo: Sequence[Case], settings: Settings) -> None:
    """Refuse, before anything is measured, what no cell could do: a mesh that there are no devices for or that does not divide
    the model. What only some ways of computing refuse is said in their cells."""
    for case in todo:
        for variant in variants(settings):
            if variant.mesh != "data=1":
                Step(case, dataclasses.replace(variant, attention="auto"))


def _measure(todo: Sequence[Case], settings: Settings, folder: Path, process: int, *, resume: bool = True) -> None:
    environment = records.environment(settings.precision)
    # Peers on torch take as many threads as there are cores, whatever this says.
    environment["threads"] = f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')}, torch {os.cpu_count()}"
    asked = dataclasses.asdict(settings)
    writer = Writer(folder / records.CELLS, "step", environment, asked, resume, unit(settings))
    ways = variants(settings)
    lacking = {case: [each for each in _keys(case, settings) if not writer.has(each, process)] for case in todo}
    left = {case: keys for case, keys in lacking.items() if keys}
    progress = Progress(float(sum(map(len, left.values()))))
    try:
        for case, keys in left.items():
            progress.begin(f"{case.size} {case.mode}")
            wanted = {records.identity(each) for each in keys}
            cells = step_group.measure(case, ways, settings, environment, progress.doing)
            # Those of a group that was written in part are there already.
            cells = [cell for cell in cells if records.identity(cell["key"]) in wanted]
            for cell in cells:
                writer.write({"process": process, **cell, **_machine_columns(environment)})
            progress.done(float(len(keys)), step_tables.in_a_line(cells))
    finally:
        progress.close()
        writer.close()


def _keys(case: Case, settings: Settings) -> list[dict[str, Any]]:
    """Of all cells of a model."""
    found = [key(case, variant, settings) for variant in variants(settings)]
    return found + [peer_key(case, name, precision, settings) for name, precision in peers.asked(settings)]


def _machine_columns(environment: dict[str, Any]) -> dict[str, Any]:
    """What the process that measured a cell found the machine able to do."""
    return {"load": environment["load"], "clock_mhz": environment["clock_mhz"]}
