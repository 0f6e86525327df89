"""A cache of token ids on disk: texts are tokenized once, on all cores, in bounded memory, and resumed after a kill."""

import atexit
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from jaxtyping import Int64, UInt

from train.data.chunking import group_chunks
from train.data.corpus import Documents, digest_documents
from train.data.text_files import Digest, Document
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput
from zoo.fault_points import fault_point
from zoo.file_access import open_regular, open_to_append, read_regular_text
from zoo.runtime import caches
from zoo.sha256_and_fsync import sha256

FORMAT = 2
"""Version of the cache: incremented with every change of files, contents or groups of chunks."""
HEADER, IDS, OFFSETS, TEXT_BYTES = "header.json", "ids.bin", "offsets.bin", "text_bytes.bin"
FILES = (IDS, OFFSETS, TEXT_BYTES)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
JOURNAL, LOCK = "journal.jsonl", "lock"
log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Function that is called with (UTF-8 bytes tokenized so far, UTF-8 bytes of all texts). In its first call, the former are those
that an interrupted `tokenize_documents` has tokenized."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """The documents of a corpus as one stream of ids, memory-mapped; each document is the ids of its text, then end-of-text."""

    ids: UInt[np.ndarray, " tokens"]
    """uint16 where the vocabulary allows, else uint32."""
    offsets: Int64[np.ndarray, " documents_and_one"]
    """Index in `ids` at which each document begins; the last entry is the end."""
    text_bytes: Int64[np.ndarray, " documents"]
    """UTF-8 bytes of each document's text."""
    end_of_text: int
    fingerprint: str
    """SHA-256 of the texts, their order and the tokenizer."""
    begin: int | None = None
    """Id that precedes a text and is not in `ids`; None = `end_of_text`."""
    text: str = ""
    """Digest of the texts, their order and bounds, which is the same for every tokenizer."""

    @property
    def begin_of_text(self) -> int:
        """Id before the first id of a document: `Tokenizer.begin_of_text`."""
        return self.end_of_text if self.begin is None else self.begin


def tokenize_documents(
    documents: Iterable[Document], tokenizer: Tokenizer, cache: str | Path, progress: Progress | None = None
) -> Tokens:
    """Return the tokens of documents, tokenized once: they are cached in a folder of `cache` named by their fingerprint.

    `documents` is iterated once, and once more before that unless it is a `Documents`, which has its digest. Cached files are
    checked by size and digest; damaged ones are written again, with a warning. A call that is killed is resumed by the next one;
    if several processes tokenize the same documents, one does the work and the others wait for it.

    If this user cannot write to `cache`, a folder is used that is deleted when the process ends, with a warning.

    Raises:
        BadInput: other users can write to `cache`, its disk is full, or a data file changed while it was read.
    """
    texts = documents if isinstance(documents, Documents) else _measured(documents)
    fingerprint = hashlib.sha256(f"{FORMAT} {texts.digest} {tokenizer.fingerprint}".encode()).hexdigest()
    folder = Path(cache) / fingerprint
    try:
        caches.private_folder(Path(cache))
        if (tokens := _load_cached(folder, fingerprint, tokenizer)) is not None:
            return dataclasses.replace(tokens, text=texts.digest)
        with _locked_folder(Path(cache) / f".preparing-{fingerprint}") as work_folder:
            # Another process may have finished while this one waited.
            if (tokens := _load_cached(folder, fingerprint, tokenizer)) is None:
                _write(work_folder, texts, tokenizer, fingerprint, progress or (lambda done, total: None))
                # Mapped before it is renamed, so that a process that replaces the folder afterwards cannot interfere.
                tokens = _open(work_folder, fingerprint, tokenizer)
                _publish(work_folder, folder, fingerprint, tokenizer)
                # Removed last: without the journal a kill could not be resumed, without the lock two processes could write.
                for name in (JOURNAL, LOCK):
                    (folder / name).unlink(missing_ok=True)
            shutil.rmtree(work_folder, ignore_errors=True)
            return dataclasses.replace(tokens, text=texts.digest)
    except OSError as error:
        if error.errno in READ_ONLY and Path(cache) != (instead := _temporary()):
            log.warning(
                "%s: tokens cannot be cached there (%s), so the text is tokenized for this command alone", cache, error.strerror
            )
            return tokenize_documents(texts, tokenizer, instead, progress)
        fix = "fix that and run the command again, which resumes"
        raise BadInput(f"{cache}: tokens cannot be cached there ({error.strerror}); {fix}") from None


