"""Saving a state while training continues: a worker thread copies, writes and commits it; failures are counted and reported."""

import concurrent.futures
import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable
from typing import Any

import jax

from train.checkpoints import orbax_io
from train.checkpoints.manifest import DamagedCheckpoint, Manifest, by_path, describe_leaves
from train.checkpoints.slow_save import SlowSaveReports
from train.checkpoints.step_folders import StepFolders
from zoo import errors
from zoo.errors import BadInput
from zoo.fault_points import fault_point
from zoo.sha256_and_fsync import fsync

_barriers = itertools.count()


@dataclasses.dataclass(kw_only=True)
class Save:
    """A save in progress."""

    manifest: Manifest
    bytes: int
    """Size of the arrays in memory, about that of the files."""
    number: int
    """Number that is the same in every process and unique among the run's saves; it names the barriers."""
    verdict: concurrent.futures.Future[Exception | None] = dataclasses.field(default_factory=concurrent.futures.Future)

    @property
    def step(self) -> int:
        return self.manifest.step


class PeerFailed(Exception):
    """A save that failed in another process, which reports the cause."""


class Saver:
    """Saves into the folders of a run, one save at a time. All processes of the run call the methods together, except `poll`."""

    def __init__(self, folders: StepFolders, on_commit: Callable[[int], None]) -> None:
        """Start the worker thread of the folders' writer; see `train.checkpoints.checkpoints.Checkpoints` for `on_commit`."""
        self._folders, self._on_commit = folders, on_commit
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Save | None = None
        self._failed: list[Save] = []
        # The thread starts now: at a save there may be no memory for one.
        self._worker.submit(int).result()
        self._slow = SlowSaveReports(self._report_slow)

    def close(self) -> None:
        """Wait for the save in progress and end the thread."""
        try:
            self.collect()
        finally:
            self._worker.shutdown()
            self._slow.close()

    def start(self, state: Any, step: int, meta: dict[str, Any]) -> None:
        """Start saving a state; no other save may be in progress.

        Raises:
            BadInput: there is no memory for a save.
        """
        leaves = by_path(state)
        save = Save(
            manifest=Manifest(step=step, meta=meta, leaves=describe_leaves(leaves)),
            bytes=sum(leaf.nbytes for leaf in leaves.values()),
            number=next(_barriers),
        )
        self._check_memory(save)
        self._slow.begin(step)
        if self._folders.agree(lambda: self._make_temporary(save)):
            save.verdict = self._worker.submit(self._commit, save, self._start_writing(save, leaves))
        elif not save.verdict.done():
            save.verdict.set_result(PeerFailed("process 0 could not make the folder"))
        save.verdict.add_done_callback(lambda _: self._slow.end(step))
        self._pending = save

    def poll(self) -> None:
        """Handle a save that has ended, without waiting; see `train.checkpoints.checkpoints.Checkpoints.poll`."""
        if self._pending is not None and self._pending.verdict.done():
            self.collect()
            if jax.process_count() == 1:
                self._raise_if_failed_twice()

    def wait(self) -> bool:
        """Block until no save is in progress, and return False if the last one failed.

        Raises:
            BadInput: two saves in a row have failed.
        """
        self.collect()
        self._raise_if_failed_twice()
        return not self._failed

    def collect(self) -> None:
        """Wait for the save in progress and report it if it failed."""
        if self._pending is None:
            return
        save, self._pending = self._pending, None
        failure = save.verdict.result()
        if failure is None:
            self._failed = []
            return
        self._failed.append(save)
        newest = "there is none yet" if (step := self._folders.latest()) is None else f"the newest is of step {step}"
        message = f"CHECKPOINT of step {save.step} FAILED and was removed: {self._shortage()}. The run continues; {newest}"
        self._folders.report(f"{message}; a second failure in a row ends the run", everywhere=not isinstance(failure, PeerFailed))

    def remedy(self) -> str:
        """Return advice on how to fix the failure of the last save."""
        return errors.write_remedy(self._failed[-1].verdict.result())

    def reason(self) -> str:
        """Return why the last save failed."""
        return errors.write_failure_reason(self._failed[-1].verdict.result())

    def _raise_if_failed_twice(self) -> None:
        if len(self._failed) >= 2:
            raise BadInput(f"two checkpoints in a row failed: {self._shortage()}; {self.remedy()}, or choose another --out")

    def _report_slow(self, step: int, seconds: float) -> None:
        fix = f"if it never ends, check the disk or network of {self._folders.folder}; a second Ctrl-C or SIGTERM ends the run"
        self._folders.report(f"the save of step {step} has taken {seconds:.0f} s; the next save waits for it; {fix} without it")

    def _shortage(self) -> str:
        save, folder = self._failed[-1], self._folders.folder
        try:
            free = f"{shutil.disk_usage(folder).free:,} free"
        except OSError as error:
            free = f"an unknown number free ({error.strerror})"
        return f"{folder} needs {save.bytes:,} bytes and has {free} ({self.reason()})"

    def _check_memory(self, save: Save) -> None:
        """Raise `BadInput` if this process has no memory for its part of a save."""
        size = save.bytes // jax.process_count()
        try:
            orbax_io.check_save_memory(size)
        except OSError as error:
            need = f"it needs {size + orbax_io.SAVE_MEMORY:,} bytes of memory ({error.strerror})"
            fix = f"{errors.write_remedy(error)}, and run the same command again"
            raise BadInput(f"{self._folders.folder}: step {save.step} cannot be saved, {need}; {fix}") from None

    def _make_temporary(self, save: Save) -> bool:
        """Make the temporary folder and return True; if that fails, the error becomes the save's verdict."""
        if os.path.lexists(self._folders.path(save.step)):
            self._folders.set_aside(save.step, DamagedCheckpoint("it has no valid manifest and blocks a save"))
        try:
            self._folders.remove_temporaries()
            fault_point("checkpoint.mkdir")
            self._folders.temporary(save.step).mkdir()
        except OSError as error:
            save.verdict.set_result(error)
            return False
        return True

    # The worker thread copies and commits; only process 0 publishes and prunes.

    def _start_writing(self, save: Save, leaves: dict[str, jax.Array]) -> Callable[[], None]:
        """Return a function that waits for the files; it raises the error if the write could not start, as without memory.

        Raising there instead of here lets `_commit` reach its verdict together with the other processes.
        """
        try:
            return self._worker.submit(orbax_io.start_writing, self._folders.temporary(save.step), leaves).result()
        except Exception as error:
            failure = error

        def fail() -> None:
            raise failure

        return fail

    def _commit(self, save: Save, written: Callable[[], None]) -> Exception | None:
        """Finish a save and return None, or the error; all processes return the same verdict."""
        failure, temporary = None, self._folders.temporary(save.step)
        try:
            written()
            fault_point("checkpoint.written")
            # A file marks success rather than failure: a full disk may have no space for it.
            (temporary / f"written.{jax.process_index()}").touch()
        except Exception as error:
            failure = error
        orbax_io.wait_for_processes(f"checkpoint.{save.number}.written")
        if jax.process_index() == 0:
            try:
                self._publish(save)
            except Exception as error:
                failure = failure or error
                orbax_io.remove_abandoned(temporary)
        orbax_io.wait_for_processes(f"checkpoint.{save.number}.published")
        if failure is None and not self._folders.is_valid(save.step):
            return PeerFailed("another process failed")
        if failure is None and jax.process_index() == 0:
            self._folders.prune()
            self._on_commit(save.step)
        return failure

    def _publish(self, save: Save) -> None:
        """Complete the files, add the manifest and give the folder its final name."""
        temporary = self._folders.temporary(save.step)
        for process in range(jax.process_count()):
            try:
                (temporary / f"written.{process}").unlink()
            except FileNotFoundError as error:
                raise PeerFailed(f"process {process} could not write its part") from error
        fault_point("checkpoint.merge")
        orbax_io.finish_writing(temporary)
        save.manifest.write(temporary)
        fault_point("checkpoint.rename")
        temporary.rename(self._folders.path(save.step))
        try:
            fault_point("checkpoint.committed")
            fsync(self._folders.folder)
        except OSError:
            # It may not survive a power failure, so it does not count; the other processes look for its final name.
            self._folders.path(save.step).rename(temporary)
            raise
