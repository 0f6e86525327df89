"""Sinks of the rows of metrics.jsonl: TensorBoard, Weights & Biases, Trackio and MLflow, each used only when requested."""

import contextlib
import datetime
import importlib.util
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from train.config import run_config
from train.run.metrics_file import read_rows
from train.run.run_dir import RunDir, as_json, write_text
from train.run.run_identity import flat_options
from zoo.errors import BadInput, install_advice, without_secrets
from zoo.file_access import read_regular_text

PACKAGES: dict[run_config.Sink, tuple[str, str]] = {
    "tensorboard": ("tensorboardX", "track"),
    "wandb": ("wandb", "track"),
    "trackio": ("trackio", "trackio"),
    "mlflow": ("mlflow", "mlflow"),
}
"""Sink -> its package, and the extra with it."""


class Sink(Protocol):
    """An object that takes rows as `train.run.metrics_file` makes them; an exception in it ends the sink, not the run."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Take a row."""
        ...

    def close(self, *, failed: bool) -> None:
        """End the sink; `failed` is True if the run ends with an error."""
        ...


def check_sinks(names: Sequence[run_config.Sink]) -> None:
    """Refuse sinks whose packages are not installed; cheap, since nothing is imported.

    Raises:
        BadInput: a package is missing.
    """
    for name in names:
        package, extra = PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise BadInput(f"--log.sinks {name}: the package {package} is missing; {install_advice(extra)}")


class Sinks:
    """The sinks of a run; one that fails, also at its start, is named in a notice once and gets no more rows.

    Every start of a run sends each sink the rows that are already in metrics.jsonl, then the new ones. So a sink shows the rows
    of the file, each once, including those that it missed because of a kill and those from before it was requested.
    """

    def __init__(
        self, names: Sequence[run_config.Sink], run: run_config.Run, folder: RunDir, *, notify: Callable[[str], None]
    ) -> None:
        """Open the sinks `names`; metrics.jsonl must already end where the run continues. `notify` shows a notice."""
        self._notify = notify
        self._open: dict[run_config.Sink, Sink] = {}
        rows = read_rows(folder.metrics) if names else []
        for name in dict.fromkeys(names):
            with self._watching(name):
                self._open[name] = SINKS[name](run, folder)
                for row in rows:
                    self._open[name].write(row)

    def write(self, row: Mapping[str, Any]) -> None:
        """Pass a row to every sink."""
        for name, sink in list(self._open.items()):
            with self._watching(name):
                sink.write(row)

    def close(self, *, failed: bool) -> None:
        """End every sink; `failed` is True if the run ends with an error."""
        for name in list(self._open):
            with self._watching(name):
                self._open.pop(name).close(failed=failed)

    @contextlib.contextmanager
    def _watching(self, name: run_config.Sink) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            cause = " ".join(without_secrets(f"{type(error).__name__}: {error}").split())
            self._notify(f"--log.sinks {name} failed and gets no more rows; metrics.jsonl has them all ({cause})")
            if name in self._open:
                # The failure was reported already, and closing the sink's files may fail for the same reason.
                with contextlib.suppress(Exception):
                    self._open.pop(name).close(failed=True)


