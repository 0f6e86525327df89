"""The folders of a run's steps on disk: listing, checking, setting aside and pruning them."""

import itertools
import os
import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.checkpoints.manifest import DamagedCheckpoint, Manifest, folder_name, kind_of_entry
from zoo.errors import BadInput, write_remedy
from zoo.fault_points import fault_point


class StepFolders:
    """The folder of a run's checkpoints, with a folder for each step in it.

    Every process may list and check. Only process 0 of the run that writes here creates, renames and removes folders.
    """

    def __init__(self, folder: str | os.PathLike, keep: int, *, notify: Callable[[str], None]) -> None:
        """Describe a folder, which may not exist yet; the arguments are those of `train.checkpoints.checkpoints.Checkpoints`."""
        self.folder = pathlib.Path(folder).absolute()
        self.is_writer = False
        """True in the run that writes here; a reader changes nothing."""
        self._keep = keep
        self._notify = notify
        self._ignored: set[str] = set()

    def path(self, step: int) -> pathlib.Path:
        """Return the folder of a committed step."""
        return self.folder / folder_name(step)

    def temporary(self, step: int) -> pathlib.Path:
        """Return the folder in which a step is written before it is committed."""
        return self.path(step).with_suffix(".tmp")

    def steps(self) -> list[int]:
        """Return the steps that have a folder, newest first; report every other entry once."""
        steps = []
        for entry in self.entries():
            if entry.name in self._ignored:
                continue
            entry_kind = kind_of_entry(entry)
            if entry_kind == "step":
                steps.append(int(entry.name))
            elif entry_kind == "junk":
                self._ignored.add(entry.name)
                self.report(f"{entry} is not a checkpoint and is ignored")
        return sorted(steps, reverse=True)

    def valid_steps(self) -> list[int]:
        """Return the steps with a valid manifest and files of the listed sizes, newest first."""
        return [step for step in self.steps() if self.is_valid(step)]

    def latest(self) -> int | None:
        """Return the newest step with a valid manifest and files of the listed sizes."""
        return next((step for step in self.steps() if self.is_valid(step)), None)

    def is_valid(self, step: int) -> bool:
        """Return whether the folder of a step has a valid manifest, and files of the sizes that it lists."""
        try:
            Manifest.read(self.path(step), step)
        except DamagedCheckpoint:
            return False
        return True

    def entries(self) -> list[pathlib.Path]:
        """Return everything in the folder."""
        try:
            return list(self.folder.iterdir()) if self.folder.is_dir() else []
        except OSError as error:
            raise BadInput(f"{self.folder}: checkpoints cannot be listed ({error.strerror}); make the folder readable") from error

    def read_manifest(self, step: int) -> Manifest:
        """Return the manifest of a step.

        Raises:
            BadInput: there is no such step, or it is damaged.
        """
        try:
            return Manifest.read(self.path(step), step)
        except DamagedCheckpoint as damage:
            readable = ", ".join(map(str, self.valid_steps())) or "none"
            raise BadInput(f"{self.path(step)}: {damage}; steps that can be read: {readable}") from damage

    def create(self) -> None:
        """Create the folder and remove the remains of killed saves.

        Raises:
            BadInput: the folder cannot be created or written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.remove_temporaries()
        except OSError as error:
            raise BadInput(f"{self.folder}: checkpoints cannot be written there ({error}); choose another --out") from error

    def remove_temporaries(self) -> None:
        """Remove the remains of saves and deletions that did not end."""
        for entry in self.entries():
            if kind_of_entry(entry) == "tmp":
                shutil.rmtree(entry)

    def prune(self) -> None:
        """Remove all valid steps but the newest `keep`; an error is reported, since the save that calls this has succeeded."""
        for step in self.valid_steps()[self._keep :]:
            # Renamed first, so that a kill during the deletion leaves no incomplete step under a step's name.
            old = self.path(step)
            try:
                fault_point("checkpoint.delete")
                deleted = old.rename(old.with_suffix(".tmp"))
                fault_point("checkpoint.deleting")
            except OSError as error:
                self.report(f"{old} cannot be deleted ({error.strerror}); the run continues, and the next save tries again")
                return
            shutil.rmtree(deleted, ignore_errors=True)

    def set_aside(self, step: int, damage: DamagedCheckpoint) -> None:
        """Report a damaged step and rename its folder; a reader only skips it from now on."""
        folder = self.path(step)
        message = f"CHECKPOINT {folder} IS DAMAGED: {damage}"
        if not self.is_writer:
            if not folder.exists():
                return  # The writer removed it in the meantime.
            self._ignored.add(folder.name)
            self.report(f"{message}; it is skipped, and the one before it is used")
            return
        target = next(name for n in itertools.count(1) if not os.path.lexists(name := folder.with_suffix(f".corrupt-{n}")))
        try:
            fault_point("checkpoint.set_aside")
            folder.rename(target)
        except OSError as error:
            fix = f"{write_remedy(error)}, or remove it, and run the same command again"
            raise BadInput(f"{folder} is damaged ({damage}) and cannot be renamed ({error.strerror}); {fix}") from None
        self.report(f"{message}; it is now {target.name}, and the one before it is used")

    def agree(self, decide: Callable[[], int | None]) -> int:
        """Return process 0's decision (0 for None) in every process. The call is also a barrier."""
        value, error = 0, None
        if jax.process_index() == 0:
            try:
                value = decide() or 0
            except Exception as exception:
                error = exception
        with jax.transfer_guard("allow"):
            failed, value = multihost_utils.broadcast_one_to_all(np.array([error is not None, value], np.int32)).tolist()
        if error is not None:
            raise error
        if failed:
            raise BadInput(f"{self.folder}: process 0 refused it; see its message")
        return value

    def report(self, message: str, *, everywhere: bool = False) -> None:
        """Pass a message on to the user, from process 0 or from all."""
        if everywhere or jax.process_index() == 0:
            self._notify(message)
