"""Uploads of a run that is trained with --out in an object store.

The run is in a local folder, the working copy, in which training does what it does in every folder. Whenever a step is committed
there, the thread that saves brings the store up to date, so that the next save waits for a slow store as for a slow disk. A store
has no rename: the objects of a step become a checkpoint by its COMMIT.json, which is uploaded when the sizes of all others are
confirmed. A failed upload leaves the working copy as it is, and the next one also uploads what is missing.
"""

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from train.checkpoints import manifest
from train.checkpoints.manifest import Manifest
from train.config.run_config import Run
from train.run.run_dir import RunDir, write_json
from train.store import result_sync, run_layout
from train.store.run_layout import BASE, BEST, CHECKPOINTS, DAMAGED, EVALUATIONS, FETCHED, RESULTS, WRITER
from zoo import object_store
from zoo.errors import BadInput
from zoo.fault_points import fault_point
from zoo.file_access import LARGEST_JSON, read_regular, read_regular_text
from zoo.object_store import ObjectStore

ATTEMPTS = 5
"""Attempts to upload the best checkpoint, if a better one takes its place in the meantime."""


class Uploads:
    """Uploads of a run whose --out is local: does nothing.

    Leaving the context of a subclass without an exception completes its uploads.
    """

    def __init__(self, *, with_best: bool = False) -> None:
        """Describe uploads.

        Args:
            with_best: whether some process uploads the best checkpoint with each step.
        """
        self._with_best = with_best

    def __enter__(self) -> "Uploads":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        pass

    def before_save(self, wait_for_best: Callable[[], object]) -> None:
        """Wait for the best checkpoint where it is uploaded: it accompanies the step that is about to be saved."""
        if self._with_best:
            wait_for_best()

    def commit(self, step: int) -> None:
        """Bring the copies up to date after the commit of a step; called by the thread that saves, never raises."""


