"""Uploads and fetches of a run whose steps are small states, without a model."""

from typing import NoReturn

from tests.support.object_stores import Place
from tests.support.states import META, Log, make, restored
from train.checkpoints.checkpoints import Checkpoints
from train.run.run_dir import RunDir
from train.store import run_fetch
from train.store.run_uploads import RunUploads

NAME = "gpt"
"""Name of the run."""


def uploads(place: Place, work: RunDir, log: Log, keep: int = 2) -> RunUploads:
    return RunUploads(place.store(NAME), work, keep, notify=log).__enter__()


def train(place: Place, work: RunDir, *steps: int, keep: int = 2, log: Log | None = None) -> None:
    """Save steps in the working copy, as training does."""
    target = uploads(place, work, log := Log() if log is None else log, keep)
    with Checkpoints(work.checkpoints, keep, notify=log, on_commit=target.commit) as checkpoints:
        for step in steps:
            checkpoints.save(make(step), META | {"step": step})
            assert checkpoints.wait()


def fetch(place: Place, other: RunDir, log: Log) -> int | None:
    """Fetch the run as a start of training does, and return its newest step."""
    store = place.store(NAME)
    run_fetch._fetch(store, other, store.list(), log)
    newest = Checkpoints(other.checkpoints, 9, notify=fail).latest()
    if newest is not None:
        restored(Checkpoints(other.checkpoints, 9, notify=fail), step=newest)
    return newest


def fail(message: str) -> NoReturn:
    """Receive a message where there must be none."""
    raise AssertionError(message)
