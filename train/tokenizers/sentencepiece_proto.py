"""What a spiece.model says: the file of a SentencePiece model, a message in Protocol Buffers' wire format.

The library has a reader of its own, which works with a single version of the protobuf package; it does not ask for that version
when it is installed. What is needed here are four kinds of fields.
"""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from zoo.errors import BadInput

UNIGRAM = 1
"""The number of this kind of model."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = range(1, 5)
"""The kinds of entries that T5's model has, and one that XLNet's has besides: what a text is always divided at."""


class Entry(NamedTuple):
    """An entry of the vocabulary; the first has id 0."""

    name: str
    score: float
    """Logarithm of its probability; 0 for marks."""
    kind: int


class Model(NamedTuple):
    """The numbers of a model that decide what is made of a text; what the file leaves out has the library's default."""

    entries: tuple[Entry, ...]
    charsmap: bytes
    """What is made of each character before anything else, as the library compiles it."""
    kind: int
    split_by_whitespace: bool
    treat_whitespace_as_suffix: bool
    byte_fallback: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def parse(raw: bytes) -> Model:
    """The content of a spiece.model.

    Raises:
        BadInput: it is no such file.
    """
    try:
        entries, trained, rules = [], {}, {}
        for number, value in _fields(raw):
            if number == 1:
                field = dict(_fields(value))
                entries.append(Entry(field.get(1, b"").decode(), float(field.get(2, 0.0)), int(field.get(3, NORMAL))))
            elif number in (2, 3):
                (trained if number == 2 else rules).update(_fields(value))
        charsmap = bytes(rules.get(2, b""))
    except (ValueError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise BadInput(f"no SentencePiece model ({error}); fetch it again") from None
    if not entries:
        raise BadInput("a SentencePiece model without entries; fetch it again")
    return Model(
        entries=tuple(entries),
        charsmap=charsmap,
        kind=trained.get(3, UNIGRAM),
        split_by_whitespace=bool(trained.get(22, True)),
        treat_whitespace_as_suffix=bool(trained.get(24, False)),
        byte_fallback=bool(trained.get(35, False)),
        add_dummy_prefix=bool(rules.get(3, True)),
        remove_extra_whitespaces=bool(rules.get(4, True)),
        escape_whitespaces=bool(rules.get(5, True)),
    )


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a message: a whole number, a float32, or the bytes of a text or of another message."""
    at = 0
    while at < len(raw):
        key, at = _whole(raw, at)
        kind = key & 7
        if kind == 0:
            value, at = _whole(raw, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            (value,) = struct.unpack_from("<d" if kind == 1 else "<f", raw, at)
            at += size
        elif kind == 2:
            size, at = _whole(raw, at)
            value = raw[at : at + size]
            if len(value) < size:
                raise ValueError("it ends within a field")
            at += size
        else:
            raise ValueError(f"a field of kind {kind}")
        yield key >> 3, value


def _whole(raw: bytes, at: int) -> tuple[int, int]:
    """(a whole number of seven bits a byte, the lowest first; where it ends)."""
    value, shift = 0, 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
