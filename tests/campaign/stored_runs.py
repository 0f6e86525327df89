"""Runs in object stores: killed uploads and fetches, runs that move between machines, stores that fail, and damaged objects.

The store is a real object server if the group `store` is installed, otherwise a folder that fsspec reads and writes: then the row
says so.
"""

import atexit
import contextlib
import dataclasses
import functools
import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.campaign.damaged_files import WIDTH, change
from tests.campaign.row_types import Outcome, Task
from tests.support import object_server, object_stores
from tests.support.environment import SCRATCH
from tests.support.object_stores import Place
from tests.support.processes import ROOT, run_python
from tests.support.run_copies import NAME, fail, fetch
from tests.support.runs import STEPS, Training, assert_same, home, reference
from tests.support.states import META, Log, abstract, bits, make
from train.checkpoints.checkpoints import Checkpoints
from train.run.run_dir import RunDir
from train.store import run_fetch, run_layout
from train.store.run_uploads import RunUploads
from zoo import fault_points, object_store
from zoo.object_store import ObjectStore

FLAGS = ("--checkpoint.every", "2", "--checkpoint.keep", "1", "--log.validate-every", "4")
ONE = {"devices": 1}
KINDS = ("flip", "flip", "flip", "cut", "append", "delete", "zero", "swap")
NO_ANSWER = 1.0
"""Seconds without a byte after which an attempt has failed, in the rows that let a server be silent for longer."""


@dataclasses.dataclass(frozen=True)
class Site:
    """An object store of a row, and how other processes use it."""

    place: Place
    folder: Path
    """Folder in which the store of a place without a server is."""

    def variables(self) -> dict[str, str]:
        """Return the variables that other processes need."""
        return object_stores.environment(self.place.proxy) if self.place.proxy else {}


@contextlib.contextmanager
def site(task: Task, outcome: Outcome) -> Iterator[Site]:
    """Use an empty place on the object server, or in a folder, which the row then states."""
    with pytest.MonkeyPatch.context() as patch:
        folder, missing = task.folder / "store", object_server.missing_parts()
        if missing:
            outcome.notes.append(f"in a folder, without an object server; not installed: {missing}")
        yield Site(object_stores.in_folder(folder, patch) if missing else object_stores.on_server(_server(), patch), folder)


@functools.cache
def _server() -> object_server.Proxy:
    """Start the object server of all rows, which ends with this process."""
    folder = SCRATCH / "objects"
    folder.mkdir()
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    proxy = object_server.Proxy(stack.enter_context(object_server.object_server(folder)))
    stack.callback(proxy.close)
    return proxy


def killed_uploads(task: Task, outcome: Outcome) -> None:
    """Kill a process that uploads all the time and keeps one step, and move the run to another machine half of the time."""
    with site(task, outcome) as store:
        argv = (str(task.folder), store.place.uri, str(task.goal), str(task.seed), str(task.seconds()))
        module = ("-W", "ignore", "-m", "tests.support.upload_kills")
        done = run_python(*module, *argv, env=store.variables(), cwd=ROOT, timeout=task.seconds() + 600)
    if done.code:
        outcome.fail(done.stderr[-1500:])
        outcome.add("unknown")
        return
    for point, number in json.loads(done.stdout).items():
        outcome.add(point, number)


@dataclasses.dataclass(frozen=True)
class StoredTraining(Training):
    """A run whose --out is in an object store, on the machine whose cache is `cache`."""

    uri: str = ""
    cache: Path = Path()

    @property
    def folder(self) -> Path:
        """Return the working copy of this machine."""
        scheme, _, names = self.uri.partition(object_store.MARK)
        return self.cache / "runs" / scheme / names / self.name


