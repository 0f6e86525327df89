"""Checkpoints that are whole or do not exist.

    checkpoints/00000400/               a committed step: Orbax's files and COMMIT.json
                00000600.tmp/           a step being written or deleted, or what a killed run left of one
                00000200.corrupt-1/     a step that was found damaged

Orbax writes the arrays. It keeps no digest of them, takes any folder with a number for a checkpoint and learns late of a full
disk, so the commit is ours. When every process has written its part, process 0 adds the marker COMMIT.json (what the run is,
every leaf, size and SHA-256 of every file), makes all of it durable and gives the folder its final name: one atomic rename.
A folder without a sound marker is not a checkpoint.

One run writes into a folder at a time (the run holds the lock); any number may read.
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
from train.checkpoints.manifest import Damaged, Marker, by_path, compare, describe, folder_name, kind, sync_directory
from zoo import errors
from zoo.errors import BadInput

_barriers = itertools.count()


class Checkpoints:
    """The checkpoints of a run.

    Entering the context makes this the folder's writer: it makes the folder and removes what killed saves left there; leaving
    it waits for the save under way. A reader does not enter, and changes nothing on disk.

    In a run of several processes, on a shared file system, all of them construct, enter, save, wait and restore together;
    `poll`, `latest` and `meta` may be called at any time. Messages come from process 0, and from a process that cannot write.
    """

    def __init__(self, folder: str | os.PathLike, keep: int, *, notify: Callable[[str], None]) -> None:
        """
        Args:
            folder: where the step folders are.
            keep: newest steps kept, at least 1; while a save is under way one more is on disk.
            notify: receives one-line messages that somebody should see.
        """
        self.folder = pathlib.Path(folder).absolute()
        self._keep = keep
        self._notify = notify
        self._worker: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending: _Save | None = None
        self._failed: list[_Save] = []
        self._passed_over: set[str] = set()

    def __enter__(self) -> "Checkpoints":
        """
        Raises:
            BadInput: the folder cannot be made or written.
        """
        self._agree(self._open)
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        # The thread starts now: at a save there may be no memory for one.
        self._worker.submit(int).result()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._worker is not None
        try:
            self._settle()
        finally:
            self._worker.shutdown()
            self._worker = None

    def save(self, state: Any, meta: dict[str, Any]) -> None:
        """Start saving a state; its buffers may be donated or deleted as soon as this returns.

        Waits for the save before it, if that is still under way, and for the state to be computed. A step that is already
        committed is not saved again.

        Args:
            state: a `train.engine.state.State`, or any pytree of global `jax.Array`s with a scalar attribute `step`.
            meta: JSON that describes the run; `restore` gives it back.

        Raises:
            BadInput: a newer step is committed here, or two saves in a row have failed.
        """
        assert self._worker is not None, "saving needs the context manager"
        meta = json.loads(json.dumps(meta, allow_nan=False))
        self.wait()
        step = int(jax.device_get(state.step))
        newest = self._agree(lambda: -1 if (latest := self.latest()) is None else latest)
        if newest == step:
            return
        if newest > step:
            raise BadInput(f"{self.folder}: step {newest} is already here, step {step} cannot follow it; choose another --name")

        leaves = by_path(state)
        save = _Save(
            marker=Marker(step=step, meta=meta, leaves=describe(leaves)),
            bytes=sum(leaf.nbytes for leaf in leaves.values()),
            number=next(_barriers),
        )
        if self._agree(lambda: self._make_temporary(save)):
            save.verdict = self._worker.submit(self._commit, save, self._start_writing(save, leaves))
        elif not save.verdict.done():
            save.verdict.set_result(_PeerFailed("process 0 could not make the folder"))
        self._pending = save

    def poll(self) -> None:
        """Take note of a save that has ended; called at every step, does not wait.

        What a failed save wrote is gone, the failure is reported, and the run goes on. In a run of several processes the
        refusal after two failures is left to `save` and `wait`, so that all processes raise it at the same step.

        Raises:
            BadInput: two saves in a row have failed; names the folder, the bytes needed and free, and the cause.
        """
        if self._pending is not None and self._pending.verdict.done():
            self._settle()
            if jax.process_count() == 1:
                self._refuse_second_failure()

    def wait(self) -> bool:
        """Block until no save is under way. False if the last save failed.

        Raises:
            BadInput: as `poll`.
        """
        self._settle()
        self._refuse_second_failure()
        return not self._failed

    def latest(self) -> int | None:
        """The newest step whose marker is sound and whose files have their sizes. Digests are checked by `restore`."""
        return next((step for step in self._steps() if self._is_sound(step)), None)

    def sound(self) -> list[int]:
        """The intact steps, newest first."""
        return [step for step in self._steps() if self._is_sound(step)]

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays of a step.

        Raises:
            BadInput: there is no such step, or it is damaged.
        """
        return self._read_or_refuse(step).meta

    def restore(
        self, abstract_state: Any, *, step: int | None = None, partial: bool = False
    ) -> tuple[Any, dict[str, Any]] | None:
        """Read the newest intact step (or `step`) onto any mesh, in any number of processes.

        Every file's digest is checked first. A damaged newest step is reported and renamed (by a reader: only passed over) and
        the one before it is taken; a damaged `step` is refused.

        Args:
            abstract_state: the state as `jax.ShapeDtypeStruct`s with shardings.
            partial: it is only a part of the state (`{"params": ...}`), and only that part is read.

        Returns:
            The state, and the `meta` saved with it. None if nothing was ever saved here.

        Raises:
            BadInput: the leaves are not those saved (every difference is named), or nothing intact is left.
        """
        wanted = by_path(abstract_state)
        if unplaced := [path for path, leaf in wanted.items() if leaf.sharding is None]:
            raise ValueError(f"leaves without a sharding: {', '.join(unplaced)}")
        self._settle()
        while True:
            chosen = self._agree(self._choose) if step is None else step
            if chosen < 0:
                return None
            marker = self._read_or_refuse(chosen)
            asked = describe(wanted)
            saved = {path: leaf for path, leaf in marker.leaves.items() if not partial or path in asked}
            if differences := compare(saved, asked):
                folder = self._path(chosen)
                raise BadInput(f"{folder} holds another state: {'; '.join(differences)}; ask for the state it was saved with")
            if self._agree(lambda chosen=chosen, marker=marker: self._is_intact(chosen, marker, required=step is not None)):
                break
        leaves = orbax_io.read(self._path(chosen), wanted)
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), [leaves[path] for path in wanted])
        return state, marker.meta

    # Writing. The worker thread copies and commits; process 0 alone makes, renames and removes folders.

    def _open(self) -> int:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_temporaries()
        except OSError as error:
            raise BadInput(f"{self.folder}: checkpoints cannot be written there ({error}); choose another --out") from error
        return True

    def _remove_temporaries(self) -> None:
        for entry in self._entries():
            if kind(entry) == "tmp":
                shutil.rmtree(entry)

    def _make_temporary(self, save: "_Save") -> int:
        """Whether the temporary folder could be made; if not, that is the save's verdict."""
        if os.path.lexists(self._path(save.marker.step)):
            self._set_aside(save.marker.step, Damaged("it has no sound marker and is in the way of a save"))
        try:
            self._remove_temporaries()
            self._temporary(save).mkdir()
        except OSError as error:
            save.verdict.set_result(error)
            return False
        return True

    def _start_writing(self, save: "_Save", leaves: dict[str, jax.Array]) -> Callable[[], None]:
        """Return a function that waits for the files; it raises the reason if they could not be started, as without memory.

        `_commit` then comes to its verdict with the other processes.
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
        """Finish a save: None, or why it failed. All processes come to the same verdict."""
        failure = None
        try:
            written()
            # Success leaves a note, not failure: a full disk may have no room for one.
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
        if failure is None and not self._is_sound(save.marker.step):
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
        save.marker.write(temporary)
        temporary.rename(self._path(save.marker.step))
        sync_directory(self.folder)

    def _prune(self) -> None:
        for step in self.sound()[self._keep :]:
            # Renamed first, so that a kill half-way through the deletion leaves no half step under a step's name.
            old = self._path(step)
            shutil.rmtree(old.rename(old.with_suffix(".tmp")), ignore_errors=True)

    def _temporary(self, save: "_Save") -> pathlib.Path:
        return self._path(save.marker.step).with_suffix(".tmp")

    def _settle(self) -> None:
        """Wait for the save under way and report it if it failed."""
        if self._pending is None:
            return
        save, self._pending = self._pending, None
        failure = save.verdict.result()
        if failure is None:
            self._failed = []
            return
        self._failed.append(save)
        newest = "there is none yet" if (step := self.latest()) is None else f"the newest is of step {step}"
        message = f"CHECKPOINT of step {save.marker.step} FAILED and was removed: {self._shortage()}. The run goes on; {newest}"
        self._tell(f"{message}; a second failure in a row ends the run", everywhere=not isinstance(failure, _PeerFailed))

    def _refuse_second_failure(self) -> None:
        if len(self._failed) >= 2:
            raise BadInput(f"two checkpoints in a row failed: {self._shortage()}; {self.remedy()}, or choose another --out")

    def remedy(self) -> str:
        """Return what to do about the last save, which has failed."""
        return errors.remedy(self._failed[-1].verdict.result())

    def _shortage(self) -> str:
        save = self._failed[-1]
        failure = save.verdict.result()
        # TensorStore tells the reason last, after all that it was doing.
        cause = " ".join(str(failure).split())[-100:] or type(failure).__name__
        try:
            free = f"{shutil.disk_usage(self.folder).free:,} free"
        except OSError as error:
            free = f"is not there ({error.strerror})"
        return f"{self.folder} needs {save.bytes:,} bytes and has {free} ({cause})"

    # Finding and checking.

    def _steps(self) -> list[int]:
        """Steps that have a folder, newest first. What else lies there is reported once."""
        steps = []
        for entry in self._entries():
            if entry.name in self._passed_over:
                continue
            what = kind(entry)
            if what == "step":
                steps.append(int(entry.name))
            elif what == "junk":
                self._passed_over.add(entry.name)
                self._tell(f"{entry} is not a checkpoint and is ignored")
        return sorted(steps, reverse=True)

    def _entries(self) -> list[pathlib.Path]:
        try:
            return list(self.folder.iterdir()) if self.folder.is_dir() else []
        except OSError as error:
            raise BadInput(f"{self.folder}: checkpoints cannot be listed ({error.strerror}); make the folder readable") from error

    def _choose(self) -> int:
        """The newest sound step after setting aside the damaged ones above it; -1 if nothing was ever saved."""
        for step in self._steps():
            try:
                Marker.read(self._path(step), step)
            except Damaged as damage:
                self._set_aside(step, damage)
            else:
                return step
        lost = sorted(entry.name for entry in self._entries() if kind(entry) in ("step", "corrupt"))
        if lost:
            raise BadInput(f"{self.folder}: no intact checkpoint, only {', '.join(lost)}; delete the folder to start anew")
        return -1

    def _is_intact(self, step: int, marker: Marker, *, required: bool) -> int:
        try:
            marker.check_content(self._path(step))
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
                return  # The writer has removed it meanwhile.
            self._passed_over.add(folder.name)
            self._tell(f"{message}; it is passed over for the one before it")
            return
        aside = next(name for n in itertools.count(1) if not os.path.lexists(name := folder.with_suffix(f".corrupt-{n}")))
        folder.rename(aside)
        self._tell(f"{message}; it is now {aside.name}, and the one before it is used")

    def _is_sound(self, step: int) -> bool:
        try:
            Marker.read(self._path(step), step)
        except Damaged:
            return False
        return True

    def _read_or_refuse(self, step: int) -> Marker:
        try:
            return Marker.read(self._path(step), step)
        except Damaged as damage:
            sound = ", ".join(map(str, self.sound())) or "none"
            raise BadInput(f"{self._path(step)}: {damage}; steps that can be read: {sound}") from damage

    def _path(self, step: int) -> pathlib.Path:
        return self.folder / folder_name(step)

    # Several processes.

    def _agree(self, decide: Callable[[], int]) -> int:
        """The decision of process 0, in every process. Also a barrier."""
        value, error = 0, None
        if jax.process_index() == 0:
            try:
                value = decide()
            except Exception as raised:
                error = raised
        with jax.transfer_guard("allow"):
            failed, value = multihost_utils.broadcast_one_to_all(np.array([error is not None, value], np.int32)).tolist()
        if error is not None:
            raise error
        if failed:
            raise BadInput(f"{self.folder}: refused by process 0, see its message")
        return value

    def _tell(self, message: str, *, everywhere: bool = False) -> None:
        if everywhere or jax.process_index() == 0:
            self._notify(message)


@dataclasses.dataclass(kw_only=True)
class _Save:
    """A save under way."""

    marker: Marker
    bytes: int
    """Size of the arrays in memory, and about that of the files."""
    number: int
    """The same in every process, of no other save of this run: names its barriers."""
    verdict: concurrent.futures.Future[Exception | None] = dataclasses.field(default_factory=concurrent.futures.Future)


class _PeerFailed(Exception):
    """A save that failed in another process, which reports the cause."""
