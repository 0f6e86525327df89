"""Texts to token ids on disk, once, and the plan of the rows: which ranges of which documents each row predicts."""

import array
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
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64, UInt

from train.config import Data
from train.corpus import Document
from train.tokenizer import Tokenizer
from zoo.errors import BadInput

FORMAT = 1
HEADER, IDS, OFFSETS, TEXT_BYTES = "header.json", "ids.bin", "offsets.bin", "text_bytes.bin"
log = logging.getLogger(__name__)


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


class Piece(NamedTuple):
    """A range of targets within one document."""

    document: int
    start: int
    """Of the document's targets, the first one."""
    before: int
    """The id before the first target: the document's previous one, end-of-text at its start."""
    ids: np.ndarray
    """The targets."""


class Row(NamedTuple):
    """What one row predicts."""

    pieces: tuple[Piece, ...]
    context: int
    """How many of the first targets are there only to be seen: another row counts them."""
    isolated: bool
    """Whether the pieces do not see each other."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The plan of the rows of a corpus. Over all rows every target of every document is counted exactly once."""

    tokens: Tokens
    length: int
    """Targets a row has room for, T."""
    isolated: bool
    first: Int64[np.ndarray, " rows_and_one"]
    """The first piece of each row; the last entry is the number of pieces."""
    document: Int64[np.ndarray, " pieces"]
    start: Int64[np.ndarray, " pieces"]
    size: Int64[np.ndarray, " pieces"]
    context: Int64[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.context)

    def row(self, number: int) -> Row:
        """A row, its ids mapped rather than copied."""
        pieces = range(self.first[number], self.first[number + 1])
        return Row(tuple(self._piece(piece) for piece in pieces), int(self.context[number]), self.isolated)

    @property
    def targets(self) -> int:
        """Targets counted over all rows, the end-of-text of each document included."""
        return int(self.size.sum() - self.context.sum())

    def spread(self, count: int) -> "Rows":
        """At most `count` of the rows, evenly spaced: a sample that is the same each time."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64))
        pieces = self.first[chosen + 1] - self.first[chosen]
        row, nth = _expand(pieces)
        piece = self.first[chosen][row] + nth
        return dataclasses.replace(
            self,
            first=_ends(pieces),
            document=self.document[piece],
            start=self.start[piece],
            size=self.size[piece],
            context=self.context[chosen],
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the tokens and the plan: equal if and only if every row is."""
        digest = hashlib.sha256(f"{self.tokens.fingerprint} {self.length} {self.isolated}".encode())
        for part in (self.first, self.document, self.start, self.size, self.context):
            digest.update(hashlib.sha256(part.tobytes()).digest())
        return digest.hexdigest()

    def _piece(self, number: int) -> Piece:
        document, start = int(self.document[number]), int(self.start[number])
        first = int(self.tokens.offsets[document]) + start
        before = int(self.tokens.ids[first - 1]) if start else self.tokens.end_of_text
        return Piece(document, start, before, self.tokens.ids[first : first + int(self.size[number])])


def prepare(documents: Iterable[Document], tokenizer: Tokenizer, cache: str | Path) -> Tokens:
    """Tokens of the documents, made once: they are kept in a folder of `cache` named by their fingerprint.

    `documents` is iterated twice. What is kept is checked by size and digest; what is damaged is made again, with a warning.
    Processes that prepare the same at the same time do not disturb each other, and one that is killed leaves nothing usable.

    Raises:
        BadInput: nothing can be written to `cache`, or a data file changed meanwhile.
    """
    texts = hashlib.sha256()
    for document in documents:
        _add(texts, document)
    fingerprint = hashlib.sha256(f"{FORMAT} {texts.hexdigest()} {tokenizer.fingerprint}".encode()).hexdigest()
    folder = Path(cache) / fingerprint
    if folder.exists():
        try:
            return _open(folder, fingerprint)
        except _Damaged as damage:
            log.warning("%s: %s; the text is tokenized again", folder, damage)
    try:
        Path(cache).mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache, prefix=".preparing-"))
    except OSError as error:
        raise BadInput(f"{cache}: no folder to keep tokens in ({error.strerror})") from None
    try:
        _write(made, documents, tokenizer, fingerprint, texts.hexdigest())
        # Mapped before it gets its name, so that nobody who replaces the folder afterwards can come between.
        tokens = _open(made, fingerprint)
        _publish(made, folder, fingerprint)
    except OSError as error:
        raise BadInput(f"{cache}: the tokens cannot be kept there ({error.strerror})") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return tokens


