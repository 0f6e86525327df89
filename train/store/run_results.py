"""Results of evaluations of a run in an object store: fetched if they changed there, uploaded if they changed here.

Evaluations run on any machine, perhaps several at once, beside the training. A copy of each result as it was last fetched or
uploaded is in the folder `FETCHED` of the working copy: a result that equals its copy was not changed here. Results with an entry
for each task are merged, see `MERGED_RESULTS`; of the others the one that was uploaded last is in the store.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from train.run import outcome_sets
from train.run.run_dir import RunDir, write_json
from train.store.run_layout import EVALUATIONS, FETCHED, OUTCOMES, RESULTS
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


def merge_result(store: ObjectStore, folder: RunDir, key: str) -> bool:
    """Add the entries of the store to a result of `MERGED_RESULTS` that was changed here; return whether the local file changed.

    An entry of the store is replaced by the local one only if that was changed here since it was fetched.

    Raises:
        BadInput: the store cannot be read, or the file cannot be written.
    """
    if not is_changed(folder, key):
        return False
    parse, write = MERGED_RESULTS[key]
    try:
        stored = parse(store.read(key))
    except FileNotFoundError:
        return False
    if not stored:  # All that is here is uploaded, also in the place of a damaged file.
        return False
    local, fetched = (parse(_content(file) or b"") for file in (folder.path / key, _copy(folder, key)))
    merged = {**stored, **{task: entry for task, entry in local.items() if fetched.get(task) != entry}}
    if merged == local:
        return False
    write(folder.path / key, merged)
    return True


def upload_result(store: ObjectStore, folder: RunDir, key: str) -> None:
    """Upload a result, one of `MERGED_RESULTS` after merging it.

    Raises:
        FileNotFoundError: the result does not exist.
        BadInput: the store cannot be read or written.
    """
    if key in MERGED_RESULTS:
        merge_result(store, folder, key)
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


def _parse_evaluations(content: bytes) -> dict[str, Any]:
    """Return the evaluations by task; those of a damaged file count as absent."""
    try:
        entries = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}


MERGED_RESULTS: dict[str, tuple[Callable[[bytes], dict[str, Any]], Callable[[Path, dict[str, Any]], None]]] = {
    EVALUATIONS: (_parse_evaluations, write_json),
    OUTCOMES: (outcome_sets.parse_sets, outcome_sets.write_sets),
}
"""Result with entries of its own for each task -> (function that parses its content, function that writes the entries)."""
