"""Runs that are killed again and again, at fault points and at random moments, and end with the bits of runs that are not."""

import concurrent.futures
import functools
import itertools
import json
import random
import signal
import threading

from tests.campaign.row_types import Outcome, Task
from tests.support import checkpoint_kills, forked
from tests.support.processes import ROOT, run_python
from tests.support.runs import STEPS, Training, assert_close, assert_same, home, reference

FLAGS = ("--checkpoint.every", "2", "--checkpoint.keep", "1", "--log.validate-every", "4")
RECIPES = ("gpt-nano", "bert-nano", "t5-nano", "xlnet-nano")
AT_START = ("train.start", "train.compile", "checkpoint.read", "file.rename", "tokens.read")
COMPILING = ("compiled.write", "compiled.rename")
TOKENIZING = ("tokens.write", "tokens.header", "tokens.rename")
IN_ROWS = ("rows.write", "rows.fsync", "train.validate", "train.save")
AT_END = ("train.score", "train.scored", "train.report")
ONE = {"devices": 1}
_compare = threading.Lock()
"""One thread at a time restores states in this process."""


def choose_fault(chance: random.Random, latest: int) -> tuple[str, int]:
    """Return a fault point and its pass for the next start of a run with `latest` steps; "" for a kill at a random moment."""
    if latest >= STEPS:
        return chance.choice(AT_END), 1
    left = STEPS - latest
    saving = (*checkpoint_kills.IN_SAVE, *(checkpoint_kills.IN_DELETION if latest or left > 4 else ()))
    places = {"": 1, "train.step": 2, "start": 1, "save": 5, "compile": 1, "tokenize": 0.5, "row": 1}
    place = chance.choices(list(places), list(places.values()))[0]
    match place:
        case "start":
            point = chance.choice(AT_START if latest else AT_START[:2])
            return point, 1
        case "save":
            return chance.choice(saving), 1 if left <= 4 or not latest else chance.randint(1, 2)
        case "compile":
            return chance.choice(COMPILING), chance.randint(1, 12)
        case "tokenize":
            return chance.choice(TOKENIZING), 1
        case "row":
            return chance.choice(IN_ROWS[:2] + IN_ROWS[3:] if left <= 4 else IN_ROWS), 1
    return place, chance.randint(1, left - 1)


def kill_run(task: Task, outcome: Outcome, number: int) -> None:
    """Kill a run until it ends by itself or the time does; then let it end, and compare it."""
    recipe, chance = RECIPES[number % len(RECIPES)], task.random(number)
    run = Training(home(), f"killed-{recipe}-{number}", FLAGS, recipe)
    unharmed = reference(*FLAGS, recipe=recipe, **ONE)
    folder = task.folder / str(number)
    starts = itertools.count()
    scored = False
    while task.more(outcome):
        latest = run.latest() or 0
        point, passes = choose_fault(chance, latest)
        if latest >= STEPS and (run.folder / "report.html").exists() and scored:
            break
        fresh = str(folder / str(next(starts)))
        hook = functools.partial(
            forked.with_faults,
            f"{point}:kill:{passes}" if point else "",
            fresh if point in COMPILING else "",
            fresh if point in TOKENIZING else "",
        )
        with run.start(limit=hook, **ONE) as started:
            if not point:
                started.process.join(chance.uniform(0.5, 6))
                started.process.kill()
            done = started.ended()
        if done.code == -signal.SIGKILL:
            outcome.add(point or "random moment")
        elif done.code != 0 or done.stderr:
            outcome.fail(f"{run.name}, {point}:kill:{passes}: {done}")
            return
        else:
            break
        scored = (run.folder / "scores.json").exists()
        after = run.latest() or 0
        if after < latest:
            outcome.fail(f"{run.name}, {point}:kill:{passes}: step {latest} was committed, {after} is left")
            return
        if scored and point in AT_END[1:]:
            break
    with outcome.check(run.name), _compare:
        done = run.finish(**ONE)
        assert not run.left_over(), run.left_over()
        assert (run.folder / "report.html").exists(), done
        assert_same(run, unharmed)
        outcome.parts[f"runs of {recipe} compared"] += 1


def killed_runs(task: Task, outcome: Outcome) -> None:
    """Kill runs of four families, of which each is compared with a run that nothing happened to."""
    for recipe in RECIPES:
        reference(*FLAGS, recipe=recipe, **ONE)
    numbers = itertools.count()

    def work() -> None:
        while task.more(outcome):
            kill_run(task, outcome, next(numbers))

    with concurrent.futures.ThreadPoolExecutor(task.jobs) as pool:
        for future in [pool.submit(work) for _ in range(task.jobs)]:
            future.result()


def killed_saves(task: Task, outcome: Outcome) -> None:
    """Kill a process that saves all the time and keeps one step, at each point of a save and of a deletion."""
    argv = ("-m", "tests.support.checkpoint_kills", str(task.folder / "run"), str(task.goal), str(task.seed), str(task.seconds()))
    done = run_python("-W", "ignore", *argv, cwd=ROOT, timeout=task.seconds() + 600)
    if done.code:
        outcome.fail(done.stderr[-1500:])
        outcome.add("unknown")
        return
    counts = json.loads(done.stdout)
    for place, number in counts["kills"].items():
        outcome.add(place, number)
    kills = counts["kills"]
    inside = {
        "inside a save": sum(kills.get(name, 0) for name in checkpoint_kills.IN_SAVE),
        "inside a deletion": sum(kills.get(name, 0) for name in checkpoint_kills.IN_DELETION),
    }
    outcome.notes += [f"{number} {place}" for place, number in inside.items()]
    outcome.notes.append(f"{counts['leftovers']} left a temporary folder")


def other_devices(task: Task, outcome: Outcome) -> None:
    """Kill a run at a step, and continue it on another number of devices each time."""
    chance, number = task.random(), 0
    flags = (*FLAGS, "--log.ledger")
    while task.more(outcome):
        recipe = ("gpt-nano", "xlnet-nano")[number % 2]
        unharmed, run = reference(*flags, recipe=recipe, **ONE), Training(home(), f"elastic-{recipe}-{number}", flags, recipe)
        number += 1
        while (left := STEPS - (run.latest() or 0)) > 2 and task.more(outcome):
            devices = chance.choice((1, 2, 4, 8))
            fault = functools.partial(forked.with_faults, f"train.step:kill:{chance.randint(3, max(3, left - 1))}")
            with run.start(limit=fault, devices=devices) as started:
                done = started.ended()
            if done.code != -signal.SIGKILL:
                break
            outcome.add(f"{recipe} on {devices} devices")
        with outcome.check(run.name):
            run.finish(devices=chance.choice((1, 2, 4, 8)))
            assert_close(run, unharmed)


def interrupted_twice(task: Task, outcome: Outcome) -> None:
    """Interrupt a run until it ends, which the second signal must do at once; the run must then continue."""
    run, chance, index = Training(home(), "interrupted", ("--steps", "100000", *FLAGS)), task.random(), 0
    while task.more(outcome):
        with run.start(**ONE) as started:
            started.reach((run.latest() or 0) + chance.randint(1, 5))
            done = started.interrupted()
        outcome.add("runs")
        if done.code != 128 + signal.SIGINT or done.stderr:
            outcome.fail(f"start {index}: {done}")
        index += 1
        with outcome.check("the newest checkpoint"), _compare:
            if (latest := run.latest()) is not None:
                run.state(latest)
