"""Results of evaluations of a run in an object store: fetched if they changed there, uploaded if they changed here.

Evaluations run on any machine, perhaps several at once, beside the training. A copy of each result as it was last fetched or
uploaded is in the folder `FETCHED` of the working copy: a result that equals its copy was not changed here. Results with an entry
for each task are merged, see `MERGED_RESULTS`; of the others the one that was uploaded last is in the store.

A machine that uploads a merged result replaces what another one has uploaded since it read the object. The other one notices this
when it reads the object after its upload, or at its next fetch, and uploads its entries again. Entries are never removed.
"""

import contextlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from train.run import outcome_sets
from train.run.run_dir import RunDir, write_json
from train.store.run_layout import EVALUATIONS, FETCHED, OUTCOMES, RESULTS
from zoo.errors import cannot_write
from zoo.file_access import open_new, partial_path, read_regular
from zoo.object_store import ObjectStore, Unavailable

UPLOADS = 5
"""Largest number of uploads of a merged result, each after another machine has replaced the one before."""


def is_changed(folder: RunDir, key: str) -> bool:
    """Return whether a result exists and was changed here since it was last fetched or uploaded."""
    content = _content(folder.path / key)
    return content is not None and content != _content(_copy(folder, key))


def fetch_results(store: ObjectStore, folder: RunDir, keys: Collection[str]) -> None:
    """Fetch every result among the keys of the store, unless it was changed here.

    Tasks of a result of `MERGED_RESULTS` that the store lacks stay: another machine has replaced them there. With them it counts
    as changed here, and the next upload brings them back.

    Raises:
        BadInput: the store cannot be read, or the folder cannot be written.
    """
    for key in RESULTS:
        if key in keys and not is_changed(folder, key):
            file = folder.path / key
            partial = partial_path(file)
            try:
                with contextlib.suppress(FileNotFoundError):  # It was deleted in the meantime.
                    store.get(key, partial)
                    content = read_regular(partial, outcome_sets.LARGEST_FILE)
                    with folder.lock_results():
                        # An evaluation may have ended during the download.
                        if not is_changed(folder, key):
                            _store_fetched(folder, key, content)
            except OSError as error:
                raise cannot_write(file, error) from None
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)


def _store_fetched(folder: RunDir, key: str, content: bytes) -> None:
    """Write what was fetched, and the local entries of tasks that it lacks."""
    file = folder.path / key
    if lost := _lost_entries(folder, key, content):
        parse, write = MERGED_RESULTS[key]
        write(file, {**parse(content), **lost})
    elif content != _content(file):
        _replace(file, content)
    # Last: after a kill before this, the result counts as changed here, which loses nothing.
    _replace(_copy(folder, key), content)


def merge_result(store: ObjectStore, folder: RunDir, key: str) -> bool:
    """Add the entries of the store to a result of `MERGED_RESULTS` that was changed here; return whether the local file changed.

    An entry of the store is replaced by the local one only if that was changed here since it was fetched. Afterwards only these
    entries, and those that the store lacks, differ from the copy in `FETCHED`.

    Raises:
        BadInput: the store cannot be read, or the file cannot be written.
    """
    if not is_changed(folder, key):
        return False
    parse, write = MERGED_RESULTS[key]
    file = folder.path / key
    try:
        content = store.read(key)
    except FileNotFoundError:
        return False
    stored = parse(content)
    if not stored:  # All that is here is uploaded, also in the place of a damaged file.
        return False
    with folder.lock_results():
        local = parse(_content(file) or b"")
        merged = {**local, **stored, **_own_entries(folder, key, local)}
        if merged != local:
            write(file, merged)
        try:
            _replace(_copy(folder, key), content)
        except OSError as error:
            raise cannot_write(_copy(folder, key), error) from None
    return merged != local


def upload_result(store: ObjectStore, folder: RunDir, key: str) -> bool:
    """Upload a result, one of `MERGED_RESULTS` after merging it, and return whether merging changed the local file.

    A result of `MERGED_RESULTS` is read after the upload, and merged and uploaded again if another machine has replaced its
    entries.

    Raises:
        FileNotFoundError: the result does not exist.
        BadInput: the store cannot be read or written.
        Unavailable: another machine has replaced each of `UPLOADS` uploads.
    """
    copy, changed = _copy(folder, key), False
    copy.parent.mkdir(exist_ok=True)
    partial = partial_path(copy)
    try:
        for _ in range(UPLOADS):
            if key in MERGED_RESULTS:
                changed |= merge_result(store, folder, key)
            # What is uploaded is what is copied, even if the result changes in the meantime.
            content = read_regular(folder.path / key, outcome_sets.LARGEST_FILE)
            partial.write_bytes(content)
            store.put(partial, key)
            if key not in MERGED_RESULTS or _has_own_entries(store, folder, key, content):
                partial.replace(copy)
                return changed
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    fix = "evaluate the run on one machine at a time, or run the same command again"
    raise Unavailable(f"{store.uri}/{key}: another machine has replaced each of {UPLOADS} uploads; {fix}")


def _own_entries(folder: RunDir, key: str, local: Mapping[str, Any]) -> dict[str, Any]:
    """Return the local entries that were changed here since they were fetched."""
    fetched = MERGED_RESULTS[key][0](_content(_copy(folder, key)) or b"")
    return {task: entry for task, entry in local.items() if fetched.get(task) != entry}


def _has_own_entries(store: ObjectStore, folder: RunDir, key: str, uploaded: bytes) -> bool:
    """Return whether the store has the entries of an upload that were changed here."""
    parse, _ = MERGED_RESULTS[key]
    try:
        stored = parse(store.read(key))
    except FileNotFoundError:
        return False
    own = _own_entries(folder, key, parse(uploaded))
    return all(stored.get(task) == entry for task, entry in own.items())


def _lost_entries(folder: RunDir, key: str, stored: bytes) -> dict[str, Any]:
    """Return the local entries of tasks that the content of the store lacks."""
    if key not in MERGED_RESULTS:
        return {}
    parse, _ = MERGED_RESULTS[key]
    tasks = parse(stored)
    return {task: entry for task, entry in parse(_content(folder.path / key) or b"").items() if task not in tasks}


def _copy(folder: RunDir, key: str) -> Path:
    return folder.path / FETCHED / key


def _replace(target: Path, content: bytes) -> None:
    """Write a file, which is replaced at once."""
    target.parent.mkdir(exist_ok=True)
    with open_new(target) as (partial, file):
        file.write(content)
        file.flush()
        partial.replace(target)


def _content(file: Path) -> bytes | None:
    try:
        return read_regular(file, outcome_sets.LARGEST_FILE)
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
