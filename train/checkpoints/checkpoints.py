"""Checkpoints that are either complete or do not exist.

    checkpoints/00000400/               a committed step: Orbax's files and COMMIT.json
                00000600.tmp/           a step being written or deleted, or the remains of one after a kill
                00000200.corrupt-1/     a step whose files turned out to be damaged

Orbax writes the arrays. It keeps no digest of them, accepts any folder with a number as a checkpoint and notices a full disk
late, so this module commits them itself. When every process has written its part, process 0 adds the manifest COMMIT.json (what
the run is, every leaf, size and SHA-256 of every file), syncs everything to the disk and gives the folder its final name: one
atomic rename. A folder without a valid manifest is not a checkpoint.

One run writes into a folder at a time (the run holds the lock); any number of processes may read.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.checkpoints import orbax_io
from train.checkpoints.manifest import (
    Damaged,
    Manifest,
    by_path,
    compare,
    describe_leaves,
    folder_name,
    kind_of_entry,
    sync_directory,
)
from zoo import errors
from zoo.errors import BadInput

_barriers = itertools.count()


class Checkpoints:
    """The checkpoints of a run.

    Entering the context makes this the folder's writer: it creates the folder and removes the remains of killed saves; leaving it
    waits for the save in progress. A reader does not enter the context, and changes nothing on disk.

    In a run of several processes, on a shared file system, all of them construct, enter, save, wait and restore together;
    `poll`, `latest` and `meta` may be called at any time. Messages come from process 0, and from a process that cannot write.
    """

    def __init__(self, folder: str | os.PathLike, keep: int, *, notify: Callable[[str], None]) -> None:
        """Describe the checkpoints in a folder, which may not exist yet.

        Args:
            folder: the parent of the step folders.
            keep: how many of the newest steps are kept, at least 1; during a save there is one more on disk.
            notify: receives one-line messages for the user.
        """
        self.folder = pathlib.Path(folder).absolute()
        self._keep = keep
        self._notify = notify
        self._worker: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending: _Save | None = None
        self._failed: list[_Save] = []
        self._ignored: set[str] = set()

    def __enter__(self) -> "Checkpoints":
        """Become the folder's writer.

        Raises:
            BadInput: the folder cannot be created or written.
        """
        self._agree(self._open)
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        # The thread starts now: at a save there may be no memory for one.
        self._worker.submit(int).result()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._worker is not None
        try:
            self._collect()
        finally:
            self._worker.shutdown()
            self._worker = None

    def save(self, state: Any, meta: dict[str, Any]) -> None:
        """Start saving a state; its buffers may be donated or deleted as soon as this returns.

        Waits for the previous save, if it is still in progress, and for the state to be computed. A step that is already
        committed is not saved again.

        Args:
            state: a `train.engine.state.State`, or any pytree of global `jax.Array`s with a scalar attribute `step`.
            meta: JSON that describes the run; `restore` returns it.

        Raises:
            BadInput: a newer step is committed here, two saves in a row have failed, or there is no memory for a save.
        """
        assert self._worker is not None, "saving needs the context manager"
        meta = json.loads(json.dumps(meta, allow_nan=False))
        self.wait()
        step = int(jax.device_get(state.step))
        newest = self._agree(lambda: -1 if (latest := self.latest()) is None else latest)
        if newest == step:
            return
        if newest > step:
            raise BadInput(f"{self.folder}: step {newest} is already here, so step {step} cannot be saved; choose another --name")

        leaves = by_path(state)
        save = _Save(
            manifest=Manifest(step=step, meta=meta, leaves=describe_leaves(leaves)),
            bytes=sum(leaf.nbytes for leaf in leaves.values()),
            number=next(_barriers),
        )
        self._check_memory(save)
        if self._agree(lambda: self._make_temporary(save)):
            save.verdict = self._worker.submit(self._commit, save, self._start_writing(save, leaves))
        elif not save.verdict.done():
            save.verdict.set_result(_PeerFailed("process 0 could not make the folder"))
        self._pending = save

    def poll(self) -> None:
        """Handle a save that has ended, without waiting; called at every step.

        The files of a failed save are already removed; the failure is reported, and the run continues. In a run of several
        processes only `save` and `wait` raise after two failures, so that all processes raise at the same step.

        Raises:
            BadInput: two saves in a row have failed; names the folder, the bytes needed and free, and the cause.
        """
        if self._pending is not None and self._pending.verdict.done():
            self._collect()
            if jax.process_count() == 1:
                self._raise_if_failed_twice()

    def wait(self) -> bool:
        """Block until no save is in progress, and return False if the last one failed.

        Raises:
            BadInput: as `poll`.
        """
        self._collect()
        self._raise_if_failed_twice()
        return not self._failed

    def latest(self) -> int | None:
        """Return the newest step with a valid manifest and files of the listed sizes; `restore` also checks the digests."""
        return next((step for step in self._steps() if self._is_valid(step)), None)

    def sound(self) -> list[int]:
        """Return the steps with a valid manifest and files of the listed sizes, newest first."""
        return [step for step in self._steps() if self._is_valid(step)]

    def meta(self, step: int) -> dict[str, Any]:
        """Return the JSON that was saved beside the arrays of a step.

        Raises:
            BadInput: there is no such step, or it is damaged.
        """
        return self._read_or_refuse(step).meta

    def restore(
        self, abstract_state: Any, *, step: int | None = None, partial: bool = False
    ) -> tuple[Any, dict[str, Any]] | None:
        """Read the newest intact step (or `step`) onto any mesh, in any number of processes.

        Every file's digest is checked first. A damaged newest step is reported and renamed (a reader only skips it), and the step
        before it is used; a damaged `step` is refused.

        Args:
            abstract_state: the state as `jax.ShapeDtypeStruct`s with shardings.
            partial: `abstract_state` is only a part of the state (`{"params": ...}`), and only that part is read.

        Returns:
            The state, and the `meta` saved with it. None if nothing was ever saved here.

        Raises:
            BadInput: the leaves differ from those saved (every difference is named), or no intact step is left.
        """
        abstract_leaves = by_path(abstract_state)
        if unsharded := [path for path, leaf in abstract_leaves.items() if leaf.sharding is None]:
            raise ValueError(f"leaves without a sharding: {', '.join(unsharded)}")
        self._collect()
        while True:
            chosen = self._agree(self._choose) if step is None else step
            if chosen < 0:
                return None
            manifest = self._read_or_refuse(chosen)
            expected = describe_leaves(abstract_leaves)
            saved = {path: leaf for path, leaf in manifest.leaves.items() if not partial or path in expected}
            if differences := compare(saved, expected):
                folder = self._path(chosen)
                raise BadInput(f"{folder} has another state: {'; '.join(differences)}; restore the state that was saved")
            if self._agree(lambda chosen=chosen, manifest=manifest: self._is_intact(chosen, manifest, required=step is not None)):
                break
        leaves = orbax_io.read(self._path(chosen), abstract_leaves)
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), [leaves[path] for path in abstract_leaves])
        return state, manifest.meta

    # Writing. The worker thread copies and commits; only process 0 creates, renames and removes folders.

    def _open(self) -> int:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_temporaries()
        except OSError as error:
            raise BadInput(f"{self.folder}: checkpoints cannot be written there ({error}); choose another --out") from error
        return True

    def _remove_temporaries(self) -> None:
        for entry in self._entries():
            if kind_of_entry(entry) == "tmp":
                shutil.rmtree(entry)

    def _check_memory(self, save: "_Save") -> None:
        """Raise `BadInput` if this process has no memory for its part of a save."""
        size = save.bytes // jax.process_count()
        try:
            orbax_io.check_memory(size)
        except OSError as error:
            need = f"it needs {size + orbax_io.SAVE_MEMORY:,} bytes of memory ({error.strerror})"
            fix = f"{errors.remedy(error)}, and run the same command again"
            raise BadInput(f"{self.folder}: step {save.manifest.step} cannot be saved, {need}; {fix}") from None

    def _make_temporary(self, save: "_Save") -> int:
        """Make the temporary folder and return True; if that fails, the error becomes the save's verdict."""
        if os.path.lexists(self._path(save.manifest.step)):
            self._set_aside(save.manifest.step, Damaged("it has no valid manifest and is in the way of a save"))
        try:
            self._remove_temporaries()
            self._temporary(save).mkdir()
        except OSError as error:
            save.verdict.set_result(error)
            return False
        return True

    def _start_writing(self, save: "_Save", leaves: dict[str, jax.Array]) -> Callable[[], None]:
        """Return a function that waits for the files; it raises the error if the write could not start, as without memory.

        Raising there instead of here lets `_commit` reach its verdict together with the other processes.
        """
        assert self._worker is not None
        try:
            return self._worker.submit(orbax_io.start_writing, self._temporary(save), leaves).result()
        except Exception as error:
            failure = error

        def fail() -> None:
            raise failure

        return fail

    def _commit(self, save: "_Save", written: Callable[[], None]) -> Exception | None:
        """Finish a save and return None, or the error; all processes return the same verdict."""
        failure = None
        try:
            written()
            # A file marks success rather than failure: a full disk may have no space for it.
            (self._temporary(save) / f"written.{jax.process_index()}").touch()
        except Exception as error:
            failure = error
        orbax_io.barrier(f"checkpoint.{save.number}.written")
        if jax.process_index() == 0:
            try:
                self._publish(save)
            except Exception as error:
                failure = failure or error
                orbax_io.remove_abandoned(self._temporary(save))
        orbax_io.barrier(f"checkpoint.{save.number}.published")
        if failure is None and not self._is_valid(save.manifest.step):
            return _PeerFailed("another process failed")
        if failure is None and jax.process_index() == 0:
            self._prune()
        return failure

    def _publish(self, save: "_Save") -> None:
        temporary = self._temporary(save)
        for process in range(jax.process_count()):
            try:
                (temporary / f"written.{process}").unlink()
            except FileNotFoundError as error:
                raise _PeerFailed(f"process {process} could not write its part") from error
        orbax_io.finish_writing(temporary)
        save.manifest.write(temporary)
        temporary.rename(self._path(save.manifest.step))
        sync_directory(self.folder)

    def _prune(self) -> None:
        for step in self.sound()[self._keep :]:
            # Renamed first, so that a kill during the deletion leaves no incomplete step under a step's name.
            old = self._path(step)
            shutil.rmtree(old.rename(old.with_suffix(".tmp")), ignore_errors=True)

    def _temporary(self, save: "_Save") -> pathlib.Path:
        return self._path(save.manifest.step).with_suffix(".tmp")

    def _collect(self) -> None:
        """Wait for the save in progress and report it if it failed."""
        if self._pending is None:
            return
        save, self._pending = self._pending, None
        failure = save.verdict.result()
        if failure is None:
            self._failed = []
            return
        self._failed.append(save)
        newest = "there is none yet" if (step := self.latest()) is None else f"the newest is of step {step}"
        message = (
            f"CHECKPOINT of step {save.manifest.step} FAILED and was removed: {self._shortage()}. The run continues; {newest}"
        )
        self._report(f"{message}; a second failure in a row ends the run", everywhere=not isinstance(failure, _PeerFailed))

    def _raise_if_failed_twice(self) -> None:
        if len(self._failed) >= 2:
            raise BadInput(f"two checkpoints in a row failed: {self._shortage()}; {self.remedy()}, or choose another --out")

    def remedy(self) -> str:
        """Return advice on how to fix the failure of the last save."""
        return errors.remedy(self._failed[-1].verdict.result())

    def reason(self) -> str:
        """Return why the last save failed."""
        return errors.reason(self._failed[-1].verdict.result())

    def _shortage(self) -> str:
        save = self._failed[-1]
        try:
            free = f"{shutil.disk_usage(self.folder).free:,} free"
        except OSError as error:
            free = f"is not there ({error.strerror})"
        return f"{self.folder} needs {save.bytes:,} bytes and has {free} ({self.reason()})"

    # Finding and checking.

    def _steps(self) -> list[int]:
        """Return the steps that have a folder, newest first; report every other entry once."""
        steps = []
        for entry in self._entries():
            if entry.name in self._ignored:
                continue
            entry_kind = kind_of_entry(entry)
            if entry_kind == "step":
                steps.append(int(entry.name))
            elif entry_kind == "junk":
                self._ignored.add(entry.name)
                self._report(f"{entry} is not a checkpoint and is ignored")
        return sorted(steps, reverse=True)

    def _entries(self) -> list[pathlib.Path]:
        try:
            return list(self.folder.iterdir()) if self.folder.is_dir() else []
        except OSError as error:
            raise BadInput(f"{self.folder}: checkpoints cannot be listed ({error.strerror}); make the folder readable") from error

    def _choose(self) -> int:
        """Set aside damaged steps and return the newest valid one; -1 if nothing was ever saved."""
        for step in self._steps():
            try:
                Manifest.read(self._path(step), step)
            except Damaged as damage:
                self._set_aside(step, damage)
            else:
                return step
        lost = sorted(entry.name for entry in self._entries() if kind_of_entry(entry) in ("step", "corrupt"))
        if lost:
            raise BadInput(f"{self.folder}: no intact checkpoint, only {', '.join(lost)}; delete the folder to start again")
        return -1

    def _is_intact(self, step: int, manifest: Manifest, *, required: bool) -> int:
        try:
            manifest.check_content(self._path(step))
        except Damaged as damage:
            if required:
                raise BadInput(f"{self._path(step)}: {damage}; choose another step") from damage
            self._set_aside(step, damage)
            return False
        return True

    def _set_aside(self, step: int, damage: Damaged) -> None:
        folder = self._path(step)
        message = f"CHECKPOINT {folder} IS DAMAGED: {damage}"
        if self._worker is None:
            if not folder.exists():
                return  # The writer removed it in the meantime.
            self._ignored.add(folder.name)
            self._report(f"{message}; it is skipped, and the one before it is used")
            return
        target = next(name for n in itertools.count(1) if not os.path.lexists(name := folder.with_suffix(f".corrupt-{n}")))
        folder.rename(target)
        self._report(f"{message}; it is now {target.name}, and the one before it is used")

    def _is_valid(self, step: int) -> bool:
        try:
            Manifest.read(self._path(step), step)
        except Damaged:
            return False
        return True

    def _read_or_refuse(self, step: int) -> Manifest:
        try:
            return Manifest.read(self._path(step), step)
        except Damaged as damage:
            readable = ", ".join(map(str, self.sound())) or "none"
            raise BadInput(f"{self._path(step)}: {damage}; steps that can be read: {readable}") from damage

    def _path(self, step: int) -> pathlib.Path:
        return self.folder / folder_name(step)

    # Several processes.

    def _agree(self, decide: Callable[[], int]) -> int:
        """Return process 0's decision in every process; also a barrier."""
        value, error = 0, None
        if jax.process_index() == 0:
            try:
                value = decide()
            except Exception as exception:
                error = exception
        with jax.transfer_guard("allow"):
            failed, value = multihost_utils.broadcast_one_to_all(np.array([error is not None, value], np.int32)).tolist()
        if error is not None:
            raise error
        if failed:
            raise BadInput(f"{self.folder}: process 0 refused it; see its message")
        return value

    def _report(self, message: str, *, everywhere: bool = False) -> None:
        if everywhere or jax.process_index() == 0:
            self._notify(message)


@dataclasses.dataclass(kw_only=True)
class _Save:
    """A save in progress."""

    manifest: Manifest
    bytes: int
    """Size of the arrays in memory, about that of the files."""
    number: int
    """Number that is the same in every process and unique among the run's saves; it names the barriers."""
    verdict: concurrent.futures.Future[Exception | None] = dataclasses.field(default_factory=concurrent.futures.Future)


class _PeerFailed(Exception):
    """A save that failed in another process, which reports the cause."""
