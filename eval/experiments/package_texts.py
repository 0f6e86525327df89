"""Texts in package files of Debian and npm, read with the standard library alone."""

import io
import re
import struct
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import PurePosixPath

from zoo.errors import BadInput


def archive_members(archive: bytes, suffix: str) -> dict[str, bytes]:
    """Return name without folders -> content of the files in a tar archive, compressed or not, whose names have a suffix."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = [(PurePosixPath(member.name).name, tar.extractfile(member)) for member in tar if member.isfile()]
        return {name: file.read() for name, file in sorted(files, key=lambda item: item[0]) if file and name.endswith(suffix)}


def debian_members(package: bytes, suffix: str) -> dict[str, bytes]:
    """Return `archive_members` of the files of a Debian package, which is an ar archive with a tar archive of them.

    Raises:
        BadInput: it has no such archive.
    """
    position = 8
    while position + 60 <= len(package):
        name, size = package[position : position + 16], int(package[position + 48 : position + 58])
        position += 60
        if name.startswith(b"data.tar"):
            return archive_members(package[position : position + size], suffix)
        position += size + size % 2
    raise BadInput("a Debian package has no data.tar; download it again")


def zlib_streams(content: bytes) -> list[bytes]:
    """Return what the zlib streams in a file decompress to; bytes between them, as lengths and padding, are ignored."""
    streams = []
    while (start := content.find(b"\x78\x9c")) >= 0:
        stream = zlib.decompressobj()
        streams.append(stream.decompress(content[start:]))
        content = stream.unused_data
    return streams


def r_lines(serialized: bytes) -> list[str]:
    """Return the texts of a character vector that R has serialized as XDR, version 3."""
    (length,) = struct.unpack_from(">i", serialized, 14)
    position = 18 + length  # after "X\n", the versions and the name of the encoding
    (count,) = struct.unpack_from(">i", serialized, position + 4)
    position, lines = position + 8, []
    for _ in range(count):
        (length,) = struct.unpack_from(">i", serialized, position + 4)
        lines.append(serialized[position + 8 : position + 8 + length].decode())
        position += 8 + length
    return lines


def osis_text(books: Iterable[str]) -> str:
    """Return the paragraphs of books in OSIS markup as plain text, without notes, variants and titles."""
    text = re.sub(r"<(note|rdg|title)\b[^>]*>.*?</\1>", " ", "".join(books), flags=re.DOTALL)
    # A milestone precedes every verse, and does not begin a paragraph.
    text = re.sub(r"<(?:div(?![^>]*x-milestone)|lg|chapter|item)\b[^>]*>", "\n", text)
    text = re.sub(r"<[^>]*>", "", re.sub(r"<(?:div|l|lb)\b[^>]*>", " ", text))
    text = re.sub(r" ([,.;:?!)”])", r"\1", re.sub(r"[ \t\u00a0]+", " ", text))
    return "\n\n".join(line.strip() for line in text.splitlines() if line.strip()) + "\n"
