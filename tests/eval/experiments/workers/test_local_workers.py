"""Several workers on one machine, several engines on one folder, and kills of them."""

import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from eval.experiments import grid_runner, node_status
from eval.experiments.run_progress import RunProgress
from eval.experiments.workers import local_workers, node_process
from tests.support import engine_kills
from tests.support.processes import ROOT, clean_environment, run_python
from tests.support.small_experiment import STAND_IN, order, small_grid
from train.run.run_dir import RunDir
from zoo.errors import BadInput


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_process, "PROGRAM", (sys.executable, "-c", STAND_IN))
    monkeypatch.setattr(grid_runner, "POLL", 0.01)
    monkeypatch.setattr(grid_runner, "PATIENCE", 0.05)


def run(folder: Path, workers: int = 1) -> list[str]:
    return grid_runner.run_missing(small_grid(), folder, local_workers.LocalWorkers(folder, workers))


@pytest.mark.usefixtures("stand_in")
def test_two_workers_run_two_nodes_at_a_time_on_cores_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = STAND_IN.replace("argv =", 'open("cores.txt", "a").write(sys.argv[2] + "\\n")\nargv =', 1)
    monkeypatch.setattr(node_process, "PROGRAM", (sys.executable, "-c", program))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 2, 3, 7})
    at_once, ended = [0], RunProgress.ended

    def end(progress: RunProgress, node: Any, done: bool, message: str) -> None:
        at_once.append(at_once[-1] - 1)
        ended(progress, node, done, message)

    monkeypatch.setattr(RunProgress, "started", lambda progress, node: at_once.append(at_once[-1] + 1))
    monkeypatch.setattr(RunProgress, "ended", end)
    assert run(tmp_path, 2) == [] and max(at_once) == 2 and len(order(tmp_path)) == 7
    assert set((tmp_path / "cores.txt").read_text().split()) == {"1,2", "3,7"}


def test_cores_are_divided_and_more_workers_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5, 0, 2, 3, 9})
    assert local_workers.divide_cores(2) == [(0, 2), (3, 5, 9)]
    assert local_workers.divide_cores(5) == [(0,), (2,), (3,), (5,), (9,)]
    with pytest.raises(BadInput, match="workers 6: this process may use 5 cores; choose at most as many"):
        local_workers.divide_cores(6)


def test_a_process_has_the_cores_of_its_worker(tmp_path: Path) -> None:
    (core, *_) = sorted(os.sched_getaffinity(0))
    code = "import os, runpy, sys; sys.argv = ['', str(os.getppid()), sys.argv[1], '--version']\n"
    code += "try: runpy.run_module('eval.experiments.workers.die_with_parent', run_name='__main__')\n"
    code += "finally: print(sorted(os.sched_getaffinity(0)))"
    assert run_python("-c", code, str(core), cwd=ROOT).stdout.splitlines()[-1] == str([core])
    assert run_python("-c", code, "all", cwd=ROOT).stdout.splitlines()[-1] == str(sorted(os.sched_getaffinity(0)))


def test_gpus_are_divided_or_the_workers_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_workers, "ACCELERATORS", ("json",))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert local_workers.divide_gpus(2) == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert local_workers.divide_gpus(1) == [{}]
    with pytest.raises(BadInput, match="workers 3: this machine has 2 GPUs, and a worker needs one; choose at most as many"):
        local_workers.divide_gpus(3)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert local_workers.divide_gpus(3) == [{}, {}, {}]


ENGINE = """
import sys
from pathlib import Path
from eval.experiments import grid_runner
from eval.experiments.workers import local_workers, node_process
from tests.support.small_experiment import STAND_IN, small_grid
node_process.PROGRAM = (sys.executable, "-c", STAND_IN)
grid_runner.POLL, grid_runner.PATIENCE = 0.01, 0.05
sys.exit(len(grid_runner.run_missing(small_grid(), Path("."), local_workers.LocalWorkers(Path(".")))))
"""


def test_two_engines_on_one_folder_share_the_nodes(tmp_path: Path) -> None:
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    engines = [subprocess.Popen([sys.executable, "-c", ENGINE], cwd=tmp_path, env=environment) for _ in range(2)]
    assert [engine.wait(300) for engine in engines] == [0, 0] and len(order(tmp_path)) == 7


