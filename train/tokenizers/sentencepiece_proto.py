"""A reader of spiece.model, the file of a SentencePiece model, which is a message in the wire format of Protocol Buffers.

The library has its own reader, which works with a single version of the protobuf package that its installation does not require.
Only four kinds of fields are needed here.
"""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from train.untrusted import tokenizer_content
from zoo.errors import BadInput

UNIGRAM = 1
"""The number of unigram models in `model_type`."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = range(1, 5)
"""Kinds of entries. T5's model has the first three; in XLNet's and mT5's, user-defined entries are always separate tokens."""
BYTE = 6
"""Kind of the entries <0x00> to <0xFF>, by which mT5's model spells unknown characters."""


class Entry(NamedTuple):
    """An entry of the vocabulary; the first one has id 0."""

    name: str
    score: float
    """Logarithm of its probability; 0 for special tokens."""
    kind: int


class Model(NamedTuple):
    """The fields of a model that affect encoding; fields that the file leaves out have the defaults of the library."""

    entries: tuple[Entry, ...]
    charsmap: bytes
    """The normalization of characters, the first step of encoding, as compiled by the library."""
    kind: int
    split_by_whitespace: bool
    treat_whitespace_as_suffix: bool
    byte_fallback: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def parse_spiece_model(raw: bytes) -> Model:
    """Parse the content of a spiece.model.

    Raises:
        BadInput: the file is not a spiece.model.
    """
    try:
        entries, trainer_fields, normalizer_fields = [], {}, {}
        for number, value in _fields(raw):
            if number == 1:
                field = dict(_fields(value))
                entries.append(Entry(field.get(1, b"").decode(), float(field.get(2, 0.0)), int(field.get(3, NORMAL))))
            elif number in (2, 3):
                (trainer_fields if number == 2 else normalizer_fields).update(_fields(value))
        charsmap = bytes(normalizer_fields.get(2, b""))
    except (ValueError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise BadInput(f"not a SentencePiece model ({error}); download it again") from None
    for entry in entries:
        tokenizer_content.check_entry(entry.name)
    if charsmap:
        tokenizer_content.check_charsmap(charsmap)
    if not entries:
        raise BadInput("a SentencePiece model without entries; download it again")
    return Model(
        entries=tuple(entries),
        charsmap=charsmap,
        kind=trainer_fields.get(3, UNIGRAM),
        split_by_whitespace=bool(trainer_fields.get(22, True)),
        treat_whitespace_as_suffix=bool(trainer_fields.get(24, False)),
        byte_fallback=bool(trainer_fields.get(35, False)),
        add_dummy_prefix=bool(normalizer_fields.get(3, True)),
        remove_extra_whitespaces=bool(normalizer_fields.get(4, True)),
        escape_whitespaces=bool(normalizer_fields.get(5, True)),
    )


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of each field of a message: an integer, a float, or the bytes of a text or of another message."""
    offset = 0
    while offset < len(raw):
        key, offset = _varint(raw, offset)
        kind = key & 7
        if kind == 0:
            value, offset = _varint(raw, offset)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            (value,) = struct.unpack_from("<d" if kind == 1 else "<f", raw, offset)
            offset += size
        elif kind == 2:
            size, offset = _varint(raw, offset)
            value = raw[offset : offset + size]
            if len(value) < size:
                raise ValueError("it ends within a field")
            offset += size
        else:
            raise ValueError(f"a field of kind {kind}")
        yield key >> 3, value


def _varint(raw: bytes, offset: int) -> tuple[int, int]:
    """Return (integer of seven bits per byte, lowest first; offset of its end)."""
    value, shift = 0, 0
    while True:
        byte = raw[offset]
        value |= (byte & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 0x80:
            return value, offset
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
