"""The documents in a file of text, read as a stream: .txt and .jsonl, both also compressed."""

import bz2
import codecs
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from train.data.chunking import cut
from zoo.errors import BadInput

LONGEST_LINE = 64 << 20
"""Bytes of the longest .jsonl line: a file without line ends must not fill the memory. Characters of the longest .parquet row."""
LONGEST_FILE = 1 << 30
"""Bytes of the largest file that is read at once."""
TO_UTF8 = "convert the file to UTF-8"
CHUNK = 1 << 18
"""Bytes of a .txt read at a time."""
XZ_MEMORY = 128 << 20
"""Bytes that unpacking an .xz may take; `xz -9` asks for half of it, and a file may ask for gigabytes."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and where it comes from; or a piece of a long text, as `train.data.chunking.cut` makes them."""

    name: str
    text: str
    last: bool = True
    """Whether the text ends here; otherwise the next document goes on with it."""


class Digest:
    """What distinguishes documents, their order and their bounds: the same whether they come whole or in pieces."""

    def __init__(self) -> None:
        self.count = self.text_bytes = 0
        self._all, self._one, self._size = hashlib.sha256(), hashlib.sha256(), 0

    def add(self, document: Document) -> tuple[int, bytes] | None:
        """Add a document or a piece of one; (UTF-8 bytes, SHA-256) of the text that ends with it."""
        raw = document.text.encode()
        self._one.update(raw)
        self._size += len(raw)
        if not document.last:
            return None
        whole = self._size, self._one.digest()
        self.add_whole(*whole)
        self._one, self._size = hashlib.sha256(), 0
        return whole

    def add_whole(self, size: int, sha256: bytes) -> None:
        """Add a document by what `add` said of it."""
        self._all.update(sha256)
        self.text_bytes += size
        self.count += 1

    def hexdigest(self) -> str:
        return self._all.hexdigest()


def plain(file: Path, name: str) -> Iterator[Document]:
    """A text file as one document."""
    some = False
    with opened(file) as stream:
        for piece in document(name, _decoded(stream, file), str(file)):
            some = some or bool(piece.text.strip())
            yield piece
    if not some:
        raise BadInput(f"{file}: holds no text")


def json_lines(file: Path, name: str, field: str) -> Iterator[Document]:
    """The text of each line. Blank lines and empty texts are no documents."""
    some = False
    for line, text in lines(file):
        if text.strip() and (text := _field(text, field, f"{file}:{line}")):
            some = True
            yield from document(f"{name}:{line}", [text], f"{file}:{line}")
    if not some:
        raise BadInput(f"{file}: holds no text")


def lines(file: Path, encoding: str = "utf-8", fix: str = TO_UTF8) -> Iterator[tuple[int, str]]:
    """(number, text with its line end) of each line, in "utf-8" or "latin-1"; `fix` says what to do about what is not UTF-8."""
    line, offset = 0, 0
    with opened(file) as stream:
        while raw := stream.readline(LONGEST_LINE + 1):
            line += 1
            if len(raw) > LONGEST_LINE:
                raise BadInput(f"{file}:{line}: longer than {LONGEST_LINE >> 20} MiB; write one document a line, in smaller ones")
            text, _ = _decode(raw, file, line, offset, encoding=encoding, fix=fix)
            offset += len(raw)
            yield line, text


def whole(file: Path, encoding: str = "utf-8", fix: str = TO_UTF8) -> str:
    """The text of a file that is read at once, as `lines`."""
    with opened(file) as stream:
        raw = stream.read(LONGEST_FILE + 1)
    if len(raw) > LONGEST_FILE:
        raise BadInput(f"{file}: larger than {LONGEST_FILE >> 20} MiB; write its examples as lines of a .jsonl")
    return _decode(raw, file, 1, 0, encoding=encoding, fix=fix)[0]


