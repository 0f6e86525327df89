"""Streaming readers of the documents in .txt and .jsonl files, which may be compressed."""

import bz2
import codecs
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from train.data.chunking import cut_chunks
from zoo.errors import BadInput
from zoo.file_access import open_regular

LONGEST_LINE = 64 << 20
"""Bytes of the longest .jsonl line: a file without line ends must not fill the memory. Also characters of a .parquet text."""
LONGEST_FILE = 1 << 30
"""Bytes of the largest file that is read into memory as a whole."""
TO_UTF8 = "convert the file to UTF-8"
READ_SIZE = 1 << 18
"""Bytes of a .txt that are read at a time."""
MOST_UNCHECKED, LARGEST_RATIO = 64 << 20, 1000
"""A compressed file may unpack to this many bytes, or to this many times its own size if that is more. Repeating one line reaches
a ratio of 1,000 in .gz; 45 bytes of .bz2 can stand for 45 MB."""
STDIN = Path("/dev/stdin")
"""Standard input, which a command line names "-"."""
XZ_MEMORY = 128 << 20
"""Bytes of memory that decompressing an .xz may take. `xz -9` needs half of it; a file may demand gigabytes."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and its name, or one chunk of a long text, as `train.data.chunking.cut_chunks` yields them."""

    name: str
    text: str
    last: bool = True
    """True if the text ends here; otherwise the next `Document` is its next chunk."""


class Digest:
    """A digest of the texts of documents, their order and their bounds, independent of how they are chunked."""

    def __init__(self) -> None:
        self.count = self.text_bytes = 0
        self._all, self._one, self._size = hashlib.sha256(), hashlib.sha256(), 0

    def add(self, document: Document) -> tuple[int, bytes] | None:
        """Add a document or a chunk of one; return (UTF-8 bytes, SHA-256) of the text if it ends here, else None."""
        raw = document.text.encode()
        self._one.update(raw)
        self._size += len(raw)
        if not document.last:
            return None
        size_and_digest = self._size, self._one.digest()
        self.add_whole(*size_and_digest)
        self._one, self._size = hashlib.sha256(), 0
        return size_and_digest

    def add_whole(self, size: int, sha256: bytes) -> None:
        """Add a document by its (UTF-8 bytes, SHA-256), as `add` returned them."""
        self._all.update(sha256)
        self.text_bytes += size
        self.count += 1

    def hexdigest(self) -> str:
        return self._all.hexdigest()


def read_plain_text(file: Path, name: str) -> Iterator[Document]:
    """Yield the chunks of a text file, which is one document."""
    has_text = False
    with open_decompressed(file) as stream:
        for chunk in document_chunks(name, _decoded(stream, file), str(file)):
            has_text = has_text or bool(chunk.text.strip())
            yield chunk
    if not has_text:
        raise BadInput(f"{file}: holds no text; write some, or remove the file")


def read_json_texts(file: Path, name: str, field: str) -> Iterator[Document]:
    """Yield the text in `field` of the JSON object of each line. Blank lines and empty texts are skipped."""
    has_text = False
    for line, text in decoded_lines(file):
        if text.strip() and (text := _field(text, field, f"{file}:{line}")):
            has_text = True
            yield from document_chunks(f"{name}:{line}", [text], f"{file}:{line}")
    if not has_text:
        raise BadInput(f"{file}: holds no text; write some, or remove the file")


def decoded_lines(file: Path, encoding: str = "utf-8", fix: str = TO_UTF8) -> Iterator[tuple[int, str]]:
    """Yield (number, text with its line end) of each line, decoded as "utf-8" or "latin-1".

    `fix` is the advice in the error message about a line that is not UTF-8.
    """
    for line, text in lines_or_errors(file, encoding, fix):
        if isinstance(text, BadInput):
            raise text
        yield line, text


def lines_or_errors(file: Path, encoding: str = "utf-8", fix: str = TO_UTF8) -> Iterator[tuple[int, str | BadInput]]:
    """Yield the same as `decoded_lines`, with the error in place of a line that is too long or cannot be decoded."""
    line, offset = 0, 0
    with open_decompressed(file) as stream:
        while raw := stream.readline(LONGEST_LINE + 1):
            line += 1
            try:
                if len(raw) > LONGEST_LINE:
                    raise BadInput(f"{file}:{line}: longer than {LONGEST_LINE >> 20} MiB; write shorter lines, one example each")
                yield line, _decode(raw, file, line, offset, encoding=encoding, fix=fix)[0]
            except BadInput as error:
                yield line, error
            offset += len(raw)
            while not raw.endswith(b"\n") and (raw := stream.readline(LONGEST_LINE)):
                offset += len(raw)


def nonblank_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield ("file:line", text without its line end) of each line that is not blank.

    Raises:
        BadInput: a file that cannot be read or holds no text, or a line that is too long or not UTF-8.
    """
    has_text = False
    for line, text in decoded_lines(file):
        if text.strip():
            has_text = True
            yield f"{file}:{line}", text.rstrip("\r\n")
    if not has_text:
        raise BadInput(f"{file}: holds no text; write some, or remove the file")


def read_whole(file: Path, encoding: str = "utf-8", fix: str = TO_UTF8) -> str:
    """Return the text of a file; `encoding` and `fix` as in `decoded_lines`."""
    with open_decompressed(file) as stream:
        raw = stream.read(LONGEST_FILE + 1)
    if len(raw) > LONGEST_FILE:
        raise BadInput(f"{file}: larger than {LONGEST_FILE >> 20} MiB; write its examples as lines of a .jsonl")
    return _decode(raw, file, 1, 0, encoding=encoding, fix=fix)[0]


@contextlib.contextmanager
def open_decompressed(file: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file for reading bytes, decompressed if its name ends in .gz, .xz or .bz2.

    Raises:
        BadInput: the file cannot be opened, or (within the block) is damaged.
    """
    unpack: Any = {".gz": gzip.open, ".xz": _open_xz, ".bz2": bz2.open}.get(file.suffix.lower())
    try:
        with open_regular(file, shell_pipe=True) as raw:
            if unpack is None:
                yield raw
                return
            with (
                unpack(raw, "rb") as stream,
                io.BufferedReader(_Bounded(stream, file, os.fstat(raw.fileno()).st_size)) as bounded,
            ):
                yield bounded
    except EOFError:
        raise BadInput(f"{file}: ends before its compressed data does; copy it again") from None
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise BadInput(f"{file}: cannot be decompressed ({error}); compress it again") from None
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror or error})") from None