@functools.cache
def _temporary() -> Path:
    """Return a folder that is deleted when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-text-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _measured(documents: Iterable[Document]) -> Documents:
    digest = digest_documents(documents)
    return Documents(lambda: iter(documents), digest.count, digest.text_bytes, digest.hexdigest())


class _Damaged(Exception):
    """A cached folder that does not match its header."""


def _load_cached(folder: Path, fingerprint: str, tokenizer: Tokenizer) -> Tokens | None:
    """Return the tokens that an earlier call cached, if there are any; log a warning if they are damaged."""
    if not folder.exists():
        return None
    try:
        return _open(folder, fingerprint, tokenizer)
    except _Damaged as damage:
        log.warning("%s: %s; the text is tokenized again", folder, damage)
        return None


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Iterator[Path]:
    """Create a folder to work in, if need be, and lock it for this process until the block or the process ends."""
    lock = FileLock(folder / LOCK, fallback_to_soft=False)
    while not lock.is_locked:
        folder.mkdir(parents=True, exist_ok=True)
        # The previous holder of the lock may have finished and removed the folder.
        with contextlib.suppress(FileNotFoundError):
            lock.acquire()
    try:
        yield folder
    finally:
        lock.release()


def _write(folder: Path, documents: Documents, tokenizer: Tokenizer, fingerprint: str, progress: Progress) -> None:
    """Tokenize the texts that a folder does not have yet. The header, which makes the folder valid, is written last."""
    digest, size, done = Digest(), 0, 0

    def read() -> Iterator[tuple[str, bool]]:
        for document in documents:
            digest.add(document)
            yield document.text, document.last

    with contextlib.closing(_Parts(folder, tokenizer)) as parts:
        for number, group in enumerate(group_chunks(tokenizer.chunks(read()))):
            done_before, sizes, text = done, [], hashlib.sha256()
            for chunk, last in group:
                raw = chunk.encode()
                text.update(raw + (b"\0" if last else b""))
                size, done = size + len(raw), done + len(raw)
                if last:
                    sizes.append(size)
                    size = 0
            if parts.has(number, text.hexdigest()):
                continue
            if number == parts.resumed:
                progress(done_before, documents.text_bytes)
            parts.append(
                tokenizer.encode_batch([chunk for chunk, _ in group]), [last for _, last in group], sizes, text.hexdigest()
            )
            progress(done, documents.text_bytes)
    if digest.hexdigest() != documents.digest:
        shutil.rmtree(folder)
        raise BadInput("--data.paths: a file changed while it was being read; start again")
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in FILES}
    header = {"fingerprint": fingerprint, "dtype": parts.dtype.name, "end_of_text": tokenizer.end_of_text, "files": files}
    fault_point("tokens.header")
    (folder / HEADER).write_text(json.dumps(header, indent=1))


class _Parts:
    """The tokens so far: `FILES`, which grow, and a journal with one line for each part that is complete in all of them.

    A part is a group of chunks. Nothing is synced to disk: after a crash of the machine the digests show which parts are intact.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Open the files and drop everything after the last intact part."""
        self.dtype = _dtype(tokenizer)
        self._folder, self._end_of_text = folder, tokenizer.end_of_text
        self._lines = list(self._intact_lines())
        self.resumed = len(self._lines)
        """Number of parts that an interrupted call left."""
        self._files = [open_to_append(folder / name) for name in (*FILES, JOURNAL)]
        self._truncate()

    def close(self) -> None:
        for file in self._files:
            file.close()

    def has(self, number: int, text: str) -> bool:
        """Return whether part `number` is there; if it is of another text (by SHA-256), drop it and all parts after it."""
        if number >= len(self._lines):
            return False
        if self._lines[number]["text"] == text:
            return True
        log.warning("%s: part %d is of another text; it is tokenized again from there", self._folder, number)
        del self._lines[number:]
        self.resumed = number
        self._truncate()
        return False

    def append(self, ids: list[np.ndarray], last: list[bool], sizes: list[int], text: str) -> None:
        """Add a part: ids of its chunks, whether each ends a document, bytes of the documents that end, SHA-256 of the text."""
        ends = self._ends()
        ids = [np.append(part, self._end_of_text) if end else part for part, end in zip(ids, last, strict=True)]
        offsets = ends[0] // self.dtype.itemsize + np.cumsum([len(part) for part in ids], dtype=np.int64)[np.array(last)]
        if not self._lines:
            offsets = np.append(np.int64(0), offsets)
        contents = np.concatenate(ids).astype(self.dtype).tobytes(), offsets.tobytes(), np.array(sizes, np.int64).tobytes()
        ends = [end + len(content) for end, content in zip(ends, contents, strict=True)]
        line = {"ends": ends, "sha256": hashlib.sha256(b"".join(contents)).hexdigest(), "text": text}
        for file, content in zip(self._files, (*contents, _encoded(line)), strict=True):
            fault_point("tokens.write")
            file.write(content)
            file.flush()
        self._lines.append(line)

    def _ends(self) -> list[int]:
        return self._lines[-1]["ends"] if self._lines else [0] * len(FILES)

    def _truncate(self) -> None:
        """Truncate the files after the last part; a kill may have left incomplete data there."""
        journal = sum(len(_encoded(line)) for line in self._lines)
        for file, end in zip(self._files, (*self._ends(), journal), strict=True):
            if os.fstat(file.fileno()).st_size > end:
                file.truncate(end)

    def _intact_lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the journal up to the first one that does not match the files."""
        with contextlib.ExitStack() as stack:
            try:
                journal, *files = [stack.enter_context(open_regular(self._folder / name)) for name in (JOURNAL, *FILES)]
            except FileNotFoundError:
                return
            starts = [0] * len(FILES)
            for number, raw in enumerate(journal):
                if not raw.endswith(b"\n"):
                    return
                line: dict[str, Any] = {}
                try:
                    line = json.loads(raw)
                    sizes = [end - start for start, end in zip(starts, line["ends"], strict=True)]
                    content = b"".join(file.read(size) for file, size in zip(files, sizes, strict=True))
                    intact = _encoded(line) == raw and hashlib.sha256(content).hexdigest() == line["sha256"] and line["text"]
                except (ValueError, TypeError, KeyError, RecursionError):
                    intact = False
                if not intact:
                    log.warning("%s: part %d is damaged; the text is tokenized again from there", self._folder, number)
                    return
                yield line
                starts = line["ends"]


