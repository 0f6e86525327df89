"""Resolution of data paths: a file, a folder of files, a folder of Hugging Face `datasets`, or a data set of the hub."""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from train.config.data_options import Data, TextData
from train.data.arrow import arrow_streams, check_column, import_data_library, read_parquet_column
from train.data.text_files import Document, list_names, read_json_texts, read_plain_text
from zoo.errors import BadInput, no_such_file, without_secrets
from zoo.file_access import real_path
from zoo.hf import hub
from zoo.runtime import caches

PACKED = (".gz", ".xz", ".bz2")
Reader = TypeVar("Reader")
KINDS = ".txt (one document), .jsonl (one document per line), both also as .gz, .xz or .bz2, and .parquet (one document per row)"


@dataclasses.dataclass(frozen=True)
class Source:
    """Documents that can be read any number of times."""

    key: str
    """Identity of the data: the path of the file or folder with links resolved, or the hub id."""
    read: Callable[[], Iterator[Document]]


def find_sources(paths: tuple[str, ...], data: TextData) -> list[Source]:
    """Return the sources that paths of `data` name, in order; the files of a folder are sorted by name.

    Everything that can be checked without reading the data is checked here.

    Raises:
        BadInput: no such path, a kind that cannot be read, a file that two paths name, a data set without the split, subset or
            column of `data`, or one of the hub that is neither in the local cache nor reachable (reported without retries).
    """
    by_key: dict[str, Source] = {}
    for path in paths:
        for source in _sources_of(path, data):
            refuse_repeated(path, source.key, by_key)
            by_key[source.key] = source
    return list(by_key.values())


def refuse_repeated(path: str, key: str, keys: Collection[str]) -> None:
    """Refuse a file or data set that an earlier path names too: its second copy might be held out.

    Args:
        path: the path that names it.
        key: its identity, as `Source.key`.
        keys: the identities of those before it.

    Raises:
        BadInput: `key` is one of `keys`.
    """
    if key in keys:
        raise BadInput(f"{path}: {Path(key).name} is read already, by a path before this one; name every file once")


def _sources_of(path: str, data: TextData) -> Iterator[Source]:
    file = Path(path)
    if split := load_data_set(path, data):
        check_column(split.rows.features.arrow_schema, data.field, split.where)
        files = [Path(cache["filename"]) for cache in split.rows.cache_files]
        yield Source(split.key, functools.partial(arrow_streams, files, split.name, data.field))
    elif not file.is_dir():
        yield _file(file, file.name, data.field)
    else:
        yield from (_file(inner, str(inner.relative_to(file)), data.field) for inner in files_in(file, _reader, KINDS))


def files_in(folder: Path, reader: Callable[[Path], Any], kinds: str, root: Path | None = None) -> list[Path]:
    """Return the files of a folder and its subfolders, without hidden ones, sorted by name.

    Args:
        root: the folder that the user named, which has this one; None: this one.

    Raises:
        BadInput: there are none, one is of a kind that `reader` does not know (it reads `kinds`), or a link leads to a folder or
            out of `root`.
    """
    root = root or folder
    files: list[Path] = []
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and entry.is_symlink():
            raise BadInput(f"{entry}: a link to a folder, which may form a loop; name that folder itself in --data.paths")
        check_link(entry, root, "--data.paths")
        if not entry.is_dir() and reader(entry) is None:
            raise BadInput(
                f"{entry}: of no kind that can be read; move it out of the folder, or name the files. Supported: {kinds}"
            )
        files += files_in(entry, reader, kinds, root) if entry.is_dir() else [entry]
    if not files:
        raise BadInput(f"{folder}: no files in it; put some there: {kinds}")
    return files


def check_link(file: Path, folder: Path, option: str) -> None:
    """Refuse a link out of a folder that an option names: whoever made the folder may not choose other files of its user.

    Raises:
        BadInput: names the link and the fix.
    """
    if file.is_symlink() and not real_path(file).is_relative_to(real_path(folder)):
        raise BadInput(f"{file}: a link out of {folder}; name that file itself in {option}")


def _file(file: Path, name: str, field: str) -> Source:
    read = check_file(file, _reader, KINDS)
    # Reading columns needs a library that may not be installed: fail before anything else is read.
    if read is read_parquet_column:
        import_data_library("pyarrow.parquet")
    options = (file, name) if read is read_plain_text else (file, name, field)
    return Source(str(real_path(file)), functools.partial(read, *options))


def check_file(file: Path, reader: Callable[[Path], Reader | None], kinds: str, fix: str = "") -> Reader:
    """Return the reader of a file, which `reader` selects; `fix` is the advice about a file of another kind.

    Raises:
        BadInput: there is no such file, or its kind cannot be read.
    """
    read = reader(file)
    if not file.exists():
        raise no_such_file(file)
    if read is None:
        raise BadInput(f"{file}: only {kinds} can be read{fix}")
    if not file.is_file():
        raise BadInput(f"{file}: not a regular file; data is read more than once, so write it to disk")
    return read