class RunUploads(Uploads):
    """The uploads of a working copy; used by the process that commits."""

    def __init__(self, store: ObjectStore, folder: RunDir, keep: int, *, notify: Callable[[str], None]) -> None:
        """Describe the uploads of a folder.

        Args:
            keep: how many of the newest steps the store keeps.
            notify: receives one-line messages for the user.
        """
        super().__init__(with_best=True)
        self._store, self._folder, self._keep, self._notify = store, folder, keep, notify
        self._committed: set[tuple[str, int]] = set()
        # A step that is saved later is uploaded even if the store has it: there, this one may be damaged.
        paths = ((name, folder.path / name) for name in run_layout.STEP_FOLDERS)
        self._earlier = {(name, step) for name, path in paths for step in run_layout.valid_steps(path)}
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._damaged: set[int] = set()

    def __enter__(self) -> "RunUploads":
        """Record in the store that this machine trains the run from now on, which also shows that the store can be written.

        Raises:
            BadInput: it cannot; or the store has a later step than this folder, which another machine has uploaded.
        """
        writer = self._folder.path / WRITER
        write_json(writer, {"host": socket.gethostname(), "process": os.getpid(), "at": time.time()})
        self._store.put(writer, WRITER)
        # Another machine may have uploaded a step since this run was fetched.
        newest = max(run_layout.valid_steps(self._folder.checkpoints), default=-1)
        committed = run_layout.committed_steps(self._store.list(), CHECKPOINTS)
        self._damaged = {step for step in committed if step > newest and self._is_damaged(step)}
        if later := [step for step in committed if step > newest and step not in self._damaged]:
            fix = "run the same command again to continue from it"
            raise BadInput(f"{self._store.uri}: step {later[0]} was uploaded after this run was fetched; {fix}")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Upload what is missing at the end of the run; after an error only failure.json, and no second error is raised then.

        Raises:
            BadInput: that is not possible.
        """
        if kind is not None:
            if isinstance(kind, type) and issubclass(kind, Exception):
                self._upload_failure()
            return
        try:
            self._upload()
        except Exception as error:
            fix = f"everything is in {self._folder.path}, and the same command tries again"
            raise BadInput(f"the run could not be uploaded: {_describe(error)}; {fix}") from None

    def commit(self, step: int) -> None:
        """Upload what is missing; a failure is reported, and the run continues."""
        try:
            self._upload()
        except Exception as error:
            where = f"its checkpoint is in {self._folder.checkpoints}"
            self._notify(
                f"UPLOAD of step {step} FAILED: {_describe(error)}. The run continues, and {where}; the next save tries again"
            )

    def _upload(self) -> None:
        """Upload every file and step that the store lacks, and delete the steps that it no longer keeps.

        Raises:
            BadInput, OSError: an operation failed, or another machine has begun to train the run.
        """
        self._check_writer()
        sizes = self._store.list()
        self._upload_files(sizes)
        for folder in (BASE, BEST):
            self._upload_newest(folder, sizes)
        steps = run_layout.valid_steps(self._folder.checkpoints)
        for step in steps[: self._keep]:
            self._upload_step(CHECKPOINTS, step, sizes)
        if steps:
            self._prune(CHECKPOINTS, steps[0], self._keep)

    def _upload_failure(self) -> None:
        """Upload failure.json, if there is one; an error of the upload is reported, because the first one ends the run."""
        failure = self._folder.failure
        if not failure.is_file() or failure.is_symlink():
            return
        try:
            self._check_writer()
            self._store.put(failure, failure.name)
        except Exception as error:
            self._notify(f"{failure} could not be uploaded: {_describe(error)}; read it in that place")

    def _is_damaged(self, step: int) -> bool:
        """Return whether a step of the store is the one that turned out to be damaged when the run was fetched."""
        try:
            digests = json.loads(read_regular_text(self._folder.path / FETCHED / DAMAGED))
            content = self._store.read(run_layout.commit_key(CHECKPOINTS, step))
        except (FileNotFoundError, ValueError, RecursionError):
            return False
        return digests.get(str(step)) == hashlib.sha256(content).hexdigest()

    def _check_writer(self) -> None:
        """Refuse to upload if another machine has written `WRITER` since this one did."""
        own = read_regular(self._folder.path / WRITER, LARGEST_JSON)
        try:
            current = self._store.read(WRITER)
        except FileNotFoundError:
            fix = "run the same command again to upload all of it"
            raise BadInput(f"{self._store.uri}: {WRITER} was deleted, and perhaps more of the run; {fix}") from None
        if current != own:
            host = _host(current)
            raise BadInput(f"{self._store.uri}: {host} has begun to train this run as well; stop one of the two")

    def _upload_files(self, sizes: dict[str, int]) -> None:
        """Upload changed files beside the steps; delete logs of a run that was replaced, and scores of one that was extended."""
        files = run_layout.run_files(self._folder)
        for key, file in files.items():
            with contextlib.suppress(FileNotFoundError):  # It was replaced or removed in the meantime.
                state = _state(file)
                if self._uploaded.get(key) == state and key in sizes:
                    continue
                if key not in RESULTS:
                    self._store.put(file, key)
                elif key not in sizes or result_sync.is_changed(self._folder, key):
                    result_sync.upload_result(self._store, self._folder, key)
                    state = _state(file) if key in result_sync.MERGED_RESULTS else state
                self._uploaded[key] = state
        for key in run_layout.run_keys(sizes):
            if key not in files and (key in run_layout.EXTENDED or run_layout.LOGS.fullmatch(key)):
                self._store.delete(key)

    def _upload_newest(self, folder: str, sizes: dict[str, int]) -> None:
        """Upload the newest step of a folder that keeps one; training may put a newer one in its place at any time."""
        for attempt in range(ATTEMPTS):
            if not (steps := run_layout.valid_steps(self._folder.path / folder)):
                return
            try:
                self._upload_step(folder, steps[0], sizes)
            except FileNotFoundError:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                self._prune(folder, steps[0], 1)
                return

    def _upload_step(self, folder: str, step: int, sizes: dict[str, int]) -> None:
        """Upload a committed step of the working copy, unless the store has it.

        Raises:
            FileNotFoundError: the step was removed from the working copy in the meantime.
        """
        if (folder, step) in self._committed:
            return
        path = run_layout.step_folder(self._folder.path / folder, step)
        prefix = run_layout.step_prefix(folder, step)
        commit = run_layout.commit_key(folder, step)
        if commit in sizes:
            if (folder, step) in self._earlier and self._store.read(commit) == read_regular(path / manifest.NAME, LARGEST_JSON):
                self._committed.add((folder, step))
                return
            # Another upload of this step, which does not exist while its objects are replaced.
            self._store.delete(commit)
        files = _listed_files(path, step)
        for key in sizes:
            if key.startswith(prefix) and key.removeprefix(prefix) not in files:
                self._store.delete(key)
        for name in files:
            self._store.put(path / name, prefix + name)
        stored = self._store.list(prefix)
        for name, size in files.items():
            if (present := stored.get(prefix + name)) != size:
                fix = "check the store"
                raise BadInput(f"{self._store.uri}/{prefix}{name} has {present} bytes instead of {size} after its upload; {fix}")
        fault_point("store.commit")
        self._store.put(path / manifest.NAME, commit)
        self._committed.add((folder, step))

    def _prune(self, folder: str, newest: int, keep: int) -> None:
        """Delete all steps of a folder in the store but the `keep` newest up to `newest`.

        Later ones are deleted only if they turned out to be damaged when the run continued from one before them. A step without
        a COMMIT.json is what an upload that did not end has left.
        """
        keys = self._store.list(f"{folder}/")
        steps = [step for step in run_layout.committed_steps(keys, folder) if step <= newest]
        for step in run_layout.steps_with_objects(keys, folder).difference(steps[:keep]):
            if folder == CHECKPOINTS and step > newest and step not in self._damaged:
                continue
            prefix, commit = run_layout.step_prefix(folder, step), run_layout.commit_key(folder, step)
            # First, so that a kill leaves no step that seems to be complete.
            if commit in keys:
                self._store.delete(commit)
            for key in keys:
                if key.startswith(prefix) and key != commit:
                    self._store.delete(key)
            self._committed.discard((folder, step))


def uploads_of(run: Run, folder: RunDir, process: int, *, notify: Callable[[str], None]) -> Uploads:
    """Return the uploads of a run, which depend on its --out; in a run of several processes, process 0 uploads.

    Args:
        folder: the folder of the run, or its working copy.
        notify: receives one-line messages for the user.

    Raises:
        BadInput: see `zoo.object_store.ObjectStore`.
    """
    if process != 0 or not object_store.is_uri(run.out):
        return Uploads(with_best=object_store.is_uri(run.out))
    return RunUploads(ObjectStore(f"{run.out.rstrip('/')}/{folder.path.name}"), folder, run.checkpoint.keep, notify=notify)


def upload_results(name: str, folder: RunDir, *, write_report: Callable[[Path], object]) -> None:
    """Upload what the evaluation of a run has changed; a run that is not in an object store needs nothing of this.

    Args:
        name: the run as on the command line.
        folder: its folder, or its working copy.
        write_report: writes the report of a folder again, after evaluations of other machines were added to its own.

    Raises:
        BadInput: the store cannot be read or written.
    """
    if not object_store.is_uri(name):
        return
    store = ObjectStore(name)
    if result_sync.merge_result(store, folder, EVALUATIONS):
        write_report(folder.path)
    for key in RESULTS:
        if result_sync.is_changed(folder, key) and result_sync.upload_result(store, folder, key) and key == EVALUATIONS:
            write_report(folder.path)


def _state(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, BadInput | OSError) else f"{type(error).__name__}: {error}"


def _listed_files(path: Path, step: int) -> dict[str, int]:
    """Return the size of each file that the manifest of a step lists.

    Raises:
        FileNotFoundError: the step was removed.
    """
    try:
        files = Manifest.read(path, step).files
    except manifest.DamagedCheckpoint as damage:
        raise FileNotFoundError(f"{path}: {damage}") from None
    return {name: entry["size"] for name, entry in files.items()}


def _host(content: bytes) -> str:
    """Return the host that a `WRITER` names."""
    try:
        return str(json.loads(content)["host"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another machine"
