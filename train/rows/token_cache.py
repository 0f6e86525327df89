"""Texts to token ids on disk: once, on all cores, in bounded memory, and going on after a kill where it was."""

import atexit
import contextlib
import dataclasses
import errno
import fcntl
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
from jaxtyping import Int64, UInt

from train.data.chunking import groups
from train.data.corpus import Documents, measure
from train.data.text_files import Digest, Document
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput

FORMAT = 2
"""Another number for other files, other contents or other groups of pieces."""
HEADER, IDS, OFFSETS, TEXT_BYTES = "header.json", "ids.bin", "offsets.bin", "text_bytes.bin"
FILES = (IDS, OFFSETS, TEXT_BYTES)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
JOURNAL, LOCK = "journal.jsonl", "lock"
log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the UTF-8 bytes tokenized and those of all texts. The first call says what an earlier preparation left."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """All documents of a corpus as one stream of ids; each document is its text's ids, then end-of-text. Mapped, not read."""

    ids: UInt[np.ndarray, " tokens"]
    """uint16 where the vocabulary allows, else uint32."""
    offsets: Int64[np.ndarray, " documents_and_one"]
    """Where each document begins in `ids`; the last entry is the end."""
    text_bytes: Int64[np.ndarray, " documents"]
    """UTF-8 bytes of each document's text."""
    end_of_text: int
    fingerprint: str
    """Of the texts, their order and the tokenizer."""


def prepare(documents: Iterable[Document], tokenizer: Tokenizer, cache: str | Path, progress: Progress | None = None) -> Tokens:
    """Tokens of the documents, made once: they are kept in a folder of `cache` named by their fingerprint.

    `documents` is iterated once, and once more before that where it is not `Documents`, which know their digest. What is kept is
    checked by size and digest; what is damaged is made again, with a warning. A preparation that is killed goes on where it was
    when it is called again; of several processes that prepare the same, one does and the others wait for it.

    Where `cache` cannot be written to by this user, a folder is used that is deleted when the process ends, with a warning.

    Raises:
        BadInput: the disk of `cache` is full, or a data file changed meanwhile.
    """
    texts = documents if isinstance(documents, Documents) else _measured(documents)
    fingerprint = hashlib.sha256(f"{FORMAT} {texts.digest} {tokenizer.fingerprint}".encode()).hexdigest()
    folder = Path(cache) / fingerprint
    try:
        if (tokens := _kept(folder, fingerprint)) is not None:
            return tokens
        with _hold(Path(cache) / f".preparing-{fingerprint}") as made:
            # Another process may have finished while this one waited.
            if (tokens := _kept(folder, fingerprint)) is None:
                _write(made, texts, tokenizer, fingerprint, progress or (lambda done, total: None))
                # Mapped before it gets its name, so that nobody who replaces the folder afterwards can come between.
                tokens = _open(made, fingerprint)
                _publish(made, folder, fingerprint)
                # Only now: without them a kill before would leave nothing to go on from, or two processes at work here.
                for name in (JOURNAL, LOCK):
                    (folder / name).unlink(missing_ok=True)
            shutil.rmtree(made, ignore_errors=True)
            return tokens
    except OSError as error:
        if error.errno in READ_ONLY and Path(cache) != (instead := _temporary()):
            log.warning(
                "%s: tokens cannot be kept there (%s), so the text is tokenized for this command alone", cache, error.strerror
            )
            return prepare(texts, tokenizer, instead, progress)
        raise BadInput(f"{cache}: tokens cannot be kept there ({error.strerror}); mend that, and it goes on from there") from None