def tracked_scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row by kind and name ("train/loss", "train/time/mfu"), without None, the step and the date."""

    def walk(value: Any, name: str) -> Iterator[tuple[str, float]]:
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from walk(item, f"{name}/{key}")
        elif isinstance(value, int | float | np.number):
            yield name, float(value)

    kind = row["kind"]
    return {name: value for name, value in walk(row, kind) if name not in (f"{kind}/step", f"{kind}/time/at")}


def stored_id(path: Path, tracker: str) -> str:
    """Return the id in a file of a run by which a tracker knows the run; "" if there is no such file.

    Raises:
        BadInput: the file has no id.
    """
    if not path.exists():
        return ""
    name = read_regular_text(path)
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", name):
        raise BadInput(f"{path}: {name[:80]!r} is not the id of a run of {tracker}; remove the file")
    return name


def store_id(path: Path, name: str) -> str:
    """Write an id for `stored_id`, and return it."""
    path.parent.mkdir(exist_ok=True)
    write_text(path, name)
    return name


class TensorBoard:
    """An event file in RUN/tensorboard, which replaces the one that an earlier start left."""

    EVERY = 5.0
    """Seconds between two flushes to the disk, so that a reader sees new rows soon."""

    def __init__(self, run: run_config.Run, folder: RunDir) -> None:
        # Not SummaryWriter: it passes rows through a bounded queue to a thread, and once that has died because of a full disk,
        # the next rows wait for it forever.
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        path = folder.path.resolve() / "tensorboard"
        path.mkdir(exist_ok=True)
        for old_file in path.glob("events.out.tfevents.*"):
            old_file.unlink()
        now = time.time()
        self._file = RecordWriter(str(path / f"events.out.tfevents.{now:.0f}.{socket.gethostname()}"))
        self._file.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        # This event makes a TensorBoard that is open discard what it has read.
        start = SessionLog(status=SessionLog.START)
        self._file.write(Event(wall_time=now, step=0, session_log=start).SerializeToString())
        self._flushed = 0.0

    def write(self, row: Mapping[str, Any]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in tracked_scalars(row).items()]
        event = self._event(wall_time=row["time"]["at"], step=row["step"], summary=self._summary(value=values))
        self._file.write(event.SerializeToString())
        if time.monotonic() - self._flushed >= self.EVERY:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self, *, failed: bool) -> None:
        self._file.close()


class WandB:
    """A Weights & Biases run, in the mode, account and project that wandb itself is set up for, with its files in RUN/wandb.

    Its id, in RUN/wandb/id, stays the same after every resume. Rows that the server has are not sent again: they stay as they
    were first sent. Offline there is no server to ask: every start writes the complete folder to synchronize again.
    """

    def __init__(self, run: run_config.Run, folder: RunDir) -> None:
        import wandb

        path = folder.path / "wandb" / "id"
        # It is part of the names of folders that are deleted.
        name = stored_id(path, "W&B") or store_id(path, uuid.uuid4().hex[:12])
        for old_folder in path.parent.glob(f"offline-run-*-{name}"):
            if not old_folder.is_symlink():
                shutil.rmtree(old_folder)
        self._run = wandb.init(
            id=name,
            name=folder.path.resolve().name,
            project=os.environ.get("WANDB_PROJECT", "zoo"),
            dir=folder.path,
            config=as_json(run),
            resume=None if wandb.setup().settings.mode == "offline" else "allow",
            # The terminal belongs to the run's console: wandb neither captures it nor prints a summary.
            settings=wandb.Settings(console="off", quiet=True),
        )

    def write(self, row: Mapping[str, Any]) -> None:
        if row["step"] >= self._run.starting_step:
            self._run.log(tracked_scalars(row), step=row["step"])

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Trackio:
    """A run in Trackio's local database (TRACKIO_DIR), in the project TRACKIO_PROJECT, otherwise `zoo`.

    Its id, in RUN/trackio/id, stays the same after every resume. Rows that the database has stay as they were first written.
    Nothing is sent over a network: `trackio.init` would ask the hub for the user's name, and might log to a Space.
    """

    EVERY, MOST = 5.0, 100
    """Seconds between two writes, which take 20 ms each, and the number of rows that are written earlier."""

    def __init__(self, run: run_config.Run, folder: RunDir) -> None:
        from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

        self._write = SQLiteStorage.bulk_log
        self._rows: list[Mapping[str, Any]] = []
        self._written = 0.0
        path = folder.path / "trackio" / "id"
        self._id = stored_id(path, "Trackio") or store_id(path, uuid.uuid4().hex)
        self._project, self._name = os.environ.get("TRACKIO_PROJECT", "zoo"), folder.path.resolve().name
        self._config: dict[str, Any] | None = as_json(run)

    def write(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= self.MOST or time.monotonic() - self._written >= self.EVERY:
            self._flush()

    def close(self, *, failed: bool) -> None:
        self._flush()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        self._write(
            self._project,
            self._name,
            [tracked_scalars(row) for row in rows],
            steps=[row["step"] for row in rows],
            timestamps=[datetime.datetime.fromtimestamp(row["time"]["at"], datetime.UTC).isoformat() for row in rows],
            config=self._config,
            # The database ignores a row of an id that it has.
            log_ids=[f"{self._id}-{row['kind']}-{row['step']}" for row in rows],
            run_id=self._id,
        )
        self._config, self._written = None, time.monotonic()


class MLflow:
    """A run of MLflow, in the store MLFLOW_TRACKING_URI, otherwise mlflow.db in the current folder, as MLflow has it.

    It belongs to the experiment MLFLOW_EXPERIMENT_NAME, otherwise `zoo`. Its id, in RUN/mlflow/id, stays the same after every
    resume, if the store has it. Rows that the store has are not sent again: they stay as they were first sent.
    """

    MOST_PARAMS = 100
    """Number of parameters in a request; more are refused."""

    def __init__(self, run: run_config.Run, folder: RunDir) -> None:
        # Before the import: otherwise MLflow sends its makers a report of its use.
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        # By default a server that has gone away is asked for four minutes, in which the run waits and may count as stuck.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        import mlflow  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]
        from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

        # It writes about each new database to stderr.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client, self._metric, path = mlflow.MlflowClient(), Metric, folder.path / "mlflow" / "id"
        self._id = stored_id(path, "MLflow")
        if self._id:
            try:
                self._client.update_run(self._id, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                self._id = ""
        if not self._id:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "zoo")
            if self._client.get_experiment_by_name(name) is None:
                # Another run may create it at the same time.
                with contextlib.suppress(MlflowException):
                    self._client.create_experiment(name)
            number = self._client.get_experiment_by_name(name).experiment_id
            created = self._client.create_run(number, run_name=folder.path.resolve().name).info.run_id
            self._id = store_id(path, created)
            params = [Param(key, str(value)) for key, value in flat_options(run).items()]
            for first in range(0, len(params), self.MOST_PARAMS):
                self._client.log_batch(created, params=params[first : first + self.MOST_PARAMS])
        # Every row has this column.
        self._stored = {
            (kind, metric.step)
            for kind in ("train", "valid")
            for metric in self._client.get_metric_history(self._id, f"{kind}/time/seconds")
        }

    def write(self, row: Mapping[str, Any]) -> None:
        if (row["kind"], row["step"]) not in self._stored:
            at, step = int(row["time"]["at"] * 1000), row["step"]
            metrics = [self._metric(name, value, at, step) for name, value in tracked_scalars(row).items()]
            # One request, so that a row is complete or absent.
            self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


SINKS: dict[run_config.Sink, Callable[[run_config.Run, RunDir], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
    "mlflow": MLflow,
}
