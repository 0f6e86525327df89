"""Weights that the Flax classes of `transformers` 4 wrote, as named arrays: flax_model.msgpack or its shards, read strictly.

`flax.serialization` wrote these files: a msgpack map of maps whose leaves are arrays, each a msgpack extension of (shape, name of
the dtype, bytes). Files are not trusted. As with safetensors, only headers are read until the values of an array are used:
`flax.serialization.msgpack_restore` has every array in memory at once, 1.4 GB for a file of 0.6 GB, and takes the last of two
arrays of one name.
"""

import dataclasses
import math
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import BadInput
from zoo.file_access import open_regular
from zoo.hf import safetensors_dir
from zoo.hf.safetensors_dir import DTYPES, MOST_AXES, MOST_TENSORS, NAME, Tensor, check_shape

SINGLE = "flax_model.msgpack"
INDEX = "flax_model.msgpack.index.json"
SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.msgpack")
DEEPEST = 32
"""Largest number of maps inside each other. The deepest tree of a family here has 8."""
LONGEST_PATH = 256
"""Largest number of characters in a path."""

TORCH_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
"""Maps the last part of a name in Flax to that in torch. Other parts are the same."""
TRANSPOSED = "kernel"
"""Last part of the names of matrices with the axes of torch in reverse order. Flax has [in, out] for torch's Linear, [out, in].
GPT-2 has it the other way around in both: [out, in] for torch's Conv1D, [in, out]."""

CHUNKED = "__msgpack_chunked_array__"
"""Key of a map that stands for an array of more than 1 GiB, which is stored in chunks."""
NDARRAY, COMPLEX, SCALAR = 1, 2, 3
"""Extensions that `flax.serialization` writes."""

KINDS: dict[str, tuple[range, dict[int, int]]] = {
    "map": (range(0x80, 0x90), {0xDE: 2, 0xDF: 4}),
    "list": (range(0x90, 0xA0), {0xDC: 2, 0xDD: 4}),
    "text": (range(0xA0, 0xC0), {0xD9: 1, 0xDA: 2, 0xDB: 4}),
    "bytes": (range(0), {0xC4: 1, 0xC5: 2, 0xC6: 4}),
    "number": (range(0x80), {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}),
    "extension": (range(0), {0xC7: 1, 0xC8: 2, 0xC9: 4}),
}
"""Maps a kind of value to its first bytes: those that contain its length (or the number), counted from the first of them, and
those with the number of bytes, big-endian, that follow and contain it (msgpack's specification, "formats")."""
FIXED = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
"""Maps the first byte of a short extension to its length."""
TRUE = 0xC3
DTYPE_NAMES = {np.dtype(dtype).name: name for name, dtype in DTYPES.items()}
"""Maps the name of a dtype in NumPy, as flax stores it, to that in safetensors."""


@dataclasses.dataclass(frozen=True)
class FlaxTensor(Tensor):
    """Location of an array in a msgpack file, with the shape that its published tensor has in torch."""

    path: str
    """Its name in the file."""
    chunks: tuple[tuple[int, int], ...]
    """Offset and number of elements of each part of the array."""
    transposed: bool

    @property
    def stored_name(self) -> str:
        return f"{self.path}, transposed" if self.transposed else self.path

    def view(self) -> np.ndarray:
        """Return the array as a memory map; an array of several chunks is copied."""
        dtype = np.dtype(DTYPES[self.dtype])
        with open_regular(self.file) as stream:
            parts = [np.memmap(stream, dtype, "r", offset=start, shape=(size,)) for start, size in self.chunks if size]
        flat = np.concatenate(parts) if len(parts) > 1 else np.asarray(parts[0]) if parts else np.zeros(0, dtype)
        return flat.reshape(self.shape[::-1]).T if self.transposed else flat.reshape(self.shape)


