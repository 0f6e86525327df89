"""Signals to runs, and groups of two processes of which one dies, stops, is stuck or gets a signal."""

import contextlib
import itertools
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from tests.campaign.row_types import Outcome, Task
from tests.support import compilation
from tests.support.processes import children, clean_environment
from tests.support.runs import PATIENCE, Training, alive, assert_close, home, inode, reference
from train.run import metrics_file
from zoo import fault_points

ENDLESS = ("--steps", "1000000", "--checkpoint.every", "20", "--checkpoint.keep", "2", "--log.validate-every", "0")
LATE = 3.0
"""Seconds after its limit in which a stuck process must be noticed: the launcher looks five times a second."""


@contextlib.contextmanager
def start_group(run: Training, *flags: str, faults: str = "", processes: int = 2) -> Iterator[subprocess.Popen[str]]:
    """Start `zoo train` in several processes of one device, which are killed at the end of the block."""
    command = [sys.executable, "-P", "-m", "zoo.cli", *run.argv(*flags, processes=processes, devices=1)]
    environment = clean_environment() | compilation.FLAGS | ({fault_points.VARIABLE: faults} if faults else {})
    out, err = ((run.home / f"{run.name}.{name}").open("w+") for name in ("out", "err"))
    with out, err, subprocess.Popen(command, cwd=run.home, env=environment, text=True, stdout=out, stderr=err) as launcher:
        try:
            yield launcher
        finally:
            launcher.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                launcher.wait(20)
            launcher.kill()


def wait(happened: Callable[[], object], launcher: subprocess.Popen[str], seconds: float = PATIENCE) -> float:
    """Poll until something has happened, and return the seconds that it took.

    Raises:
        AssertionError: the launcher ended before that, or it takes too long.
    """
    began = time.monotonic()
    while not happened():
        assert launcher.poll() is None, f"the launcher ended with {launcher.returncode}"
        assert time.monotonic() - began < seconds, f"not within {seconds:.0f} s"
        time.sleep(0.005)
    return time.monotonic() - began


def steps_taken(run: Training, ledger_before: int, group: list[int]) -> int:
    """Return how many steps the processes of `group` have taken; -1 while the ledger is the one of the start before."""
    path = run.folder / "ledger.jsonl"
    if len(group) < 2 or inode(path) in (0, ledger_before):
        return -1
    rows = metrics_file.read_rows(path)
    return rows[-1]["step"] - run.resumed_at()[-1] if rows else 0


def read_group(launcher: subprocess.Popen[str]) -> list[int]:
    """Return the processes of a launcher."""
    with contextlib.suppress(OSError):
        return children(launcher.pid)
    return []


def dead_workers(task: Task, outcome: Outcome) -> None:
    """Kill processes 0 and 1 by turns; `--restart` continues the run."""
    run = Training(home(), "dead-workers", ENDLESS)
    chance, ledger, limits = task.random(), 0, {"group gone, s": 2.0, "training again, s": 15.0}
    with start_group(run, "--restart", "1000") as launcher:
        while task.more(outcome):
            wait(lambda ledger=ledger: steps_taken(run, ledger, read_group(launcher)) > 3, launcher)
            time.sleep(chance.uniform(0, 1))
            ledger = inode(run.folder / "ledger.jsonl")
            group, victim = read_group(launcher), outcome.count % 2
            os.kill(group[victim], signal.SIGKILL)
            began = time.monotonic()
            with outcome.check(f"process {victim}"):
                wait(lambda group=group: not any(map(alive, group)), launcher, 60)
                times = {"group gone, s": time.monotonic() - began}
                wait(lambda ledger=ledger: steps_taken(run, ledger, read_group(launcher)) > 0, launcher)
                times["training again, s"] = time.monotonic() - began
                for name, seconds in times.items():
                    outcome.measure(name, seconds)
                    if seconds > limits[name]:
                        outcome.fail(f"process {victim}: {name} {seconds:.1f}, at most {limits[name]:.0f}")
            outcome.add(f"process {victim} killed")
            if outcome.failed and launcher.poll() is not None:
                return


def noticed(task: Task, outcome: Outcome, fault: str, pattern: str) -> None:
    """Start a group whose process 1 has a fault after some steps of each start, until it was noticed often enough."""
    name = fault.partition("=")[0].replace(":", "-").replace(".", "-")
    run, lines = Training(home(), name, ENDLESS), 0
    hang = ("--hang-after", "2", "--restart", "1000", "--checkpoint.every", "2")
    err = run.home / f"{name}.err"
    with start_group(run, *hang, faults=fault) as launcher:
        while task.more(outcome):
            with outcome.check("the launcher"):
                wait(lambda lines=lines: len(err.read_text().splitlines()) > lines, launcher)
            line = err.read_text().splitlines()[lines] if outcome.failed == 0 else ""
            lines += 1
            outcome.add("noticed")
            if (match := re.search(pattern, line)) is None:
                outcome.fail(f"not the line that was expected: {line!r}")
                return
            seconds = float(match["seconds"])
            limit = float(match.groupdict().get("limit") or 2.0)
            outcome.measure("noticed after its limit, s", seconds - limit)
            if seconds - limit > LATE:
                outcome.fail(line)


