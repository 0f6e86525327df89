"""Raw text: the documents of a run, and their split into training and held-out ones."""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import lzma
import re
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from train.config.run_config import Data
from train.data.sources import Source, sources
from train.data.text_files import Digest, Document
from zoo.errors import BadInput

EMBEDDED = Path(__file__).parent / "embedded" / "moby_dick.txt.xz"
EMBEDDED_SHA256 = "fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240"
MANY_DOCUMENTS = 20
"""From this many documents on, whole documents are held out; with fewer, one document is cut."""
LARGEST_SAMPLE = 256 << 20
"""Bytes of text that a tokenizer is trained on, at most: more costs hours and memory, and changes little."""
REACH = 4 << 20
"""Characters on each side among which the place to cut a document is looked for, at most."""

KEPT = 1 << 20
"""Characters that may wait before they are let go of."""


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents in their order, read from the files anew by every iteration: only a piece of one is in memory at a time."""

    read: Callable[[], Iterator[Document]]
    """Long documents come in pieces."""
    count: int
    text_bytes: int
    """UTF-8 bytes of all texts."""
    digest: str
    """Of the texts, their order and bounds: `train.data.text_files.Digest`."""

    def __iter__(self) -> Iterator[Document]:
        return self.read()


def split(data: Data) -> tuple[Documents, Documents]:
    """(training, held-out) documents. Every file is read and checked once here, before anything is made of it.

    Held out are the documents of `valid_paths`, else about the last `valid_fraction` of the bytes of `paths`: whole documents
    when there are at least 20, otherwise one document is cut after a paragraph, else a line, else a word, whichever ends near
    enough (the share held out stays within a quarter of what was asked). The two halves together are the whole text.

    Raises:
        BadInput: a file that is missing, empty, damaged, not UTF-8 or of an unsupported kind, a bad line or row (with its
            number), a held-out file that is trained on, or too little text to have two halves; see also `sources.sources`.
    """
    found = sources(data.paths, data)
    read = functools.partial(_chain, found) if data.paths else _embedded
    if data.valid_paths:
        valid = sources(data.valid_paths, data)
        if both := {source.key for source in found} & {source.key for source in valid}:
            raise BadInput(f"--data.valid-paths {min(both)}: it is also in --data.paths; hold out text that is not trained on")
        return _measured(read), _measured(functools.partial(_chain, valid))
    with tempfile.TemporaryFile() as index:
        whole = _index(read(), index)
        between = whole.count >= MANY_DOCUMENTS
        cut = _between(index, whole, data.valid_fraction) if between else _within(read, index, whole, data.valid_fraction)
        halves = functools.partial(_before, read, *cut), functools.partial(_after, read, *cut)
        digests = _digests(index, cut[0]) if between else _measure_halves(read, *cut)
    return _documents(halves[0], digests[0]), _documents(halves[1], digests[1])


def documents(paths: Sequence[str], data: Data, limit: int = 0) -> Documents:
    """The documents of some files, each checked once; `data` says how they are read.

    Args:
        limit: how many of the first are taken, at most; 0 = all.

    Raises:
        BadInput: as `split`, of a file.
    """
    read = functools.partial(_chain, sources(tuple(paths), data))
    return _measured(functools.partial(_first, read, limit) if limit else read)


def _first(read: Callable[[], Iterator[Document]], count: int) -> Iterator[Document]:
    """The first `count` documents, with all of their pieces."""
    for document in read():
        yield document
        count -= document.last
        if not count:
            return


def sample(documents: Sequence[Documents], limit: int = LARGEST_SAMPLE) -> Iterator[str]:
    """About `limit` bytes of the texts, in pieces spread evenly over all of them; all of it if it is not more."""
    total, passed, given = sum(each.text_bytes for each in documents), 0, 0
    for piece in itertools.chain.from_iterable(documents):
        if given * total <= passed * limit:
            given += len(piece.text.encode())
            yield piece.text
        passed += len(piece.text.encode())


def measure(documents: Iterable[Document]) -> Digest:
    """Read documents once, for their number, their size and what distinguishes them."""
    digest = Digest()
    for document in documents:
        digest.add(document)
    return digest


def _measured(read: Callable[[], Iterator[Document]]) -> Documents:
    return _documents(read, measure(read()))


def _documents(read: Callable[[], Iterator[Document]], digest: Digest) -> Documents:
    return Documents(read, digest.count, digest.text_bytes, digest.hexdigest())


def _chain(found: list[Source]) -> Iterator[Document]:
    for source in found:
        yield from source.read()


# --- Where to cut: (number of a document, character in it at which the held-out text begins) ---

_ENTRY = struct.Struct("<q32s")


def _index(documents: Iterable[Document], index: IO[bytes]) -> Digest:
    """Write the size and SHA-256 of each document to a file: those of millions would fill the memory."""
    digest = Digest()
    for document in documents:
        if whole := digest.add(document):
            index.write(_ENTRY.pack(*whole))
    return digest


def _entries(index: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    index.seek(0)
    while raw := index.read(_ENTRY.size << 12):
        yield from _ENTRY.iter_unpack(raw)


def _between(index: IO[bytes], whole: Digest, fraction: float) -> tuple[int, int]:
    """Before the document that begins nearest to where the held-out text should."""
    wanted = (1 - fraction) * whole.text_bytes
    number, end, least = 0, 0, float("inf")
    for i, (size, _) in enumerate(_entries(index)):
        end += size
        if abs(end - wanted) < least:
            number, least = i + 1, abs(end - wanted)
    return min(number, whole.count - 1), 0


def _digests(index: IO[bytes], number: int) -> tuple[Digest, Digest]:
    """Of the documents before a number and from it on."""
    before, after = Digest(), Digest()
    for i, entry in enumerate(_entries(index)):
        (before if i < number else after).add_whole(*entry)
    return before, after


def _within(read: Callable[[], Iterator[Document]], index: IO[bytes], whole: Digest, fraction: float) -> tuple[int, int]:
    """Inside of the document that has the place where the held-out text should begin."""
    wanted = (1 - fraction) * whole.text_bytes
    sizes = [size for size, _ in _entries(index)]
    ends = list(itertools.accumulate(sizes))
    number = min(bisect.bisect_right(ends, wanted), len(sizes) - 1)
    pieces = (document.text for nth, document in _numbered(read()) if nth == number)
    reach = min(int(fraction * whole.text_bytes / 4), REACH)
    character, before, after = _place(pieces, int(wanted - ends[number] + sizes[number]), reach)
    if (number == 0 and not before) or (number == len(sizes) - 1 and not after):
        raise BadInput(
            f"--data.valid-fraction {fraction}: {whole.text_bytes} bytes of text are too few to hold some out; give --data.paths "
            "more text, or --data.valid-paths"
        )
    return number, character


def _place(pieces: Iterator[str], byte: int, reach: int) -> tuple[int, bool, bool]:
    """(character to cut a text before, is there more than space before it, after it), near a byte of the text."""
    window, first, bytes_before, position, before = "", 0, 0, None, False
    for piece in pieces:
        if position is None:
            raw = piece.encode()
            if bytes_before + len(raw) >= byte:
                position = first + len(window) + len(raw[: byte - bytes_before].decode(errors="ignore"))
            bytes_before += len(raw)
        window += piece
        if position is None:
            if len(window) > 2 * reach + KEPT:
                passed = len(window) - reach - 1
                before = before or bool(window[:passed].strip())
                window, first = window[passed:], first + passed
        elif first + len(window) > position + reach + 1:
            break
    assert position is not None, "a text has the byte it is cut at"
    cut = _boundary(window, position - first, reach)
    before = before or bool(window[:cut].strip())
    return first + cut, before, bool(window[cut:].strip()) or any(piece.strip() for piece in pieces)


def _boundary(text: str, position: int, reach: int) -> int:
    """The end of a paragraph nearest to `position`, of a line if none is within `reach`, of a word; else `position`."""
    first, last = max(position - reach, 1), min(position + reach, len(text) - 1)
    for end in (r"\n[ \t\r]*\n\s*", r"\n", r"\s"):
        found = [match.end() for match in re.compile(end).finditer(text, first, last)]
        if found:
            return min(found, key=lambda character: abs(character - position))
    return position


# --- The halves ---


def _measure_halves(read: Callable[[], Iterator[Document]], number: int, character: int) -> tuple[Digest, Digest]:
    before, after = Digest(), Digest()
    for held_out, document in _halves(read, number, character):
        (after if held_out else before).add(document)
    return before, after


def _before(read: Callable[[], Iterator[Document]], number: int, character: int) -> Iterator[Document]:
    return (document for _, document in itertools.takewhile(lambda half: not half[0], _halves(read, number, character)))


def _after(read: Callable[[], Iterator[Document]], number: int, character: int) -> Iterator[Document]:
    return (document for held_out, document in _halves(read, number, character) if held_out)


def _halves(read: Callable[[], Iterator[Document]], number: int, character: int) -> Iterator[tuple[bool, Document]]:
    """(is it held out, document), with the pieces of the document that is cut divided at the character."""
    at = 0
    for nth, document in _numbered(read()):
        if nth != number or at >= character:
            yield nth >= number, document
            continue
        before, after = document.text[: character - at], document.text[character - at :]
        at += len(document.text)
        yield False, Document(document.name, before, at >= character)
        if after:
            yield True, Document(document.name, after, document.last)


def _numbered(pieces: Iterable[Document]) -> Iterator[tuple[int, Document]]:
    number = 0
    for piece in pieces:
        yield number, piece
        number += piece.last


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
