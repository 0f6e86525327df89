"""The engine: what runs, what is skipped, what waits, and what a kill leaves."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from eval.experiments import collect_results, grid_runner, node_status
from eval.experiments.preregistration import register_grid
from eval.experiments.run_progress import RunProgress
from eval.experiments.workers import local_workers, node_process
from tests.support import compilation
from tests.support.processes import ROOT, clean_environment, run_python
from tests.support.runs import alive, gone
from tests.support.small_experiment import STAND_IN, order, small_grid, with_row
from train.run import metrics_file
from train.run.run_dir import RunDir, write_json
from zoo.errors import BadInput

COMMAND = (sys.executable, "-m", "zoo.cli", "experiment", "masks", "grid", "--tier", "smoke")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_process, "PROGRAM", (sys.executable, "-c", STAND_IN))
    monkeypatch.setattr(grid_runner, "POLL", 0.01)
    monkeypatch.setattr(grid_runner, "PATIENCE", 0.05)


def run(grid: Any, folder: Path, workers: int = 1) -> list[str]:
    return grid_runner.run_missing(grid, folder, local_workers.LocalWorkers(folder, workers))


@pytest.mark.usefixtures("stand_in")
def test_a_failed_node_stops_its_descendants_only_and_is_tried_again(tmp_path: Path) -> None:
    grid = small_grid()
    (tmp_path / "fail-a-pretrain-0").write_text("3 steps in a row had a non-finite loss or gradient")
    (line,) = run(grid, tmp_path)
    assert line.startswith("a-pretrain-0 failed: exit code 1: 3 steps in a row had a non-finite loss")
    assert [words.split()[0] for words in order(tmp_path)] == ["train", "train", "train", "eval", "train", "eval"]
    cells = {(c["row"], c["stage"]): c["status"] for c in results_of(grid, tmp_path)}
    assert cells["a", "pretrain"] == "diverged" and cells["a", "score"] == "missing" and cells["b", "score"] == "done"
    (tmp_path / "fail-a-pretrain-0").unlink()
    assert run(grid, tmp_path) == [] and len(order(tmp_path)) == 8
    # Everything is done: nothing runs.
    assert run(grid, tmp_path) == [] and len(order(tmp_path)) == 8


@pytest.mark.usefixtures("stand_in")
def test_a_failure_that_a_run_recorded_counts_whatever_started_it(tmp_path: Path) -> None:
    grid = small_grid()
    for name, reason in (("a", "3 steps in a row had a non-finite loss"), ("b", "RuntimeError: out of memory")):
        folder = RunDir(tmp_path / f"runs/{name}-pretrain-0")
        folder.path.mkdir(parents=True)
        folder.failure.write_text(json.dumps({"reason": reason, "at": 0.0}))
    statuses = {cell["run"]: cell["status"] for cell in results_of(grid, tmp_path) if cell["stage"] == "pretrain"}
    assert statuses == {"runs/a-pretrain-0": "diverged", "runs/b-pretrain-0": "failed", "runs/none-pretrain-0": "missing"}
    # A later attempt that succeeds supersedes it.
    assert run(grid, tmp_path) == []
    assert {cell["status"] for cell in results_of(grid, tmp_path)} == {"done"}


@pytest.mark.usefixtures("stand_in")
def test_nodes_run_in_the_order_of_the_grid_and_only_if_their_results_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, begun = small_grid(), list[str]()
    monkeypatch.setattr(RunProgress, "started", lambda _, node: begun.append(node.name))
    assert run(grid, tmp_path) == [] and begun == [node.name for node in grid.nodes]
    shutil.rmtree(tmp_path / "runs/b-pretrain-0")
    assert run(grid, tmp_path) == [] and begun[7:] == ["b-pretrain-0", "b-score-0"]


@pytest.mark.usefixtures("stand_in")
def test_an_error_of_the_engine_is_not_the_failure_of_a_node(tmp_path: Path) -> None:
    (tmp_path / "logs/tokenizer.log").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        run(small_grid(), tmp_path)
    assert not (tmp_path / "order.txt").exists() and not (tmp_path / "logs/tokenizer.failed").exists()


def results_of(grid: Any, folder: Path) -> list[dict[str, Any]]:
    nodes = [(row.name, node) for row in grid.experiment.rows for node in grid.chain(row.name, 0)]
    return [collect_results.read_cell(node, row, folder) for row, node in nodes]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("node", "file"), [("a-pretrain-0", "run.lock"), ("a-score-0", "a-score-0.lock")])
def test_the_engine_goes_on_with_other_nodes_while_somebody_else_runs_one(
    node: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs/a-pretrain-0"
    folder.mkdir(parents=True)
    lock = FileLock(folder / file, thread_local=False)
    lock.acquire()
    (folder / file).write_text("process 1 on here\n")
    waited: list[str] = []
    monkeypatch.setattr(RunProgress, "waiting", lambda _, node, reason: waited.append(f"{node.name}: {reason}"))
    ended, update = list[str](), RunProgress.ended

    def end(progress: RunProgress, finished: Any, done: bool, message: str) -> None:
        update(progress, finished, done, message)
        ended.append(finished.name)
        if finished.name == "none-score-0":
            lock.release()

    monkeypatch.setattr(RunProgress, "ended", end)
    assert run(small_grid(), tmp_path) == []
    reason = f"{folder} is in use by process 1 on here" if file == "run.lock" else f"{node} is run by process 1 on here"
    assert set(waited) == {f"{node}: {reason}"} and len(order(tmp_path)) == 7
    assert ended.index(node) > ended.index("none-score-0")


@pytest.mark.usefixtures("stand_in")
def test_a_failure_of_another_engine_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But one from before this engine began is."""
    grid = small_grid()
    node = next(node for node in grid.nodes if node.name == "a-pretrain-0")
    (tmp_path / "logs").mkdir()
    node_status.note_failure(node, tmp_path, "an earlier failure")
    claim = node_process.claim_node(node, tmp_path)

    def fail_elsewhere(progress: RunProgress, waiting: Any, reason: str) -> None:
        assert (waiting.name, reason) == (node.name, f"{node.name} is run by process {os.getpid()} on {socket.gethostname()}")
        node_status.note_failure(node, tmp_path, "3 steps in a row had a non-finite loss")
        os.close(claim)

    monkeypatch.setattr(RunProgress, "waiting", fail_elsewhere)
    assert run(grid, tmp_path)[0].startswith("a-pretrain-0 failed: 3 steps in a row")
    assert len(order(tmp_path)) == 5 and not any("a-pretrain-0" in line for line in order(tmp_path))


