"""Results of evaluations of a run in an object store: fetched if they changed there, uploaded if they changed here.

Evaluations run on any machine, perhaps several at once, beside the training. A copy of each result as it was last fetched or
uploaded is in the folder `FETCHED` of the working copy: a result that equals its copy was not changed here.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from train.run.run_dir import RunDir, write_json
from train.store.run_layout import EVALUATIONS, FETCHED, RESULTS
from zoo.errors import cannot_write
from zoo.object_store import ObjectStore


def is_changed(folder: RunDir, key: str) -> bool:
    """Return whether a result exists and was changed here since it was last fetched or uploaded."""
    content = _content(folder.path / key)
    return content is not None and content != _content(_copy(folder, key))


def fetch_results(store: ObjectStore, folder: RunDir, keys: Collection[str]) -> None:
    """Fetch every result among the keys of the store, unless it was changed here.

    Raises:
        BadInput: the store cannot be read, or the folder cannot be written.
    """
    for key in RESULTS:
        if key in keys and not is_changed(folder, key):
            file = folder.path / key
            partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
            try:
                with contextlib.suppress(FileNotFoundError):  # It was deleted in the meantime.
                    store.get(key, partial)
                    if _content(partial) != _content(file):
                        _replace(partial, file)
                    # Last: after a kill before this, the result counts as changed here, which loses nothing.
                    _replace(file, _copy(folder, key))
            except OSError as error:
                raise cannot_write(file, error) from None
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)


def merge_evaluations(store: ObjectStore, folder: RunDir) -> bool:
    """Add the evaluations of the store to those that were changed here, and return whether that changed the local file.

    An entry of the store is replaced by the local one only if that was changed here since it was fetched.

    Raises:
        BadInput: the store cannot be read.
    """
    if not is_changed(folder, EVALUATIONS):
        return False
    try:
        stored = _entries(store.read(EVALUATIONS))
    except FileNotFoundError:
        return False
    local, fetched = (_entries(_content(file)) for file in (folder.evaluations, _copy(folder, EVALUATIONS)))
    merged = {**stored, **{task: entry for task, entry in local.items() if fetched.get(task) != entry}}
    if merged == local:
        return False
    write_json(folder.evaluations, merged)
    return True


def upload_result(store: ObjectStore, folder: RunDir, key: str) -> None:
    """Upload a result, the evaluations after merging them.

    Raises:
        FileNotFoundError: the result does not exist.
        BadInput: the store cannot be read or written.
    """
    if key == EVALUATIONS:
        merge_evaluations(store, folder)
    copy = _copy(folder, key)
    copy.parent.mkdir(exist_ok=True)
    partial = copy.with_name(f".{copy.name}.{os.getpid()}.partial")
    try:
        # What is uploaded is what is copied, even if the result changes in the meantime.
        shutil.copyfile(folder.path / key, partial)
        store.put(partial, key)
        partial.replace(copy)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _copy(folder: RunDir, key: str) -> Path:
    return folder.path / FETCHED / key


def _replace(source: Path, target: Path) -> None:
    """Copy a file to another one, which is replaced at once."""
    target.parent.mkdir(exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.copy")
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _entries(content: bytes | None) -> dict[str, Any]:
    """Return the evaluations by task; those of a damaged file count as absent."""
    try:
        entries = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}
