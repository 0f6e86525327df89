"""Files of weights that are no files of weights: safetensors, their index, and the msgpack of Flax."""

import functools
import json
from collections.abc import Callable
from typing import Any

from tests.hostile.case_types import ESCAPES, READ_WEIGHTS, Case, Place, replace

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def safetensors(header: bytes, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    """Return a file with a header, and the length that it claims for it."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(name: str = "wte.weight", **changes: Any) -> bytes:
    """Return a file of one tensor."""
    return safetensors(json.dumps({name: ENTRY | changes}).encode())


def several(count: int) -> bytes:
    """Return a file of many empty tensors."""
    tensors = {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(count)}
    return safetensors(json.dumps(tensors).encode(), b"")


FILES: dict[str, Callable[[], bytes]] = {
    "header of 200 MB": lambda: safetensors(b" " * (200 << 20)),
    "header of 2**63 bytes": lambda: safetensors(b"{}", length=1 << 63),
    "header of 2**64 - 1 bytes": lambda: safetensors(b"{}", length=(1 << 64) - 1),
    "header that is not JSON": lambda: safetensors(b"\xff" * 100),
    "deep header": lambda: safetensors(b'{"a":' * 100_000),
    "header of a list": lambda: safetensors(b"[]"),
    "shape [2**62, 0]": lambda: entry(shape=[1 << 62, 0], data_offsets=[0, 0]),
    "shape [2**32, 2**32]": lambda: entry(shape=[1 << 32, 1 << 32]),
    "shape [-2]": lambda: entry(shape=[-2]),
    "shape [2.0]": lambda: entry(shape=[2.0]),
    "shape of 10,000 axes": lambda: entry(shape=[1] * 10_000, data_offsets=[0, 4]),
    "shape that is a text": lambda: entry(shape="2"),
    "overlapping tensors": lambda: safetensors(json.dumps({"a": ENTRY, "b": ENTRY}).encode()),
    "offsets behind the end": lambda: entry(data_offsets=[0, 1 << 40]),
    "offsets in reverse": lambda: entry(data_offsets=[8, 0]),
    "negative offsets": lambda: entry(data_offsets=[-8, 0]),
    "unknown type": lambda: entry(dtype="evil"),
    "type that is a list": lambda: entry(dtype=["F32"]),
    "entry that is a list": lambda: safetensors(b'{"a": []}'),
    "entry without offsets": lambda: safetensors(b'{"a": {"dtype": "F32", "shape": [2]}}'),
    "name with ..": lambda: entry("../../outside/notes"),
    "name with escapes": lambda: entry(ESCAPES),
    "empty name": lambda: entry(""),
    "name of 1 MB": lambda: entry("x" * (1 << 20)),
    "name twice": lambda: safetensors(b'{"a": %s, "a": %s}' % (2 * (json.dumps(ENTRY).encode(),))),
    "200,000 tensors": lambda: several(200_000),
    "metadata of a list": lambda: safetensors(b'{"__metadata__": [1], "a": %s}' % json.dumps(ENTRY).encode()),
    "no bytes": lambda: b"",
    "7 bytes": lambda: b"1234567",
}


OF_ADAPTERS = ("header of 200 MB", "deep header", "shape [2**62, 0]", "entry that is a list", "name with escapes", "name with ..")


def packed(*parts: bytes) -> bytes:
    """Return msgpack of a map with one entry of each two parts."""
    return bytes([0x80 | len(parts) // 2]) + b"".join(parts)


def text(value: bytes) -> bytes:
    """Return msgpack of a short text."""
    return bytes([0xA0 | len(value)]) + value


def array(shape: bytes, dtype: bytes, data: bytes) -> bytes:
    """Return msgpack of an array as flax writes it; `shape` is msgpack too."""
    content = bytes([0x93]) + shape + text(dtype) + b"\xc6" + len(data).to_bytes(4, "big") + data
    return b"\xc9" + len(content).to_bytes(4, "big") + b"\x01" + content


MSGPACK: dict[str, bytes] = {
    "deep maps": b"\x81\xa1a" * 100_000,
    "map of 2**32 - 1 entries": b"\xdf\xff\xff\xff\xff",
    "text of 4 GB": b"\x81\xdb\xff\xff\xff\xff",
    "array of 4 GB": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "shape [2**63, 0]": packed(text(b"a"), array(b"\x92\xcf\x80" + bytes(7) + b"\x00", b"float32", b"")),
    "shape [2**32, 2**32]": packed(text(b"a"), array(b"\x92" + 2 * (b"\xcf" + (1 << 32).to_bytes(8, "big")), b"float32", b"")),
    "type object": packed(text(b"a"), array(b"\x91\x01", b"object", bytes(8))),
    "type with a path": packed(text(b"a"), array(b"\x91\x01", b"../evil", bytes(8))),
    "name with escapes": packed(text(ESCAPES.encode()[:30]), array(b"\x91\x01", b"float32", bytes(4))),
    "name with ..": packed(text(b"../../outside"), array(b"\x91\x01", b"float32", bytes(4))),
    "unknown extension": b"\x81\xa1a\xd4\x7fx",
    "a list": b"\x91\x01",
}


def write_weights(content: Callable[[], bytes], name: str = "model.safetensors") -> Callable[[Place], None]:
    """Return a function that replaces the weights."""

    def write(place: Place) -> None:
        (place.folder / "model.safetensors").unlink(missing_ok=True)
        replace(place.folder / name, content())

    return write


FLAX, INDEX = "flax_model.msgpack", "model.safetensors.index.json"
INDICES: dict[str, Any] = {
    "no files": {},
    "a list": [],
    "a number": {"wte.weight": 3},
    "a file that is absent": {"wte.weight": "model-00001.safetensors"},
    "a name with a line end": {"wte.weight": "a\n.safetensors"},
    "a pickle": {"wte.weight": "pytorch_model.bin"},
    "200,000 files": {f"t{number}": f"model-{number}.safetensors" for number in range(200_000)},
}


def _index(files: Any) -> bytes:
    return json.dumps({"weight_map": files}).encode()


CASES = [
    *(Case(f"safetensors: {name}", "formats", "model", write_weights(content), READ_WEIGHTS) for name, content in FILES.items()),
    *(
        Case(f"adapter: {name}", "formats", "adapter", write_weights(content, "adapter_model.safetensors"))
        for name, content in FILES.items()
        if name in OF_ADAPTERS
    ),
    *(
        Case(f"msgpack: {name}", "formats", "model", write_weights(functools.partial(bytes, raw), FLAX), READ_WEIGHTS)
        for name, raw in MSGPACK.items()
    ),
    *(
        Case(f"index: {name}", "formats", "model", write_weights(functools.partial(_index, files), INDEX), READ_WEIGHTS)
        for name, files in INDICES.items()
    ),
]
