"""The documents of a run, and their split into training and held-out ones."""

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

import numpy as np

from train.config.data_options import TextData
from train.data.sources import Source, find_sources
from train.data.text_files import Digest, Document
from zoo.errors import BadInput, require

EMBEDDED = Path(__file__).parent / "embedded" / "moby_dick.txt.xz"
EMBEDDED_SHA256 = "fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240"
MANY_DOCUMENTS = 20
"""Smallest number of documents for which whole documents are held out; with fewer, one document is cut."""
LARGEST_SAMPLE = 256 << 20
"""Largest number of bytes of text that a tokenizer is trained on: more costs hours and memory, and changes little."""
REACH = 4 << 20
"""Largest number of characters on each side in which a place to cut a document is searched."""

PIECE = 4096
"""Bytes of the pieces that `--data.take` samples, of a text of `FEWEST_PIECES` of them or more: some paragraphs."""
FEWEST_PIECES = 64
"""Number of pieces that a shorter text is divided into."""
WHITE_SPACE = re.compile(rb"\s")
MAX_SLACK = 1 << 20
"""Characters that the search window may hold beyond twice its reach before its beginning is discarded."""


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents in order. Every iteration reads the files again, so that only one chunk of a document is in memory."""

    read: Callable[[], Iterator[Document]]
    """Start an iteration; long documents are yielded in chunks."""
    count: int
    text_bytes: int
    """UTF-8 bytes of all texts."""
    digest: str
    """Digest of the texts, their order and bounds: `train.data.text_files.Digest`."""
    names: tuple[str, ...] = ()
    """Name of each document of `valid_paths`: its file, or its line. () for other documents."""

    def __iter__(self) -> Iterator[Document]:
        return self.read()


def split_corpus(data: TextData) -> tuple[Documents, Documents]:
    """Return (training, held-out) documents. Every file is read and checked once here, before any of it is used.

    The held-out documents are those of `valid_paths`, or else about the last `valid_fraction` of the bytes of `paths`. Whole
    documents are held out if there are at least 20; otherwise one document is cut after a paragraph, a line or a word, the first
    of these that ends near enough (the held-out share is within a quarter of `valid_fraction`). Both halves together are the
    whole text.

    Raises:
        BadInput: a file that is missing, empty, damaged, not UTF-8 or of an unsupported kind, a bad line or row (with its
            number), a held-out file that is also trained on, or too little text for two halves; see also `sources.find_sources`.
    """
    training = find_sources(data.paths, data)
    read = functools.partial(_chain, training) if data.paths else _embedded
    if data.valid_paths:
        valid_sources = find_sources(data.valid_paths, data)
        if both := {source.key for source in training} & {source.key for source in valid_sources}:
            raise BadInput(f"--data.valid-paths {min(both)}: it is also in --data.paths; hold out text that is not trained on")
        read_valid, names = functools.partial(_chain, valid_sources), list[str]()
        held_out = _documents(read_valid, digest_documents(_with_names(read_valid(), names)))
        return _measured(read), dataclasses.replace(held_out, names=tuple(names))
    with tempfile.TemporaryFile() as index:
        total = _index(read(), index)
        many = total.count >= MANY_DOCUMENTS
        cut = (
            _cut_at_boundary(index, total, data.valid_fraction) if many else _cut_inside(read, index, total, data.valid_fraction)
        )
        halves = functools.partial(_training_half, read, *cut), functools.partial(_held_out_half, read, *cut)
        digests = _digests(index, cut[0]) if many else _measure_halves(read, *cut)
    return _documents(halves[0], digests[0]), _documents(halves[1], digests[1])


def sample_share(documents: Documents, share: float, seed: int) -> Documents:
    """Return about the share of the bytes of documents, for `--data.take`; with 1 the documents themselves.

    The sample consists of pieces of up to `PIECE` bytes at random places, which end with a word if one ends near enough. Adjacent
    pieces remain one text, and every gap begins a new document. With equal seeds, a smaller share is a part of a larger one.

    Raises:
        BadInput: the share is less than half a piece.
    """
    if share == 1:
        return documents
    size = min(PIECE, max(1, documents.text_bytes // FEWEST_PIECES))
    total, number = -(-documents.text_bytes // size), round(share * documents.text_bytes / size)
    fix = f"less than half of a piece of {size:,} bytes; choose a larger share, or add text to --data.paths"
    require(number > 0, "data.take", share, fix)
    order = np.random.Generator(np.random.Philox(key=np.array([seed, PIECE], np.uint64))).permutation(total)
    return _measured(functools.partial(_sampled, documents.read, size, np.sort(order[:number])))


def _sampled(read: Callable[[], Iterator[Document]], size: int, numbers: np.ndarray) -> Iterator[Document]:
    """Yield the pieces with these numbers, which are sorted, as documents; adjacent pieces of a document are its chunks."""
    held: tuple[int, Document] | None = None
    for number, piece in _pieces(read(), size):
        is_chosen = numbers[min(np.searchsorted(numbers, number), len(numbers) - 1)] == number
        if held is not None:
            is_continued = is_chosen and number <= held[0] + 1 and not held[1].last
            yield dataclasses.replace(held[1], last=not is_continued)
        held = (number, piece) if is_chosen else None
    if held is not None:
        yield dataclasses.replace(held[1], last=True)


def _pieces(chunks: Iterable[Document], size: int) -> Iterator[tuple[int, Document]]:
    """Yield (number of the piece, its text in a chunk): a chunk is cut after the first white space behind each `size` bytes.

    Without white space in the next piece, as in Chinese, it is cut between two characters.
    """
    first = 0
    for chunk in chunks:
        raw, start = chunk.text.encode(), 0
        while True:
            number = (first + start) // size
            boundary = max((number + 1) * size - first, start + 1)
            space = WHITE_SPACE.search(raw, boundary - 1, boundary + size)
            end = space.end() if space else _next_character(raw, boundary)
            yield number, Document(chunk.name, raw[start:end].decode(), chunk.last and end == len(raw))
            start = end
            if start == len(raw):
                break
        first += len(raw)


def _next_character(raw: bytes, position: int) -> int:
    """Return the first place from `position` on at which a character of UTF-8 begins, or the end."""
    while position < len(raw) and raw[position] & 0xC0 == 0x80:
        position += 1
    return min(position, len(raw))


def read_documents(paths: Sequence[str], data: TextData, limit: int = 0) -> Documents:
    """Return the documents of some files, each checked once; `data` has the options for reading them.

    Args:
        limit: largest number of documents, taken from the beginning; 0 = all.

    Raises:
        BadInput: a file cannot be read; see `split_corpus`.
    """
    read = functools.partial(_chain, find_sources(tuple(paths), data))
    return _measured(functools.partial(_first, read, limit) if limit else read)


def _first(read: Callable[[], Iterator[Document]], count: int) -> Iterator[Document]:
    """Yield the first `count` documents, with all of their chunks."""
    for document in read():
        yield document
        count -= document.last
        if not count:
            return


def sample_chunks(documents: Sequence[Documents], limit: int = LARGEST_SAMPLE) -> Iterator[str]:
    """Yield chunks of about `limit` bytes in all, spread evenly over the texts; all of the text if it is not longer."""
    total_bytes, passed_bytes, taken_bytes = sum(corpus.text_bytes for corpus in documents), 0, 0
    for chunk in itertools.chain.from_iterable(documents):
        if taken_bytes * total_bytes <= passed_bytes * limit:
            taken_bytes += len(chunk.text.encode())
            yield chunk.text
        passed_bytes += len(chunk.text.encode())


def digest_documents(documents: Iterable[Document]) -> Digest:
    """Read documents once and return their digest, which includes their number and size."""
    digest = Digest()
    for document in documents:
        digest.add(document)
    return digest


def _measured(read: Callable[[], Iterator[Document]]) -> Documents:
    return _documents(read, digest_documents(read()))


def _documents(read: Callable[[], Iterator[Document]], digest: Digest) -> Documents:
    return Documents(read, digest.count, digest.text_bytes, digest.hexdigest())


def _with_names(documents: Iterator[Document], names: list[str]) -> Iterator[Document]:
    """Yield the documents, and append the name of each to a list."""
    for document in documents:
        if document.last:
            names.append(document.name)
        yield document


def _chain(all_sources: list[Source]) -> Iterator[Document]:
    for source in all_sources:
        yield from source.read()


# --- Place of the cut: (number of a document, character in it at which the held-out text begins) ---

_ENTRY = struct.Struct("<q32s")


def _index(documents: Iterable[Document], index: IO[bytes]) -> Digest:
    """Write the size and SHA-256 of each document to a file, because those of millions of documents would fill the memory."""
    digest = Digest()
    for document in documents:
        if size_and_digest := digest.add(document):
            index.write(_ENTRY.pack(*size_and_digest))
    return digest


def _entries(index: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    index.seek(0)
    while raw := index.read(_ENTRY.size << 12):
        yield from _ENTRY.iter_unpack(raw)


def _cut_at_boundary(index: IO[bytes], total: Digest, fraction: float) -> tuple[int, int]:
    """Return a cut before the document whose beginning is nearest to the target, (1 - fraction) of the bytes."""
    target = (1 - fraction) * total.text_bytes
    number, end, best = 0, 0, float("inf")
    for i, (size, _) in enumerate(_entries(index)):
        end += size
        if abs(end - target) < best:
            number, best = i + 1, abs(end - target)
    return min(number, total.count - 1), 0


def _digests(index: IO[bytes], number: int) -> tuple[Digest, Digest]:
    """Return the digests of the documents before number `number`, and of the others."""
    before, after = Digest(), Digest()
    for i, entry in enumerate(_entries(index)):
        (before if i < number else after).add_whole(*entry)
    return before, after


def _cut_inside(read: Callable[[], Iterator[Document]], index: IO[bytes], total: Digest, fraction: float) -> tuple[int, int]:
    """Return a cut inside the document that contains the target, (1 - fraction) of the bytes."""
    target = (1 - fraction) * total.text_bytes
    sizes = [size for size, _ in _entries(index)]
    ends = list(itertools.accumulate(sizes))
    number = min(bisect.bisect_right(ends, target), len(sizes) - 1)
    chunks = (document.text for nth, document in _numbered(read()) if nth == number)
    reach = min(int(fraction * total.text_bytes / 4), REACH)
    character, before, after = _find_cut(chunks, int(target - ends[number] + sizes[number]), reach)
    if (number == 0 and not before) or (number == len(sizes) - 1 and not after):
        raise BadInput(
            f"--data.valid-fraction {fraction}: {total.text_bytes} bytes of text are too few to hold some out; add text to "
            "--data.paths, or set --data.valid-paths"
        )
    return number, character


def _find_cut(chunks: Iterator[str], byte: int, reach: int) -> tuple[int, bool, bool]:
    """Return (character to cut a text before, is there more than white space before it, after it), near byte `byte`."""
    window, first, bytes_before, position, before = "", 0, 0, None, False
    for chunk in chunks:
        if position is None:
            raw = chunk.encode()
            if bytes_before + len(raw) >= byte:
                position = first + len(window) + len(raw[: byte - bytes_before].decode(errors="ignore"))
            bytes_before += len(raw)
        window += chunk
        if position is None:
            if len(window) > 2 * reach + MAX_SLACK:
                passed = len(window) - reach - 1
                before = before or bool(window[:passed].strip())
                window, first = window[passed:], first + passed
        elif first + len(window) > position + reach + 1:
            break
    assert position is not None, "the text is longer than the byte to cut it at"
    cut = _nearest_boundary(window, position - first, reach)
    before = before or bool(window[:cut].strip())
    return first + cut, before, bool(window[cut:].strip()) or any(chunk.strip() for chunk in chunks)


def _nearest_boundary(text: str, position: int, reach: int) -> int:
    """Return the end of a paragraph nearest to `position`; if none is within `reach`, of a line, of a word, else `position`."""
    first, last = max(position - reach, 1), min(position + reach, len(text) - 1)
    for end in (r"\n[ \t\r]*\n\s*", r"\n", r"\s"):
        ends = [match.end() for match in re.compile(end).finditer(text, first, last)]
        if ends:
            return min(ends, key=lambda character: abs(character - position))
    return position


# --- The halves ---


def _measure_halves(read: Callable[[], Iterator[Document]], number: int, character: int) -> tuple[Digest, Digest]:
    before, after = Digest(), Digest()
    for held_out, document in _both_halves(read, number, character):
        (after if held_out else before).add(document)
    return before, after


def _training_half(read: Callable[[], Iterator[Document]], number: int, character: int) -> Iterator[Document]:
    return (document for _, document in itertools.takewhile(lambda half: not half[0], _both_halves(read, number, character)))


def _held_out_half(read: Callable[[], Iterator[Document]], number: int, character: int) -> Iterator[Document]:
    return (document for held_out, document in _both_halves(read, number, character) if held_out)


def _both_halves(read: Callable[[], Iterator[Document]], number: int, character: int) -> Iterator[tuple[bool, Document]]:
    """Yield (is it held out, document); the chunk that contains the cut is divided at `character`."""
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


def _numbered(chunks: Iterable[Document]) -> Iterator[tuple[int, Document]]:
    number = 0
    for chunk in chunks:
        yield number, chunk
        number += chunk.last


def _embedded() -> Iterator[Document]:
    """Yield the chapters of Moby-Dick as documents, named by their headings; joined, their texts are the file."""
    raw = lzma.decompress(EMBEDDED.read_bytes())
    if hashlib.sha256(raw).hexdigest() != EMBEDDED_SHA256:
        raise BadInput(f"{EMBEDDED}: damaged (its SHA-256 is not the expected one); install the package again")
    text = raw.decode()
    starts = [match.start() for match in re.finditer(r"^CHAPTER \d+\. ", text, re.MULTILINE)]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        heading, _, _ = text[start:end].partition("\n\n")
        yield Document(" ".join(heading.split()), text[start:end])
