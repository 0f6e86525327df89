"""Folders of safetensors files as named arrays, read strictly and written completely or not at all.

The format: https://github.com/huggingface/safetensors. Files are not trusted: sizes are limited before anything is parsed, and
only the header is read until the values of a tensor are used. JAX is not imported, so that a command line reads them at once.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import safetensors
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from zoo.errors import BadInput
from zoo.fault_points import fault_point
from zoo.file_access import open_regular
from zoo.hf.config_json import parse_json, read_json
from zoo.sha256_and_fsync import fsync

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_HEADER = 25 << 20
LARGEST_INDEX = 64 << 20
MOST_TENSORS = 100_000
MOST_AXES, MOST_ELEMENTS = 8, 1 << 48
"""Largest number of axes of a tensor, and product of its sizes other than 0: NumPy fails above 64, and at 2^63 bytes even if
another size is 0. Published tensors have up to 4 axes."""
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors")
EXECUTABLE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.msgpack", "*.h5", "*.npz", "*.gguf", "*.onnx")

DTYPES: dict[str, Any] = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_},
}
QUANTIZED = ("F4", "F6", "F8")
"""Beginnings of the names of types that only quantized weights have."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Location of a tensor in a file, with its shape and dtype."""

    file: Path
    start: int
    """Offset of its first byte in the file."""
    shape: tuple[int, ...]
    dtype: str
    """Name of the dtype in safetensors: F32, BF16, I64, ..."""

    @property
    def stored_name(self) -> str:
        """Name of the tensor in its file, if that has other names than torch."""
        return ""

    def view(self) -> np.ndarray:
        """Return the tensor as a memory map: only the slices that are used are read from the file."""
        dtype = np.dtype(DTYPES[self.dtype])
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, dtype)
        with open_regular(self.file) as stream:
            return np.asarray(np.memmap(stream, dtype, "r", offset=self.start, shape=self.shape))


Shard = TypeVar("Shard", bound=Tensor)


