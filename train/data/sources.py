"""What a path of a run means: a file, a folder of files, a folder of Hugging Face `datasets`, or a data set of the hub."""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from train.config.run_config import Data
from train.data.arrow import arrow_streams, check_column, library, parquet
from train.data.text_files import Document, json_lines, listed, plain
from zoo.errors import BadInput
from zoo.hf import hub

PACKED = (".gz", ".xz", ".bz2")
Reader = TypeVar("Reader")
KINDS = ".txt (one document), .jsonl (a document a line), both also as .gz, .xz or .bz2, and .parquet (a document a row)"


@dataclasses.dataclass(frozen=True)
class Source:
    """Documents that can be read again and again."""

    key: str
    """The same for the same data: the file or folder behind all links, or the hub id."""
    read: Callable[[], Iterator[Document]]


def sources(paths: tuple[str, ...], data: Data) -> list[Source]:
    """The sources that some paths of `data` name, in order; those of a folder by name. What can be refused unread is refused.

    Raises:
        BadInput: no such path, a kind that cannot be read, a data set without the split, subset or column of `data`, or one of
            the hub that is neither in the local cache nor reachable (said at once).
    """
    return [source for path in paths for source in _of(path, data)]


def _of(path: str, data: Data) -> Iterator[Source]:
    file = Path(path)
    if split := data_set(path, data):
        check_column(split.rows.features.arrow_schema, data.field, split.where)
        files = [Path(each["filename"]) for each in split.rows.cache_files]
        yield Source(split.key, functools.partial(arrow_streams, files, split.name, data.field))
    elif not file.is_dir():
        yield _file(file, file.name, data.field)
    else:
        yield from (_file(each, str(each.relative_to(file)), data.field) for each in inside(file, _reader, KINDS))


def inside(folder: Path, reader: Callable[[Path], Any], kinds: str) -> list[Path]:
    """The files of a folder and the folders in it, less hidden ones, sorted by name.

    Raises:
        BadInput: there are none, `reader` has none for one of them (it reads `kinds`), or a link leads to a folder.
    """
    found: list[Path] = []
    try:
        here = sorted(folder.iterdir(), key=lambda each: each.name)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be read ({error.strerror})") from None
    for each in here:
        if each.name.startswith("."):
            continue
        if each.is_dir() and each.is_symlink():
            raise BadInput(f"{each}: a link to a folder, which may lead in circles; name that folder itself in --data.paths")
        if not each.is_dir() and reader(each) is None:
            raise BadInput(f"{each}: of no kind that can be read; move it out of the folder, or name the files. Read are {kinds}")
        found += inside(each, reader, kinds) if each.is_dir() else [each]
    if not found:
        raise BadInput(f"{folder}: no files in it; put some there: {kinds}")
    return found


def _file(file: Path, name: str, field: str) -> Source:
    read = check_file(file, _reader, KINDS)
    # What a column is read with may not be installed: said before anything else is read.
    if read is parquet:
        library("pyarrow.parquet")
    options = (file, name) if read is plain else (file, name, field)
    return Source(str(file.resolve()), functools.partial(read, *options))


def check_file(file: Path, reader: Callable[[Path], Reader | None], kinds: str, fix: str = "") -> Reader:
    """What `reader` has for a file that is there; `fix` says what to do about a file of another kind.

    Raises:
        BadInput: it is not, or it is of no kind that can be read.
    """
    read = reader(file)
    if not file.exists():
        raise BadInput(f"{file}: no such file")
    if read is None:
        raise BadInput(f"{file}: only {kinds} can be read{fix}")
    if not file.is_file():
        raise BadInput(f"{file}: no regular file; it is read more than once, so write it to disk")
    return read


def _reader(file: Path) -> Callable[..., Iterator[Document]] | None:
    return {".txt": plain, ".jsonl": json_lines, ".parquet": parquet}.get(kind(file))


def kind(file: Path) -> str:
    """How a file's name ends, apart from what it is packed with; a .parquet is packed in itself."""
    name = Path(file.name.lower())
    inner = Path(name.stem).suffix
    return inner if name.suffix in PACKED and inner != ".parquet" else name.suffix


class Split(NamedTuple):
    """One split of a data set of the library `datasets`."""

    rows: Any
    """The library's own object."""
    where: str
    """As an error message names it."""
    key: str
    """As of a `Source`."""
    name: str


def data_set(path: str, data: Data) -> Split | None:
    """The split that `data` wants of a data set of the hub, or of a folder that `datasets` wrote. None: `path` is neither.

    Raises:
        BadInput: as `sources`, of what is not there.
    """
    if path.startswith(hub.PREFIX):
        return _hub(path, data)
    if any(Path(path, name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
        return _saved(Path(path), data)
    return None


def _saved(folder: Path, data: Data) -> Split:
    """A folder that `datasets` wrote with `save_to_disk`."""
    with _errors(str(folder), library("datasets")):
        found = library("datasets").load_from_disk(str(folder))
    return _split(found, str(folder), str(folder.resolve()), folder.name, data)


def _hub(path: str, data: Data) -> Split:
    """A data set of the hub: from the cache of `datasets` if it is there, else downloaded into it."""
    name = path.removeprefix(hub.PREFIX)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise BadInput(f"{path}: no hub id; write {hub.PREFIX}ORGANISATION/NAME")
    found, missing = _from_cache(path, name, data.subset or None)
    if found is None:
        import huggingface_hub

        # A question without retries, before a download with many.
        question = functools.partial(huggingface_hub.HfApi().dataset_info, name, timeout=hub.PATIENCE)
        hub.ask(question, path, "data set", instead="a file", missing=missing)
        datasets = library("datasets")
        with _errors(path, datasets):
            found = datasets.load_dataset(name, data.subset or None)
    return _split(found, path, path, name, data)


def _from_cache(path: str, name: str, subset: str | None) -> tuple[Any, str]:
    """(what `datasets` has in its cache or None, why it is none). The library itself would first ask the hub, again and again."""
    from huggingface_hub import constants

    def key(name: str) -> str:
        return name.replace("/", "").replace("_", "").lower()

    # Looked for by name, because importing the library takes seconds.
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    if not any(key(folder.name) == key(name) for folder in cache.glob("*___*")):
        return None, "not in the local cache"
    with _errors(path, library("datasets")):
        builder = library("datasets.packaged_modules.cache.cache").Cache
        options = {"repo_id": name, "dataset_name": name.split("/")[1], "config_name": subset, "version": "auto", "hash": "auto"}
        try:
            builder = builder(**options)
        except ValueError as error:
            return None, " ".join(str(error).split())
        return builder.as_dataset(), ""


def _split(found: Any, where: str, key: str, name: str, data: Data) -> Split:
    """The split that is wanted of what `datasets` found."""
    if isinstance(found, dict):
        split = data.split or "train"
        if split not in found:
            raise BadInput(f"{where}: no split {split}; it has {listed(list(found))}: choose one with --data.split")
        found = found[split]
    elif data.split:
        raise BadInput(f"--data.split {data.split}: {where} is one split, without a choice; leave it out")
    return Split(found, where, key, name)


@contextlib.contextmanager
def _errors(where: str, datasets: Any) -> Iterator[None]:
    """What `datasets` raises on data it cannot find or read, as bad input."""
    refused = (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        library("pyarrow").ArrowException,
        datasets.exceptions.DatasetsError,
    )
    try:
        yield
    except refused as error:
        raise BadInput(f"{where}: cannot be loaded ({' '.join(str(error).split())[:300]})") from None
