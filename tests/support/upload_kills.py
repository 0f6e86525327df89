"""A process that uploads steps and is killed: `python -m tests.support.upload_kills FOLDER URI KILLS SEED SECONDS`.

Each child is forked as by `tests.support.checkpoint_kills`. It fetches the run on the machine of the killed one, or on one on
which nothing is, checks the bits, and writes the step that it begins at and each one that is uploaded. The kills are at the fault
points of uploads and fetches: between two objects, between the last one and COMMIT.json, and while the step before is deleted.
"""

import collections
import functools
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.support import object_stores
from tests.support.checkpoint_kills import WIDTH, check_killed, fail, fork
from tests.support.states import abstract, bits, make
from train.checkpoints.checkpoints import Checkpoints
from train.run.run_dir import RunDir
from train.store import run_fetch
from train.store.run_uploads import RunUploads
from zoo.object_store import ObjectStore
from zoo.runtime import jax_setup

IN_UPLOAD = ("store.put", "store.list", "store.read", "store.commit", "store.delete")
IN_FETCH = ("store.list", "store.get", "store.rename")
PASSES = {"store.put": 30, "store.get": 6, "store.delete": 12, "store.list": 4, "store.read": 2}
"""Largest pass of a point at which a process is killed."""
LAST = 20
"""Steps after which a process that was not killed kills itself."""


def train(folder: Path, uri: str, write: int) -> None:
    """Save and upload until this process is killed, beginning with the newest step of the store or of the folder."""
    work, store = RunDir(folder), ObjectStore(uri)
    work.path.mkdir(parents=True, exist_ok=True)
    run_fetch._fetch(store, work, store.list(), fail)
    work.config.write_text("{}")
    with (
        RunUploads(store, work, 1, notify=fail) as uploads,
        Checkpoints(work.checkpoints, 1, notify=fail, on_commit=uploads.commit) as checkpoints,
    ):
        result = checkpoints.restore(abstract(make(0, width=WIDTH)))
        first = 0 if result is None else int(result[0].step)
        assert result is None or bits(result[0]) == bits(make(first, width=WIDTH)), f"step {first} came back changed"
        os.write(write, f"{first}\n".encode())
        for step in range(first + 1, first + 1 + LAST):
            checkpoints.save(make(step, width=WIDTH), {"step": step})
            assert checkpoints.wait()
            os.write(write, f"{step}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, uri: str, kills: int, seed: int, seconds: float) -> dict[str, int]:
    """Kill for at most `seconds`, and return the number of kills by place."""
    jax_setup.prepare_jax(devices=8)
    object_stores.enter(uri, folder / "store")
    chance, deadline = random.Random(seed), time.monotonic() + seconds
    counts: collections.Counter[str] = collections.Counter()
    machines, uploaded = itertools.count(), 0
    machine = folder / str(next(machines))
    while sum(counts.values()) < kills and (not counts or time.monotonic() < deadline):
        moves = uploaded > 0 and chance.random() < 0.5
        if moves:
            shutil.rmtree(machine)
            machine = folder / str(next(machines))
        place = chance.choice(IN_FETCH if moves and chance.random() < 0.5 else IN_UPLOAD)
        fault = f"{place}:kill:{chance.randint(1, PASSES.get(place, 1))}"
        pid, stream = fork(functools.partial(train, machine / "gpt", f"{uri}/gpt"), fault)
        with stream:
            steps = [*map(int, stream)]
        check_killed(pid)
        assert not steps or steps[0] >= uploaded, f"{fault}: step {uploaded} was uploaded, {steps[0]} came back"
        uploaded = max([uploaded, *steps[1:]])
        counts[f"{place}, on another machine" if moves else place] += 1
    return dict(counts)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))))