@contextlib.contextmanager
def opened(file: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, unpacked if its name ends in .gz, .xz or .bz2.

    Raises:
        BadInput: in the block too, where reading shows that the file is damaged.
    """
    unpack: Any = {".gz": gzip.open, ".xz": _open_xz, ".bz2": bz2.open}.get(file.suffix.lower(), open)
    try:
        with unpack(file, "rb") as stream:
            yield stream
    except EOFError:
        raise BadInput(f"{file}: ends before its compressed data does; copy it again") from None
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise BadInput(f"{file}: cannot be unpacked ({error}); compress it again") from None
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror or error})") from None


class _Xz(io.RawIOBase):
    """An .xz file unpacked in bounded memory, which the standard library's file object does not offer."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._unpack = file, lzma.LZMADecompressor(memlimit=XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            raw = b""
            if self._unpack.eof:
                # Another stream may follow, after zeros.
                raw = self._unpack.unused_data.lstrip(b"\0")
                while not raw and (more := self._file.read(CHUNK)):
                    raw = more.lstrip(b"\0")
                if not raw:
                    return 0
                self._unpack = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
            elif self._unpack.needs_input and not (raw := self._file.read(CHUNK)):
                raise EOFError
            data = self._unpack.decompress(raw, len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def _open_xz(file: Path, mode: str) -> Iterator[io.BufferedIOBase]:
    with file.open(mode) as raw:
        yield io.BufferedReader(_Xz(raw))


def document(name: str, chunks: Iterable[str], where: str) -> Iterator[Document]:
    """The text that the chunks are when joined; errors name `where`."""
    return (Document(name, piece, last) for piece, last in cut(chunks, where))


def _decoded(stream: io.BufferedIOBase, file: Path) -> Iterator[str]:
    """The text of a stream, a chunk at a time."""
    rest, line, offset, raw = b"", 1, 0, b"?"
    while raw:
        raw = stream.read(CHUNK)
        rest += raw
        text, used = _decode(rest, file, line, offset, final=not raw)
        yield text
        line += rest.count(b"\n", 0, used)
        offset += used
        rest = rest[used:]


def _decode(
    raw: bytes, file: Path, line: int, offset: int, final: bool = True, *, encoding: str = "utf-8", fix: str = TO_UTF8
) -> tuple[str, int]:
    """(text, bytes used) of bytes that begin at a line and offset of a file; a byte order mark at its beginning is dropped.

    Unless it is the `final` one, a character that is cut off at the end is left.
    """
    if b"\0" in raw:
        at = raw.index(b"\0")
        line += raw.count(b"\n", 0, at)
        raise BadInput(f"{file}:{line}: binary content (a NUL at byte {offset + at}); data files are UTF-8 text")
    try:
        text, used = codecs.latin_1_decode(raw) if encoding == "latin-1" else codecs.utf_8_decode(raw, "strict", final)
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise BadInput(f"{file}:{line}: not UTF-8 (byte {offset + error.start}); {fix}") from None
    return (text.removeprefix(codecs.BOM_UTF8.decode()) if offset == 0 else text), used


def _field(text: str, field: str, where: str) -> str:
    """The string in a field of a JSON object."""
    value = parsed(text, where, "write one whole object a line")
    if not isinstance(value, dict):
        raise BadInput(f"{where}: {kind_of(value)}, not an object; write lines like {{{json.dumps(field)}: ...}}")
    if field not in value:
        raise BadInput(f"{where}: no field {json.dumps(field)}; it has {listed(list(value))}: choose one with --data.field")
    return string(value[field], f"{where}: field {json.dumps(field)}")


def parsed(text: str, where: str, fix: str) -> Any:
    """What JSON says."""
    try:
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise BadInput(f"{where}: invalid JSON at {line}column {error.colno} ({error.msg}); {fix}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: unreadable JSON ({error})") from None


def string(value: Any, where: str) -> str:
    """The value, if it is a string that can be written; JSON may spell a lone surrogate, which no encoding can."""
    if not isinstance(value, str):
        raise BadInput(f"{where} holds {kind_of(value)}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{where} has a lone surrogate at character {error.start}; mend it") from None
    return value


def listed(names: list[str]) -> str:
    """Names as an error message lists them."""
    return ", ".join(json.dumps(name) for name in names[:20]) or "none"


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")
