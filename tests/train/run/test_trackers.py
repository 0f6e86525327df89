"""Rows in trackers: each row once, whatever happened to earlier starts, and a tracker that fails does not end the run."""

import importlib.util
import math
import re
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.support.processes import ROOT, run_python
from tests.support.runs import small_files
from train import recipes
from train.config import run_config
from train.run import metrics_file, trackers
from train.run.run_dir import RunDir
from zoo.errors import BadInput, install_advice

START = """
import os, signal, sys
sys.modules["torch"] = None
from train import recipes
from train.run import metrics_file
from train.run import trackers
from train.run.run_dir import RunDir

folder, first, last, end = RunDir(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4]
file = metrics_file.Metrics(folder.metrics, resume_at=first or None)
run = recipes.find_recipe("gpt-nano")()
opened = trackers.Sinks(["tensorboard", "wandb"], run, folder, notify=lambda line: print("notice:", line))
for step in range(first + 1, last + 1):
    row = metrics_file.valid_row(step=step, loss=step + first / 100, bits_per_byte=float("inf"), seconds=1.0)
    file.write(row)
    opened.write(row)
sys.stdout.flush()
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
opened.close(failed=False)
"""
RUN = recipes.find_recipe("gpt-nano")()
WANTED = [(step, step + (first / 100)) for first, steps in ((0, range(1, 5)), (4, range(5, 9))) for step in steps]
"""Rows 1 to 4 are of the first start, which was killed after row 6; the second one went on after row 4."""


@pytest.fixture(autouse=True)
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch is installed, tensorboardX imports it, which takes longer than all these tests."""
    if "torch" not in sys.modules:
        monkeypatch.setitem(sys.modules, "torch", None)


def start(path: Path, first: int, last: int, end: str = "") -> Any:
    path.mkdir(exist_ok=True)
    # What wandb keeps outside the run must not be the user's.
    quiet = {"WANDB_MODE": "offline", "HOME": str(path.parent), "XDG_CACHE_HOME": str(path.parent), "PYTHONPATH": str(ROOT)}
    return run_python("-c", START, str(path), str(first), str(last), end, env=quiet, cwd=path.parent)


def train_row(step: int, **changed: Any) -> dict[str, Any]:
    values: dict[str, Any] = dict(loss=3.0, grad_norm=math.nan, lr=1e-3, tokens=512 * step, skipped=0, seconds=0.1)
    return metrics_file.train_row(step=step, tokens_per_s=5120.0, mfu=None, **{**values, **changed})


def events(path: Path) -> list[Any]:
    """Return the events of all files of a run, in the order in which TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event

    read = []
    for file in sorted((path / "tensorboard").glob("*tfevents*")):
        data = file.read_bytes()
        while data:
            # Length, its checksum, the event, its checksum.
            (size,) = struct.unpack("<Q", data[:8])
            read.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return read


