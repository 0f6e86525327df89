"""Fetches a run from an object store into its working copy, a local folder of the cache in which every command reads it.

Only a step with a COMMIT.json is fetched, into a temporary folder, where the digests of its files are compared; one rename makes
it a checkpoint of the working copy. That is the last thing that happens, so a fetch that is killed is done again.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from train.checkpoints.manifest import DamagedCheckpoint, Manifest, folder_name
from train.config.run_config import Run
from train.run.run_dir import RunDir
from train.store import run_layout
from train.store.run_layout import BASE, BEST, CHECKPOINTS, WRITER
from zoo import object_store
from zoo.errors import BadInput, cannot_write
from zoo.fault_points import fault_point
from zoo.object_store import ObjectStore
from zoo.runtime import launch, stdio
from zoo.sha256_and_fsync import fsync

Notify = Callable[[str], None]


def prepare_training(run: Run, *, notify: Notify = stdio.write_error) -> None:
    """Fetch what a run with --out in an object store continues from; a run with a local --out needs nothing of this.

    Raises:
        BadInput: the store cannot be read, see `zoo.object_store.ObjectStore`; or no step in it is intact.
    """
    if not object_store.is_uri(run.out):
        return
    folder = RunDir.of(run)
    store = ObjectStore(f"{run.out.rstrip('/')}/{folder.path.name}")
    sizes = store.list()
    with folder.claim():
        if WRITER not in sizes and folder.has_results:
            fix = "remove that folder to start again"
            notify(f"{store.uri}: no run there; the one in {folder.path} continues and is uploaded again; {fix}")
        _fetch(store, folder, sizes, notify)


def local_name(name: str, step: int | None = None, *, all_steps: bool = False, notify: Notify = stdio.write_error) -> str:
    """Return the folder of a run in an object store after fetching it; any other name is returned as it is.

    A process that `zoo.runtime.launch` started reads what the process that started it has fetched.

    Args:
        name: a URI, a path, or hub:ID.
        step: fetch this step too, besides the newest and the best one.
        all_steps: fetch all steps.

    Raises:
        BadInput: there is no run, no intact step, or the store cannot be read, see `zoo.object_store.ObjectStore`.
    """
    if not object_store.is_uri(name):
        return name
    folder = RunDir(object_store.working_folder(name))
    if launch.is_child():
        return str(folder.path)
    store = ObjectStore(name)
    sizes = store.list()
    if "config.json" not in sizes:
        raise BadInput(f"{store.uri}: no run there, which has a config.json; name --out and the name of the run")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder.claim())
        except BadInput:
            if not folder.has_checkpoint:
                raise
            notify(f"{folder.path} is in use, perhaps by the training of this run; it is read as it is")
            return str(folder.path)
        _fetch(store, folder, sizes, notify)
        committed = run_layout.committed_steps(sizes, CHECKPOINTS)
        for extra in committed if all_steps else [step] if step in committed else []:
            assert extra is not None
            if not run_layout.is_valid(folder.checkpoints, extra):
                _fetch_step(store, folder, CHECKPOINTS, extra, sizes, notify)
    return str(folder.path)


def _fetch(store: ObjectStore, folder: RunDir, sizes: dict[str, int], notify: Notify) -> None:
    """Make the newest intact step of the store the newest one of the working copy, if it is newer, with all files beside it.

    Otherwise only files that the working copy lacks are fetched, such as the scores of a run that ended on another machine.

    Raises:
        BadInput: no step in the store is intact, and there is none here.
    """
    for key in sizes:
        run_layout.check_key(store.uri, key)
    latest = max(run_layout.valid_steps(folder.checkpoints), default=None)
    committed = run_layout.committed_steps(sizes, CHECKPOINTS)
    damaged = []
    for step in committed:
        if latest is not None and step <= latest:
            break
        if (temporary := _download_step(store, folder, CHECKPOINTS, step, sizes, notify)) is not None:
            _fetch_files(store, folder, sizes)
            for other in (BASE, BEST):
                _fetch_newest(store, folder, other, sizes, notify)
            _publish(temporary, run_layout.step_folder(folder.checkpoints, step), notify)
            return
        damaged.append(folder_name(step))
    if latest is None and damaged:
        fix = "delete it to start again"
        raise BadInput(f"{store.uri}/{CHECKPOINTS}: no intact checkpoint, only {', '.join(sorted(damaged))}; {fix}")
    present = run_layout.run_files(folder)
    _fetch_files(store, folder, {key: size for key, size in sizes.items() if key not in present})
    for other in (BASE, BEST):
        _fetch_newest(store, folder, other, sizes, notify)


def _fetch_newest(store: ObjectStore, folder: RunDir, steps: str, sizes: dict[str, int], notify: Notify) -> None:
    """Fetch the newest step of a folder that keeps one, unless the working copy has it or a newer one."""
    latest = max(run_layout.valid_steps(folder.path / steps), default=None)
    for step in run_layout.committed_steps(sizes, steps):
        if (latest is not None and step <= latest) or _fetch_step(store, folder, steps, step, sizes, notify):
            return


def _fetch_step(store: ObjectStore, folder: RunDir, steps: str, step: int, sizes: dict[str, int], notify: Notify) -> bool:
    """Fetch a step, and return False if it is damaged in the store, which is reported."""
    if (temporary := _download_step(store, folder, steps, step, sizes, notify)) is None:
        return False
    _publish(temporary, run_layout.step_folder(folder.path / steps, step), notify)
    return True


def _download_step(
    store: ObjectStore, folder: RunDir, steps: str, step: int, sizes: Collection[str], notify: Notify
) -> Path | None:
    """Download a committed step and return its temporary folder, or report that it is damaged and return None."""
    # With the suffix of a save that has not ended, which the next writer removes after a kill.
    temporary = run_layout.step_folder(folder.path / steps, step).with_suffix(".tmp")
    prefix = run_layout.step_prefix(steps, step)
    try:
        if temporary.exists():
            shutil.rmtree(temporary)
        for key in sizes:
            if key.startswith(prefix):
                file = temporary / key.removeprefix(prefix)
                file.parent.mkdir(parents=True, exist_ok=True)
                store.get(key, file)
        Manifest.read(temporary, step).check_content(temporary)
        for path, _, files in os.walk(temporary):
            for name in files:
                fsync(Path(path) / name)
            fsync(path)
    except FileNotFoundError as error:
        damage = f"{error.filename} is missing"
    except DamagedCheckpoint as error:
        damage = str(error)
    except OSError as error:
        raise cannot_write(temporary, error) from None
    else:
        return temporary
    shutil.rmtree(temporary, ignore_errors=True)
    notify(f"CHECKPOINT {store.uri}/{prefix} IS DAMAGED: {damage}; it is skipped, and the one before it is used")
    return None


def _publish(temporary: Path, final: Path, notify: Notify) -> None:
    """Give a complete step its final name, in the place of a damaged one if there is one."""
    try:
        if os.path.lexists(final):
            notify(f"CHECKPOINT {final} IS DAMAGED; it is replaced by that of the object store")
            shutil.rmtree(final)
        fault_point("store.rename")
        temporary.rename(final)
        fsync(final.parent)
    except OSError as error:
        raise cannot_write(final, error) from None


def _fetch_files(store: ObjectStore, folder: RunDir, sizes: Collection[str]) -> None:
    """Fetch the files beside the steps; each replaces the local one at once."""
    for key in run_layout.run_keys(sizes):
        file = folder.path / key
        partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # It was deleted in the meantime.
                store.get(key, partial)
                partial.replace(file)
        except OSError as error:
            raise cannot_write(file, error) from None
        finally:
            partial.unlink(missing_ok=True)