def training_rows(tokens: Tokens, data: Data) -> Rows:
    """The rows a run trains on.

    Raises:
        BadInput: fewer tokens than one row.
    """
    if len(tokens.ids) < data.length:
        raise BadInput(
            f"--data.length {data.length}: the training text has {len(tokens.ids)} tokens, fewer than one row; "
            f"choose at most {len(tokens.ids)} or give --data.paths more text"
        )
    return windows(tokens, data.length) if data.rows == "windows" else packed(tokens, data.length)


def windows(tokens: Tokens, length: int, stride: int | None = None) -> Rows:
    """Windows of `length` targets over the stream of all documents; documents in a window see each other.

    A window begins `stride` targets after the one before (None: `length`, none overlap). Those it shares with the one before are
    its context. The last one may be short.
    """
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise ValueError(f"stride {stride} is not between 1 and the length {length}")
    count = 1 + max(0, -(-(len(tokens.ids) - length) // stride))
    begin = np.arange(count, dtype=np.int64) * stride
    end = np.minimum(begin + length, len(tokens.ids))
    context = np.full(count, length - stride, np.int64)
    context[0] = 0
    first_document = np.searchsorted(tokens.offsets, begin, side="right") - 1
    pieces = np.searchsorted(tokens.offsets, end, side="left") - first_document
    row, nth = _expand(pieces)
    document = first_document[row] + nth
    start = np.maximum(begin[row], tokens.offsets[document])
    size = np.minimum(end[row], tokens.offsets[document + 1]) - start
    return Rows(tokens, length, False, _ends(pieces), document, start - tokens.offsets[document], size, context)


def packed(tokens: Tokens, length: int) -> Rows:
    """Whole documents packed first-fit, isolated from each other; one longer than `length` is split into pieces first."""
    sizes = np.diff(tokens.offsets)
    document, nth = _expand(-(-sizes // length))
    start = nth * length
    size = np.minimum(sizes[document] - start, length)
    row = np.array(_first_fit(size.tolist(), length), np.int64)
    order = np.argsort(row, kind="stable")
    pieces = np.bincount(row)
    return Rows(tokens, length, True, _ends(pieces), document[order], start[order], size[order], np.zeros(len(pieces), np.int64))


def _first_fit(sizes: list[int], capacity: int) -> list[int]:
    """The row of each piece: the first one with room for it. A tree of the most room below each node finds it in log time."""
    leaves = 1 << (len(sizes) - 1).bit_length()
    room = [capacity] * (2 * leaves)
    rows = []
    for size in sizes:
        node = 1
        while node < leaves:
            node *= 2
            node += room[node] < size
        rows.append(node - leaves)
        room[node] -= size
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows


def _expand(counts: Int[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """For counts (2, 1): the owners (0, 0, 1) and the numbers within each (0, 1, 0)."""
    ends = np.cumsum(counts)
    return np.repeat(np.arange(len(counts)), counts), np.arange(ends[-1]) - np.repeat(ends - counts, counts)


def _ends(counts: Int[np.ndarray, " n"]) -> Int64[np.ndarray, " n_and_one"]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


class _Damaged(Exception):
    """A prepared folder that is not what its header says."""


def _add(digest: "hashlib._Hash", document: Document) -> int:
    """Add a text, set off from its neighbours, to a digest; its size in bytes."""
    raw = document.text.encode()
    digest.update(len(raw).to_bytes(8, "little"))
    digest.update(raw)
    return len(raw)


def _write(folder: Path, documents: Iterable[Document], tokenizer: Tokenizer, fingerprint: str, expected: str) -> None:
    """Tokenize the documents into a folder. The header, which makes it readable, comes last."""
    texts, text_bytes, offsets = hashlib.sha256(), array.array("q"), array.array("q", [0])

    def read():
        for document in documents:
            text_bytes.append(_add(texts, document))
            yield document.text

    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    with (folder / IDS).open("wb") as stream:
        for ids in tokenizer.encode_many(read()):
            stream.write(np.append(ids, tokenizer.end_of_text).astype(dtype).tobytes())
            offsets.append(offsets[-1] + len(ids) + 1)
    if texts.hexdigest() != expected:
        raise BadInput("--data.paths: a file changed while it was being read; start again")
    (folder / OFFSETS).write_bytes(offsets)
    (folder / TEXT_BYTES).write_bytes(text_bytes)
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in (IDS, OFFSETS, TEXT_BYTES)
    }
    header = {"fingerprint": fingerprint, "dtype": dtype.name, "end_of_text": tokenizer.end_of_text, "files": files}
    (folder / HEADER).write_text(json.dumps(header, indent=1))


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