def unpacked_limit(size: int) -> int:
    """Return how many bytes of text a compressed file of `size` bytes may have."""
    return max(MOST_UNCHECKED, LARGEST_RATIO * size)


def unpacks_to_more(file: object) -> BadInput:
    """Return the error for a file that has more text than `unpacked_limit`."""
    return BadInput(f"{file}: unpacks to more than {LARGEST_RATIO:,} times its size, which no text does; write it uncompressed")


class _Bounded(io.RawIOBase):
    """A decompressed stream that ends with an error where it exceeds every sensible size for its compressed file."""

    def __init__(self, stream: io.BufferedIOBase, file: Path, size: int) -> None:
        self._stream, self._file, self._remaining = stream, file, unpacked_limit(size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer)
        self._remaining -= count
        if self._remaining < 0:
            raise unpacks_to_more(self._file)
        return count


class _Xz(io.RawIOBase):
    """An .xz file decompressed in bounded memory, which the file object of the standard library does not offer."""

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
                while not raw and (more := self._file.read(READ_SIZE)):
                    raw = more.lstrip(b"\0")
                if not raw:
                    return 0
                self._unpack = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
            elif self._unpack.needs_input and not (raw := self._file.read(READ_SIZE)):
                raise EOFError
            data = self._unpack.decompress(raw, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _open_xz(raw: IO[bytes], mode: str) -> io.BufferedIOBase:
    return io.BufferedReader(_Xz(raw))


def document_chunks(name: str, strings: Iterable[str], where: str) -> Iterator[Document]:
    """Yield the chunks of the text that the strings form when joined; error messages begin with `where`."""
    return (Document(name, chunk, last) for chunk, last in cut_chunks(strings, where))


def _decoded(stream: io.BufferedIOBase, file: Path) -> Iterator[str]:
    """Yield the text of a stream, `READ_SIZE` bytes at a time."""
    pending, line, offset, raw = b"", 1, 0, b"?"
    while raw:
        raw = stream.read(READ_SIZE)
        pending += raw
        text, used = _decode(pending, file, line, offset, final=not raw)
        yield text
        line += pending.count(b"\n", 0, used)
        offset += used
        pending = pending[used:]


def _decode(
    raw: bytes, file: Path, line: int, offset: int, final: bool = True, *, encoding: str = "utf-8", fix: str = TO_UTF8
) -> tuple[str, int]:
    """Return (text, bytes used) of bytes that begin at a line and offset of a file, without a byte order mark.

    Unless these are the `final` bytes, an incomplete character at their end is not used.
    """
    if b"\0" in raw:
        at = raw.index(b"\0")
        line += raw.count(b"\n", 0, at)
        raise BadInput(f"{file}:{line}: binary content (a NUL at byte {offset + at}); data files must be UTF-8 text")
    try:
        text, used = codecs.latin_1_decode(raw) if encoding == "latin-1" else codecs.utf_8_decode(raw, "strict", final)
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise BadInput(f"{file}:{line}: not UTF-8 (byte {offset + error.start}); {fix}") from None
    return (text.removeprefix(codecs.BOM_UTF8.decode()) if offset == 0 else text), used


def _field(text: str, field: str, where: str) -> str:
    """Return the string in a field of a JSON object, which is written as `text`."""
    value = parse_object(text, where, f"{{{json.dumps(field)}: ...}}")
    if field not in value:
        raise BadInput(f"{where}: no field {json.dumps(field)}; it has {list_names(list(value))}: choose one with --data.field")
    return check_string(value[field], f"{where}: field {json.dumps(field)}")


def parse_json_line(text: str, where: str, fix: str) -> Any:
    """Parse JSON; `fix` is the advice in the error message."""
    try:
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise BadInput(f"{where}: invalid JSON at {line}column {error.colno} ({error.msg}); {fix}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: unreadable JSON ({error}); {fix}") from None


def parse_object(text: str, where: str, example: str) -> dict[str, Any]:
    """Parse a line that is a JSON object; `example` is one, for the error message."""
    value = parse_json_line(text, where, "write one object per line")
    if not isinstance(value, dict):
        raise BadInput(f"{where}: {json_type(value)}, not an object; write lines like {example}")
    return value


def check_string(value: Any, where: str) -> str:
    """Return the value, which must be a string that UTF-8 can encode: JSON can express a lone surrogate, UTF-8 cannot."""
    if not isinstance(value, str):
        raise BadInput(f"{where} holds {json_type(value)}, not a string; write a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{where} has an unpaired surrogate, half of a character, at character {error.start}; write all of it or remove it"
        ) from None
    return value


def list_names(names: list[str]) -> str:
    """Return the first 20 names, quoted and separated by commas, for an error message."""
    return ", ".join(json.dumps(name) for name in names[:20]) or "none"


def json_type(value: Any) -> str:
    """Return the type of a JSON value in words, for an error message."""
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
