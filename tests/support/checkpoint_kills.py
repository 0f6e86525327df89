"""A process that saves all the time and is killed: `python -m tests.support.checkpoint_kills FOLDER KILLS SEED SECONDS`.

Each child is forked after the imports and before JAX starts, which takes a second. It checks the bits that the killed one left,
and says the step that it begins at and each one that it saves. Two of three kills are at a fault point of the save or of the
deletion of the step before, of which one is kept; the others are at a random moment.
"""

import collections
import functools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import IO, NoReturn

from tests.support.states import abstract, bits, make
from train.checkpoints.checkpoints import Checkpoints
from zoo import fault_points
from zoo.runtime import jax_setup

IN_SAVE = [
    *("checkpoint.mkdir", "checkpoint.arrays", "checkpoint.written", "checkpoint.merge"),
    *("checkpoint.manifest", "checkpoint.rename", "checkpoint.committed"),
]
IN_DELETION = ["checkpoint.delete", "checkpoint.deleting"]
WIDTH = 2048


def fail(message: str) -> NoReturn:
    raise AssertionError(message)


def train(folder: str, write: int) -> None:
    """Save until this process is killed, beginning with the newest step."""
    with Checkpoints(folder, 1, notify=fail) as checkpoints:
        result = checkpoints.restore(abstract(make(0, width=WIDTH)))
        step = 0 if result is None else int(result[0].step)
        assert result is None or bits(result[0]) == bits(make(step, width=WIDTH)), f"step {step} came back changed"
        os.write(write, f"{step}\n".encode())
        while True:
            step += 1
            checkpoints.save(make(step, width=WIDTH), {"step": step})
            os.write(write, f"{step}\n".encode())
            if step % 3 == 0:
                checkpoints.wait()


def fork(work: Callable[[int], object], fault: str) -> tuple[int, IO[str]]:
    """Start a process with a fault, and return its id and what it writes to the descriptor that `work` gets.

    An error of it is a line that is no number.
    """
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            fault_points.set_faults(fault)
            work(write)
        except BaseException as error:
            os.write(write, f"failed {type(error).__name__} {error}\n".encode())
        os._exit(1)
    os.close(write)
    return pid, os.fdopen(read)


def check_killed(pid: int) -> None:
    """Wait until a process that `fork` has started ends, which a kill must be the reason of."""
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, status


def kill_once(folder: str, chance: random.Random, fault: str) -> tuple[int, int]:
    """Start a process, let it be killed, and return (step it began at, newest step that it left)."""
    pid, stream = fork(functools.partial(train, folder), fault)
    with stream:
        steps = map(int, stream)
        begun = next(steps)
        if not fault:
            for _ in range(1 + chance.randrange(4)):
                next(steps)
            time.sleep(chance.random() * 0.12)
            os.kill(pid, signal.SIGKILL)
        list(steps)
    check_killed(pid)
    return begun, Checkpoints(folder, 1, notify=fail).latest() or 0


def main(folder: str, kills: int, seed: int, seconds: float) -> dict[str, object]:
    """Kill for at most `seconds`, and return the counts by place."""
    jax_setup.prepare_jax(devices=8)
    chance, deadline = random.Random(seed), time.monotonic() + seconds
    counts: collections.Counter[str] = collections.Counter()
    newest = leftovers = 0
    while sum(counts.values()) < kills and (not counts or time.monotonic() < deadline):
        place = chance.choice(["random", *IN_SAVE, *IN_DELETION] if newest else ["random", *IN_SAVE])
        begun, left = kill_once(folder, chance, "" if place == "random" else f"{place}:kill:{chance.randint(1, 3)}")
        assert begun == newest, f"step {newest} was committed, {begun} came back"
        assert left >= newest, f"step {newest} was committed, {left} is left"
        newest = left
        counts[place] += 1
        leftovers += any(name.endswith(".tmp") for name in os.listdir(folder))
    return {"committed": newest, "leftovers": leftovers, "kills": counts}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