def read_safetensors(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a folder by name, from model.safetensors or the shards in model.safetensors.index.json.

    Raises:
        BadInput: there are none, or a file is damaged, malicious or does not match the index; the message names it.
    """
    if (folder / INDEX).exists():
        if (folder / SINGLE).exists():
            raise BadInput(f"{folder}: contains both {SINGLE} and {INDEX}; remove the one that does not belong to the model")
        return read_shards(folder, INDEX, SHARD, read_header)
    if (folder / SINGLE).exists():
        return read_header(folder / SINGLE)
    others = sorted(file.name for pattern in EXECUTABLE for file in folder.glob(pattern))
    if others:
        raise BadInput(
            f"{folder / others[0]}: only safetensors and flax_model.msgpack are read (pickled weights can run code, other "
            f"formats are not supported); convert it to {SINGLE} with the program that wrote it"
        )
    raise BadInput(f"{folder}: contains neither {SINGLE} nor {INDEX}; copy the weights of the model there")


def read_header(file: Path) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file.

    Raises:
        BadInput: the file is damaged, or exceeds a limit: 25 MiB of header, 100,000 tensors, names of 1 to 256 characters.
    """
    try:
        fault_point("weights.read")
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise BadInput(f"{file}: damaged: a header of {length:,} bytes in a file of {size:,}; download it again")
            if length > LARGEST_HEADER:
                raise BadInput(f"{file}: a header of {length:,} bytes; at most {LARGEST_HEADER:,} are read")
            entries = parse_json(stream.read(length), file)
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None
    entries.pop("__metadata__", None)
    if len(entries) > MOST_TENSORS:
        raise BadInput(f"{file}: {len(entries):,} tensors; at most {MOST_TENSORS:,} are read")
    for name in entries:
        if not NAME.fullmatch(name):
            raise BadInput(
                f"{file}: a tensor is called {json.dumps(name)[:80]}; names must be 1 to 256 letters, digits, '_', '.', '-'"
            )
    # The reader of the safetensors library checks the layout: types, shapes, no gaps, no overlaps, nothing before or after.
    try:
        with safetensors.safe_open(file, framework="numpy"):
            pass
    except Exception as error:
        raise BadInput(f"{file}: damaged safetensors ({' '.join(str(error).split())[:120]}); download it again") from None
    tensors = {}
    for name, entry in entries.items():
        if (dtype := entry["dtype"]) not in DTYPES:
            quantized = ", so these are quantized weights, which are not read; use the original weights"
            fix = quantized if dtype.startswith(QUANTIZED) else f"; supported are {', '.join(DTYPES)}"
            raise BadInput(f"{file}: {name} has the type {dtype}{fix}")
        check_shape(file, name, entry["shape"])
        tensors[name] = Tensor(file, 8 + length + entry["data_offsets"][0], tuple(entry["shape"]), entry["dtype"])
    return tensors


def check_shape(file: Path, name: str, shape: Sequence[int]) -> None:
    """Refuse a shape that no array can have, although it may have no elements.

    Raises:
        BadInput: it has more than `MOST_AXES` axes, or more than `MOST_ELEMENTS` elements without the axes of size 0.
    """
    if len(shape) > MOST_AXES or math.prod(filter(None, shape)) > MOST_ELEMENTS:
        raise BadInput(
            f"{file}: damaged: {name} has the shape {str(list(shape))[:60]}, which no array can have; download it again"
        )


def read_shards(
    folder: Path, index_name: str, shard: re.Pattern[str], read_file: Callable[[Path], dict[str, Shard]]
) -> dict[str, Shard]:
    """Return every tensor of the files that an index lists, each read by `read_file`; `shard` is the pattern of their names.

    Raises:
        BadInput: the index is damaged, lists a file elsewhere or of another format, or does not match its files.
    """
    index = folder / index_name
    files = read_json(index, LARGEST_INDEX).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise BadInput(f'{index}: no object "weight_map" of tensor names and files')
    for name, file in files.items():
        if not isinstance(file, str) or not shard.fullmatch(file):
            suffix = shard.pattern.rpartition("\\")[2]
            raise BadInput(
                f"{index}: {json.dumps(name)[:60]} is in {json.dumps(file)[:60]}; only {suffix} files beside it are read"
            )
    tensors: dict[str, Shard] = {}
    for file in sorted(set(files.values())):
        stored = read_file(folder / file)
        listed = {name for name, shard_file in files.items() if shard_file == file}
        if different := sorted(listed ^ stored.keys()):
            verb = "lacks" if different[0] in listed else "also contains"
            raise BadInput(f"{folder / file}: {verb} {different[0]}, unlike {index_name}; download both again")
        tensors |= stored
    return tensors


@contextlib.contextmanager
def new_folder(target: Path):
    """Yield a temporary folder to fill, which is synced to disk and renamed to `target` at the end of the block.

    After an error it is removed, together with the parent folders that were created for it.

    Raises:
        BadInput: `target` exists, or it cannot be written.
    """
    if os.path.lexists(target):
        raise BadInput(f"{target}: already exists; choose another name, or remove it")
    partial, new = None, [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial-"))
        partial.chmod(0o777 & ~_umask())
        yield partial
        for file in (*partial.rglob("*"), partial):
            fsync(file)
        # On POSIX a rename replaces only an empty folder, so files that were written there meanwhile are not lost.
        fault_point("weights.rename")
        partial.rename(target)
        fsync(target.parent)
    except OSError as error:
        raise BadInput(f"{target}: cannot be written ({error.strerror or error}); make room or choose another folder") from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        for folder in new:
            # A folder that is not empty stays.
            with contextlib.suppress(OSError):
                folder.rmdir()


def write_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    fetch: Callable[[str], np.ndarray],
    *,
    name: str = "model",
    largest: int = 5_000_000_000,
    dtype: Any = np.float32,
) -> None:
    """Write tensors of a dtype into a folder: one file `name`.safetensors, or shards of at most `largest` bytes and their index.

    `fetch` returns a tensor by its name; the tensors of one shard are in memory at a time.

    Raises:
        OSError: the disk is full or not writable.
    """
    split = split_state_dict_into_shards_factory(
        dict(shapes),
        get_storage_size=lambda shape: np.dtype(dtype).itemsize * math.prod(shape),
        filename_pattern=name + "{suffix}.safetensors",
        max_shard_size=largest,
    )
    for file, names in split.filename_to_tensors.items():
        fault_point("weights.write")
        try:
            save_file({name: np.ascontiguousarray(fetch(name)) for name in names}, folder / file, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:
            raise OSError(" ".join(str(error).split())) from None
        # The library creates files that only their owner can read; give them the usual permissions.
        os.chmod(folder / file, (folder / file).parent.stat().st_mode & 0o666)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _umask() -> int:
    """Return the umask of this process. The only way to read it is to set it."""
    os.umask(mask := os.umask(0o077))
    return mask
