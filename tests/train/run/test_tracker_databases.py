"""Rows in the local databases of Trackio and MLflow: each once after a kill and a resume, in one run, without a network."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, run_python
from train import recipes
from train.run import metrics_file
from train.run.run_identity import flat_options

START = """
import os, signal, socket, sys

def refuse(self, address):
    raise AssertionError(f"connects to {address}")

socket.socket.connect = socket.socket.connect_ex = refuse
from train import recipes
from train.run import metrics_file
from train.run import trackers
from train.run.run_dir import RunDir

folder, first, last, end = RunDir(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4]
file = metrics_file.Metrics(folder.metrics, resume_at=first or None)
run = recipes.find_recipe("gpt-nano")()
opened = trackers.Sinks(["trackio", "mlflow"], run, folder, notify=lambda line: print("notice:", line))
trackers.Trackio.EVERY = 0.0
for step in range(first + 1, last + 1):
    row = metrics_file.valid_row(step=step, loss=step + first / 100, bits_per_byte=float("nan"), seconds=1.0)
    file.write(row)
    opened.write(row)
sys.stdout.flush()
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
opened.close(failed=end == "failed")
"""
READ = """
import json
from mlflow import MlflowClient
from trackio.sqlite_storage import SQLiteStorage

rows = {}
for run in SQLiteStorage.get_run_records("zoo"):
    logs = SQLiteStorage.get_logs("zoo", run["name"], run_id=run["id"])
    config = SQLiteStorage.get_run_config("zoo", run["name"])
    rows.setdefault("trackio", []).append({"id": run["id"], "name": run["name"], "logs": logs, "config": config})
client = MlflowClient()
for run in client.search_runs([client.get_experiment_by_name("zoo").experiment_id]):
    info, data = run.info, run.data
    metrics = {key: client.get_metric_history(info.run_id, key) for key in data.metrics}
    history = {key: [(m.step, m.value, m.timestamp) for m in values] for key, values in metrics.items()}
    facts = {"id": info.run_id, "name": info.run_name, "status": info.status, "history": history, "params": data.params}
    rows.setdefault("mlflow", []).append(facts)
print(json.dumps(rows, default=str))
"""
RUN = recipes.find_recipe("gpt-nano")()
WANTED = [(step, step + (0 if step < 7 else 4) / 100) for step in range(1, 9)]
"""Rows 1 to 6 are of the first start, which was killed, and stay; the second one went on after row 4."""


def python(place: Path, *argv: str) -> Any:
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "TRACKIO_DIR": str(place / "trackio"),
        "HF_TOKEN": "a-token-by-which-the-hub-could-be-asked",
        "HOME": str(place),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return run_python("-c", *argv, env=environment, cwd=place)


@pytest.mark.trackers
def test_every_row_is_there_once_after_a_kill_and_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "my-run"
    path.mkdir()
    killed = python(tmp_path, START, str(path), "0", "6", "killed")
    assert killed.code == -signal.SIGKILL, killed
    names = [(path / tracker / "id").read_text() for tracker in ("trackio", "mlflow")]
    done = python(tmp_path, START, str(path), "4", "8", "")
    assert (done.code, done.stdout) == (0, ""), done
    assert [(path / tracker / "id").read_text() for tracker in ("trackio", "mlflow")] == names
    read = python(tmp_path, READ)
    assert read.code == 0, read
    found = json.loads(read.stdout)
    (logged,), (tracked,) = found["trackio"], found["mlflow"]
    assert [(run["id"], run["name"]) for run in (logged, tracked)] == [(name, "my-run") for name in names]
    assert [(log["step"], pytest.approx(log["valid/loss"])) for log in logged["logs"]] == WANTED
    assert all(math.isnan(log["valid/bits_per_byte"]) for log in logged["logs"])
    assert logged["config"]["steps"] == RUN.steps
    rows = metrics_file.read_rows(path / "metrics.jsonl")
    assert [(step, pytest.approx(value)) for step, value, _ in tracked["history"]["valid/loss"]] == WANTED
    assert [at for step, _, at in tracked["history"]["valid/loss"] if step in (1, 8)] == [
        int(row["time"]["at"] * 1000) for row in rows if row["step"] in (1, 8)
    ]
    assert all(math.isnan(value) for _, value, _ in tracked["history"]["valid/bits_per_byte"])
    assert tracked["status"] == "FINISHED" and tracked["params"]["optim.lr"] == str(RUN.optim.lr)
    assert tracked["params"].keys() == flat_options(RUN).keys()


@pytest.mark.trackers
def test_a_failed_run_is_marked_and_a_store_without_the_run_gets_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "my-run"
    (path / "mlflow").mkdir(parents=True)
    (path / "mlflow" / "id").write_text("0" * 32)
    failed = python(tmp_path, START, str(path), "0", "2", "failed")
    assert (failed.code, failed.stdout) == (0, ""), failed
    (tracked,) = json.loads(python(tmp_path, READ).stdout)["mlflow"]
    assert tracked["status"] == "FAILED" and (path / "mlflow" / "id").read_text() == tracked["id"] != "0" * 32
    assert [step for step, _, _ in tracked["history"]["valid/loss"]] == [1, 2]