def read_msgpack(folder: Path) -> dict[str, Tensor]:
    """Return every array of a folder by the name of its tensor in torch.

    Raises:
        BadInput: a file is damaged, hostile, of another format, or does not match the index; or it has an array that has no name
            in torch. The message names it.
    """
    if not (folder / INDEX).exists():
        arrays = read_arrays(folder / SINGLE)
    elif (folder / SINGLE).exists():
        raise BadInput(f"{folder}: contains both {SINGLE} and {INDEX}; remove the one that does not belong to the model")
    else:
        arrays = safetensors_dir.read_shards(folder, INDEX, SHARD, read_arrays)
    tensors: dict[str, Tensor] = {}
    for path, array in arrays.items():
        *parents, last = path.split("/")
        name = ".".join([*parents, TORCH_NAMES.get(last, last)])
        if name in tensors:
            raise BadInput(f"{array.file}: {tensors[name].stored_name} and {path} are both {name} in torch; remove one of them")
        transposed = last == TRANSPOSED
        shape = array.shape[::-1] if transposed else array.shape
        tensors[name] = FlaxTensor(array.file, array.start, shape, array.dtype, path, array.chunks, transposed)
    return tensors


@dataclasses.dataclass(frozen=True)
class Array(Tensor):
    """Location of an array in a msgpack file, with its shape there."""

    chunks: tuple[tuple[int, int], ...]
    """Offset and number of elements of each part of the array."""


def read_arrays(file: Path) -> dict[str, Array]:
    """Return the arrays of one msgpack file by their paths, "encoder/layer/0/kernel".

    Raises:
        BadInput: the file is damaged, of another format, has a leaf that is not an array, or exceeds a limit: 100,000 arrays,
            paths of 1 to 256 characters.
    """
    try:
        with open_regular(file) as stream:
            if not os.fstat(stream.fileno()).st_size:
                raise BadInput(f"{file}: empty; download it again")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return dict(_leaves(file, _Reader(file, data).tree(), ""))
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None


def _leaves(file: Path, tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Array]]:
    """Yield (path, array) of every leaf."""
    for name, value in tree.items():
        path = prefix + name
        if isinstance(value, dict) and CHUNKED not in value:
            yield from _leaves(file, value, path + "/")
        elif isinstance(value, dict):
            yield path, _join_chunks(file, path, value)
        elif isinstance(value, Array):
            yield path, value
        else:
            raise BadInput(f"{file}: {path} is {value}, not an array; weights have nothing else")


def _join_chunks(file: Path, path: str, value: dict[str, Any]) -> Array:
    """Return an array that is stored in chunks: {"shape": {"0": size, ...}, "chunks": {"0": array, ...}}."""
    shape, chunks = (_numbered(value.get(part)) for part in ("shape", "chunks"))
    arrays = bool(chunks) and all(isinstance(chunk, Array) and len(chunk.shape) == 1 for chunk in chunks)
    sizes = bool(shape) and all(type(size) is int for size in shape)
    if not arrays or not sizes or len({chunk.dtype for chunk in chunks}) > 1:
        raise BadInput(f"{file}: damaged msgpack: the chunks of {path} are not those of an array; download it again")
    if (elements := sum(chunk.shape[0] for chunk in chunks)) != math.prod(shape):
        raise BadInput(f"{file}: damaged msgpack: {path} has {elements:,} elements, unlike its shape {shape}; download it again")
    check_shape(file, path, shape)
    return Array(file, chunks[0].start, tuple(shape), chunks[0].dtype, tuple(part for chunk in chunks for part in chunk.chunks))


def _numbered(entries: Any) -> list[Any]:
    """Return the values of a map whose names are 0, 1, 2, ...; [] if it is anything else."""
    if not isinstance(entries, dict) or list(entries) != [str(number) for number in range(len(entries))]:
        return []
    return list(entries.values())