@pytest.mark.usefixtures("stand_in")
def test_an_attempt_that_fails_early_reports_its_own_reason(tmp_path: Path) -> None:
    grid = small_grid()
    node = next(node for node in grid.nodes if node.name == "a-pretrain-0")
    failure = RunDir(tmp_path / node.run).failure
    failure.parent.mkdir(parents=True)
    write_json(failure, {"reason": "3 steps in a row had a non-finite loss", "at": 0.0})
    assert "non-finite" in node_status.node_failure(node, tmp_path)
    earlier = node_status.failed_attempt(node, tmp_path)
    (tmp_path / "fail-a-pretrain-0").write_text("the disk is full")
    (line,) = run(grid, tmp_path)
    assert line.startswith("a-pretrain-0 failed: exit code 1: the disk is full") and not failure.exists()
    assert node_status.node_failure(node, tmp_path) == "exit code 1: the disk is full"
    assert node_status.failed_attempt(node, tmp_path) not in (None, earlier)


@pytest.mark.usefixtures("stand_in")
def test_a_second_engine_waits_for_the_first(tmp_path: Path) -> None:
    notices: list[str] = []
    inside = threading.Event()

    def second() -> None:
        with grid_runner.lock_folder(tmp_path, notices.append):
            inside.set()

    with grid_runner.lock_folder(tmp_path, notices.append):
        thread = threading.Thread(target=second)
        thread.start()
        while not notices:
            time.sleep(0.01)
        assert not inside.is_set() and "is in use by process" in notices[0]
    thread.join(60)
    assert inside.is_set()


@pytest.mark.planted
def test_a_run_of_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    (other,) = [n.config for n in small_grid(**with_row("b", **{"optim.lr": 1.0})).nodes if n.name == "b-pretrain-0"]
    folder = RunDir(tmp_path / "runs/b-pretrain-0")
    folder.path.mkdir(parents=True)
    folder.write_config(other)
    folder.scores.write_text("{}")
    with pytest.raises(BadInput, match=r"b-pretrain-0 holds another run: optim.lr: 1.0 before, 0.002 now"):
        node_status.check_runs(small_grid(), tmp_path)


CHILD = """
import os, sys, time
sys.platform = sys.argv[1]
from eval.experiments.workers import die_with_parent
die_with_parent.POLL = 0.01
die_with_parent.die_with_parent(os.getppid())
print(os.getpid(), flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdout=subprocess.PIPE, text=True, process_group=0)
print(child.stdout.readline().strip(), flush=True)
"""


