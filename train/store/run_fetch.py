"""Fetches a run from an object store into its working copy, a local folder of the cache in which every command reads it.

Only a step with a COMMIT.json is fetched, into a temporary folder, where the digests of its files are compared; one rename makes
it a checkpoint of the working copy. That is the last thing that happens, so a fetch that is killed is done again.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

from train.checkpoints import manifest
from train.checkpoints.manifest import DamagedCheckpoint, Manifest, folder_name
from train.config.run_config import Run
from train.run.run_dir import LOCK, RunDir, write_json
from train.store import result_sync, run_layout
from train.store.run_layout import BASE, BEST, CHECKPOINTS, DAMAGED, FETCHED, RESULTS, WRITER
from zoo import object_store, trust
from zoo.errors import BadInput, cannot_write
from zoo.fault_points import fault_point
from zoo.file_access import LARGEST_JSON, partial_path, read_regular, read_regular_text
from zoo.object_store import ObjectStore
from zoo.runtime import caches, launch, stdio
from zoo.sha256_and_fsync import fsync

Notify = Callable[[str], None]
CONFIG = "config.json"
LONGEST_WAIT = 600.0
"""Seconds that a reader waits for another one that fetches the same run."""


def prepare_training(run: Run, *, notify: Notify = stdio.write_error) -> None:
    """Fetch what a run with --out in an object store continues from; a run with a local --out needs nothing of this.

    Raises:
        BadInput: the store cannot be read, see `zoo.object_store.ObjectStore`; or no step in it is intact; or it has
            another run than the working copy; or other users can write to that copy, see `zoo.runtime.caches.private_folder`.
    """
    if not object_store.is_uri(run.out):
        return
    folder = RunDir.of(run)
    caches.private_folder(folder.path)
    store = ObjectStore(f"{run.out.rstrip('/')}/{folder.path.name}")
    sizes = store.list()
    with folder.claim():
        if CONFIG not in sizes and folder.has_results:
            fix = "remove that folder to start again"
            notify(f"{store.uri}: no run there; the one in {folder.path} continues and is uploaded again; {fix}")
        if (step := _differing_step(store, folder, sizes)) is not None:
            raise _is_another_run(store, folder, f"step {step} differs")
        _fetch(store, folder, sizes, notify)


def local_name(name: str, step: int | None = None, *, all_steps: bool = False, notify: Notify = stdio.write_error) -> str:
    """Return the folder of a run in an object store after fetching it; any other name is returned as it is.

    A process that `zoo.runtime.launch` started reads what the process that started it has fetched.

    Args:
        name: a URI, a path, or hub:ID.
        step: fetch this step too, besides the newest and the best one.
        all_steps: fetch all steps.

    Raises:
        BadInput: as `prepare_training`; or there is no run; or only a file of an unconfirmed folder names it, see `zoo.trust`.
    """
    if not object_store.is_uri(name):
        return name
    trust.check_trusted([name])
    folder = RunDir(object_store.working_folder(name))
    if launch.is_child():
        return str(folder.path)
    store = ObjectStore(name)
    sizes = store.list()
    if CONFIG not in sizes:
        raise BadInput(f"{store.uri}: no run there, which has a config.json; name --out and the name of the run")
    caches.private_folder(folder.path)
    with contextlib.ExitStack() as stack:
        if not _claim(stack, folder, notify):
            notify(f"{folder.path} is in use by the training of this run; it is read as it is")
            return str(folder.path)
        _replace_another_run(store, folder, sizes, notify)
        _fetch(store, folder, sizes, notify)
        committed = run_layout.committed_steps(sizes, CHECKPOINTS)
        for extra in committed if all_steps else [step] if step in committed else []:
            assert extra is not None
            if not run_layout.is_valid(folder.checkpoints, extra):
                _fetch_step(store, folder, CHECKPOINTS, extra, sizes, notify)
    return str(folder.path)


def _claim(stack: contextlib.ExitStack, folder: RunDir, notify: Notify) -> bool:
    """Lock a working copy until the stack is closed, after waiting for another reader; return False if it is being trained.

    Raises:
        BadInput: another process had it for `LONGEST_WAIT`, or it is being trained and has no checkpoint yet.
    """
    end, waits = time.monotonic() + LONGEST_WAIT, False
    while True:
        try:
            stack.enter_context(folder.claim())
        except BadInput:
            is_trained = _is_trained(folder)
            if is_trained and folder.has_checkpoint:
                return False
            if is_trained or not _is_locked(folder) or time.monotonic() >= end:
                raise
            if not waits:
                notify(f"{folder.path} is in use; waiting up to {LONGEST_WAIT / 60:.0f} minutes for the process that fetches it")
            waits = True
            time.sleep(0.1)
        else:
            return True


def _is_locked(folder: RunDir) -> bool:
    """Return whether a working copy can be written, so that only a lock prevents that this process has it."""
    return (folder.path / LOCK).exists() and os.access(folder.path, os.W_OK)


def _is_trained(folder: RunDir) -> bool:
    """Return whether the process that has locked a working copy is the one that uploads it."""
    try:
        writer = json.loads(read_regular_text(folder.path / WRITER))
        return read_regular_text(folder.path / LOCK) == f"process {writer['process']} on {writer['host']}\n"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _differing_step(store: ObjectStore, folder: RunDir, sizes: Collection[str]) -> int | None:
    """Return the newest step that is intact both in the store and here, if its COMMIT.json differs."""
    present = run_layout.valid_steps(folder.checkpoints)
    for step in run_layout.committed_steps(sizes, CHECKPOINTS):
        if step in present:
            with contextlib.suppress(FileNotFoundError):  # It was deleted in the meantime.
                if manifest.is_intact(content := store.read(run_layout.commit_key(CHECKPOINTS, step))):
                    local = run_layout.step_folder(folder.checkpoints, step) / manifest.NAME
                    return step if content != read_regular(local, LARGEST_JSON) else None
    return None


def _replace_another_run(store: ObjectStore, folder: RunDir, sizes: Collection[str], notify: Notify) -> None:
    """Empty a reader's copy of a run that was deleted in the store and trained again.

    A copy in which a run was trained may have steps that the store never had: it is left alone, and stays usable while its run is
    the one in the store, even with later steps than there.

    Raises:
        BadInput: the copy is of another run, which was trained in it.
    """
    latest = max(run_layout.valid_steps(folder.checkpoints), default=-1)
    newest = max(run_layout.committed_steps(sizes, CHECKPOINTS), default=-1)
    is_own = (folder.path / WRITER).exists()
    if (step := _differing_step(store, folder, sizes)) is not None:
        reason = f"step {step} differs"
    elif latest > newest and not (is_own and _is_last_writer(store, folder)):
        reason = f"step {latest} is later than all of the store"
    else:
        return
    if is_own:
        raise _is_another_run(store, folder, reason)
    notify(f"{store.uri}: another run than the copy in {folder.path} ({reason}); the copy is replaced")
    try:
        # The steps last: until they are removed, another attempt comes here again.
        for entry in sorted(folder.path.iterdir(), key=lambda entry: entry.name == CHECKPOINTS):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != LOCK:
                entry.unlink()
    except OSError as error:
        raise cannot_write(folder.path, error) from None


def _is_last_writer(store: ObjectStore, folder: RunDir) -> bool:
    """Return whether no other machine has begun to train a run since it was trained here."""
    try:
        return store.read(WRITER) == read_regular(folder.path / WRITER, LARGEST_JSON)
    except FileNotFoundError:
        return True


def _is_another_run(store: ObjectStore, folder: RunDir, reason: str) -> BadInput:
    fix = f"remove {folder.path}, or choose another --name"
    return BadInput(f"{store.uri}: another run than the one in {folder.path} ({reason}); {fix}")


def _digest_of_commit(store: ObjectStore, step: int) -> str:
    try:
        return hashlib.sha256(store.read(run_layout.commit_key(CHECKPOINTS, step))).hexdigest()
    except FileNotFoundError:
        return ""


def _write_damaged(folder: RunDir, digests: dict[str, str]) -> None:
    """Record the steps that a training from here may delete in the store; it may run in another process than the fetch."""
    try:
        (folder.path / FETCHED).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder.path, error) from None
    write_json(folder.path / FETCHED / DAMAGED, digests)


def _fetch(store: ObjectStore, folder: RunDir, sizes: dict[str, int], notify: Notify) -> None:
    """Make the newest intact step of the store the newest one of the working copy, if it is newer, with all files beside it.

    Otherwise only files that the working copy lacks are fetched, such as the scores of a run that ended on another machine.
    Results of evaluations are fetched in both cases, see `run_results.fetch_results`.

    Raises:
        BadInput: no step in the store is intact, and there is none here.
    """
    for key in sizes:
        run_layout.check_key(store.uri, key)
    if others := sorted(key for key in sizes if not run_layout.is_of_run(key)):
        notify(f"{store.uri}: {others[0]!r}{f' and {len(others) - 1:,} more' * (len(others) > 1)}: not of a run; not fetched")
    latest = max(run_layout.valid_steps(folder.checkpoints), default=None)
    committed = run_layout.committed_steps(sizes, CHECKPOINTS)
    damaged: dict[str, str] = {}
    for step in committed:
        if latest is not None and step <= latest:
            break
        if (temporary := _download_step(store, folder, CHECKPOINTS, step, sizes, notify)) is not None:
            _fetch_files(store, folder, sizes)
            for other in (BASE, BEST):
                _fetch_newest(store, folder, other, sizes, notify)
            _write_damaged(folder, damaged)
            _publish(temporary, run_layout.step_folder(folder.checkpoints, step), notify)
            return
        damaged[str(step)] = _digest_of_commit(store, step)
    if latest is None and damaged:
        fix = f"delete {store.uri} to start again, or choose another --name"
        steps = ", ".join(folder_name(step) for step in sorted(map(int, damaged)))
        raise BadInput(f"{store.uri}/{CHECKPOINTS}: no intact checkpoint, only {steps}; {fix}")
    _write_damaged(folder, damaged)
    present = run_layout.run_files(folder)
    _fetch_files(store, folder, {key: size for key, size in sizes.items() if key not in present or key in RESULTS})
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
            if key.startswith(prefix) and run_layout.is_of_run(key):
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
    """Fetch the files beside the steps; each replaces the local one at once, but no result that was changed here."""
    result_sync.fetch_results(store, folder, sizes)
    for key in run_layout.run_keys(sizes):
        if key in RESULTS:
            continue
        file = folder.path / key
        partial = partial_path(file)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # It was deleted in the meantime.
                store.get(key, partial)
                partial.replace(file)
        except OSError as error:
            raise cannot_write(file, error) from None
        finally:
            with contextlib.suppress(OSError):  # It would hide the error above.
                partial.unlink(missing_ok=True)
