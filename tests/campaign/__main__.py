"""Run the fault campaign: `python -m tests.campaign [--minutes 60] [--rows NAME ...]`."""

from tests.support import environment  # isort: skip  # it starts JAX with eight devices

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from tests.campaign import campaign_page
from tests.campaign.all_rows import ROWS
from tests.campaign.row_types import CannotRun, Outcome, Row, Task, verdict
from tests.campaign.suite_rows import SUITE_ROWS, SuiteRow, count, run_tests
from train.run import matmul_rate
from train.run.metrics_file import software_versions
from train.run.provenance import read_provenance
from train.run.run_dir import write_json, write_text
from zoo.errors import BadInput

SUITE_SHARE = 20
"""Part of the time of all rows that are tests of the suite, relative to those of the other rows."""
JSON, MARKDOWN, HTML = "campaign.json", "campaign.md", "campaign.html"


def machine() -> dict[str, Any]:
    """Return what the counts depend on: the machine, the versions and the date."""
    rate = matmul_rate.measure_matmul_rate(jnp.float32)
    facts = {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "cores": os.cpu_count()}
    facts |= {"float32 matrix products": f"{rate / 1e9:.0f} GFLOP/s", "load at the start": f"{os.getloadavg()[0]:.1f}"}
    return facts | software_versions() | {"commit": read_provenance().get("commit", "")}


def record(row: Row | SuiteRow, goal: int, outcome: Outcome, seconds: float, reason: str = "") -> dict[str, Any]:
    """Return the JSON of a row."""
    matrix = row.matrix if isinstance(row, Row) else (row.matrix,)
    fields: dict[str, Any] = {"name": row.name, "matrix": matrix, "expected": row.expected, "goal": goal, "count": outcome.count}
    failures = [text.replace(str(environment.SCRATCH), "SCRATCH") for text in outcome.failures]
    fields |= {"failed": outcome.failed, "failures": failures, "parts": dict(outcome.parts)}
    fields |= {"measured": outcome.measured, "notes": outcome.notes, "seconds": round(seconds, 1), "reason": reason}
    return fields | {"verdict": verdict(fields)}


def run_row(row: Row, task: Task) -> dict[str, Any]:
    """Run a row and return its record; an error of the row itself is a failure."""
    outcome, began, reason = Outcome(), time.monotonic(), ""
    try:
        row.run(task, outcome)
    except CannotRun as error:
        reason = str(error)
    except Exception as error:
        outcome.fail(f"{type(error).__name__}: {error}")
    return record(row, task.goal, outcome, time.monotonic() - began, reason)


def run_suite(rows: Sequence[SuiteRow], task: Task) -> Iterator[dict[str, Any]]:
    """Run the tests of rows in one process, and yield the record of each."""
    began, reason, outcomes = time.monotonic(), "", {}
    try:
        outcomes = run_tests(task, tuple(dict.fromkeys(test for row in rows for test in row.tests)))
    except CannotRun as error:
        reason = str(error)
    seconds = (time.monotonic() - began) / len(rows)
    for row in rows:
        outcome = Outcome()
        unfinished = count(row, outcomes, outcome)
        missing = "" if outcome.count else "its tests did not end in their share of the time"
        yield record(row, outcome.count + unfinished, outcome, seconds, reason or missing)


def select(names: Sequence[str]) -> tuple[list[Row], list[SuiteRow]]:
    """Return the rows of some names; of no names all rows.

    Raises:
        BadInput: there is no such row.
    """
    every = [row.name for row in (*ROWS, *SUITE_ROWS)]
    for name in names:
        if name not in every:
            raise BadInput(f"--rows {name!r}: there is no such row; choose {', '.join(every)}")
    return [row for row in ROWS if not names or row.name in names], [row for row in SUITE_ROWS if not names or row.name in names]


def run_campaign(
    rows: Sequence[Row], suite: Sequence[SuiteRow], *, minutes: float, seed: int, out: Path, jobs: int
) -> dict[str, Any]:
    """Run rows in at most about `minutes`, and write campaign.json, the page and its Markdown after each row."""
    result: dict[str, Any] = {"seed": seed, "minutes": minutes, "machine": machine(), "rows": []}
    end, shares = time.monotonic() + 60 * minutes, [row.share for row in rows] + [SUITE_SHARE] * bool(suite)
    out.mkdir(parents=True, exist_ok=True)

    def task(number: int, goal: int) -> Task:
        left = max(0.0, end - time.monotonic())
        folder = Path(tempfile.mkdtemp(dir=environment.SCRATCH))
        return Task(goal, seed, time.monotonic() + left * shares[number] / sum(shares[number:]), folder, jobs)

    def add(fields: dict[str, Any]) -> None:
        result["rows"].append(fields)
        print(
            f"{fields['verdict']:<24} {fields['name']:<28} {fields['count']:>9,} of {fields['goal']:,}, {fields['seconds']:.0f} s"
        )
        for line in campaign_page.details(fields):
            print(f"    {line[:300]}")
        sys.stdout.flush()
        write_json(out / JSON, result)
        write_text(out / MARKDOWN, campaign_page.render_markdown(result))
        write_text(out / HTML, campaign_page.render_html(result))

    for number, row in enumerate(rows):
        current = task(number, row.goal)
        add(run_row(row, current))
        shutil.rmtree(current.folder, ignore_errors=True)
    if suite:
        for fields in run_suite(suite, task(len(rows), 0)):
            add(fields)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign and return the exit code: 1 if a trial failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="time to use; each row has a share of it (default: %(default)g)"
    )
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="only these rows")
    parser.add_argument("--seed", type=int, default=1, help="seed of all random choices (default: %(default)d)")
    parser.add_argument(
        "--jobs", type=int, default=2, help="runs at the same time, where no time is measured (default: %(default)d)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/campaign"), help="folder of the results (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        rows, suite = select(options.rows)
        result = run_campaign(rows, suite, minutes=options.minutes, seed=options.seed, out=options.out, jobs=options.jobs)
    except BadInput as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 2
    print(campaign_page.totals(result))
    return int(any(row["failed"] for row in result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