def _dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """Return the smallest dtype of ids in a file."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def _encoded(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _open(folder: Path, fingerprint: str, tokenizer: Tokenizer) -> Tokens:
    """Map a cached folder; every file is read once, for its digest.

    Raises:
        _Damaged: a file is missing or does not match the header.
    """
    try:
        fault_point("tokens.read")
        header = json.loads(read_regular_text(folder / HEADER))
        for name, expected in header["files"].items():
            if (size := (folder / name).stat().st_size) != expected["bytes"]:
                raise _Damaged(f"{name} has {size} bytes instead of {expected['bytes']}")
            if sha256(folder / name) != expected["sha256"]:
                raise _Damaged(f"the content of {name} has changed")
        if header["fingerprint"] != fingerprint:
            raise _Damaged("it belongs to another text or tokenizer")
        if (header["dtype"], header["end_of_text"]) != (_dtype(tokenizer).name, tokenizer.end_of_text):
            raise _Damaged("its dtype or its end of text is not the tokenizer's")
        ids, offsets, text_bytes = (
            _map_file(folder / name, dtype)
            for name, dtype in ((IDS, header["dtype"]), (OFFSETS, np.int64), (TEXT_BYTES, np.int64))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Damaged(f"unreadable ({error})") from None
    return Tokens(ids, offsets, text_bytes, tokenizer.end_of_text, fingerprint, tokenizer.begin_of_text)


def _map_file(file: Path, dtype: Any) -> np.ndarray:
    with open_regular(file) as stream:
        return np.asarray(np.memmap(stream, dtype, "r"))


def _publish(work_folder: Path, folder: Path, fingerprint: str, tokenizer: Tokenizer) -> None:
    """Rename a finished folder to its final name. If another process was faster, its folder stays, unless it is damaged."""
    while True:
        try:
            fault_point("tokens.rename")
            return os.rename(work_folder, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            _open(folder, fingerprint, tokenizer)
            return None
        except _Damaged:
            # Renaming is atomic, so of several processes one moves the damaged folder away; the others try again.
            away = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".damaged-"))
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, away)
            shutil.rmtree(away, ignore_errors=True)