@pytest.mark.usefixtures("stand_in")
def test_a_killed_node_is_started_again_and_a_failed_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = "import signal\nif 'b-pretrain-0' in argv:\n    with open('kills', 'a') as f: f.write('x')\n"
    kill += "    if len(open('kills').read()) < int(open('limit').read()): os.kill(os.getpid(), signal.SIGKILL)\n"
    program = STAND_IN.replace('with open("order.txt"', f'{kill}with open("order.txt"', 1)
    monkeypatch.setattr(node_process, "PROGRAM", (sys.executable, "-c", program))
    (tmp_path / "limit").write_text("100")
    (line,) = run(tmp_path)
    assert line.startswith("b-pretrain-0 failed: exit code 137: ") and len((tmp_path / "kills").read_text()) == 4
    (tmp_path / "limit").write_text("7")
    assert run(tmp_path) == [] and len((tmp_path / "kills").read_text()) == 7


def test_a_node_stays_claimed_until_its_process_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the engine was killed: the process has the lock."""
    monkeypatch.setattr(node_process, "PROGRAM", (sys.executable, "-c", "import time; time.sleep(600)"))
    node = small_grid().nodes[0]
    (tmp_path / "logs").mkdir()
    process = node_process.NodeProcess(node, tmp_path)
    os.close(process._claim)
    with pytest.raises(node_process.ClaimedElsewhere, match=f"tokenizer is run by process {os.getpid()} on"):
        node_process.claim_node(node, tmp_path)
    process.kill()
    os.close(node_process.claim_node(node, tmp_path))


def test_a_node_that_was_just_finished_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = small_grid().nodes[0]
    monkeypatch.setattr(node_status, "is_done", lambda node, folder: True)
    with pytest.raises(node_process.ClaimedElsewhere, match="tokenizer was finished by another process"):
        node_process.NodeProcess(node, tmp_path)
    os.close(node_process.claim_node(node, tmp_path))


def test_the_time_left_of_a_run_of_one_step_is_not_that_of_a_complete_run(tmp_path: Path) -> None:
    grid = small_grid(rows=(*small_grid().experiment.rows[:2], control()))
    nodes = {node.name: node for node in grid.nodes}
    for name, seconds in (("tokenizer", 20.0), ("a-pretrain-0", 420.0)):
        files = RunDir(tmp_path / nodes[name].run)
        (files.checkpoints / "00000004").mkdir(parents=True)
        (files.checkpoints / "00000004/COMMIT.json").write_text("{}")
        files.report.write_text("")
        now = time.time()
        files.starts.write_text(json.dumps({"step": 0, "at": now - seconds, "facts": {}, "versions": {}}) + "\n")
        files.scores.write_text("{}")
        os.utime(files.scores, (now, now))
    progress = RunProgress(grid, tmp_path, workers=2)
    assert progress.node_seconds(nodes["none-pretrain-0"]) == pytest.approx(20, abs=1)
    assert progress.node_seconds(nodes["b-pretrain-0"]) == pytest.approx(420, abs=1)
    evaluations = 3 * 12
    assert progress.seconds_left() == pytest.approx((20 + 420 + evaluations) / 2, abs=2)


def control() -> Any:
    return dataclasses.replace(small_grid().experiment.rows[2], overrides={"steps": 1})


@pytest.mark.slow
def test_kills_of_engines_and_nodes_change_nothing(tmp_path: Path) -> None:
    complete, killed = tmp_path / "complete", tmp_path / "killed"
    assert engine_kills.start_engine(complete, 1).wait(900) == 0, (complete / "printed").read_text()
    assert set(engine_kills.complete_runs(complete).values()) == {1}
    engine_kills.Campaign(killed, random.Random(0), pauses=(4.0, 12.0)).run(4)
    assert max(engine_kills.complete_runs(killed).values()) == 1
    assert engine_kills.results_of(killed) == engine_kills.results_of(complete)


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    engine_kills.run_campaigns(tmp_path, 20)
