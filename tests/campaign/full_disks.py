"""Writes that fail, a file system that is full, memory that is used up, two starts of one run, and exports that are killed."""

import contextlib
import functools
import itertools
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.campaign.row_types import CannotRun, Outcome, Task
from tests.support import checkpoint_kills, compilation, forked, limits
from tests.support.commands import snapshot
from tests.support.processes import Ended, clean_environment
from tests.support.runs import STEPS, Training, assert_same, home, reference

FLAGS = ("--checkpoint.every", "2", "--checkpoint.keep", "1", "--log.validate-every", "4")
ONE = {"devices": 1}
WRITES = (
    *("file.write", "file.rename", "file.fsync", "rows.write", "rows.fsync"),
    *checkpoint_kills.IN_SAVE,
    *checkpoint_kills.IN_DELETION,
)
CACHED = ("tokens.write", "tokens.header", "tokens.rename")
COMPILED = ("compiled.write", "compiled.rename")


def is_orderly(done: Ended) -> bool:
    """Return whether a command ended well, or with one line and 2; a fresh compilation cache may add a notice."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("zoo: cache folder ")]
    return done.code == 0 or (done.code == 2 and len(lines) == 1 and lines[0].startswith("zoo: "))


def finish(run: Training, unharmed: Training, outcome: Outcome) -> None:
    """Let a run end, and compare it."""
    with outcome.check(run.name):
        run.finish(**ONE)
        assert not run.left_over(), run.left_over()
        assert_same(run, unharmed)
        outcome.parts["runs compared"] += 1


def suffer(
    task: Task,
    outcome: Outcome,
    name: str,
    next_hook: Callable[[int, int], tuple[str, Callable[[], None]]],
    folder: Path,
    end: Callable[[], None] = lambda: None,
) -> None:
    """Start runs with a fault at each start, which must end in order; each ends with the bits of a run without faults.

    Args:
        name: beginning of the names of the runs.
        next_hook: returns, for the number of a start and the newest step, (kind of trial, `before` of `forked.start`).
        folder: home of the runs.
        end: called before the last start of a run, which has no fault.
    """
    unharmed, starts = reference(*FLAGS, **ONE), itertools.count()
    for number in itertools.count():
        run = Training(folder, f"{name}-{number}", FLAGS)
        while task.more(outcome) and (run.latest() or 0) < STEPS - 2:
            part, hook = next_hook(next(starts), run.latest() or 0)
            with run.start(limit=hook, **ONE) as started:
                done = started.ended()
            outcome.add(part)
            if not is_orderly(done):
                outcome.fail(f"{part}: {done}")
            if done.code == 0:
                break
        end()
        finish(run, unharmed, outcome)
        if not task.more(outcome):
            return


def failing_writes(task: Task, outcome: Outcome) -> None:
    """Let each write, rename and sync fail with ENOSPC or EIO: at one pass, or at all passes from one on."""
    chance = task.random()
    points = itertools.cycle([*WRITES, *CACHED, *COMPILED])

    def next_hook(start: int, latest: int) -> tuple[str, Callable[[], None]]:
        point = next(points)
        fault = f"{point}:{chance.choice(('ENOSPC', 'ENOSPC', 'EIO'))}:{chance.randint(1, 6)}{chance.choice(('', '+'))}"
        fresh = str(task.folder / str(start))
        compiled, cache = (fresh if point in points else "" for points in (COMPILED, CACHED))
        return point, functools.partial(forked.with_faults, fault, compiled, cache)

    suffer(task, outcome, "writes", next_hook, home())


@contextlib.contextmanager
def file_system(folder: Path, size: str) -> Iterator[Path]:
    """Mount an empty file system of a certain size.

    Raises:
        CannotRun: this user may not, or there is no tmpfs here.
    """
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        raise CannotRun(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def full_file_system(task: Task, outcome: Outcome) -> None:
    """Fill a real file system to a random level before a start, or after it, when its first step is about to be read."""
    chance = task.random()
    shutil.copy(home() / "text.txt", task.folder)
    # What the runs print is beside it, on another file system.
    with file_system(task.folder / "runs", "6m") as disk:

        def next_hook(start: int, latest: int) -> tuple[str, Callable[[], None]]:
            free = chance.choice((0, chance.randrange(200 << 10), chance.randrange(1 << 20)))
            (disk / limits.FILLER).unlink(missing_ok=True)
            if start % 3 == 2:
                limits.fill(disk, free)
                return "full before the start", functools.partial(forked.with_faults, "")
            return "full during the run", functools.partial(limits.fill_before, str(disk), free)

        suffer(task, outcome, "full", next_hook, task.folder, lambda: (disk / limits.FILLER).unlink(missing_ok=True))


def memory(task: Task, outcome: Outcome) -> None:
    """Let a process have no memory, or little, when a save begins."""
    chance = task.random()

    def next_hook(start: int, latest: int) -> tuple[str, Callable[[], None]]:
        spare = chance.choice((0, chance.randrange(40 << 20), chance.randrange(200 << 20)))
        step = latest + 2 * chance.randint(1, 2)
        return "limits at a save", functools.partial(limits.memory, step, spare)

    suffer(task, outcome, "memory", next_hook, home())


def two_starts(task: Task, outcome: Outcome) -> None:
    """Start two runs of one name and different seeds at the same time: one is refused, the other one ends."""
    while task.more(outcome):
        name = f"twice-{outcome.count}"
        runs = [Training(home(), name, ("--seed", str(seed), "--steps", "2")) for seed in (0, 1)]
        ended, processes = [], []
        for run in runs:
            out, err = (task.folder / f"{name}.{run.flags[1]}.{stream}" for stream in ("out", "err"))
            environment = clean_environment() | compilation.FLAGS
            processes.append((forked.start(run.argv(devices=1), run.home, out, err, environment), out, err))
        for process, out, err in processes:
            process.join()
            ended.append(Ended(process.exitcode, out.read_text(), err.read_text()))
        outcome.add("pairs")
        refused = [done for done in ended if done.code == 2]
        if sorted(done.code for done in ended) != [0, 2] or len(refused[0].stderr.splitlines()) != 1:
            outcome.fail(f"{ended}")


def killed_exports(task: Task, outcome: Outcome) -> None:
    """Kill an export at a write, a sync or the rename: its folder is absent or complete."""
    source, chance = reference(*FLAGS, **ONE), task.random()
    environment, reports = clean_environment() | compilation.FLAGS, task.folder

    def export(target: str, hook: Callable[[], None] | None = None) -> int | None:
        argv = ["export", str(source.folder), target, "--devices", "1"]
        process = forked.start(argv, task.folder, reports / "out", reports / "err", environment, hook)
        process.join()
        return process.exitcode

    assert export("whole") == 0, (reports / "err").read_text()
    complete = snapshot(task.folder / "whole")
    while task.more(outcome):
        point = chance.choice(("weights.write", "weights.rename", "file.fsync"))
        passes = chance.randint(1, len(complete) + 2) if point == "file.fsync" else 1
        target = task.folder / f"export-{outcome.count}"
        code = export(target.name, functools.partial(forked.with_faults, f"{point}:kill:{passes}"))
        outcome.add(point)
        if code != -signal.SIGKILL and not (code == 0 and point == "file.fsync"):
            outcome.fail(f"{point}:kill:{passes}: {code}, {(reports / 'err').read_text()}")
        if target.exists() and snapshot(target) != complete:
            outcome.fail(f"{point}:kill:{passes}: another folder")
        for rest in (target, *task.folder.glob(".export-*")):
            shutil.rmtree(rest, ignore_errors=True)