@pytest.mark.parametrize("platform", ["linux", "another system"])
def test_a_process_ends_with_its_parent(platform: str) -> None:
    started = int(run_python("-c", PARENT, CHILD, platform, cwd=ROOT).stdout)
    assert gone([started])


# --- real runs, in processes that are killed ------------------------------------------------------------------------------------


def start(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "printed").open("ab") as log:
        return subprocess.Popen(
            COMMAND, cwd=folder, env=clean_environment() | compilation.FLAGS, stdout=log, stderr=subprocess.STDOUT
        )


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def outcome(folder: Path) -> dict[str, Any]:
    """Return what must not depend on interruptions: the scores and states of all cells, and the registration."""
    result = json.loads((folder / "grid/experiment.json").read_text())
    cells = [{key: cell[key] for key in ("row", "seed", "stage", "status", "scores", "fingerprints")} for cell in result["cells"]]
    return {"cells": cells, "hash": result["registration"]["hash"], "claims": result["claims"], "budget": result["budget"]}


def run_to_the_end(folder: Path) -> None:
    assert start(folder).wait(900) == 0, (folder / "printed").read_text()


def kill(process: subprocess.Popen[bytes], pause: float | None = None) -> None:
    """Kill an engine, whose run must end with it.

    Args:
        pause: kill the run first; it fails, and the engine goes on with the next one for so many seconds.
    """
    started = children(process.pid) if process.poll() is None else []
    if pause is not None and started:
        subprocess.run(["kill", "-9", str(started[0])], check=False)
        time.sleep(pause)
        started += children(process.pid) if process.poll() is None else []
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert gone(started), "a run outlived its engine"


@pytest.mark.slow
def test_a_signal_and_kills_of_the_engine_and_of_a_run_change_nothing(tmp_path: Path) -> None:
    """Two runs of a complete grid are repeated. The first one is stopped by SIGTERM to the engine, continued and killed; then the
    engine is killed during the second one."""
    complete, killed = tmp_path / "complete", tmp_path / "killed"
    complete.mkdir()
    run_to_the_end(complete)
    assert (complete / "grid/experiment.html").exists() and (complete / "grid/experiment.md").exists()
    shutil.copytree(complete, killed)
    names = ("dynamic-pretrain-0", "fresh-pretrain-0")
    for name in names:
        shutil.rmtree(killed / "grid/runs" / name)
        (killed / "grid/logs" / f"{name}.log").unlink()
    for file in ("experiment.json", "experiment.html", "experiment.md"):
        (killed / "grid" / file).unlink()

    def wait_for_a_start(name: str) -> None:
        path = killed / "grid/runs" / name / "starts.jsonl"
        before = len(metrics_file.read_rows(path)) if path.exists() else 0
        while process.poll() is None and not (path.exists() and len(metrics_file.read_rows(path)) > before):
            time.sleep(0.05)
        assert process.poll() is None, (killed / "printed").read_text()

    process = start(killed)
    wait_for_a_start(names[0])
    started = children(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 143 and "the same command continues" in (killed / "printed").read_text()
    assert not any(map(alive, started))
    process = start(killed)
    wait_for_a_start(names[0])
    subprocess.run(["kill", "-9", str(children(process.pid)[0])], check=True)
    wait_for_a_start(names[1])
    kill(process)
    run_to_the_end(killed)
    assert outcome(killed) == outcome(complete)


@pytest.mark.slow
def test_kills_at_random_moments_of_a_whole_grid_change_nothing(tmp_path: Path) -> None:
    complete, killed = tmp_path / "complete", tmp_path / "killed"
    for folder in (complete, killed):
        folder.mkdir()
    run_to_the_end(complete)
    rng = random.Random(0)
    for attempt in range(10):
        process = start(killed)
        deadline = time.monotonic() + rng.uniform(3, 12)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        kill(process, rng.uniform(0.5, 4) if attempt % 2 else None)
    run_to_the_end(killed)
    assert outcome(killed) == outcome(complete)


@pytest.mark.full
def test_the_page_is_rendered_from_a_part_of_the_grid(tmp_path: Path) -> None:
    grid = small_grid()
    registered = register_grid(grid, tmp_path)
    result = collect_results.write_results(grid, registered, tmp_path)
    assert {cell["status"] for cell in result["cells"]} == {"missing"}
    assert [claim["verdict"] for claim in result["claims"]] == ["not testable"]
    first = (tmp_path / collect_results.HTML).read_bytes()
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    collect_results.write_results(grid, registered, tmp_path)
    assert (tmp_path / collect_results.HTML).read_bytes() == first
