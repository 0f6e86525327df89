"""Real engines of the small experiment that are killed, and what must not depend on it.

`python -m tests.support.engine_kills FOLDER KILLS` kills engines and runs at random moments, and prints what it did.
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support import compilation
from tests.support.processes import ROOT, children, clean_environment
from tests.support.runs import gone

PROGRAM = (sys.executable, "-m", "tests.support.small_experiment")
NODES = ("tokenizer", *(f"{row}-{stage}-0" for row in ("a", "b", "none") for stage in ("pretrain", "score")))


def start_engine(folder: Path, workers: int, command: tuple[str, ...] = PROGRAM) -> subprocess.Popen[bytes]:
    """Start an engine on FOLDER/grid, whose output goes to FOLDER/printed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "printed").open("ab") as log:
        argv = [*command, str(folder / "grid"), str(workers)]
        environment = clean_environment() | compilation.FLAGS
        return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def processes_of(engine: subprocess.Popen[bytes]) -> list[int]:
    """Return the processes of the nodes that an engine runs."""
    with contextlib.suppress(FileNotFoundError):
        return children(engine.pid) if engine.poll() is None else []
    return []


def kill_engine(engine: subprocess.Popen[bytes]) -> None:
    """Kill an engine, whose nodes must end with it."""
    nodes = processes_of(engine)
    engine.send_signal(signal.SIGKILL)
    engine.wait(60)
    assert gone(nodes), "a node outlived its engine"


def kill_node(engine: subprocess.Popen[bytes], rng: random.Random) -> bool:
    """Kill a node of an engine, and return whether one was running."""
    nodes = processes_of(engine)
    if nodes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(nodes), signal.SIGKILL)
    return bool(nodes)


def results_of(folder: Path) -> dict[str, Any]:
    """Return what must not depend on interruptions: the scores and states of all cells, and the registration."""
    result = json.loads((folder / "grid/experiment.json").read_text())
    cells = [{key: cell[key] for key in ("row", "seed", "stage", "status", "scores", "fingerprints")} for cell in result["cells"]]
    return {"cells": cells, "hash": result["registration"]["hash"], "claims": result["claims"], "budget": result["budget"]}


def complete_runs(folder: Path) -> dict[str, int]:
    """Return how often each node ran to its end: how often its log has the last line of a training run or an evaluation.

    It is 0 if the process was killed after it had written the results, and before that line.
    """
    counts = {}
    for name in NODES:
        lines = (folder / f"grid/logs/{name}.log").read_text().splitlines()
        counts[name] = sum(line.startswith(("held-out ", "examples ")) for line in lines)
    return counts


@dataclasses.dataclass
class Campaign:
    """Random kills of two engines on one folder and of their nodes."""

    folder: Path
    rng: random.Random
    pauses: tuple[float, float] = (1.0, 30.0)
    """Seconds between two kills, at least and at most."""

    def run(self, kills: int) -> dict[str, int]:
        """Kill so many times in turn an engine, a node, and both; restart what is missing; and return the kills by kind."""
        engines = [start_engine(self.folder, 1) for _ in range(2)]
        counts = {"engine": 0, "node": 0, "both": 0}
        while sum(counts.values()) < kills:
            time.sleep(self.rng.uniform(*self.pauses))
            if all(engine.poll() == 0 for engine in engines):
                break
            number = self.rng.randrange(2)
            kind = list(counts)[sum(counts.values()) % 3]
            if kind != "engine" and not kill_node(engines[number], self.rng):
                number = 1 - number
                if not kill_node(engines[number], self.rng):
                    continue
            if kind != "node":
                kill_engine(engines[number])
            counts[kind] += 1
            engines = [engine if engine.poll() in (None, 0) else start_engine(self.folder, 1) for engine in engines]
            if engines[number].poll() == 0:
                engines[number] = start_engine(self.folder, 1)
        for number in range(2):
            while engines[number].wait(1800) != 0:
                engines[number] = start_engine(self.folder, 1)
        return counts


def run_campaigns(folder: Path, kills: int) -> None:
    """Kill engines and nodes so many times, in as many grids as that takes, and compare each with one that was not interrupted.

    Raises:
        AssertionError: results differ, or a node ran to its end twice.
    """
    began = time.monotonic()
    assert start_engine(folder / "complete", 1).wait(1800) == 0, (folder / "complete/printed").read_text()
    print(f"uninterrupted: {time.monotonic() - began:.0f} s, runs to the end: {complete_runs(folder / 'complete')}", flush=True)
    rng, done, number = random.Random(0), 0, 0
    while done < kills:
        number, killed = number + 1, folder / f"killed-{number}"
        counts = Campaign(killed, rng).run(kills - done)
        done += sum(counts.values())
        equal = results_of(killed) == results_of(folder / "complete")
        print(f"grid {number}, kills: {counts}, {time.monotonic() - began:.0f} s in all", flush=True)
        print(f"results equal: {equal}, runs to the end: {complete_runs(killed)}", flush=True)
        assert equal and max(complete_runs(killed).values()) == 1


if __name__ == "__main__":
    run_campaigns(Path(sys.argv[1]), int(sys.argv[2]))
