"""Raw text: the embedded corpus, .txt and .jsonl files, and the split into training and held-out documents."""

import codecs
import dataclasses
import functools
import hashlib
import json
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from train.config import Data
from zoo.errors import BadInput

EMBEDDED = Path(__file__).parent / "data" / "moby_dick.txt.xz"
EMBEDDED_SHA256 = "fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240"
LONGEST_LINE = 64 << 20
"""Bytes of the longest .jsonl line read: a file without line ends must not fill the memory."""
MANY_DOCUMENTS = 20
"""From this many documents on, whole documents are held out; with fewer, one document is cut."""


@dataclasses.dataclass(frozen=True)
class Document:
    """One text, and where it comes from."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents in their order, read from the files anew by every iteration: only one of them is in memory at a time."""

    read: Callable[[], Iterator[Document]]
    count: int
    text_bytes: int
    """UTF-8 bytes of all texts."""

    def __iter__(self) -> Iterator[Document]:
        return self.read()


def split(data: Data) -> tuple[Documents, Documents]:
    """(training, held-out) documents. Every file is read and checked once here, before anything is made of it.

    Held out are the documents of `valid_paths`, else about the last `valid_fraction` of the bytes of `paths`: whole documents
    when there are at least 20, otherwise one document is cut after a paragraph, else a line, else a word, whichever ends near
    enough (the share held out stays within a quarter of what was asked). The two halves together are the whole text.

    Raises:
        BadInput: a file that is missing, empty, binary, not UTF-8 or of an unsupported kind, a bad .jsonl line (with its
            number), a held-out file that is trained on, or too little text to have two halves.
    """
    read = _reader(data.paths, data.field)
    if data.valid_paths:
        both = {Path(path).resolve() for path in data.paths} & {Path(path).resolve() for path in data.valid_paths}
        if both:
            raise BadInput(f"--data.valid-paths {min(both)}: it is also in --data.paths; hold out text that is not trained on")
        read_valid = _reader(data.valid_paths, data.field)
        return _documents(read, _sizes(read)), _documents(read_valid, _sizes(read_valid))
    sizes = _sizes(read)
    document, character = _cut(read, sizes, data.valid_fraction)
    halves = functools.partial(_before, read, document, character), functools.partial(_after, read, document, character)
    train, valid = (_documents(half, _sizes(half)) for half in halves)
    return train, valid


def _documents(read: Callable[[], Iterator[Document]], sizes: np.ndarray) -> Documents:
    return Documents(read, len(sizes), int(sizes.sum()))


def _sizes(read: Callable[[], Iterator[Document]]) -> np.ndarray:
    return np.fromiter((len(document.text.encode()) for document in read()), np.int64)


def _cut(read: Callable[[], Iterator[Document]], sizes: np.ndarray, fraction: float) -> tuple[int, int]:
    """Where the held-out text begins: (number of the document, character in it)."""
    ends = np.cumsum(sizes)
    wanted = (1 - fraction) * ends[-1]
    if len(sizes) >= MANY_DOCUMENTS:
        return min(int(np.abs(ends - wanted).argmin()) + 1, len(sizes) - 1), 0
    number = min(int(np.searchsorted(ends, wanted, side="right")), len(sizes) - 1)
    text = next(document.text for i, document in enumerate(read()) if i == number)
    before = text.encode()[: int(wanted - ends[number] + sizes[number])].decode(errors="ignore")
    character = _boundary(text, len(before), reach=int(fraction * ends[-1] / 4))
    nothing_before = number == 0 and not text[:character].strip()
    nothing_after = number == len(sizes) - 1 and not text[character:].strip()
    if nothing_before or nothing_after:
        raise BadInput(
            f"--data.valid-fraction {fraction}: {ends[-1]} bytes of text are too few to hold some out; give --data.paths more "
            "text, or --data.valid-paths"
        )
    return number, character


def _boundary(text: str, position: int, reach: int) -> int:
    """The end of a paragraph nearest to `position`, of a line if none is within `reach`, of a word; else `position`."""
    first, last = max(position - reach, 1), min(position + reach, len(text) - 1)
    for end in (r"\n[ \t\r]*\n\s*", r"\n", r"\s"):
        found = [match.end() for match in re.compile(end).finditer(text, first, last)]
        if found:
            return min(found, key=lambda character: abs(character - position))
    return position