def stopped_workers(task: Task, outcome: Outcome) -> None:
    """Let process 1 send SIGSTOP to itself after five steps of each start."""
    noticed(task, outcome, "train.step:stop:5:1", r"process 1 is stuck: stopped by a signal \(SIGSTOP\) for (?P<seconds>\d+) s")


def stuck_workers(task: Task, outcome: Outcome) -> None:
    """Let process 1 sleep for an hour after five steps of each start."""
    pattern = r"process 1 is stuck: no step for (?P<seconds>\d+) s \(limit (?P<limit>\d+) s\)"
    noticed(task, outcome, "train.step:delay=3600:5:1", pattern)


def one_of_two_terminated(task: Task, outcome: Outcome) -> None:
    """Send SIGTERM to one of two processes; both must save the same step and end."""
    run, chance, newest = Training(home(), "one-of-two", ENDLESS), task.random(), 0
    while task.more(outcome):
        ledger = inode(run.folder / "ledger.jsonl")
        with start_group(run) as launcher, outcome.check(f"start {outcome.count}"):
            wait(lambda ledger=ledger: steps_taken(run, ledger, read_group(launcher)) > 2, launcher)
            time.sleep(chance.uniform(0, 0.5))
            group, victim = read_group(launcher), chance.randrange(2)
            os.kill(group[victim], signal.SIGTERM)
            began = time.monotonic()
            code = launcher.wait(PATIENCE)
            outcome.measure("exit, s", time.monotonic() - began)
            step, last = run.latest(), run.ledger()[-1]["step"]
            assert code == 128 + signal.SIGTERM, f"exit code {code}"
            assert step == last and step is not None and step > newest, (step, last, newest)
            assert f"stopped and saved at step {step} of" in (run.home / f"{run.name}.out").read_text()
            newest = step
            outcome.parts[f"to process {victim}"] += 1
        outcome.count += 1


LARGE = (
    *("--model.width", "256", "--model.layers", "12", "--model.ffn", "1024", "--model.heads", "4", "--model.head", "64"),
    *("--steps", "100000", "--checkpoint.every", "1000", "--log.validate-every", "0"),
)
"""A GPT of 9.6 million parameters."""


def terminated(task: Task, outcome: Outcome) -> None:
    """Send SIGTERM to a run of 9.6 million parameters; it must save and end within 5 seconds."""
    run, chance = Training(home(), "terminated", LARGE), task.random()
    while task.more(outcome):
        with run.start(devices=1) as started, outcome.check("a run"):
            started.reach((run.latest() or 0) + chance.randint(3, 6))
            time.sleep(chance.uniform(0, 0.3))
            began = time.monotonic()
            started.stopped(signal.SIGTERM)
            seconds = time.monotonic() - began
            outcome.measure("exit, s", seconds)
            if seconds > 5:
                outcome.fail(f"{seconds:.1f} s, at most 5")
        outcome.add("runs")


def summary(values: list[float]) -> str:
    """Return the range and the median of measured values."""
    return f"{min(values):g} to {max(values):g}, median {statistics.median(values):g}"


def fewer_processes(task: Task, outcome: Outcome) -> None:
    """Kill the last process of a group of 2 or 4 at a step of each start, until one process ends the run."""
    flags, chance, number = ("--checkpoint.every", "2", "--log.validate-every", "4"), task.random(), 0
    unharmed = reference(*flags, devices=1)
    while task.more(outcome):
        run, processes = Training(home(), f"fewer-{number}", flags), (2, 4)[number % 2]
        number += 1
        faults = ",".join(f"train.step:kill:{chance.randint(1, 6)}:{last}" for last in (3, 1) if last < processes)
        numbers = {2: (2, 1), 4: (4, 2, 1)}[processes]
        with start_group(run, "--restart", "0:fewer", faults=faults, processes=processes) as launcher, outcome.check(faults):
            assert launcher.wait(PATIENCE) == 0, launcher.returncode
            lines = [line for line in (run.home / f"{run.name}.err").read_text().splitlines() if line.startswith("zoo: ")]
            for line, (before, after) in zip(lines, itertools.pairwise(numbers), strict=True):
                assert f"was killed by SIGKILL; a start in {after} instead of {before} processes continues" in line, line
            assert_close(run, unharmed)
        outcome.add(f"{processes} processes", len(numbers) - 1)