def choose_fault(chance: random.Random, *, moves: bool, left: int) -> str:
    """Return the fault of a start with `left` steps to go, of which two make a checkpoint; a start that moves fetches the run."""
    points = {"train.step": max(1, left - 1), "store.commit": max(1, left // 2), "store.put": 25, "store.list": 4}
    points |= {"store.get": 8, "store.rename": 1} if moves else {"store.delete": 8}
    point = chance.choice(list(points))
    return f"{point}:kill:{chance.randint(1, points[point])}"


def move_run(task: Task, outcome: Outcome, store: Site, number: int, unharmed: Training) -> None:
    """Kill a run again and again, continue it on the same or on another machine, and compare it at its end."""
    chance, name, machines = task.random(number), f"moved-{number}", 0
    flags = (*FLAGS, "--out", store.place.uri)
    run = StoredTraining(home(), name, flags, uri=store.place.uri, cache=task.folder / name / "0")

    def uploaded() -> int:
        keys = store.place.store(name).list()
        return max(run_layout.committed_steps(keys, run_layout.CHECKPOINTS), default=0)

    def start(fault: str) -> int | None:
        hook = functools.partial(
            object_stores.enter_with_faults, store.variables(), store.place.uri, store.folder, run.cache, fault
        )
        with run.start(limit=hook, **ONE) as started:
            done = started.ended()
        if done.code not in (0, -signal.SIGKILL) or done.stderr:
            raise AssertionError(f"{name}, {fault}: {done}")
        return done.code

    while task.more(outcome):
        before, moves = uploaded(), machines == 0 or chance.random() < 0.6
        if moves:
            machines += 1
            shutil.rmtree(run.cache, ignore_errors=True)
            run = dataclasses.replace(run, cache=task.folder / name / str(machines))
        fault = choose_fault(chance, moves=moves and before > 0, left=STEPS - before)
        if start(fault) != -signal.SIGKILL:
            break
        outcome.add(f"{fault.partition(':')[0]}{', on another machine' if moves and before else ''}")
        if (after := uploaded()) < before:
            outcome.fail(f"{name}, {fault}: step {before} was uploaded, {after} is left")
    start("")
    # What is compared is what the store has.
    shutil.rmtree(run.cache, ignore_errors=True)
    run = dataclasses.replace(run, cache=task.folder / name / "last")
    assert start("") == 0
    assert_same(run, unharmed)
    outcome.parts["runs compared"] += 1


def moved_runs(task: Task, outcome: Outcome) -> None:
    """Move runs between machines, each of which has nothing but the store."""
    unharmed, number = reference(*FLAGS, **ONE), 0
    with site(task, outcome) as store:
        while task.more(outcome) and not outcome.failed:
            with outcome.check(f"moved-{number}"):
                move_run(task, outcome, store, number, unharmed)
            number += 1


def save(target: RunUploads, folder: RunDir, step: int, log: Log, width: int = 64) -> None:
    """Save a step in a working copy, as training does, and upload it."""
    with Checkpoints(folder.checkpoints, 9, notify=log, on_commit=target.commit) as checkpoints:
        checkpoints.save(make(step, width=width), META | {"step": step})
        assert checkpoints.wait()


Failure = Callable[[int, int], contextlib.AbstractContextManager[object]]
"""Function from a number of requests that pass, and of those after them that fail, to the context in which they do."""


def failures(store: Site, chance: random.Random) -> tuple[str, int, Failure]:
    """Return a kind of failure of uploads, the number of requests that every upload has before its last one, and the failure."""
    if (proxy := store.place.proxy) is None:
        point, error = chance.choice(("store.put", "store.list", "store.read")), chance.choice(("EIO", "ESTALE", "delay=0.05"))

        def fault(passing: int, times: int) -> contextlib.AbstractContextManager[object]:
            return fault_points.faults(",".join(f"{point}:{error}:{passing + number + 1}" for number in range(times)))

        return f"{point} {error.partition('=')[0]}", {"store.put": 5, "store.list": 1, "store.read": 0}[point], fault
    kind, method = chance.choice(("503", "half", "slow")), chance.choice(("PUT", "PUT", "GET"))

    @contextlib.contextmanager
    def requests(passing: int, times: int) -> Iterator[None]:
        passed = iter(range(passing))

        def matches(request: str, path: str) -> bool:
            return request == method and next(passed, None) is None

        proxy.fail(kind, matches, times=times, seconds=2 * NO_ANSWER if kind == "slow" else 0.0)
        yield
        proxy.faults.clear()

    return f"{method} {kind}", 5 if method == "PUT" else 1, requests


def failing_stores(task: Task, outcome: Outcome) -> None:
    """Let requests of an upload fail: in fewer attempts than there are, nothing happens; in all of them, one upload is late."""
    chance, attempts = task.random(), len(object_stores.WAITS) + 1
    with site(task, outcome) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(object_store, "TIMEOUT", NO_ANSWER)
        while task.more(outcome):
            name = f"failing-{outcome.count}"
            kind, before, failure = failures(store, chance)
            times, log, folder = chance.choice((1, attempts - 1, 30 * attempts)), Log(), RunDir(task.folder / name / NAME)
            passing = chance.randint(0, before) if times < attempts else 0
            is_late = times >= attempts and not kind.endswith("delay")
            place = dataclasses.replace(store.place, uri=f"{store.place.uri}-{name}")
            with outcome.check(f"{kind}, {times} times"):
                folder.path.mkdir(parents=True)
                folder.config.write_text("{}")
                with RunUploads(place.store(NAME), folder, 2, notify=log) as target:
                    save(target, folder, 1, log)
                    assert log == []
                    with failure(passing, times):
                        save(target, folder, 2, log)
                    assert len(log) == is_late and all("UPLOAD of step 2 FAILED" in line for line in log), log
                    newest = fetch(place, RunDir(task.folder / name / "other"), Log())
                    assert newest == (1 if is_late else 2), newest
                    save(target, folder, 3, log)
                    assert len(log) == is_late, log
                committed = run_layout.committed_steps(place.store(NAME).list(), run_layout.CHECKPOINTS)
                assert committed == [3, 2], committed
            outcome.add(f"{kind}, {'one upload is late' if is_late else 'no effect'}")
            shutil.rmtree(task.folder / name)


def damaged_objects(task: Task, outcome: Outcome) -> None:
    """Change an object of the newer of two steps: a fetch gives its bits, or reports it and gives those of the step before."""
    chance, states = task.random(), {step: bits(make(step, width=WIDTH)) for step in (1, 2)}
    template, scratch = abstract(make(0, width=WIDTH)), task.folder / "object"
    with site(task, outcome) as store_site:
        store, work = store_site.place.store(NAME), RunDir(task.folder / "work" / NAME)
        work.path.mkdir(parents=True)
        work.config.write_text("{}")
        with RunUploads(store, work, 9, notify=fail) as target:
            for step in states:
                save(target, work, step, Log(), WIDTH)
        intact = {key: store.read(key) for key in store.list(run_layout.step_prefix(run_layout.CHECKPOINTS, 2))}
        keys, sizes = sorted(intact), [len(intact[key]) for key in sorted(intact)]
        while task.more(outcome):
            key, kind = chance.choice((chance.choices(keys, sizes)[0], chance.choice(keys))), chance.choice(KINDS)
            content, at = change(intact[key], kind, chance, lambda: intact[chance.choice(keys)])
            put(store, key, content, scratch) if kind != "delete" else store.delete(key)
            other, log = RunDir(task.folder / "other" / NAME), Log()
            with outcome.check(f"{kind} {key} at {at}"):
                other.path.mkdir(parents=True)
                run_fetch._fetch(store, other, store.list(), log)
                result = Checkpoints(other.checkpoints, 9, notify=fail).restore(template)
                assert result is not None
                step = int(result[0].step)
                assert bits(result[0]) == states[step], "wrong bits"
                is_removed = kind == "delete" and key == run_layout.commit_key(run_layout.CHECKPOINTS, 2)
                assert step == 2 or is_removed or any("IS DAMAGED" in line for line in log), "no report"
                outcome.parts["no step any more" if is_removed else "noticed" if step == 1 else "harmless"] += 1
            outcome.count += 1
            put(store, key, intact[key], scratch)
            shutil.rmtree(task.folder / "other", ignore_errors=True)


def put(store: ObjectStore, key: str, content: bytes, scratch: Path) -> None:
    """Upload a content."""
    scratch.write_bytes(content)
    store.put(scratch, key)
