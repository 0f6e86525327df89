"""Parts of the tokenizers in `tests.support.hostile_tokenizers`: ordinary ones, and functions that change them."""

import base64
import copy
import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

FILE = "tokenizer.json"
END = "<|endoftext|>"


class HostileTokenizer(NamedTuple):
    """A folder of a tokenizer; the name is unique and fits a folder name."""

    name: str
    what: str
    """One line: what it tries."""
    files: Mapping[str, bytes]
    """Content of the files by name."""
    refused: bool | None = True
    """False if it must be read, None if both are right, but neither a crash nor a hang."""


def byte_alphabet() -> list[str]:
    """Return the characters by which byte-level BPE writes the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(code) for code in printable] + [chr(256 + number) for number in range(256 - len(printable))]


def added(name: str, number: int, **changes: Any) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": name, **flags, **changes}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
BPE = {
    **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": [added(END, 0)], "normalizer": None},
    **{"pre_tokenizer": BYTE_LEVEL, "post_processor": None, "decoder": BYTE_LEVEL},
    "model": {
        **{"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None},
        **{"fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "merges": [["t", "h"]]},
        "vocab": {name: number for number, name in enumerate([END, *byte_alphabet(), "th"])},
    },
}
"""GPT-2's rules with one merge."""
T5_NAMES = ["<pad>", "</s>", "<unk>"]
T5 = {
    **BPE,
    "added_tokens": [added(name, number) for number, name in enumerate(T5_NAMES)],
    **{"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE]}, "decoder": METASPACE},
    "model": {
        **{"type": "Unigram", "unk_id": 2, "byte_fallback": False},
        "vocab": [[name, 0.0] for name in T5_NAMES] + [[name, -2.0] for name in "\u2581abcdefghijklmnopqrstuvwxyz"],
    },
}
"""T5's rules with letters."""
BERT_NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BERT = {
    **BPE,
    "added_tokens": [added(name, number) for number, name in enumerate(BERT_NAMES)],
    "normalizer": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        **{"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
        "vocab": {name: number for number, name in enumerate([*BERT_NAMES, *"abc", *(f"##{letter}" for letter in "abc")])},
    },
}
"""BERT's rules with three letters."""


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def case(name: str, what: str, base: dict[str, Any], refused: bool | None = True, **parts: Any) -> HostileTokenizer:
    """Return a tokenizer.json with other parts; `model` changes fields of the base's model."""
    changed = copy.deepcopy(base)
    changed["model"] |= parts.pop("model", {})
    return HostileTokenizer(name, what, {FILE: encoded(changed | parts)}, refused)


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(regex: str, **changes: Any) -> dict[str, Any]:
    words = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} | changes
    return {"type": "Sequence", "pretokenizers": [words, BYTE_LEVEL | {"use_regex": False}]}


def sequence(*steps: dict[str, Any], key: str = "normalizers") -> dict[str, Any]:
    return {"type": "Sequence", key: list(steps)}


def nested(levels: int, step: dict[str, Any]) -> dict[str, Any]:
    for _ in range(levels):
        step = sequence(step)
    return step


def charsmap(units: bytes, texts: bytes, size: int | None = None) -> dict[str, Any]:
    raw = struct.pack("<I", len(units) if size is None else size) + units + texts
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()}


def template(**changes: Any) -> dict[str, Any]:
    text: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*text, {"Sequence": {"id": "B", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": text, "pair": pair, "special_tokens": {}} | changes


def special(name: str, type_id: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": type_id}}


BERT_TEMPLATE = template(
    single=[special("[CLS]", 0), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]", 0)],
    pair=[
        *(special("[CLS]", 0), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]", 0)),
        *({"Sequence": {"id": "B", "type_id": 1}}, special("[SEP]", 1)),
    ],
    special_tokens={name: {"id": name, "ids": [number], "tokens": [name]} for name, number in (("[CLS]", 2), ("[SEP]", 3))},
)


def field(number: int, value: bytes) -> bytes:
    """Return a field of bytes in the wire format of Protocol Buffers."""
    size, rest = bytearray(), len(value)
    while rest > 127:
        size.append(rest & 127 | 128)
        rest >>= 7
    return bytes([number << 3 | 2]) + bytes([*size, rest]) + value


def entry(name: bytes, score: float = -1.0, kind: int = 1) -> bytes:
    return field(1, field(1, name) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))


T5_MODEL = entry(b"<pad>", 0, 3) + entry(b"</s>", 0, 3) + entry(b"<unk>", 0, 2) + entry("\u2581".encode()) + entry(b"a")


def spiece(name: str, what: str, content: bytes, refused: bool | None = True) -> HostileTokenizer:
    return HostileTokenizer(name, what, {"spiece.model": content}, refused)