def history(path: Path) -> list[dict[str, Any]]:
    """Return the rows in the offline files of W&B: records in blocks of 32 KiB, as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    def records(data: bytes) -> Iterator[bytes]:
        at, whole = 7, b""
        while at + 7 <= len(data):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
            if kind in (1, 4):
                yield whole
                whole = b""

    rows = []
    for file in sorted(path.glob("wandb/offline-run-*/*.wandb")):
        for record in map(Record.FromString, records(file.read_bytes())):
            if record.WhichOneof("record_type") == "history":
                rows.append({"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item})
    return rows


def test_a_row_becomes_its_numbers_by_name() -> None:
    numbers = trackers.tracked_scalars(train_row(8, loss=2.5))
    expected = {"loss": 2.5, "grad_norm": math.nan, "lr": 1e-3, "tokens": 4096.0, "skipped": 0.0}
    expected |= {"time/seconds": 0.1, "time/tokens_per_s": 5120.0}
    assert numbers == pytest.approx({f"train/{name}": value for name, value in expected.items()}, nan_ok=True)
    validation = trackers.tracked_scalars(metrics_file.valid_row(step=1, loss=1.0, accuracy=0.5, seconds=1.0))
    assert validation.keys() == {"valid/loss", "valid/accuracy", "valid/time/seconds"}


@pytest.mark.full
def test_every_row_is_there_once_after_a_kill_and_a_resume(tmp_path: Path) -> None:
    """What the killed start wrote after the row that the run goes on from is gone, and what it had not yet written is there."""
    path = tmp_path / "my-run"
    assert start(path, 0, 6, "killed").code == -signal.SIGKILL
    identity = (path / "wandb" / "id").read_text()
    done = start(path, 4, 8)
    assert done.code == 0, done.stderr
    assert "notice" not in done.stdout
    values = [event for event in events(path) if event.HasField("summary")]
    rows = [(event.step, {value.tag: value.simple_value for value in event.summary.value}) for event in values]
    assert [(step, pytest.approx(row["valid/loss"])) for step, row in rows] == WANTED
    assert all(math.isinf(row["valid/bits_per_byte"]) for _, row in rows)
    assert [event.wall_time for event in values] == [row["time"]["at"] for row in metrics_file.read_rows(path / "metrics.jsonl")]
    # TensorBoard's sign that everything from a step on is void, for one that has read the old file.
    first, restart = events(path)[:2]
    assert first.file_version == "brain.Event:2"
    assert (restart.session_log.status, restart.step) == (restart.session_log.START, 0)
    assert (path / "wandb" / "id").read_text() == identity
    assert [folder.name.rsplit("-")[-1] for folder in path.glob("wandb/offline-run-*")] == [identity]
    assert [(int(row["_step"]), float(row["valid/loss"])) for row in history(path)] == WANTED
    assert history(path)[0]["valid/bits_per_byte"] == "Infinity"


def test_trackers_show_the_first_row_at_once_and_keep_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row is on disk at once, and the last at the end; a sink named twice is one, and one that cannot start none."""

    def refusing(run: run_config.Run, folder: RunDir) -> trackers.Sink:
        raise ValueError("no API key")

    notices: list[str] = []
    monkeypatch.setitem(trackers.SINKS, "wandb", refusing)
    file = metrics_file.Metrics(tmp_path / "metrics.jsonl")
    file.write(train_row(2))
    file.close()
    late = trackers.Sinks(["wandb", "tensorboard", "tensorboard"], RUN, RunDir(tmp_path), notify=notices.append)
    assert events(tmp_path)[-1].step == 2
    late.write(train_row(4))
    late.close(failed=False)
    (notice,) = notices
    assert "--log.sinks wandb failed" in notice and "API key" in notice
    assert [event.step for event in events(tmp_path) if event.HasField("summary")] == [2, 4]


def test_a_full_disk_ends_the_sink_and_not_the_run(tmp_path: Path) -> None:
    notices: list[str] = []
    metrics_file.Metrics(RunDir(tmp_path).metrics).close()
    sink = trackers.Sinks(["tensorboard"], RUN, RunDir(tmp_path), notify=notices.append)
    sink.write(train_row(2))
    (file,) = (tmp_path / "tensorboard").iterdir()
    with small_files(file.stat().st_size):
        for step in range(4, 400, 2):
            sink.write(train_row(step))
        sink.close(failed=False)
    (notice,) = notices
    assert notice.startswith("--log.sinks tensorboard failed and gets no more rows; metrics.jsonl has them all (OSError: ")


def test_a_missing_package_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    trackers.check_sinks(("tensorboard", "wandb"))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else object())
    trackers.check_sinks(())
    trackers.check_sinks(("wandb",))
    with pytest.raises(
        BadInput, match=f"--log.sinks tensorboard: .* tensorboardX is missing; {re.escape(install_advice('track'))}"
    ):
        trackers.check_sinks(("wandb", "tensorboard"))


@pytest.mark.planted(2)
@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_the_extra_of_a_missing_package_is_named(name: run_config.Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == name else object())
    expected = f"--log.sinks {name}: the package {name} is missing; {install_advice(name)}"
    with pytest.raises(BadInput, match=re.escape(expected)):
        trackers.check_sinks(("tensorboard", name))


def test_every_sink_that_an_option_names_exists() -> None:
    assert trackers.SINKS.keys() == trackers.PACKAGES.keys() == {*get_args(run_config.Sink)}


@pytest.mark.planted
def test_a_file_with_another_text_than_an_id_is_refused(tmp_path: Path) -> None:
    assert trackers.stored_id(tmp_path / "mlflow" / "id", "MLflow") == ""
    assert trackers.store_id(tmp_path / "mlflow" / "id", "0a1b") == "0a1b"
    assert trackers.stored_id(tmp_path / "mlflow" / "id", "MLflow") == "0a1b"
    (tmp_path / "mlflow" / "id").write_text("../0a1b")
    with pytest.raises(BadInput, match=r"mlflow/id: '\.\./0a1b' is not the id of a run of MLflow; remove the file"):
        trackers.stored_id(tmp_path / "mlflow" / "id", "MLflow")


def test_nothing_is_imported_unless_it_is_asked_for() -> None:
    done = run_python("-c", "import sys, train.run.trackers; train.run.trackers.check_sinks(['wandb']); print(*sys.modules)")
    assert done.code == 0, done.stderr
    assert {"wandb", "tensorboardX", "trackio", "mlflow"}.isdisjoint(done.stdout.split())