def _reader(file: Path) -> Callable[..., Iterator[Document]] | None:
    return {".txt": read_plain_text, ".jsonl": read_json_texts, ".parquet": read_parquet_column}.get(file_kind(file))


def file_kind(file: Path) -> str:
    """Return the suffix of a file name in lower case, without the suffix of a compression (.parquet is compressed inside)."""
    name = Path(file.name.lower())
    inner = Path(name.stem).suffix
    return inner if name.suffix in PACKED and inner != ".parquet" else name.suffix


class Split(NamedTuple):
    """One split of a data set of the library `datasets`."""

    rows: Any
    """The library's own object."""
    where: str
    """Name of the split in error messages."""
    key: str
    """Identity, as in `Source`."""
    name: str


def load_data_set(path: str, data: Data) -> Split | None:
    """Load the split `data.split` of a data set of the hub or of a folder that `datasets` wrote; None if `path` is neither.

    Raises:
        BadInput: the data set, or the split or subset of it, is missing, as in `find_sources`.
    """
    if path.startswith(hub.PREFIX):
        return _hub(path, data)
    if any(Path(path, name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
        return _saved(Path(path), data)
    return None


def _saved(folder: Path, data: Data) -> Split:
    """Load a folder that `datasets` wrote with `save_to_disk`."""
    with _errors(str(folder), import_data_library("datasets")):
        loaded = import_data_library("datasets").load_from_disk(str(folder))
        for rows in loaded.values() if isinstance(loaded, dict) else [loaded]:
            _check_inside(folder, [cache["filename"] for cache in rows.cache_files])
    return _split(loaded, str(folder), str(real_path(folder)), folder.name, data)


def _check_inside(folder: Path, files: Iterable[str]) -> None:
    """Refuse a data set whose state.json or dataset_dict.json names a file outside of its folder.

    Raises:
        BadInput: names the file.
    """
    for file in files:
        if not real_path(file).is_relative_to(real_path(folder)):
            raise BadInput(f"{folder}: its files name {file}, outside of it; name that data set itself in --data.paths")


def _hub(path: str, data: Data) -> Split:
    """Load a data set of the hub from the cache of `datasets`; if it is not there, download it into the cache."""
    name = path.removeprefix(hub.PREFIX)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise BadInput(f"{path}: not a hub id; write {hub.PREFIX}ORGANISATION/NAME")
    loaded, missing = _from_cache(path, name, data.subset or None)
    if loaded is None:
        import huggingface_hub

        # One request without retries, before a download with many.
        request = functools.partial(huggingface_hub.HfApi().dataset_info, name, timeout=hub.PATIENCE)
        hub.request_from_hub(request, path, "data set", instead="a file", missing=missing)
        datasets = import_data_library("datasets")
        with _errors(path, datasets):
            loaded = datasets.load_dataset(name, data.subset or None)
    return _split(loaded, path, path, name, data)


def _from_cache(path: str, name: str, subset: str | None) -> tuple[Any, str]:
    """Return (data set in the cache of `datasets` or None, reason). The library would query the hub first, with retries."""
    from huggingface_hub import constants

    def key(name: str) -> str:
        return name.replace("/", "").replace("_", "").lower()

    # Search by name first, because importing the library takes seconds.
    chosen = os.environ.get("HF_DATASETS_CACHE")
    cache = caches.private_folder(Path(chosen or Path(constants.HF_HOME, "datasets")), "HF_DATASETS_CACHE")
    if not any(key(folder.name) == key(name) for folder in cache.glob("*___*")):
        return None, "not in the local cache"
    with _errors(path, import_data_library("datasets")):
        builder = import_data_library("datasets.packaged_modules.cache.cache").Cache
        options = {"repo_id": name, "dataset_name": name.split("/")[1], "config_name": subset, "version": "auto", "hash": "auto"}
        try:
            builder = builder(**options)
        except ValueError as error:
            return None, " ".join(str(error).split())
        return builder.as_dataset(), ""


def _split(loaded: Any, where: str, key: str, name: str, data: Data) -> Split:
    """Select the split `data.split` of a data set loaded by `datasets`; "train" by default."""
    if isinstance(loaded, dict):
        split = data.split or "train"
        if split not in loaded:
            raise BadInput(f"{where}: no split {split}; it has {list_names(list(loaded))}: choose one with --data.split")
        loaded = loaded[split]
    elif data.split:
        raise BadInput(f"--data.split {data.split}: {where} has a single, unnamed split; remove this option")
    return Split(loaded, where, key, name)


@contextlib.contextmanager
def _errors(where: str, datasets: Any) -> Iterator[None]:
    """Raise `BadInput` for the errors that `datasets` raises on data it cannot find or read."""
    # The library reads JSON of any shape as it should be.
    refused = (
        *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RecursionError),
        import_data_library("pyarrow").ArrowException,
        datasets.exceptions.DatasetsError,
    )
    try:
        yield
    except refused as error:
        raise BadInput(f"{where}: cannot be loaded ({' '.join(without_secrets(str(error)).split())[:300]})") from None