@functools.cache
def _temporary() -> Path:
    """Return a folder that is deleted when this process ends."""
    made = Path(tempfile.mkdtemp(prefix="zoo-text-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _measured(documents: Iterable[Document]) -> Documents:
    digest = measure(documents)
    return Documents(lambda: iter(documents), digest.count, digest.text_bytes, digest.hexdigest())


class _Damaged(Exception):
    """A prepared folder that is not what its header says."""


def _kept(folder: Path, fingerprint: str) -> Tokens | None:
    """What an earlier call left, if anything. Damage is said."""
    if not folder.exists():
        return None
    try:
        return _open(folder, fingerprint)
    except _Damaged as damage:
        log.warning("%s: %s; the text is tokenized again", folder, damage)
        return None


@contextlib.contextmanager
def _hold(folder: Path) -> Iterator[Path]:
    """A folder to prepare in, created if need be, for this process alone until it ends in whatever way."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Whoever held it before may have finished and removed the folder that was waited for.
            if _same(folder / LOCK, lock):
                yield folder
                return
        finally:
            os.close(lock)


def _same(path: Path, file: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False


def _write(folder: Path, documents: Documents, tokenizer: Tokenizer, fingerprint: str, progress: Progress) -> None:
    """Tokenize into a folder what is not tokenized there yet. The header, which makes it readable, comes last."""
    digest, size, done = Digest(), 0, 0

    def read() -> Iterator[tuple[str, bool]]:
        for document in documents:
            digest.add(document)
            yield document.text, document.last

    with contextlib.closing(_Parts(folder, tokenizer)) as parts:
        for number, group in enumerate(groups(tokenizer.pieces(read()))):
            before, sizes, text = done, [], hashlib.sha256()
            for piece, last in group:
                raw = piece.encode()
                text.update(raw + (b"\0" if last else b""))
                size, done = size + len(raw), done + len(raw)
                if last:
                    sizes.append(size)
                    size = 0
            if parts.has(number, text.hexdigest()):
                continue
            if number == parts.kept:
                progress(before, documents.text_bytes)
            parts.append(
                tokenizer.encode_batch([piece for piece, _ in group]), [last for _, last in group], sizes, text.hexdigest()
            )
            progress(done, documents.text_bytes)
    if digest.hexdigest() != documents.digest:
        shutil.rmtree(folder)
        raise BadInput("--data.paths: a file changed while it was being read; start again")
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in FILES}
    header = {"fingerprint": fingerprint, "dtype": parts.dtype.name, "end_of_text": tokenizer.end_of_text, "files": files}
    (folder / HEADER).write_text(json.dumps(header, indent=1))


class _Parts:
    """What is tokenized so far: `FILES`, which grow, and a journal with a line for each part that is whole in all of them.

    A part is a group of pieces. Nothing is forced to the disk: after a crash of the machine the digests tell what is whole.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Drops what comes after the last part that is whole."""
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        self._folder, self._end_of_text = folder, tokenizer.end_of_text
        self._lines = list(self._whole())
        self.kept = len(self._lines)
        """Parts that an earlier preparation left."""
        self._files = [(folder / name).open("ab") for name in (*FILES, JOURNAL)]
        self._cut()

    def close(self) -> None:
        for file in self._files:
            file.close()

    def has(self, number: int, text: str) -> bool:
        """Whether part `number` is there. If it is of another text (by its SHA-256), it is dropped, and all after it."""
        if number >= len(self._lines):
            return False
        if self._lines[number]["text"] == text:
            return True
        log.warning("%s: part %d is of another text; it is tokenized again from there", self._folder, number)
        del self._lines[number:]
        self.kept = number
        self._cut()
        return False

    def append(self, ids: list[np.ndarray], last: list[bool], sizes: list[int], text: str) -> None:
        """Add a part: ids of its pieces, which of these end a document, bytes of the documents that end, SHA-256 of the text."""
        ends = self._ends()
        ids = [np.append(part, self._end_of_text) if end else part for part, end in zip(ids, last, strict=True)]
        offsets = ends[0] // self.dtype.itemsize + np.cumsum([len(part) for part in ids], dtype=np.int64)[np.array(last)]
        if not self._lines:
            offsets = np.append(np.int64(0), offsets)
        chunks = np.concatenate(ids).astype(self.dtype).tobytes(), offsets.tobytes(), np.array(sizes, np.int64).tobytes()
        ends = [end + len(chunk) for end, chunk in zip(ends, chunks, strict=True)]
        line = {"ends": ends, "sha256": hashlib.sha256(b"".join(chunks)).hexdigest(), "text": text}
        for file, chunk in zip(self._files, (*chunks, _encoded(line)), strict=True):
            file.write(chunk)
            file.flush()
        self._lines.append(line)

    def _ends(self) -> list[int]:
        return self._lines[-1]["ends"] if self._lines else [0] * len(FILES)

    def _cut(self) -> None:
        """Cut the files after the last part, which a kill may have come after."""
        journal = sum(len(_encoded(line)) for line in self._lines)
        for file, end in zip(self._files, (*self._ends(), journal), strict=True):
            if os.fstat(file.fileno()).st_size > end:
                file.truncate(end)

    def _whole(self) -> Iterator[dict[str, Any]]:
        """The lines of the journal as long as what they say is in the files."""
        with contextlib.ExitStack() as stack:
            try:
                journal, *files = [stack.enter_context((self._folder / name).open("rb")) for name in (JOURNAL, *FILES)]
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
                    whole = _encoded(line) == raw and hashlib.sha256(content).hexdigest() == line["sha256"] and line["text"]
                except (ValueError, TypeError, KeyError):
                    whole = False
                if not whole:
                    log.warning("%s: part %d is damaged; the text is tokenized again from there", self._folder, number)
                    return
                yield line
                starts = line["ends"]


def _encoded(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _open(folder: Path, fingerprint: str) -> Tokens:
    """Map a prepared folder; every file is read once, for its digest.

    Raises:
        _Damaged: a file is missing or is not what the header says.
    """
    try:
        header = json.loads((folder / HEADER).read_text())
        for name, known in header["files"].items():
            if (size := (folder / name).stat().st_size) != known["bytes"]:
                raise _Damaged(f"{name} has {size} bytes instead of {known['bytes']}")
            if _digest(folder / name) != known["sha256"]:
                raise _Damaged(f"the content of {name} has changed")
        if header["fingerprint"] != fingerprint:
            raise _Damaged("it belongs to another text or tokenizer")
        ids, offsets, text_bytes = (
            np.asarray(np.memmap(folder / name, dtype, "r"))
            for name, dtype in ((IDS, header["dtype"]), (OFFSETS, np.int64), (TEXT_BYTES, np.int64))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged(f"unreadable ({error})") from None
    return Tokens(ids, offsets, text_bytes, header["end_of_text"], fingerprint)


def _publish(made: Path, folder: Path, fingerprint: str) -> None:
    """Give a prepared folder its name. If another process was faster, its folder stays, unless it is damaged."""
    while True:
        try:
            return os.rename(made, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            _open(folder, fingerprint)
            return None
        except _Damaged:
            # Renaming is atomic, so of several processes one moves the damaged folder away; the others try again.
            away = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".damaged-"))
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, away)
            shutil.rmtree(away, ignore_errors=True)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