def _before(read: Callable[[], Iterator[Document]], number: int, character: int) -> Iterator[Document]:
    for i, document in enumerate(read()):
        if i < number:
            yield document
        elif character:
            yield Document(document.name, document.text[:character])
            return
        else:
            return


def _after(read: Callable[[], Iterator[Document]], number: int, character: int) -> Iterator[Document]:
    for i, document in enumerate(read()):
        if i == number:
            yield Document(document.name, document.text[character:])
        elif i > number:
            yield document


def _reader(paths: tuple[str, ...], field: str) -> Callable[[], Iterator[Document]]:
    """A function that reads the documents of some files, or of the embedded corpus; what can be refused unread is refused."""
    if not paths:
        return _embedded
    files = [Path(path) for path in paths]
    for file in files:
        if file.is_dir():
            raise BadInput(f"{file}: a folder; name its files")
        if file.suffix.lower() not in (".txt", ".jsonl"):
            raise BadInput(f"{file}: only .txt (one document) and .jsonl (a document a line) can be read")
        if not file.exists():
            raise BadInput(f"{file}: no such file")

    def read() -> Iterator[Document]:
        for file in files:
            yield from _plain(file) if file.suffix.lower() == ".txt" else _json_lines(file, field)

    return read


def _embedded() -> Iterator[Document]:
    """Moby-Dick, a document a chapter, named by its heading; the texts of all documents joined are the file."""
    raw = lzma.decompress(EMBEDDED.read_bytes())
    if hashlib.sha256(raw).hexdigest() != EMBEDDED_SHA256:
        raise BadInput(f"{EMBEDDED}: damaged (its sha256 is not the one expected); install the package again")
    text = raw.decode()
    starts = [match.start() for match in re.finditer(r"^CHAPTER \d+\. ", text, re.MULTILINE)]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        heading, _, _ = text[start:end].partition("\n\n")
        yield Document(" ".join(heading.split()), text[start:end])


def _plain(file: Path) -> Iterator[Document]:
    with _open(file) as stream:
        text = _decode(stream.read(), file, line=1, offset=0)
    if not text.strip():
        raise BadInput(f"{file}: holds no text")
    yield Document(file.name, text)


def _json_lines(file: Path, field: str) -> Iterator[Document]:
    """The text of each line. Blank lines and empty texts are no documents."""
    some, line, offset = False, 0, 0
    with _open(file) as stream:
        while raw := stream.readline(LONGEST_LINE + 1):
            line += 1
            if len(raw) > LONGEST_LINE:
                raise BadInput(f"{file}:{line}: longer than {LONGEST_LINE >> 20} MiB; write one document a line, in smaller ones")
            text = _decode(raw, file, line, offset)
            offset += len(raw)
            if text.strip() and (text := _field(text, field, f"{file}:{line}")):
                some = True
                yield Document(f"{file.name}:{line}", text)
    if not some:
        raise BadInput(f"{file}: holds no text")


def _open(file: Path):
    try:
        return file.open("rb")
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None


def _decode(raw: bytes, file: Path, line: int, offset: int) -> str:
    """The text of bytes that begin at a line and offset of a file; a byte order mark at its beginning is dropped."""
    if b"\0" in raw:
        at = raw.index(b"\0")
        line += raw.count(b"\n", 0, at)
        raise BadInput(f"{file}:{line}: binary content (a NUL at byte {offset + at}); data files are UTF-8 text")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise BadInput(f"{file}:{line}: not UTF-8 (byte {offset + error.start}); convert the file to UTF-8") from None
    return text.removeprefix(codecs.BOM_UTF8.decode()) if offset == 0 else text


def _field(text: str, field: str, where: str) -> str:
    """The string in a field of a JSON object. JSON may spell a lone surrogate, which no encoding can write."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}: invalid JSON at column {error.colno} ({error.msg}); write one whole object a line") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: unreadable JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadInput(f"{where}: {_kind(value)}, not an object; write lines like {{{json.dumps(field)}: ...}}")
    if field not in value:
        names = ", ".join(json.dumps(name) for name in list(value)[:20])
        raise BadInput(f"{where}: no field {json.dumps(field)}; it has {names or 'none'}: choose one with --data.field")
    if not isinstance(value[field], str):
        raise BadInput(f"{where}: field {json.dumps(field)} holds {_kind(value[field])}, not a string")
    try:
        value[field].encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{where}: field {json.dumps(field)} has a lone surrogate at character {error.start}; mend it") from None
    return value[field]


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")