class _Reader:
    """A position in a msgpack file, from which headers are read one after the other."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file, self.data, self.position, self.entries = file, data, 0, 0

    def tree(self) -> dict[str, Any]:
        """Return the map that the file consists of; its leaves are arrays."""
        head = self.data[:2]
        # A pickle since protocol 2 begins with the byte of an empty map.
        if head[0] == 0x80 and len(self.data) > 1:
            raise BadInput(f"{self.file}: not msgpack: begins like a pickle, which can run code and is never read")
        if head == b"PK":
            raise BadInput(
                f"{self.file}: not msgpack: a zip archive, as torch.save writes; weights in torch's format are not read"
            )
        if self.kind() != "map":
            raise BadInput(f"{self.file}: not msgpack with a map of arrays; `save_pretrained` of a Flax class writes one")
        tree = self.value("", 0)
        if more := len(self.data) - self.position:
            raise self.damaged(f"{more:,} bytes after its end")
        return tree

    def value(self, path: str, depth: int) -> Any:
        """Return the value at this position: a map, an array, True, a number, or the description of anything else."""
        if self.kind() == "map":
            return self.map(path, depth + 1)
        if self.kind() == "number":
            return self.length("number")
        if self.kind() == "extension":
            return self.extension(path)
        tag = self.take(1)[0]
        if tag == TRUE:
            return True
        raise BadInput(
            f"{self.file}: {path or 'it'} is neither a map nor an array (msgpack type 0x{tag:02x}); weights have no other"
        )

    def map(self, path: str, depth: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        if depth > DEEPEST:
            raise BadInput(f"{self.file}: more than {DEEPEST} maps inside each other at {path[:60]}; weights have fewer")
        for _ in range(self.length("map", f"a key of {path}")):
            self.entries += 1
            if self.entries > 2 * MOST_TENSORS:
                raise BadInput(f"{self.file}: more than {2 * MOST_TENSORS:,} names; at most {MOST_TENSORS:,} tensors are read")
            name = self.take(self.length("text", f"a name in {path or 'its first map'}")).decode(errors="replace")
            inner = f"{path}/{name}" if path else name
            if not NAME.fullmatch(name) or "." in name or len(inner) > LONGEST_PATH:
                raise BadInput(f"{self.file}: a tensor is called {inner[:80]!r}; names must be letters, digits, '_' and '-'")
            if name in entries:
                raise BadInput(f"{self.file}: {inner} comes twice; remove one of them")
            entries[name] = self.value(inner, depth)
        return entries

    def extension(self, path: str) -> Array:
        tag = self.data[self.position]
        if tag in FIXED:
            self.position, size = self.position + 1, FIXED[tag]
        else:
            size = self.length("extension")
        code = self.take(1)[0]
        if code == COMPLEX:
            raise BadInput(f"{self.file}: {path} is a complex number; weights are real arrays")
        if code not in (NDARRAY, SCALAR):
            raise BadInput(f"{self.file}: {path} has msgpack's extension {code}, which flax does not write")
        end = self.position + size
        if self.length("list", path) != 3:
            raise self.damaged(f"{path} is not an array")
        if (axes := self.length("list", path)) > MOST_AXES:
            raise self.damaged(f"{path} has {axes:,} axes")
        shape = tuple(self.length("number", path) for _ in range(axes))
        name = self.take(self.length("text", path)).decode(errors="replace")
        if name not in DTYPE_NAMES:
            raise BadInput(f"{self.file}: {path} has the type {name[:40]}; supported are {', '.join(DTYPE_NAMES)}")
        size, dtype = self.length("bytes", path), DTYPE_NAMES[name]
        count = math.prod(shape)
        if self.position + size != end or size != count * np.dtype(DTYPES[dtype]).itemsize:
            raise self.damaged(f"{path} has {size:,} bytes, unlike its shape {list(shape)} of {name}")
        if end > len(self.data):
            raise self.damaged(f"it ends within {path}")
        check_shape(self.file, path, shape)
        start, self.position = self.position, end
        return Array(self.file, start, shape, dtype, ((start, count),))

    def kind(self) -> str:
        """Return the kind of the value at this position, a key of `KINDS`; "" for any other."""
        tag = self.data[self.position] if self.position < len(self.data) else None
        if tag in FIXED:
            return "extension"
        return next((kind for kind, (short, long) in KINDS.items() if tag in short or tag in long), "")

    def length(self, kind: str, where: str = "") -> int:
        """Read the header of a value of a kind; return its length, or the number itself."""
        short, long = KINDS[kind]
        tag = self.take(1)[0]
        if tag not in short and tag not in long:
            raise self.damaged(f"{where or 'a value'} is not a {kind}")
        return tag - short[0] if tag in short else int.from_bytes(self.take(long[tag]), "big")

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if self.position + count > len(self.data):
            raise self.damaged(f"it ends at {len(self.data):,} bytes, within a value")
        self.position += count
        return self.data[self.position - count : self.position]

    def damaged(self, why: str) -> BadInput:
        return BadInput(f"{self.file}: damaged msgpack: {why}; download it again")
