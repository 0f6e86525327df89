"""Checkpoints that are either complete or do not exist.

    checkpoints/00000400/               a committed step: Orbax's files and COMMIT.json
                00000600.tmp/           a step being written or deleted, or the remains of one after a kill
                00000200.corrupt-1/     a step whose files turned out to be damaged

Orbax writes the arrays. It keeps no digest of them, accepts any folder with a number as a checkpoint and notices a full disk
late, so this package commits them itself. When every process has written its part, process 0 adds the manifest COMMIT.json (what
the run is, every leaf, size and SHA-256 of every file), syncs everything to the disk and gives the folder its final name: one
atomic rename. A folder without a valid manifest is not a checkpoint.

One run writes into a folder at a time (the run holds the lock); any number of processes may read.

`Checkpoints` is the interface. Its parts: `step_folders` lists, checks and prunes the folders, `saving` writes a step,
`restoring` reads one, `manifest` is COMMIT.json (its `check_content` compares the digests), and `orbax_io` is the only module
that uses Orbax. `train/loop/hooks.py` decides when a step is saved.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import jax

from train.checkpoints import restoring
from train.checkpoints.saving import Saver
from train.checkpoints.step_folders import StepFolders
from zoo.errors import BadInput


class Checkpoints:
    """The checkpoints of a run.

    Entering the context makes this the folder's writer: it creates the folder and removes the remains of killed saves; leaving it
    waits for the save in progress. A reader does not enter the context, and changes nothing on disk.

    In a run of several processes, on a shared file system, all of them construct, enter, save, wait and restore together;
    `poll`, `latest` and `meta` may be called at any time. Messages come from process 0, and from a process that cannot write.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        keep: int,
        *,
        notify: Callable[[str], None],
        on_commit: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Describe the checkpoints in a folder, which may not exist yet.

        Args:
            folder: the parent of the step folders.
            keep: how many of the newest steps are kept, at least 1; during a save there is one more on disk.
            notify: receives one-line messages for the user.
            on_commit: is called with each step that is committed here, in process 0, by the thread that saves. The save ends when
                it returns.
        """
        self._on_commit = on_commit
        self._folders = StepFolders(folder, keep, notify=notify)
        self.folder = self._folders.folder
        self._saver: Saver | None = None

    def __enter__(self) -> "Checkpoints":
        """Become the folder's writer.

        Raises:
            BadInput: the folder cannot be created or written.
        """
        self._folders.agree(self._folders.create)
        self._folders.is_writer = True
        self._saver = Saver(self._folders, self._on_commit)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._saver is not None
        try:
            self._saver.close()
        finally:
            self._saver, self._folders.is_writer = None, False

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
        assert self._saver is not None, "saving needs the context manager"
        meta = json.loads(json.dumps(meta, allow_nan=False))
        self.wait()
        step = int(jax.device_get(state.step))
        newest = self._folders.agree(lambda: -1 if (latest := self.latest()) is None else latest)
        if newest == step:
            return
        if newest > step:
            raise BadInput(f"{self.folder}: step {newest} is already here, so step {step} cannot be saved; choose another --name")
        self._saver.start(state, step, meta)

    def poll(self) -> None:
        """Handle a save that has ended, without waiting; called at every step.

        The files of a failed save are already removed; the failure is reported, and the run continues. In a run of several
        processes only `save` and `wait` raise after two failures, so that all processes raise at the same step.

        Raises:
            BadInput: two saves in a row have failed; names the folder, the bytes needed and free, and the cause.
        """
        if self._saver is not None:
            self._saver.poll()

    def wait(self) -> bool:
        """Block until no save is in progress, and return False if the last one failed.

        Raises:
            BadInput: see `poll`.
        """
        return self._saver is None or self._saver.wait()

    def remedy(self) -> str:
        """Return advice on how to fix the failure of the last save."""
        assert self._saver is not None
        return self._saver.remedy()

    def reason(self) -> str:
        """Return why the last save failed."""
        assert self._saver is not None
        return self._saver.reason()

    def latest(self) -> int | None:
        """Return the newest step with a valid manifest and files of the listed sizes; `restore` also checks the digests."""
        return self._folders.latest()

    def valid_steps(self) -> list[int]:
        """Return the steps with a valid manifest and files of the listed sizes, newest first."""
        return self._folders.valid_steps()

    def meta(self, step: int) -> dict[str, Any]:
        """Return the JSON that was saved beside the arrays of a step.

        Raises:
            BadInput: there is no such step, or it is damaged.
        """
        return self._folders.read_manifest(step).meta

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
        if self._saver is not None:
            self._saver.collect()
        return restoring.restore_state(self._folders, abstract_state, step=step, partial=partial)
