"""A folder of safetensors as named arrays, read strictly and written whole or not at all.

The format: https://github.com/huggingface/safetensors. Files come from strangers, so sizes are capped before anything is parsed,
and nothing but the header is read until a tensor is asked for.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from zoo.errors import BadInput
from zoo.hf.config_json import parse_json, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_HEADER = 25 << 20
LARGEST_INDEX = 64 << 20
MOST_TENSORS = 100_000
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors")
EXECUTABLE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.msgpack", "*.h5", "*.npz")

DTYPES: dict[str, Any] = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_},
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies."""

    file: Path
    start: int
    """Its first byte in the file."""
    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it: F32, BF16, I64."""

    def view(self) -> np.ndarray:
        """The tensor, mapped: reading it reads the file, slicing it reads the slice."""
        dtype = np.dtype(DTYPES[self.dtype])
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, dtype)
        return np.asarray(np.memmap(self.file, dtype, "r", offset=self.start, shape=self.shape))


def read(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder by its name: of model.safetensors, or of the shards that model.safetensors.index.json lists.

    Raises:
        BadInput: there are none, or a file is damaged, hostile or not what the index says; it is named.
    """
    if (folder / INDEX).exists():
        if (folder / SINGLE).exists():
            raise BadInput(f"{folder}: holds both {SINGLE} and {INDEX}; remove the one that does not belong to the model")
        return _sharded(folder)
    if (folder / SINGLE).exists():
        return header(folder / SINGLE)
    others = sorted(file.name for pattern in EXECUTABLE for file in folder.glob(pattern))
    if others:
        raise BadInput(
            f"{folder / others[0]}: only safetensors are read (pickled weights can run code, other formats are not supported); "
            f"convert it to {SINGLE} where it came from"
        )
    raise BadInput(f"{folder}: holds no {SINGLE} and no {INDEX}")


def header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    Raises:
        BadInput: the file is damaged, or passes a cap: 25 MiB of header, 100,000 tensors, names of 1 to 256 plain characters.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise BadInput(f"{file}: damaged: a header of {length:,} bytes in a file of {size:,}; fetch it again")
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
                f"{file}: a tensor is called {json.dumps(name)[:80]}; names are 1 to 256 letters, digits, '_', '.', '-'"
            )
    # The format's own reader judges the layout: types, shapes, no holes, no overlaps, nothing before or after.
    try:
        with safetensors.safe_open(file, framework="numpy"):
            pass
    except Exception as error:
        raise BadInput(f"{file}: damaged safetensors ({' '.join(str(error).split())[:120]}); fetch it again") from None
    tensors = {}
    for name, entry in entries.items():
        if entry["dtype"] not in DTYPES:
            raise BadInput(f"{file}: {name} has the type {entry['dtype']}; {', '.join(DTYPES)} are read")
        tensors[name] = Tensor(file, 8 + length + entry["data_offsets"][0], tuple(entry["shape"]), entry["dtype"])
    return tensors


def _sharded(folder: Path) -> dict[str, Tensor]:
    index = folder / INDEX
    files = read_json(index, LARGEST_INDEX).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise BadInput(f'{index}: no object "weight_map" of tensor names and files')
    for name, file in files.items():
        if not isinstance(file, str) or not SHARD.fullmatch(file):
            raise BadInput(
                f"{index}: {json.dumps(name)[:60]} lies in {json.dumps(file)[:60]}; only .safetensors files beside it are read"
            )
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        found = header(folder / file)
        listed = {name for name, where in files.items() if where == file}
        if astray := sorted(listed ^ found.keys()):
            lacks = astray[0] in listed
            raise BadInput(
                f"{folder / file}: {'lacks' if lacks else 'also holds'} {astray[0]}, against {INDEX}; fetch both again"
            )
        tensors |= found
    return tensors


@contextlib.contextmanager
def new_folder(target: Path):
    """A folder to fill, which gets its name `target` at the end of the block, all of it on the disk.

    After an error it is gone, and so are the folders around it that were made for it.

    Raises:
        BadInput: something of that name exists, or it cannot be written.
    """
    if os.path.lexists(target):
        raise BadInput(f"{target}: already exists; choose another name, or remove it")
    partial, new = None, [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial-"))
        partial.chmod(0o777 & ~_umask())
        yield partial
        for file in (*partial.iterdir(), partial):
            _sync(file)
        # On POSIX a folder may only take the name of an empty one: nothing that came meanwhile is lost.
        partial.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise BadInput(f"{target}: cannot be written ({error.strerror or error}); make room or choose another folder") from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        for folder in new:
            # One that holds something stays.
            with contextlib.suppress(OSError):
                folder.rmdir()


def write(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], fetch: Callable[[str], np.ndarray], *, largest: int = 5_000_000_000
) -> None:
    """Write float32 tensors into a folder: one file, or shards of at most `largest` bytes and their index.

    `fetch` gives a tensor by its name; one shard's are in memory at a time.

    Raises:
        OSError: the disk is full or not writable.
    """
    plan = split_state_dict_into_shards_factory(
        dict(shapes),
        get_storage_size=lambda shape: 4 * math.prod(shape),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=largest,
    )
    for file, names in plan.filename_to_tensors.items():
        try:
            save_file({name: np.ascontiguousarray(fetch(name)) for name in names}, folder / file, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:
            raise OSError(" ".join(str(error).split())) from None
        # The library's files are for their owner alone; these are to be shared like any other.
        os.chmod(folder / file, (folder / file).parent.stat().st_mode & 0o666)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _umask() -> int:
    """Rights that this process keeps from others. There is no way to ask but to set it."""
    os.umask(mask := os.umask(0o077))
    return mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
